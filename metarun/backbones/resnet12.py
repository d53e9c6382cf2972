"""The ResNet-12 of few-shot learning (Oreshkin et al. 2018) as MetaOptNet made it common (Lee et al. 2019, arXiv:1904.03758)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.base import Backbone, require
from metarun.nn.functional import max_pool2d
from metarun.nn.layers import BatchNorm2d, Conv2d, fold, unfold

SLOPE = 0.1


class ResNet12(Backbone):
    """One residual block of three convolutions per entry of `widths`, each followed by 2x2 max-pooling.

    features: `flatten` (h·w·C numbers: MetaOptNet, 16,000 of an image of 84 pixels) or `mean` over the image (FEAT and most others).
    drop: share of the numbers that is dropped after every block in training, by DropBlock in squares of `block_size` after the last
    two blocks, one by one after the others. ramp: passes over which DropBlock's share rises to `drop`, see `DropBlock`. Raises
    UserError where the image has no pixel left, and for values that make no sense.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        widths: Sequence[int] = (64, 160, 320, 640),
        features: Literal["flatten", "mean"] = "flatten",
        drop: float = 0.1,
        block_size: int = 5,
        ramp: int = 40_000,
    ) -> None:
        super().__init__()
        require(len(widths) > 0 and min(widths) > 0, "widths", list(widths), "one number of filters above 0 per block")
        require(0 <= drop < 1, "drop", drop, "a number from 0 to below 1")
        require(block_size > 0, "block_size", block_size, "a number of pixels above 0")
        require(ramp > 0, "ramp", ramp, "a number of passes above 0")
        size, plain = image_size // 2 ** len(widths), len(widths) - 2
        require(size > 0, "image_size", image_size, f"at least {2 ** len(widths)} pixels for {len(widths)} blocks")
        self.mean, self.in_channels, self.out_channels = features == "mean", in_channels, widths[-1]
        self.out_features = widths[-1] * (1 if self.mean else size * size)
        self.blocks = nn.ModuleList(Block(i, o) for i, o in pairwise((in_channels, *widths)))
        self.drops = nn.ModuleList(
            nn.Dropout(drop) if i < plain else DropBlock(width, drop, block_size, ramp) for i, width in enumerate(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        tasks, x = x.shape[0], fold(x)
        for block, drop in zip(self.blocks, self.drops, strict=True):
            x = drop(block(x))
        return unfold(x.mean((2, 3), keepdim=True) if self.mean else x, tasks)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convolution(i, outputs, 3) for i in (inputs, outputs, outputs))
        self.norms = nn.ModuleList(BatchNorm2d(outputs) for _ in range(3))
        self.shortcut = nn.Sequential(convolution(inputs, outputs, 1), BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.shortcut(x)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(F.leaky_relu(x, SLOPE) if i else x))
        return F.leaky_relu(max_pool2d(x + residual, 2, False), SLOPE)  # pooled first: the same with a quarter of the work


class DropBlock(nn.Module):
    """Drops squares of an image's channel in training (Ghiasi et al. 2018) and scales up what is left of a task: (n, T·C, H, W) alike.

    A pixel is the corner of a dropped square with gamma = rate / block² · H² / (H - block + 1)², as in MetaOptNet's code, and the rate
    rises from 0 to `rate` over `ramp` passes in training. That code makes two for every batch of 8 episodes, but counts them on the
    copies of `DataParallel`, which forget it, so that on several devices it hardly drops a square; a metric learner of metarun makes one
    for each task. Passes whose buffers are copies, as those of gradient learners, are not counted. Where an image is smaller than a
    block, as stage 3's is from 28 pixels, the square is the image.
    """

    def __init__(self, channels: int, rate: float, block_size: int, ramp: int) -> None:
        super().__init__()
        self.channels, self.rate, self.block_size, self.ramp = channels, rate, block_size, ramp
        self.passes: Tensor
        self.register_buffer("passes", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        self.passes.add_(1)
        kept = self.mask(x).unflatten(1, (-1, self.channels))
        left = kept.mean((0, 2, 3, 4), keepdim=True).clamp(min=1 / kept.numel())
        return x * (kept / left).flatten(1, 2).to(x.dtype)

    def mask(self, x: Tensor) -> Tensor:
        """Ones and zeros like x, in float32."""
        (n, channels, size, _), block = x.shape, min(self.block_size, x.shape[-1])
        corners = size - block + 1
        rate = self.rate * (self.passes.amax() / self.ramp).clamp(max=1)  # amax: a copy per task is all one number
        gamma = rate / block**2 * size**2 / corners**2
        drawn = torch.rand(n, corners, corners, channels, device=x.device).permute(0, 3, 1, 2) < gamma  # channels last
        return 1 - F.max_pool2d(F.pad(drawn.float(), [block - 1] * 4), block, 1)


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> Conv2d:
    """Without bias, which batch norm would take away, from a normal distribution of variance 2 / (size²·outputs)."""
    conv = Conv2d(inputs, outputs, size, stride, size // 2)
    conv.bias = None
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv

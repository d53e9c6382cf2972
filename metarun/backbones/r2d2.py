"""The network of R2-D2 (Bertinetto et al. 2019, section 4.2, as in the paper's code), whose features come from two depths."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.base import Backbone, require
from metarun.nn.functional import max_pool2d
from metarun.nn.layers import BatchNorm2d, Conv2d, fold, unfold


class R2D2(Backbone):
    """Four blocks of convolution 3x3, batch norm, 2x2 max-pooling and LeakyReLU; the features are the third's beside the fourth's.

    last_stride: 1, where the fourth block's pooling moves by one pixel and the third's features pass such a pooling too (72,576
    features of an image of 84 pixels and 3,584 of one of 28, with the default widths), or 2, where the fourth block halves like the
    others and the third's features are as they leave it (MetaOptNet's code: 51,200 of 84 pixels). dropout: share of the numbers that
    is dropped after the third and after the fourth block in training (the paper: 0.1 each for miniImageNet, 0 for Omniglot). slope: of
    the LeakyReLU below zero. last_relu: false leaves out the fourth block's (MetaOptNet). Raises UserError where the image has no pixel
    left, and for values that make no sense.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        widths: Sequence[int] = (96, 192, 384, 512),
        last_stride: Literal[1, 2] = 1,
        dropout: Sequence[float] = (0.1, 0.1),
        slope: float = 0.1,
        last_relu: bool = True,
    ) -> None:
        super().__init__()
        require(len(widths) == 4 and min(widths) > 0, "widths", list(widths), "four numbers of filters above 0")
        require(len(dropout) == 2 and all(0 <= p < 1 for p in dropout), "dropout", list(dropout), "two numbers from 0 to below 1")
        require(0 <= slope <= 1, "slope", slope, "a number between 0 and 1")
        require(image_size >= 16, "image_size", image_size, "images of at least 16 pixels, which four blocks leave something of")
        self.in_channels, third = in_channels, image_size // 8
        sizes = (third - 1, third - 1) if last_stride == 1 else (third, third // 2)
        self.out_features = self.out_channels = sum(width * size**2 for width, size in zip(widths[2:], sizes, strict=True))
        self.last_stride, self.dropout = last_stride, tuple(dropout)
        strides, slopes = (2, 2, 2, last_stride), (slope, slope, slope, slope if last_relu else 1.0)
        pairs = pairwise((in_channels, *widths))
        self.blocks = nn.ModuleList(Block(i, o, s, a) for (i, o), s, a in zip(pairs, strides, slopes, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        tasks, x = x.shape[0], fold(x)
        for block in self.blocks[:3]:
            x = block(x)
        third = F.dropout(x, self.dropout[0], self.training)
        fourth = F.dropout(self.blocks[3](third), self.dropout[1], self.training)
        third = F.max_pool2d(third, 2, 1) if self.last_stride == 1 else third
        return torch.cat([unfold(third, tasks), unfold(fourth, tasks)], -1)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, slope: float) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, 3, padding=1)
        self.norm = BatchNorm2d(outputs)
        self.stride, self.slope = stride, slope

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = max_pool2d(x, 2, False) if self.stride == 2 else F.max_pool2d(x, 2, 1)
        return F.leaky_relu(x, self.slope)

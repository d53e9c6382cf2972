"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146), which few-shot papers use with depth 28 and factor 10."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.base import Backbone, require
from metarun.backbones.resnet12 import convolution
from metarun.nn.layers import BatchNorm2d, fold, unfold


class WideResNet(Backbone):
    """Three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `factor` filters; the features are the mean over the image.

    dropout: share of the numbers that is dropped between the two convolutions of a block in training. This is the network of the paper
    and of S2M2; SimpleShot's port has biases in its convolutions, steps by two in the second convolution of a block, and takes a
    stage's first shortcut before batch norm. Raises UserError for values that make no sense.
    """

    def __init__(self, in_channels: int, image_size: int, depth: int = 28, factor: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        require(depth >= 10 and depth % 6 == 4, "depth", depth, "10, 16, 22, 28, ...")
        require(factor > 0, "factor", factor, "a number above 0")
        require(0 <= dropout < 1, "dropout", dropout, "a number from 0 to below 1")
        require(image_size > 0, "image_size", image_size, "a number of pixels above 0")
        widths, blocks = (16, 16 * factor, 32 * factor, 64 * factor), []
        for stage, (inputs, outputs) in enumerate(pairwise(widths)):
            blocks.append(Block(inputs, outputs, 1 if stage == 0 else 2, dropout))
            blocks += [Block(outputs, outputs, 1, dropout) for _ in range((depth - 4) // 6 - 1)]
        self.stem, self.blocks, self.norm = convolution(in_channels, 16, 3), nn.Sequential(*blocks), BatchNorm2d(widths[-1])
        self.in_channels, self.out_features, self.out_channels = in_channels, widths[-1], widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        tasks = x.shape[0]
        x = F.relu(self.norm(self.blocks(self.stem(fold(x)))))
        return unfold(x.mean((2, 3), keepdim=True), tasks)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = BatchNorm2d(inputs), convolution(inputs, outputs, 3, stride)
        self.norm2, self.conv2 = BatchNorm2d(outputs), convolution(outputs, outputs, 3)
        self.shortcut = None if inputs == outputs else convolution(inputs, outputs, 1, stride)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        out = F.dropout(F.relu(self.norm2(self.conv1(active))), self.dropout, self.training)
        return self.conv2(out) + (x if self.shortcut is None else self.shortcut(active))

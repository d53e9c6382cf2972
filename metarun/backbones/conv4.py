"""The four-block convolutional network of few-shot learning (Vinyals et al. 2016), in the variants of its users."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.base import Backbone, require
from metarun.errors import UserError
from metarun.nn.functional import max_pool2d
from metarun.nn.layers import BatchNorm2d, Conv2d, Film, fold, unfold

INIT: dict[str, Callable[[Tensor], Tensor]] = {
    "xavier": nn.init.xavier_uniform_,
    "kaiming": nn.init.kaiming_uniform_,
    "fan_out": partial(nn.init.kaiming_normal_, mode="fan_out"),
}


class Conv4(Backbone):
    """Blocks of convolution 3x3, batch norm, ReLU and halving of the image; one block per entry of `widths`.

    downsample: `pool` (2x2 max-pooling: Vinyals, Snell, MAML on miniImageNet), `pool_ceil` (an odd last row is a pool of its own:
    Reptile on miniImageNet) or `stride` (the convolution steps by two: MAML and Reptile on Omniglot). pooled: how many of the blocks,
    from the first, halve the image (RelationNet: 2), or null for all. padding: of all convolutions, or one number per block
    (RelationNet: 0, 0, 1, 1). features: `flatten` (h·w·C numbers) or `mean` over the image (MAML on Omniglot). scale: batch norm has a
    factor beside its offset. slope: of the ReLU below zero (MAML++: 0.01). dropout: share of the numbers that is dropped after every
    block in training (Ravi's matching network: 0.1). init: `torch`'s default, or with zero biases `xavier` or `kaiming` uniform (MAML,
    CAVIA) or `fan_out`, normal of variance 2 / (9·filters) (RelationNet). film_block, context: a FiLM layer with that many inputs
    before the ReLU of this block, counted from 0 (CAVIA: 2, 100), or null. Raises UserError where the image has no pixel left, and for
    values that make no sense.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        widths: Sequence[int] = (64, 64, 64, 64),
        downsample: Literal["pool", "pool_ceil", "stride"] = "pool",
        features: Literal["flatten", "mean"] = "flatten",
        scale: bool = True,
        eps: float = 1e-5,
        slope: float = 0.0,
        init: Literal["torch", "xavier", "kaiming", "fan_out"] = "torch",
        film_block: int | None = None,
        context: int = 100,
        padding: Sequence[int] | int = 1,
        pooled: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require(len(widths) > 0 and min(widths) > 0, "widths", list(widths), "one number of filters above 0 per block")
        require(eps > 0, "eps", eps, "a number above 0")
        require(0 <= slope <= 1, "slope", slope, "a number between 0 and 1")
        require(0 <= dropout < 1, "dropout", dropout, "a number from 0 to below 1")
        if film_block is not None and not (0 <= film_block < len(widths) and context >= 1):
            raise UserError(
                f"backbone.film_block: {film_block} with backbone.context {context} is not allowed; "
                f"expected one of the {len(widths)} blocks, counted from 0, and a context above 0"
            )
        paddings = [padding] * len(widths) if isinstance(padding, int) else list(padding)
        fits = len(paddings) == len(widths) and min(paddings) >= 0
        require(fits, "padding", padding, f"a number of at least 0, or one for each of the {len(widths)} blocks")
        halved = len(widths) if pooled is None else pooled
        require(0 <= halved <= len(widths), "pooled", pooled, f"null or a number of blocks up to {len(widths)}")
        size = image_size
        for i, pad in enumerate(paddings):
            size = halve(size + 2 * pad - 2, downsample) if i < halved else size + 2 * pad - 2
            if size < 1:
                raise UserError(f"backbone.widths: {len(widths)} blocks leave nothing of a {image_size}x{image_size} image")
        self.mean, self.in_channels, self.out_channels = features == "mean", in_channels, widths[-1]
        self.out_features = widths[-1] * (1 if self.mean else size * size)
        films = [Film(context, width) if i == film_block else None for i, width in enumerate(widths)]
        blocks = [
            Block(inputs, outputs, downsample if i < halved else "none", scale, eps, slope, films[i], paddings[i], dropout)
            for i, (inputs, outputs) in enumerate(pairwise((in_channels, *widths)))
        ]
        self.blocks = nn.Sequential(*blocks)
        if init != "torch":
            for block in blocks:
                INIT[init](block.conv.weight)
                nn.init.zeros_(block.conv.bias)  # type: ignore[arg-type]
                if block.film is not None and init == "kaiming":
                    nn.init.kaiming_uniform_(block.film.linear.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        tasks = x.shape[0]
        x = self.blocks(fold(x))
        return unfold(x.mean((2, 3), keepdim=True) if self.mean else x, tasks)


def halve(size: int, downsample: str) -> int:
    return size // 2 if downsample == "pool" else (size + 1) // 2


class Block(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        downsample: str,
        scale: bool,
        eps: float,
        slope: float,
        film: Film | None,
        padding: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, 3, padding=padding, stride=2 if downsample == "stride" else 1)
        self.norm = BatchNorm2d(outputs, eps=eps, scale=scale)
        self.film, self.slope, self.dropout = film, slope, dropout
        self.pool, self.ceil = downsample in ("pool", "pool_ceil"), downsample == "pool_ceil"

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        # Pooling before the ReLU gives the same as after it, since both are monotone, with a quarter of the work.
        x = max_pool2d(x, 2, self.ceil) if self.pool else x
        x = x if self.film is None else self.film(x)
        x = F.leaky_relu(x, self.slope) if self.slope else F.relu(x)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

"""The four-block convolutional network of few-shot learning (Vinyals et al. 2016), in the variants of its users."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.base import Backbone
from metarun.errors import UserError
from metarun.functional import max_pool2d
from metarun.layers import BatchNorm2d, Conv2d, Film, fold, unfold


class Conv4(Backbone):
    """Blocks of convolution 3x3, batch norm, ReLU and halving of the image; one block per entry of `widths`.

    downsample: `pool` (2x2 max-pooling: Vinyals, Snell, MAML on miniImageNet), `pool_ceil` (an odd last row is a pool of its own:
    Reptile on miniImageNet) or `stride` (the convolution steps by two: MAML and Reptile on Omniglot). features: `flatten` (h·w·C
    numbers) or `mean` over the image (MAML on Omniglot). scale: batch norm has a factor beside its offset. slope: of the ReLU below
    zero (MAML++: 0.01). init: `torch`'s default, or `xavier` or `kaiming` uniform with zero biases (MAML, CAVIA). film_block,
    context: a FiLM layer with that many inputs before the ReLU of this block, counted from 0 (CAVIA: 2, 100), or null. Raises
    UserError where the image has no pixel left, and for values that make no sense.
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
        init: Literal["torch", "xavier", "kaiming"] = "torch",
        film_block: int | None = None,
        context: int = 100,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise UserError(f"backbone.widths: {list(widths)} is not allowed; expected one number of filters above 0 per block")
        if eps <= 0:
            raise UserError(f"backbone.eps: {eps} is not allowed; expected a number above 0")
        if not 0 <= slope <= 1:
            raise UserError(f"backbone.slope: {slope} is not allowed; expected a number between 0 and 1")
        if film_block is not None and not (0 <= film_block < len(widths) and context >= 1):
            raise UserError(
                f"backbone.film_block: {film_block} with backbone.context {context} is not allowed; "
                f"expected one of the {len(widths)} blocks, counted from 0, and a context above 0"
            )
        size = image_size
        for _ in widths:
            size = size // 2 if downsample == "pool" else (size + 1) // 2
        if size < 1:
            raise UserError(f"backbone.widths: {len(widths)} blocks leave nothing of a {image_size}x{image_size} image")
        self.mean, self.out_features = features == "mean", widths[-1] * (1 if features == "mean" else size * size)
        films = [Film(context, width) if i == film_block else None for i, width in enumerate(widths)]
        pairs = zip(pairwise((in_channels, *widths)), films, strict=True)
        blocks = [Block(i, o, downsample, scale, eps, slope, film) for (i, o), film in pairs]
        self.blocks = nn.Sequential(*blocks)
        if init != "torch":
            for block in blocks:
                (nn.init.xavier_uniform_ if init == "xavier" else nn.init.kaiming_uniform_)(block.conv.weight)
                nn.init.zeros_(block.conv.bias)  # type: ignore[arg-type]
                if block.film is not None and init == "kaiming":
                    nn.init.kaiming_uniform_(block.film.linear.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        tasks = x.shape[0]
        x = self.blocks(fold(x))
        return unfold(x.mean((2, 3), keepdim=True) if self.mean else x, tasks)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, downsample: str, scale: bool, eps: float, slope: float, film: Film | None) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, 3, padding=1, stride=2 if downsample == "stride" else 1)
        self.norm = BatchNorm2d(outputs, eps=eps, scale=scale)
        self.film, self.slope = film, slope
        self.pool, self.ceil = downsample != "stride", downsample == "pool_ceil"

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        # Pooling before the ReLU gives the same as after it, since both are monotone, with a quarter of the work.
        x = max_pool2d(x, 2, self.ceil) if self.pool else x
        x = x if self.film is None else self.film(x)
        return F.leaky_relu(x, self.slope) if self.slope else F.relu(x)

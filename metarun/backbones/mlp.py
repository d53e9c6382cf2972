"""The network without convolutions of MAML's Omniglot table (Finn et al. 2017, section 5.2; initialised as in the paper's code)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from metarun.backbones.base import Backbone, require
from metarun.nn.layers import BatchNorm2d, Linear, fold, unfold


class MLP(Backbone):
    """Layers of a linear map, batch norm and ReLU; one per entry of `widths`, the first on all pixels of an image.

    scale: batch norm has a factor beside its offset. Weights start from a normal distribution of standard deviation 0.01, cut at two of
    it, biases from zero. Raises UserError for values that make no sense.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        widths: Sequence[int] = (256, 128, 64, 64),
        scale: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        require(len(widths) > 0 and min(widths) > 0, "widths", list(widths), "one number of units above 0 per layer")
        require(eps > 0, "eps", eps, "a number above 0")
        self.in_channels, self.out_features, self.out_channels = in_channels, widths[-1], widths[-1]
        pixels = in_channels * image_size * image_size
        self.layers = nn.Sequential(*(Layer(i, o, scale, eps) for i, o in pairwise((pixels, *widths))))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(2))


class Layer(nn.Module):
    def __init__(self, in_features: int, out_features: int, scale: bool, eps: float) -> None:
        super().__init__()
        self.linear = Linear(in_features, out_features)
        self.norm = BatchNorm2d(out_features, eps=eps, scale=scale)
        nn.init.trunc_normal_(self.linear.weight, std=0.01, a=-0.02, b=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(T, n, in) -> (T, n, out); to batch norm a feature is an image of one pixel."""
        x = self.linear(x)[..., None, None]
        return F.relu(unfold(self.norm(fold(x)), x.shape[0]))

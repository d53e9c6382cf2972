"""What a learner asks of a network."""

from abc import abstractmethod

from torch import Tensor, nn

from metarun.errors import UserError


class Backbone(nn.Module):
    """Maps images (T, n, C, H, W) to features (T, n, `out_features`).

    All tasks go through its own parameters, or with parameters (T, *shape), put in place by `torch.func.functional_call`, each through
    its own. Batch norm in training treats every task apart. See `PerTask` for a network that does not know of tasks. Raises ValueError
    for what are no such images; for other channels only if the network says what its `in_channels` are.

    The features of an image are a map of h·w places with `out_channels` numbers each, which lie side by side (`layers.unfold`):
    `x.unflatten(-1, (-1, out_channels))` is the map. A vector of features is a map of one place.
    """

    in_channels: int | None = None
    out_features: int
    out_channels: int

    def __call__(self, x: Tensor) -> Tensor:
        if x.dim() != 5 or self.in_channels not in (None, x.shape[2]):
            raise ValueError(f"expected images (T, n, {self.in_channels or 'C'}, H, W), got {tuple(x.shape)}")
        out: Tensor = super().__call__(x)
        return out

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Refuses a setting of the backbone: raises UserError with the key, the value and what is allowed."""
    if not condition:
        raise UserError(f"backbone.{key}: {value} is not allowed; expected {allowed}")

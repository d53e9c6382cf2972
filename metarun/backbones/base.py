"""What a learner asks of a network."""

from abc import abstractmethod

from torch import Tensor, nn

from metarun.errors import UserError


class Backbone(nn.Module):
    """Maps images (T, n, C, H, W) to features (T, n, `out_features`).

    With its own parameters it takes T = 1; with parameters (T, *shape), put in place by `torch.func.functional_call`, each task
    goes through its own. See `PerTask` for a network that does not know of tasks.

    The features of an image are a map of h·w places with `out_channels` numbers each, which lie side by side (`layers.unfold`):
    `x.unflatten(-1, (-1, out_channels))` is the map. A vector of features is a map of one place.
    """

    out_features: int
    out_channels: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Refuses a setting of the backbone: raises UserError with the key, the value and what is allowed."""
    if not condition:
        raise UserError(f"backbone.{key}: {value} is not allowed; expected {allowed}")

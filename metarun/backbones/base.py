"""What a learner asks of a network."""

from abc import abstractmethod

from torch import Tensor, nn


class Backbone(nn.Module):
    """Maps images (T, n, C, H, W) to features (T, n, `out_features`).

    With its own parameters it takes T = 1; with parameters (T, *shape), put in place by `torch.func.functional_call`, each task
    goes through its own. See `PerTask` for a network that does not know of tasks.
    """

    out_features: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

"""Prototypical Networks. Snell, Swersky, Zemel, 2017. arXiv:1703.05175

    p(y = k | x) = softmax_k( -d(f(x), c_k) ),   c_k = mean of f(x_i) over the support of class k

Differs from the paper's code: the best validation accuracy selects the checkpoint, not the lowest loss with patience; a final training
on train + val is `train_split: trainval`.
"""

from typing import Literal

from torch.nn import functional as F

from metarun.algorithms.base import MetricLearner, class_means, require, squared_distances
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.tasks import Examples, Predictor


class ProtoNet(MetricLearner):
    """distance: squared `euclidean`, or `cosine` (scores are then cosines); scale: a factor on the scores (the paper: 1)."""

    def __init__(
        self, backbone: Backbone, spec: TaskSpec, distance: Literal["euclidean", "cosine"] = "euclidean", scale: float = 1.0
    ) -> None:
        super().__init__(backbone, spec)
        require(scale > 0, "scale", scale, "a number above 0")
        self.distance, self.scale = distance, scale

    def classify(self, support: Examples) -> Predictor:
        prototypes = class_means(support.x, support.y, support.ways)
        if self.distance == "cosine":
            prototypes = F.normalize(prototypes, dim=-1)
            return lambda z: self.scale * F.normalize(z, dim=-1) @ prototypes.mT
        return lambda z: -self.scale * squared_distances(z, prototypes)

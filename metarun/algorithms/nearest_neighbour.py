"""The label of the nearest support image: what the features of a supervised classifier are worth without any head.

y = y_i,   i = argmin d(f(x), f(x_i)) over the support
"""

from typing import Literal

import torch
from torch import Tensor

from metarun.algorithms.matching_net import similarity
from metarun.algorithms.solvers.heads import Kind
from metarun.algorithms.supervised import SupervisedLearner
from metarun.algorithms.teacher import Teacher
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.tasks import Examples, Predictor


class NearestNeighbour(SupervisedLearner):
    """distance: `cosine` or `euclidean`; a class's score is the cosine, or minus the squared distance, of its nearest support image.

    The other arguments are those of `SupervisedLearner`.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        distance: Literal["cosine", "euclidean"] = "cosine",
        classifier: Kind = "linear",
        label_smoothing: float = 0.0,
        teacher: Teacher | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(backbone, spec, classifier, label_smoothing, teacher, augment)
        self.distance = distance

    def classify(self, support: Examples) -> Predictor:
        x, y, ways = support.x, support.y, support.ways

        def predict(z: Tensor) -> Tensor:
            near = similarity(z, x, self.distance)
            none = near.new_full((*near.shape[:2], ways), -torch.inf)
            return none.scatter_reduce(2, y.unsqueeze(1).expand_as(near), near, "amax")

        return predict

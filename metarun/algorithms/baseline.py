"""Baseline and Baseline++. Chen, Liu, Kira, Wang, Huang, 2019. arXiv:1904.04232

    W' = SGD(W', CE(softmax(W' f(x)), y)) over the support, f as it was trained with a classifier of all training classes

Baseline++ (`classifier: cosine`) has scores scale · g_k · cos(w_k, f(x)), in training and at test, with a learned norm g_k per class.

Differs from the paper's code: the new head starts from the same weights and sees the images in the same order of positions in every task,
so that a task does not depend on its neighbours; training takes the mini-batches of an epoch one after another without regard to its end.
"""

from metarun.algorithms.base import require
from metarun.algorithms.solvers.heads import SGD, Kind, unit
from metarun.algorithms.supervised import SupervisedLearner
from metarun.algorithms.teacher import Teacher
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.tasks import Examples, Predictor


class Baseline(SupervisedLearner):
    """head: how a task's classifier, of the kind of the training one, is fitted; head_scale: its factor on cosines (`linear` has none).

    scale: of the training classifier; the other arguments are those of `SupervisedLearner`.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        head: SGD,
        classifier: Kind = "linear",
        outputs: int | None = None,
        scale: float | None = None,
        head_scale: float = 2.0,
        label_smoothing: float = 0.0,
        teacher: Teacher | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(backbone, spec, classifier, label_smoothing, teacher, augment, outputs, scale)
        require(head_scale > 0, "head_scale", head_scale, "a number above 0")
        self.head, self.kind, self.head_scale = head, classifier, head_scale

    def classify(self, support: Examples) -> Predictor:
        x = unit(support.x) if self.kind == "cosine" else support.x
        weight, bias = self.head(x, support.y, support.ways, self.kind, self.head_scale)
        return lambda z: (unit(z) if self.kind == "cosine" else z) @ weight.mT + bias

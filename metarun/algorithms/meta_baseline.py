"""Meta-Baseline. Chen, Liu, Xu, Darrell, Wang, 2021. arXiv:2003.04390

    p(y = k | x) = softmax_k( τ cos(f(x), c_k) ),   c_k = mean of f(x_i) over the support of class k,   τ learned

First a classifier of all training classes is trained (Classifier-Baseline, which ends there), then f and τ on tasks by this formula.

Differs from the paper's code: both stages are one run, with one optimizer and one schedule; the second goes on from the last step of the
first, not from its best on validation.
"""

import torch
from torch import Tensor, nn

from metarun.algorithms.base import MetricLearner, require
from metarun.algorithms.solvers.heads import Kind
from metarun.algorithms.supervised import SupervisedLearner
from metarun.algorithms.teacher import Teacher
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.tasks import Episode, Examples, Metrics, Predictor


class MetaBaseline(SupervisedLearner):
    """pretrain_steps: of the first stage, None for all; scale: where τ starts. The other arguments are those of `SupervisedLearner`."""

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        pretrain_steps: int | None = None,
        scale: float = 10.0,
        classifier: Kind = "linear",
        label_smoothing: float = 0.0,
        teacher: Teacher | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(backbone, spec, classifier, label_smoothing, teacher, augment)
        require(pretrain_steps is None or pretrain_steps >= 0, "pretrain_steps", pretrain_steps, "0 or more, or null")
        require(scale > 0, "scale", scale, "a number above 0")
        self.supervised_steps = pretrain_steps
        self.scale = nn.Parameter(torch.tensor(scale))

    def meta_loss(self, tasks: Examples | Episode) -> tuple[Tensor, Metrics]:
        """The classifier's loss of mini-batches, or the cross-entropy of a task's queries."""
        return MetricLearner.meta_loss(self, tasks) if isinstance(tasks, Episode) else super().meta_loss(tasks)

    def classify(self, support: Examples) -> Predictor:
        cosines = super().classify(support)
        return lambda z: self.scale * cosines(z)

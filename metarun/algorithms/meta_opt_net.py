"""MetaOptNet. Lee, Maji, Ravichandran, Soatto, 2019. arXiv:1904.03758

    scores = gamma sum_i alpha_i f(x_i)' f(x),   alpha = the dual solution, on the support set, of a convex classifier without intercept

which is Crammer and Singer's SVM (see `metarun.algorithms.solvers.crammer_singer`) or ridge regression. Learned: f, gamma.

Differs from the paper: the SVM is solved to the end in training and at test, where the paper takes 15 and 3 iterations of another solver,
qpth.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.algorithms.base import MetricLearner, require
from metarun.algorithms.objectives import task_losses
from metarun.algorithms.solvers.crammer_singer import crammer_singer
from metarun.algorithms.solvers.ridge import ridge
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.tasks import Episode, Examples, Metrics, Predictor


class MetaOptNet(MetricLearner):
    """head: the classifier. c: the SVM's bound on a support image's weight; diagonal: added to the diagonal of its kernel (the paper's
    code has 1, which makes the solution unique; 0 for the plain SVM); iterations: of its solver. l2: lambda of the ridge regression.

    scale: where gamma starts. label_smoothing: the share of a query's label that goes to the other classes, evenly, in the training loss.
    Raises UserError for what makes no sense.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        head: Literal["svm", "ridge"] = "svm",
        c: float = 0.1,
        diagonal: float = 1.0,
        iterations: int = 20,
        l2: float = 50.0,
        scale: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(backbone, spec)
        require(head in ("svm", "ridge"), "head", head, "svm or ridge")
        for key, value in (("c", c), ("l2", l2), ("scale", scale)):
            require(value > 0, key, value, "a number above 0")
        require(diagonal >= 0, "diagonal", diagonal, "0 or more")
        require(iterations >= 1, "iterations", iterations, "1 or more")
        require(0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "a number from 0 to below 1")
        self.head, self.c, self.diagonal, self.iterations, self.l2 = head, c, diagonal, iterations, l2
        self.label_smoothing = label_smoothing
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def classify(self, support: Examples) -> Predictor:
        member = F.one_hot(support.y, support.ways).to(support.x.dtype)
        weight = self._svm(support.x, member) if self.head == "svm" else ridge(support.x, 2 * member, self.l2)  # 2 as in the paper's dual
        return lambda z: self.scale * z @ weight

    def _svm(self, x: Tensor, member: Tensor) -> Tensor:
        """The weights (T, D, N) of the classes."""
        gram = x @ x.mT + self.diagonal * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return x.mT @ crammer_singer(gram, member.mT, self.c, self.iterations).mT.to(x.dtype)

    def meta_loss(self, episode: Episode) -> tuple[Tensor, Metrics]:
        """As in the base class, with smoothed labels."""
        known, asked = self.embed_together(episode)
        logits, labels = self._compare(known)(asked), episode.query.y
        share = self.label_smoothing * known.ways / (known.ways - 1)  # torch's share goes to all classes, the right one too
        return task_losses(logits, labels, share), self.objective.metrics(logits.detach(), episode.query)

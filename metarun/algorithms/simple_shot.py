"""SimpleShot. Wang, Chao, Weinberger, van der Maaten, 2019. arXiv:1911.04623

    y = argmin_k |g(x) - c_k|,   c_k = mean of g(x_i) over the support of class k

with g = f (`un`), f/|f| (`l2n`) or (f - m)/|f - m| with m the mean of f over the training images (`cl2n`). The mean of unit vectors is no
unit vector, and it is left as it is.

Differs from the paper's code: m is a running mean over the mini-batches of training (images augmented, features normalised by the batch)
and not that of a pass over the training images afterwards; it is kept with every checkpoint.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.base import class_means, require, squared_distances
from metarun.algorithms.solvers.heads import Kind
from metarun.algorithms.supervised import SupervisedLearner
from metarun.algorithms.teacher import Teacher
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.tasks import Examples, Predictor


class SimpleShot(SupervisedLearner):
    """transform: g above; momentum: what a mini-batch leaves of the running mean. The other arguments are those of `SupervisedLearner`."""

    total: Tensor
    share: Tensor

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        transform: Literal["un", "l2n", "cl2n"] = "cl2n",
        momentum: float = 0.99,
        classifier: Kind = "linear",
        label_smoothing: float = 0.0,
        teacher: Teacher | None = None,
        augment: bool = True,
    ) -> None:
        super().__init__(backbone, spec, classifier, label_smoothing, teacher, augment)
        require(0 <= momentum < 1, "momentum", momentum, "0 or more and below 1")
        self.transform, self.momentum = transform, momentum
        self.register_buffer("total", torch.zeros(backbone.out_features))
        self.register_buffer("share", torch.zeros(()))

    @property
    def mean(self) -> Tensor:
        """The running mean (D,) without the pull of the zeros that it started from; zeros before training."""
        return self.total / self.share.clamp(min=torch.finfo(self.share.dtype).tiny)

    @torch.no_grad()
    def observe(self, embedded: Tensor) -> None:
        # As T updates one after another, so that the mean does not depend on how mini-batches are chunked.
        tasks, kept = embedded.shape[0], self.momentum
        weight = (1 - kept) * kept ** torch.arange(tasks - 1, -1, -1, dtype=self.total.dtype, device=embedded.device)
        self.total.mul_(kept**tasks).add_((weight[:, None] * embedded.mean(1)).sum(0))
        self.share.mul_(kept**tasks).add_(weight.sum())

    def transformed(self, x: Tensor) -> Tensor:
        if self.transform == "un":
            return x
        return F.normalize(x - self.mean if self.transform == "cl2n" else x, dim=-1)

    def classify(self, support: Examples) -> Predictor:
        centroids = class_means(self.transformed(support.x), support.y, support.ways)
        return lambda z: -squared_distances(self.transformed(z), centroids)

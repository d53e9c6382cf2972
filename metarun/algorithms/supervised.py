"""What the methods have in common that are trained as one classifier of all training classes and get a head of their own per task.

    minimise  CE(softmax(W f(x)), y)   over mini-batches of all classes

and with a teacher t, as in RFS (Tian, Wang, Krishnan, Tenenbaum, Isola, 2020. arXiv:2003.11539) and born-again networks (Furlanello,
Lipton, Tschannen, Itti, Anandkumar, 2018. arXiv:1805.04770),

    (1 - share) CE + share τ² KL( softmax(t(x)/τ) || softmax(W f(x)/τ) )

where the teacher normalises by its running statistics.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from metarun.algorithms.base import MetricLearner, class_means, require
from metarun.algorithms.objectives import accuracies, task_losses
from metarun.algorithms.solvers.heads import Kind, unit
from metarun.algorithms.teacher import Teacher
from metarun.backbones.base import Backbone
from metarun.errors import UserError
from metarun.kinds import TaskSpec
from metarun.nn.layers import Linear
from metarun.tasks import Episode, Examples, Metrics, Predictor


class SupervisedLearner(MetricLearner):
    """A classifier in training: `linear`, or `cosine` with a learned norm per class, times `scale` (None: as in `CosineClassifier`).

    label_smoothing: over the outputs; teacher: whose scores are learned from too, if it names a run;
    augment: whether the training images are augmented; outputs: of the classifier, None for as many as classes. Raises UserError for
    what makes no sense.
    """

    supervised_steps: int | None = None

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        classifier: Kind = "linear",
        label_smoothing: float = 0.0,
        teacher: Teacher | None = None,
        augment: bool = True,
        outputs: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__(backbone, spec)
        classes = spec.facts["classes"]
        require(0 <= label_smoothing < 1, "label_smoothing", label_smoothing, "0 or more and below 1")
        require(outputs is None or outputs >= classes, "outputs", outputs, f"{classes}, the number of training classes, or more, or null")
        require(scale is None or scale > 0, "scale", scale, "a number above 0, or null")
        self.width = outputs or classes
        self.label_smoothing, self.teacher, self.augment = label_smoothing, teacher or Teacher(), augment
        if classifier == "cosine":
            self.classifier: nn.Module = CosineClassifier(backbone.out_features, self.width, scale)
        else:
            self.classifier = linear = Linear(backbone.out_features, self.width)
            nn.init.zeros_(linear.bias)

    def check_training(self) -> None:
        """Raises UserError if there is a teacher that cannot be had, or that did not learn these classes from images of this size."""
        if self.teacher.run:
            self.expert()

    def meta_loss(self, tasks: Examples | Episode) -> tuple[Tensor, Metrics]:
        """Per mini-batch (T,) of images (T, B, C, H, W): the mean loss, and `accuracy` over the training classes."""
        if not isinstance(tasks, Examples):
            raise TypeError(f"{type(self).__name__} learns from mini-batches of all classes, not from episodes")
        embedded = self.embed(tasks.x, "track")
        self.observe(embedded.detach())
        scores = self.class_scores(embedded)
        losses = task_losses(scores, tasks.y, self.label_smoothing)
        if self.teacher.run:
            with torch.no_grad():
                expert = self.expert().to(embedded)  # not to half precision, which is for activations
                targets = expert.class_scores(expert.embed(tasks.x))
            losses = self.teacher.mixed(losses, scores, targets)
        return losses, {"accuracy": accuracies(scores.detach(), tasks.y)}

    def classify(self, support: Examples) -> Predictor:
        """By cosines to the class means of the support; most methods have a head of their own."""
        centroids = F.normalize(class_means(support.x, support.y, support.ways), dim=-1)
        return lambda z: F.normalize(z, dim=-1) @ centroids.mT

    def observe(self, embedded: Tensor) -> None:
        """Called with the embeddings (T, B, D) of every mini-batch, for methods that keep a statistic of them."""

    def class_scores(self, embedded: Tensor) -> Tensor:
        """Of the training classes: (T, n, D) -> (T, n, width), in full precision."""
        with torch.autocast(embedded.device.type, enabled=False):
            scores: Tensor = self.classifier(embedded)
        return scores

    def expert(self) -> "SupervisedLearner":
        """The teacher's network, which is read when it is first asked for. Raises UserError as `check_training` does."""
        learner = self.teacher.learner(self.spec)
        expert = next((module for module in learner.modules() if isinstance(module, SupervisedLearner)), None)
        if expert is None or expert.width != self.width:
            has = "no classifier of the training classes" if expert is None else f"a classifier of {expert.width} outputs"
            raise UserError(f"algorithm.teacher.run: {self.teacher.run} has {has}; expected one of {self.width}")
        return expert


class CosineClassifier(nn.Module):
    """Scores scale · g_k · cos(w_k, x) with a learned norm g_k per class; scale None: 2 for up to 200 classes, 10 for more."""

    def __init__(self, features: int, outputs: int, scale: float | None = None) -> None:
        super().__init__()
        self.linear = weight_norm(nn.Linear(features, outputs, bias=False))
        self.scale = scale or (2.0 if outputs <= 200 else 10.0)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(unit(x))
        return self.scale * scores

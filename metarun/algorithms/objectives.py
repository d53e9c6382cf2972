"""Objectives: what a task's loss is, from a head's outputs and the labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.tasks import Examples, Metrics
from metarun.text.measure import Measure

ACCURACY = Measure("accuracy", "%", higher_is_better=True)


@dataclass(frozen=True)
class CrossEntropy:
    """Classification: outputs are scores of as many classes."""

    measures: ClassVar[Sequence[Measure]] = (ACCURACY,)
    outputs: int

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        """Every task's mean cross-entropy (T,) of scores (T, n, N), in float32 at least."""
        return task_losses(outputs, examples.y)

    def metrics(self, outputs: Tensor, examples: Examples) -> Metrics:
        """`accuracy` (T,), in [0, 1]."""
        return {"accuracy": accuracies(outputs, examples.y)}


def accuracies(scores: Tensor, labels: Tensor) -> Tensor:
    """The share of right answers of every task (T,), in [0, 1], from scores (T, n, N) and labels (T, n)."""
    return (scores.argmax(-1) == labels).float().mean(1)


def task_losses(scores: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Every task's mean cross-entropy (T,) of scores (T, n, N) against labels (T, n), in float32 at least.

    smoothing: the share of a label that goes evenly to all classes, the right one among them.
    """
    each = F.cross_entropy(full(scores).flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing)
    return each.view_as(labels).mean(1)


def full(x: Tensor) -> Tensor:
    """Half precision is for networks; what compares and adds up needs more."""
    return x if x.dtype == torch.float64 else x.float()

"""What a task is, where tasks come from, and what learns from them.

Shape legend, used everywhere: T tasks, N ways, K shots, Q queries per class, n examples of one task (N·K or N·Q),
C, H, W an image, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Metrics = dict[str, Tensor]
"""Values (T,) per task, in the order of the tasks, on the device. Means come last, where they are logged."""

Predictor = Callable[[Tensor], Tensor]
"""Query images (T, n, C, H, W) to class scores (T, n, N)."""


class Tasks(Protocol):
    """What one step is made of."""

    @property
    def importance(self) -> Tensor | None:
        """Weights (T,) by which the update multiplies the losses. None: 1 each."""

    def __len__(self) -> int: ...

    def chunks(self, size: int) -> "Iterator[Tasks]":
        """The same tasks, at most `size` at a time. A chunk can be cut again."""

    def tensors(self) -> Any:
        """What the learner's `meta_loss` takes."""


@dataclass(frozen=True)
class Examples:
    """Labelled images of T tasks: x (T, n, C, H, W) float, y (T, n) int64 in [0, ways), grouped by class in ascending order of y.

    In a supervised stage each of the T is a mini-batch: n images in any order, whose labels number all training classes.
    """

    x: Tensor
    y: Tensor
    ways: int
    importance: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def tasks(self, start: int, stop: int) -> "Examples":
        return Examples(self.x[start:stop], self.y[start:stop], self.ways, _some(self.importance, start, stop))

    def chunks(self, size: int) -> "Iterator[Examples]":
        return (self.tasks(start, start + size) for start in range(0, len(self), size))

    def tensors(self) -> "Examples":
        return self


@dataclass(frozen=True)
class Episode:
    """T few-shot tasks: a learner adapts to `support` and answers for `query`; they share classes and labels, never an image."""

    support: Examples
    query: Examples
    importance: Tensor | None = None

    def __len__(self) -> int:
        return len(self.support)

    def tasks(self, start: int, stop: int) -> "Episode":
        return Episode(self.support.tasks(start, stop), self.query.tasks(start, stop), _some(self.importance, start, stop))

    def chunks(self, size: int) -> "Iterator[Episode]":
        return (self.tasks(start, start + size) for start in range(0, len(self), size))

    def tensors(self) -> "Episode":
        return self


def _some(importance: Tensor | None, start: int, stop: int) -> Tensor | None:
    return None if importance is None else importance[start:stop]


class Stateful(ABC):  # noqa: B024 -- its heirs have the abstract methods
    """What has a part in a checkpoint; by default an empty one."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 -- most have no state
        """Takes back what `state_dict` gave."""


class TaskSource(Stateful):
    """Numbered tasks: a pure function of (seed, part, index), and of the source's own state if it has one."""

    @abstractmethod
    def draw(self, first: int, count: int) -> Tasks:
        """Tasks `first` to `first + count - 1`; fewer where some are not to be had."""

    @abstractmethod
    def sha256(self, count: int) -> str:
        """The hash of the first `count` tasks."""

    def feedback(self, first: int, metrics: Metrics) -> None:
        """Called after every step with what the update returned for the tasks from `first` on, `losses` among it."""


class MetaLearner(nn.Module):
    """All that an update knows of a method; tasks may be of any kind that the method understands."""

    def begin_step(self, step: int) -> None:
        """Called by the outermost update before the first `meta_loss` of every step, counted from 0."""

    @abstractmethod
    def meta_loss(self, tasks: Any) -> tuple[Tensor, Metrics]:
        """Losses (T,), the gradient of whose mean is the meta-gradient, and metrics; `loss` is among them if another is to be shown."""

    def beside_parameters(self) -> dict[str, Tensor]:
        """A copy of the state that a forward pass can move: running statistics and the like. `load_state_dict` takes it (not strict)."""
        parameters = dict(self.named_parameters())
        return {name: value.clone() for name, value in self.state_dict().items() if name not in parameters}


def joined(parts: Sequence[Metrics]) -> Metrics:
    """The metrics of all tasks, from those of some at a time."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

"""What a task is, and what learns from it.

Shape legend, used everywhere: T tasks, N ways, K shots, Q queries per class, n examples of one task (N·K or N·Q),
C, H, W an image, D features.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

Metrics = dict[str, Tensor]
"""Named scalars on the device, averages over the tasks of a batch."""

Predictor = Callable[[Tensor], Tensor]
"""Query images (T, n, C, H, W) to class scores (T, n, N)."""


class Tasks(Protocol):
    """What one step is made of, as far as the trainer is concerned: so many tasks, of which it may take a few at a time."""

    def __len__(self) -> int: ...

    def chunks(self, size: int) -> "Iterator[Any]":
        """The same tasks, at most `size` at a time."""


@dataclass(frozen=True)
class Examples:
    """Labelled images of T tasks: x (T, n, C, H, W) float, y (T, n) int64 in [0, ways), grouped by class in ascending order of y.

    In a supervised stage each of the T is a mini-batch: n images in any order, whose labels number all training classes.
    """

    x: Tensor
    y: Tensor
    ways: int

    def __len__(self) -> int:
        return self.x.shape[0]

    def tasks(self, start: int, stop: int) -> "Examples":
        return Examples(self.x[start:stop], self.y[start:stop], self.ways)

    def chunks(self, size: int) -> "Iterator[Examples]":
        """The same tasks, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self.tasks(start, start + size)


@dataclass(frozen=True)
class Episode:
    """T few-shot tasks: a learner adapts to `support` and answers for `query`; they share classes and labels, never an image."""

    support: Examples
    query: Examples

    def __len__(self) -> int:
        return len(self.support)

    def chunks(self, size: int) -> Iterator["Episode"]:
        """The same tasks, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield Episode(self.support.tasks(start, start + size), self.query.tasks(start, start + size))


class MetaLearner(nn.Module):
    """All that the trainer knows of a method; tasks may be of any kind that the method understands."""

    def begin_step(self, step: int) -> None:
        """Called before the first `meta_loss` of every step, counted from 0, for methods that change as training goes on."""

    @abstractmethod
    def meta_loss(self, tasks: Any) -> tuple[Tensor, Metrics]:
        """The loss whose gradient is the meta-gradient, mean over tasks, and the metrics, `loss` among them."""

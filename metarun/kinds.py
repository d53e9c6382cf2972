"""What the runner knows of a kind of task, and what it tells a learner."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from metarun.tasks import Examples, MetaLearner, Metrics
from metarun.text.measure import Measure


class Objective(Protocol):
    """What a task's loss is, and what is measured beside it."""

    @property
    def outputs(self) -> int:
        """Of a head: numbers per example."""

    @property
    def measures(self) -> Sequence[Measure]:
        """Of the metrics; the first decides."""

    def loss(self, outputs: Tensor, examples: Examples) -> Tensor:
        """The mean loss of every task (T,) from outputs (T, n, `outputs`), in float32 at least."""

    def metrics(self, outputs: Tensor, examples: Examples) -> Metrics:
        """The measures of every task (T,), without the loss."""


OpenRun = Callable[[Path], tuple[MetaLearner, Mapping[str, Any]]]
"""Opens a run's tested checkpoint: its learner, frozen, and the facts that it was trained on. Raises UserError if there is none."""


@dataclass(frozen=True)
class TaskSpec:
    """What only the runner knows; every learner's second argument.

    objective: what a task's loss is; None where the learner has its own. facts: of the data that are trained on: `classes`, how many of
    them there are, their `names`, the `shape` (H, W, C) of an image. open_run: a teacher's run, say; called in training only.
    """

    objective: Objective | None
    facts: Mapping[str, Any]
    open_run: OpenRun

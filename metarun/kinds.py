"""What the runner knows of a kind of task, and what it tells a learner."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from metarun.nn.device import Device
from metarun.tasks import Examples, MetaLearner, Metrics, TaskSource
from metarun.text.measure import Measure, Score, Scores

Table = dict[str, np.ndarray]
"""Columns (tasks, ...), a row a task; NaN where a task has no value."""


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


class Kind(ABC):
    """A kind of task: its data, its objective, how a learner is scored on it. Everything above speaks of tasks, measures and scores only.

    measures: what is measured of a learner; the first decides. setting: what two numbers must share to stand side by side; words: the same
    as a person says it.
    """

    measures: Sequence[Measure]
    setting: Mapping[str, Any]
    words: str = ""
    objective: Objective | None = None
    protocol: Mapping[str, Any]
    device: Device

    @abstractmethod
    def facts(self, part: str) -> dict[str, Any]:
        """Of the data of a part: its `fingerprint`, and what a learner is told (see `TaskSpec`)."""

    @abstractmethod
    def training(self, learner: Any) -> TaskSource:
        """What the learner is trained on. Raises UserError where the two do not fit."""

    @abstractmethod
    def evaluation(self, part: str) -> TaskSource:
        """The protocol's tasks of a part: the same for every learner and seed. Raises UserError where the part has too few data."""

    @abstractmethod
    def score(self, learner: Any, source: TaskSource, first: int, count: int) -> Table:
        """A row for each of the tasks `first` to `first + count - 1` of a source that `evaluation` made."""

    def protocol_for(self, learner: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The protocol by which the learner is tested, every null resolved; facts: of what it was trained on.

        Raises UserError where learner, facts and protocol do not fit.
        """
        return dict(self.protocol)

    def summary(self, table: Table) -> Scores:
        """Every measure's mean over its column, with the 95 % interval over tasks, 1.96 sigma / sqrt(n); rows without a value are left
        out.
        """
        scores = []
        for measure in self.measures:
            values = table[measure.name][~np.isnan(table[measure.name])]
            half = {"tasks": float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))} if len(values) > 1 else {}
            scores.append(Score(measure, float(values.mean()), half))
        return Scores(scores)

    def diagnose(self, learner: Any, source: TaskSource, count: int, quick: bool = False) -> dict[str, Any]:
        """What the numbers of `count` tasks hide, for the record; quick: numbers by name, as they are shown while training goes on."""
        return {}

    def picture(self, learner: Any, source: TaskSource, index: int) -> np.ndarray | None:
        """A task as an RGB image (3, height, width) uint8, if it can be seen."""
        return None

    def origin(self, config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Whether the data tested are those trained on: what the record says of it, and what a line of text adds, mostly nothing."""
        return {}, ""


def evaluate(kind: Kind, learner: Any, source: TaskSource, count: int) -> Scores:
    """What the learner comes to on the first `count` tasks of the source."""
    return kind.summary(kind.score(learner, source, 0, count))

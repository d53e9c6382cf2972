"""Records of tests, read. Here alone is known how records of before say what those of today say; needs neither torch nor NumPy."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metarun.config.aliases import renamed
from metarun.config.schema import near
from metarun.errors import UserError
from metarun.runs.status import read_json
from metarun.text.measure import Measure, Score, Scores

OF_BEFORE = (Measure("accuracy", "%", higher_is_better=True), Measure("loss", digits=4))
"""What the records of before measured; only the accuracy has an interval, and a value for every task."""

NEEDED = ("episodes", "batch_norm", "checkpoint_step", "episodes_sha256", "checkpoint_sha256", "config")
"""What a record has, from the oldest on, beside its numbers."""

SETTINGS = ("batch_norm", "split", "selection", "ensemble", "views")
"""What two tests of the same tasks may differ in, beside the learner."""


@dataclass(frozen=True)
class Column:
    """A value for every task, `whole * step` each; a step of None stands for values that are no multiples of anything."""

    measure: Measure
    values: Sequence[float]
    step: float | None = None


@dataclass(frozen=True)
class Record:
    """A test of `run`, named as the user did. file: where it was read; values: all that stands there, with the class names of today."""

    run: str
    file: Path
    values: Mapping[str, Any]

    @cached_property
    def numbers(self) -> tuple[Score, ...]:
        """What the test came to, by every measure; the first decides."""
        if "numbers" not in self.values:
            return tuple(_of_before(self.values).numbers)
        return tuple(Score(_measure(entry), entry["value"], entry["intervals"]) for entry in self.values["numbers"])

    def number(self, name: str | None = None) -> Score | None:
        """The number of that name, the first without one; None if the test has none such."""
        return next((score for score in self.numbers if name in (None, score.measure.name)), None)

    @property
    def groups(self) -> Mapping[str, tuple[float, int]]:
        """Parts of what was tested, classes for one: the sum and the count whose quotient is the first number there."""
        if "groups" in self.values:
            return {name: (total, count) for name, (total, count) in self.values["groups"].items()}
        return {name: (100 * right, asked) for name, (right, asked) in (self.values.get("per_class") or {}).items()}

    def column(self, name: str | None = None) -> Column | None:
        """The number of that name for every task, the first without a name; None where it was not recorded."""
        score = self.number(name)
        if score is None:
            return None
        values, measure = self.values, score.measure
        before = {OF_BEFORE[0].name: values["per_episode"]} if "per_episode" in values else {}
        found = values.get("columns", before).get(measure.name)
        counted = measure == OF_BEFORE[0] and {"ways", "queries"} <= values.keys()  # rounded, and of right answers
        step = 100 / (values["ways"] * values["queries"]) if counted else None
        return None if found is None else Column(measure, found, step)

    @property
    def setting(self) -> Mapping[str, Any]:
        """What two numbers must share to stand side by side."""
        found: Mapping[str, Any] = self.values.get("setting") or {}
        return found or {key: self.values[key] for key in ("ways", "shots") if key in self.values}

    @property
    def tasks(self) -> dict[str, Any]:
        """What was tested: the number of tasks, and their setting."""
        queries = {"queries": self.values["queries"]} if "queries" in self.values else {}
        return {"episodes": self.values["episodes"], **self.setting, **queries}

    @property
    def words(self) -> str:
        """The setting as a person says it."""
        values = self.values
        if "words" in values or not {"ways", "shots", "queries"} <= values.keys():
            return str(values.get("words") or ", ".join(f"{key} {value}" for key, value in self.setting.items()))
        return f"{values['ways']}-way {values['shots']}-shot, {values['queries']} queries a class"

    @property
    def protocol(self) -> dict[str, Any]:
        """What two tests of the same tasks may differ in; the oldest records are of one checkpoint, one view, and do not say so."""
        return {key: self.values.get(key, 1) for key in SETTINGS}

    @property
    def tested(self) -> tuple[str, str]:
        """Which tasks, of which data: equal only where the values of two records can be paired."""
        return self.values["episodes_sha256"], self.values["data_fingerprint"]

    def __str__(self) -> str:
        return f"{self.values['episodes']} episodes of {self.words} ({self.values['episodes_sha256'][:8]})"


def of_run(folder: Path) -> list[Record]:
    """All records of a run, the oldest first; what is no record, or damaged, is passed over."""
    files = sorted((folder / "evaluations").glob("*.json"))
    found = [Record(str(folder), file, renamed(read_json(file))) for file in files]
    return sorted((record for record in found if not lacking(record)), key=lambda record: record.values.get("tested", ""))


def read(file: Path, run: str) -> Record:
    """The record in a file. Raises UserError if there is none, or it cannot be compared."""
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable as the record of an evaluation ({str(error).partition(chr(10))[0]})") from error
    record = Record(run, file, renamed(values) if isinstance(values, dict) else {})
    missing = lacking(record) or [key for key in ("data_fingerprint", "seed", "selection", "split") if key not in record.values]
    if missing:
        raise UserError(f"{file}: not the record of an evaluation, or too old to compare; {missing[0]} is missing")
    return record


def lacking(record: Record) -> list[str]:
    """What a record needs and this one has not."""
    return [*(key for key in NEEDED if key not in record.values), *([] if record.numbers else ["numbers"])]


def refuse_unknown(number: str | None, records: Iterable[Record]) -> None:
    """Raises UserError for the name of a number that none of the records has; where there are no records, none is wrong."""
    names = dict.fromkeys(score.measure.name for record in records for score in record.numbers)
    if number is not None and names and number not in names:
        raise UserError(f"number: {number} is not allowed; {near(number, [*names])}the tests have {', '.join(names)}")


def written(scores: Scores, columns: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """What a record of today says of its numbers. columns: of those that have a measure, the value of every task."""
    numbers = [{**asdict(score.measure), "value": score.value, "intervals": dict(score.intervals)} for score in scores.numbers]
    return {"numbers": numbers, "columns": dict(columns), "groups": {name: list(part) for name, part in scores.groups.items()}}


def _measure(entry: Mapping[str, Any]) -> Measure:
    return Measure(*(entry[key] for key in ("name", "unit", "higher_is_better", "digits")))


def _of_before(values: Mapping[str, Any]) -> Scores:
    accuracy, loss = OF_BEFORE
    half = values.get("ci95")
    first = [Score(accuracy, values["accuracy"], {} if half is None else {"tasks": half})] if values.get("accuracy") is not None else []
    return Scores((*first, *([Score(loss, values["loss"])] if "loss" in values else [])))

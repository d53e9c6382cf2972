"""The runs in a folder, read from what they left there. Needs no torch."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metarun.config.aliases import renamed
from metarun.config.schema import is_number
from metarun.errors import UserError
from metarun.runs.records import Record, of_run
from metarun.runs.status import read_json, state


@dataclass(frozen=True)
class Found:
    """A run that was begun: `config` is resolved, `choices` maps groups to choices, `status` is what the run last said of itself.

    status: `step`, `steps`, `step_seconds`, `seconds` (training in all), `peak_memory` (bytes), `best` (step and value on validation),
    `test` (its numbers and what they were tested on), `error`, `host`, `pid`, `slurm_job`, `updated`; each only where it is known.
    """

    folder: Path
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    versions: Mapping[str, str]
    status: Mapping[str, Any]

    @cached_property
    def state(self) -> str:
        return state(self.folder)

    def value(self, key: str) -> Any:
        """The choice of a group, or the value under a dotted key of the config; None where there is none."""
        if key in self.choices:
            return self.choices[key]
        value: Any = self.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    @cached_property
    def all_records(self) -> list[Record]:
        """The tests of the run, the oldest first."""
        return of_run(self.folder)

    @cached_property
    def records(self) -> list[Record]:
        """Those on the dataset that it was trained on: a test on another is no number of this run's own setting."""
        return [record for record in self.all_records if not record.values.get("cross_domain")]

    @cached_property
    def tested(self) -> Record | None:
        """The test that ended the run, as far as its status has it; if it was tested only later, the last record by its own protocol."""
        if self.status.get("test"):
            return Record(str(self.folder), self.folder / "status.json", self.status["test"])
        own = [record for record in self.records if record.values["config"].get("protocol") == self.config["protocol"]]
        return next((record for record in reversed(own) if record.values["checkpoint_step"] <= self.status.get("step", 0)), None)

    @property
    def setting(self) -> Mapping[str, Any]:
        """What its number must share with another to stand beside it; of a run without a test, what its protocol says of that."""
        protocol = self.config["protocol"]
        return (self.tested and self.tested.setting) or {key: protocol[key] for key in ("ways", "shots") if key in protocol}

    def curve(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric in `metrics.csv`; a line that is being written does not count yet."""
        try:
            whole, _, _ = (self.folder / "metrics.csv").read_text().rpartition("\n")
        except OSError:
            return [], []
        rows = [row.split(",") for row in whole.splitlines() if f",{split},{name}," in row]
        return [int(row[0]) for row in rows], [float(row[3]) for row in rows]


def find_runs(root: Path) -> list[Found]:
    """Every run below `root`, `root` itself included, in the order of their folders' names. Raises UserError if `root` is no folder."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a folder of runs")
    return list(_runs_below(root))


def read_run(folder: Path) -> Found | None:
    """The run in `folder`; None if there is none."""
    facts = renamed(read_json(folder / "config.json"))
    config, choices, versions = (facts[key] if isinstance(facts.get(key), dict) else {} for key in ("config", "choices", "versions"))
    if not (isinstance(config.get("protocol"), dict) and choices):  # a config.json of something else
        return None
    return Found(folder, config, choices, versions, sound(read_json(folder / "status.json")))


def sound(status: dict[str, Any]) -> dict[str, Any]:
    """A status without what is not of the kind that it should be, in a file that somebody else wrote."""
    numbers, parts = ("step", "steps", "step_seconds", "seconds", "peak_memory"), ("best", "test")
    wrong = [key for key in numbers if key in status and not is_number(status[key])]
    wrong += [key for key in parts if key in status and not isinstance(status[key], dict)]
    return {key: value for key, value in status.items() if key not in wrong}


def _runs_below(root: Path) -> Iterator[Found]:
    for folder, below, files in os.walk(root):
        found = read_run(Path(folder)) if "config.json" in files else None
        below[:] = [] if found else sorted(name for name in below if not name.startswith("."))
        if found:
            yield found

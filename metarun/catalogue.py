"""The runs in a folder, read from what they left there. Needs no torch."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metarun.errors import UserError
from metarun.status import read_json, state


@dataclass(frozen=True)
class Found:
    """A run that was begun: `config` is resolved, `choices` maps groups to choices, `status` is what the run last said of itself.

    status: `step`, `steps`, `step_seconds`, `seconds` (training in all), `peak_memory` (bytes), `best` (step and accuracy on validation),
    `test` (accuracy, ci95, episodes, ways, shots), `error`, `host`, `pid`, `slurm_job`, `updated`; each only where it is known.
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
    def records(self) -> list[dict[str, Any]]:
        """The tests of the run, as `metarun evaluate` wrote them (`metarun.results`); the oldest first."""
        paths = sorted((self.folder / "evaluations").glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name))
        return [record for path in paths if (record := read_json(path))]

    @cached_property
    def tested(self) -> Mapping[str, Any]:
        """The test that ended the run; if it was tested only later, the last one by its own ways, shots and split. Empty without one."""
        if self.status.get("test"):
            return dict(self.status["test"])
        asked = [self.config["protocol"][key] for key in ("ways", "shots", "split")]
        return next((record for record in reversed(self.records) if [record[key] for key in ("ways", "shots", "split")] == asked), {})

    def curve(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric in `metrics.csv`; a line that is being written does not count yet."""
        try:
            whole, _, _ = (self.folder / "metrics.csv").read_text().rpartition("\n")
        except OSError:
            return [], []
        rows = [row.split(",") for row in whole.splitlines()[1:]]
        found = [(int(step), float(value)) for step, where, what, value in rows if (where, what) == (split, name)]
        return [step for step, _ in found], [value for _, value in found]


def find_runs(root: Path) -> list[Found]:
    """Every run below `root`, `root` itself included, in the order of their folders' names. Raises UserError if `root` is no folder."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a folder of runs")
    return list(_runs_below(root))


def read_run(folder: Path) -> Found | None:
    """The run in `folder`; None if there is none."""
    facts = read_json(folder / "config.json")
    if not (isinstance(facts.get("config"), dict) and isinstance(facts.get("choices"), dict)):  # a config.json of something else
        return None
    return Found(folder, facts["config"], facts["choices"], facts.get("versions", {}), read_json(folder / "status.json"))


def _runs_below(root: Path) -> Iterator[Found]:
    for folder, below, files in os.walk(root):
        found = read_run(Path(folder)) if "config.json" in files else None
        below[:] = [] if found else sorted(name for name in below if not name.startswith("."))
        if found:
            yield found

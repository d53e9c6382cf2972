"""The runs in a folder, read from what they left there. Needs no torch."""

import csv
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

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The tests of the run, as `metarun evaluate` wrote them (`metarun.results`); the oldest first."""
        paths = sorted((self.folder / "evaluations").glob("*.json"), key=lambda path: (path.stat().st_mtime, path.name))
        return [record for path in paths if (record := read_json(path))]

    def curve(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric in `metrics.csv`."""
        try:
            with open(self.folder / "metrics.csv", newline="") as file:
                rows = [(int(step), float(value)) for step, where, what, value in csv.reader(file) if (where, what) == (split, name)]
        except (OSError, ValueError):  # a line that is being written
            return [], []
        return [step for step, _ in rows], [value for _, value in rows]


def find_runs(root: Path) -> list[Found]:
    """Every run below `root`, `root` itself included, in the order of their folders' names. Raises UserError if `root` is no folder."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a folder of runs")
    return [found for folder in _run_folders(root) if (found := read_run(folder))]


def read_run(folder: Path) -> Found | None:
    """The run in `folder`; None if there is none."""
    facts = read_json(folder / "config.json")
    if "config" not in facts:
        return None
    return Found(folder, facts["config"], facts["choices"], facts.get("versions", {}), read_json(folder / "status.json"))


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below[:] = [] if "config.json" in files else sorted(name for name in below if not name.startswith("."))
        if "config.json" in files:
            yield Path(folder)

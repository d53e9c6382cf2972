"""What a reproduced table consists of. Plain values: all formats and reports are made of these and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CellRun:
    """One run behind a cell, tested by the cell's protocol. run: its folder, relative to the folder of runs; accuracy, ci95: percent,
    the interval over test tasks."""

    run: str
    seed: int
    accuracy: float
    ci95: float | None
    episodes: int
    checkpoint_step: int
    episodes_sha256: str
    checkpoint_sha256: str


@dataclass(frozen=True)
class Cell:
    """A published number beside that of the runs, in percent; None wherever there is nothing.

    experiment: the recipe; None for a cell without one. published_text: the published number and interval as printed, every digit of
    them; published_kind: what the interval is (`ci95`, over tasks; `std`, over seeds; `unstated`); verified: whether the number was seen in
    a source, every digit. accuracy: the mean over `seeds`; ci95: of that mean, over the test tasks; spread: sample standard deviation over
    the seeds. difference: accuracy - published; inside: whether the published number lies within accuracy ± ci95. protocol: what the
    number is tested by; settings: how the training differs from the recipe, a line each. marks: of `Table.notes`.
    """

    row: str
    column: str
    experiment: str | None = None
    published: float | None = None
    published_interval: float | None = None
    published_kind: str | None = None
    published_text: str = ""
    published_source: str = ""
    verified: bool | None = None
    accuracy: float | None = None
    ci95: float | None = None
    spread: float | None = None
    seeds: tuple[int, ...] = ()
    difference: float | None = None
    inside: bool | None = None
    marks: tuple[str, ...] = ()
    runs: tuple[CellRun, ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """What a mark means: a letter a protocol, a number how the training differs, a sign something about the published number."""

    mark: str
    text: str


@dataclass(frozen=True)
class Missing:
    """Something that the table lacks. kind: `training`, `test`, `resume` (a run that was cut off), `running`, and `cut off` or `failed` for
    a run that was trained otherwise than the table asks; cells: rows and columns; words: the overrides behind `command`, which makes it;
    needs: what has to be said for it first."""

    kind: str
    cells: tuple[tuple[str, str], ...]
    what: str
    command: str
    words: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table: `cells` row by row, empty ones included; `missing` in the order of the cells."""

    name: str
    title: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[Cell, ...]
    notes: tuple[Note, ...]
    missing: tuple[Missing, ...]

    def cell(self, row: str, column: str) -> Cell:
        return self.cells[self.rows.index(row) * len(self.columns) + self.columns.index(column)]

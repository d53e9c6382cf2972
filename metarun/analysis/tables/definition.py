"""Definitions of tables: YAML files in `conf/table/`, and in the folder `table` of the user's own --config-dir.

A file has a title, a source, columns (DATASET_5w1s), rows by their label and, if need be, the seeds to train with and overrides for all
trainings (`set`). A row names an experiment, in which {column} stands for the column, and a published number, ALGORITHM or
ALGORITHM/VARIANT of `published.csv`; it can have overrides for its trainings (`set`) and for the test alone (`test`). What is different in
one cell stands in the row's `cells`, by column; null leaves the cell empty.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from metarun.config.compose import conf_dir
from metarun.config.schema import is_integer, near
from metarun.errors import UserError

COLUMN = re.compile(r"(?P<dataset>\w+)_(?P<ways>\d+)w(?P<shots>\d+)s")
KEYS = {
    "the table": ("title", "source", "columns", "rows", "seeds", "set"),
    "a row": ("experiment", "published", "set", "test", "cells"),
    "a cell": ("experiment", "published", "set", "test"),
}


@dataclass(frozen=True)
class Column:
    """A setting: `name` is DATASET_5w1s."""

    name: str
    dataset: str
    ways: int
    shots: int

    def __str__(self) -> str:
        return f"{self.dataset} {self.ways}-way {self.shots}-shot"


@dataclass(frozen=True)
class Asked:
    """What a cell asks for. pattern: the experiment was made of the row's pattern, so that there need not be one of that name; train, test:
    overrides for the training and, after them, for the test; published: algorithm and variant."""

    row: str
    column: Column
    experiment: str | None
    pattern: bool
    train: tuple[str, ...]
    test: tuple[str, ...]
    published: tuple[str, str] | None


@dataclass(frozen=True)
class Definition:
    """A table to fill in; `cells` are row by row. seeds: those to train with; None takes whatever is there, or else 0."""

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    cells: tuple[Asked, ...]
    seeds: tuple[int, ...] | None

    def restricted(self, columns: Sequence[str] | None, rows: Sequence[str] | None) -> "Definition":
        """The same with some of its columns and rows, in its own order. Raises UserError for one that it does not have."""
        names = [column.name for column in self.columns]
        for key, given, there in (("columns", columns, names), ("rows", rows, list(self.rows))):
            for name in given or ():
                if name not in there:
                    raise UserError(f"{key}: {name} is not in the table {self.name}; {near(name, there)}allowed: {', '.join(there)}")
        left = tuple(column for column in self.columns if columns is None or column.name in columns)
        kept = tuple(row for row in self.rows if rows is None or row in rows)
        cells = tuple(cell for cell in self.cells if cell.column in left and cell.row in kept)
        return Definition(self.name, self.title, self.source, left, kept, cells, self.seeds)


def names(config_dir: str | None = None) -> dict[str, Path]:
    """The tables there are, the user's own included, by their names."""
    folders = [conf_dir() / "table", *([Path(config_dir) / "table"] if config_dir else [])]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def load(name: str, config_dir: str | None = None) -> Definition:
    """The table `name`. Raises UserError if there is none or its file makes no sense."""
    if config_dir and not Path(config_dir).is_dir():
        raise UserError(f"--config-dir: {config_dir} is no folder")
    there = names(config_dir)
    if name not in there:
        raise UserError(f"{name}: no such table; {near(name, there)}allowed: {', '.join(there)}")
    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(there[name]), resolve=True)
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{there[name]}: not understood ({' '.join(str(error).split())})") from error
    return _definition(name, _checked(found, "the table", name))


def _definition(name: str, found: Mapping[str, Any]) -> Definition:
    for key in ("title", "source", "columns", "rows"):
        if not found.get(key):
            raise UserError(f"{name}: {key} is missing in the table")
    columns = tuple(map(parsed, found["columns"]))
    cells = [_asked(name, found, str(row), column) for row in found["rows"] for column in columns]
    seeds = found.get("seeds")
    if not (seeds is None or (isinstance(seeds, list) and seeds and all(is_integer(seed) and seed >= 0 for seed in seeds))):
        raise UserError(f"{name}: seeds: {seeds} is not a list of integers of at least 0")
    wanted = None if seeds is None else tuple(seeds)
    return Definition(name, str(found["title"]), str(found["source"]), columns, tuple(map(str, found["rows"])), tuple(cells), wanted)


def _asked(name: str, table: Mapping[str, Any], label: str, column: Column) -> Asked:
    row = _checked(table["rows"][label], "a row", f"{name}: rows.{label}")
    cells = row.get("cells") or {}
    for key in cells:
        if key not in table["columns"]:
            raise UserError(f"{name}: rows.{label}.cells.{key}: no such column; {near(str(key), table['columns'])}")
    if column.name in cells and cells[column.name] is None:
        return Asked(label, column, None, False, (), (), None)
    own = _checked(cells.get(column.name, {}), "a cell", f"{name}: rows.{label}.cells.{column.name}")
    pattern = "experiment" not in own and "{column}" in (row.get("experiment") or "")
    experiment, published = ({**row, **own}.get(key) for key in ("experiment", "published"))
    algorithm, _, variant = (published or "").partition("/")
    return Asked(
        row=label,
        column=column,
        experiment=experiment.replace("{column}", column.name) if experiment else None,
        pattern=pattern,
        train=(*_words(table, name), *_words(row, label), *_words(own, column.name)),
        test=(*_words(row, label, "test"), *_words(own, column.name, "test")),
        published=(algorithm, variant) if algorithm else None,
    )


def _words(node: Mapping[str, Any], where: str, key: str = "set") -> tuple[str, ...]:
    found = node.get(key) or []
    if not isinstance(found, list) or not all(isinstance(word, str) and ("=" in word or word.startswith("~")) for word in found):
        raise UserError(f"{where}: {key}: {found} is not a list of key=value or ~key")
    return tuple(found)


def _checked(node: Any, kind: str, where: str) -> Mapping[str, Any]:
    """The node, which has to be a mapping with the keys of its kind."""
    if not isinstance(node, Mapping):
        raise UserError(f"{where}: {node} is not allowed; {kind} has the keys {', '.join(KEYS[kind])}")
    for key in node:
        if key not in KEYS[kind]:
            raise UserError(f"{where}: {key}: no such key of {kind}; {near(str(key), KEYS[kind])}allowed: {', '.join(KEYS[kind])}")
    return node


def parsed(name: str) -> Column:
    """The setting that a column's name states."""
    found = COLUMN.fullmatch(str(name))
    if not found:
        raise UserError(f"columns: {name} is not understood; expected DATASET_5w1s, with any number of ways and shots")
    return Column(name, found["dataset"], int(found["ways"]), int(found["shots"]))

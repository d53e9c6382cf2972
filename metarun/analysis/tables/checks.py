"""What a table refuses before it looks at a run: names that are not there, and cells that cannot stand in one column."""

from collections.abc import Iterable, Mapping

from metarun.analysis.tables.definition import Asked, Definition
from metarun.analysis.tables.protocol import images, tested_by
from metarun.analysis.tables.recipe import Recipe, experiments
from metarun.config.schema import near
from metarun.errors import UserError


def refuse_patterns(definition: Definition, config_dir: str | None) -> None:
    """Raises UserError for a row whose pattern gives no experiment in any column."""
    for row in definition.rows:
        names = [cell.experiment for cell in definition.cells if cell.row == row and cell.pattern and cell.experiment]
        if names and not set(names).intersection(experiments(config_dir)):
            hint = near(names[0], experiments(config_dir))
            raise UserError(f"{definition.name}: rows.{row}.experiment: no such experiment as {names[0]}, nor in another column; {hint}")


def refuse_columns(definition: Definition, tests: Mapping[Asked, Recipe], same_protocols: bool) -> None:
    """Raises UserError for cells that are not of their column's setting, that have not one split, or, if so asked, not one protocol."""
    firsts: dict[str, tuple[Asked, Recipe]] = {}
    for asked, test in tests.items():
        column, protocol = asked.column, test.values["protocol"]
        where = f"{definition.name}: {asked.row}, {column.name}"
        states = {"dataset": (test.choices["dataset"], column.dataset)}
        states |= {f"protocol.{key}": (protocol[key], getattr(column, key)) for key in ("ways", "shots")}
        for key, (value, wanted) in states.items():
            if value != wanted:
                raise UserError(f"{where}: {key} is {value}; the column is for {wanted}")
        first, other = firsts.setdefault(column.name, (asked, test))
        for key, value in tested_by(test).items():
            theirs = other.values["protocol"][key]
            if value != theirs and (key == "split" or same_protocols):
                raise UserError(f"{where}: protocol.{key} is {value}, but {theirs} for {first.row}; a column needs one")
        if same_protocols:
            refuse_other_images(where, first.row, test, other)


def refuse_other_images(where: str, row: str, test: Recipe, other: Recipe) -> None:
    """Raises UserError if two cells are tested on different images."""
    here, there = images(test.values["dataset"]), images(other.values["dataset"])
    for key in sorted({*here, *there}):
        if here.get(key) != there.get(key):
            raise UserError(f"{where}: dataset.{key} is {here.get(key)}, but {there.get(key)} for {row}; a column needs one")


def refuse_roots(roots: Mapping[str, str], tests: Iterable[Recipe]) -> None:
    """Raises UserError for a dataset that is not in the table."""
    there = sorted({test.choices["dataset"] for test in tests})
    for name in roots:
        if name not in there:
            raise UserError(f"roots.{name}: no such dataset in the table; {near(name, there)}allowed: {', '.join(there)}")

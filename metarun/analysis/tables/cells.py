"""A table filled in: what the runs in its cells come to, and what has to be said of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from metarun.analysis.tables.checks import refuse_columns, refuse_patterns, refuse_roots
from metarun.analysis.tables.definition import Asked, load
from metarun.analysis.tables.lacking import Lacking
from metarun.analysis.tables.matching import Filling, filled, still_empty
from metarun.analysis.tables.notes import Notes
from metarun.analysis.tables.protocol import departures, tested_by
from metarun.analysis.tables.published import Published, numbers
from metarun.analysis.tables.recipe import composed, experiments
from metarun.analysis.tables.table import Cell, CellRun, Table
from metarun.config.schema import near
from metarun.errors import UserError
from metarun.runs.catalogue import Found, find_runs
from metarun.runs.records import Record


@dataclass(frozen=True)
class Order:
    """What is asked for. overrides: for all trainings and tests; seeds: only these; roots: folders of the datasets, by their choice;
    same_protocols: refuse a table whose cells are tested by different ones."""

    name: str
    root: Path = Path("outputs")
    seeds: Sequence[int] | None = None
    overrides: Sequence[str] = ()
    columns: Sequence[str] | None = None
    rows: Sequence[str] | None = None
    roots: Mapping[str, str] | None = None
    same_protocols: bool = False
    config_dir: str | None = None


def reproduce(name: str, root: Path = Path("outputs"), config_dir: str | None = None) -> Table:
    """The table `name` from the finished runs below `root`; runs and writes nothing. Raises UserError."""
    return made(Order(name, root, config_dir=config_dir))


def made(order: Order) -> Table:
    """The table that is asked for, from the runs that are there. Raises UserError for what the definition does not have, for an override
    that composes to nothing, and for cells that cannot stand in one column.
    """
    whole = load(order.name, order.config_dir)
    refuse_patterns(whole, order.config_dir)
    definition = whole.restricted(order.columns, order.rows)
    seeds = definition.seeds if order.seeds is None else tuple(order.seeds)
    empty = {asked: filling for asked in definition.cells if (filling := recipes(asked, order))}
    tests = {asked: filling.test for asked, filling in empty.items()}
    refuse_columns(definition, tests, order.same_protocols)
    refuse_roots(order.roots or {}, tests.values())
    runs = find_runs(order.root) if order.root.exists() else []
    notes, lacking = Notes(order.config_dir), Lacking(order.root, seeds, order.roots or {}, order.config_dir)
    cells, found = [], numbers(Path(order.config_dir) / "table" / "published.csv" if order.config_dir else None)
    for asked in definition.cells:
        cell = with_published(Cell(asked.row, asked.column.name), asked, found)
        if asked in empty:
            filling = filled(empty[asked], runs, seeds, order.config_dir)
            cell = with_runs(replace(cell, experiment=asked.experiment, protocol=tested_by(filling.test)), filling, order)
            cell = replace(cell, marks=(*notes.of_cell(cell, filling), *cell.marks))
            lacking.look_at(cell, filling)
        cells.append(replace(cell, marks=(*cell.marks, *notes.of_published(cell))))
    columns = tuple(column.name for column in definition.columns)
    return Table(whole.name, whole.title, whole.source, columns, definition.rows, tuple(cells), notes.all(cells), tuple(lacking.found()))


def recipes(asked: Asked, order: Order) -> Filling | None:
    """The configurations of a cell; None for one without a recipe."""
    if asked.experiment is None or (asked.pattern and asked.experiment not in experiments(order.config_dir)):
        return None
    try:
        return still_empty(asked.experiment, (*asked.train, *order.overrides), asked.test, order.config_dir)
    except UserError as error:
        raise UserError(f"{error} (in {order.name}, {asked.row}, {asked.column.name})") from error


def with_published(cell: Cell, asked: Asked, found: Mapping[tuple[str, str, str, int, int], Published]) -> Cell:
    """The cell with the number that was published for it, if one was. Raises UserError for a name under which there are none at all."""
    if asked.published is None:
        return cell
    if asked.published not in {key[:2] for key in found}:
        names = sorted({"/".join(filter(None, key[:2])) for key in found})
        wrong = "/".join(filter(None, asked.published))
        raise UserError(f"{asked.row}: published: {wrong} has no numbers; {near(wrong, names)}published.csv has all there are")
    column = asked.column
    number = found.get((*asked.published, column.dataset, column.ways, column.shots))
    if number is None:
        return cell
    return replace(
        cell,
        published=float(number.accuracy),
        published_interval=float(number.interval) if number.interval else None,
        published_kind=number.kind or None,
        published_text=str(number),
        published_source=number.source,
        verified=number.verified,
    )


def with_runs(cell: Cell, filling: Filling, order: Order) -> Cell:
    """The cell with what its tested runs come to."""
    tested = [(run, record) for run, record in zip(filling.chosen, filling.records, strict=True) if record is not None]
    if not tested:
        return cell
    runs = tuple(
        CellRun(
            str(run.folder.relative_to(order.root)),
            run.config["seed"],
            score.value,
            score.half,
            *(record.values[key] for key in ("episodes", "checkpoint_step", "episodes_sha256", "checkpoint_sha256")),
        )
        for run, record in tested
        if (score := record.number())
    )
    accuracy, ci95 = fmean(run.accuracy for run in runs), interval([record for _, record in tested])
    apart = (*filling.settings, *departures(filling.test, composed(filling.published, order.config_dir)))
    settings = [f"{difference} (recipe {difference.recipe})" for difference in apart] + ended_early(tested) + on_other_data(tested)
    difference = None if cell.published is None else accuracy - cell.published
    return replace(
        cell,
        accuracy=accuracy,
        ci95=ci95,
        spread=stdev(run.accuracy for run in runs) if len(runs) > 1 else None,
        seeds=tuple(run.seed for run in runs),
        difference=difference,
        inside=None if difference is None or ci95 is None else abs(difference) <= ci95,
        runs=runs,
        settings=tuple(settings),
    )


def ended_early(tested: Sequence[tuple[Found, Record]]) -> list[str]:
    """What is to be said of runs whose last checkpoint was tested and is not of the last step that was asked for."""
    return [
        f"seed {run.config['seed']} ended at step {record.values['checkpoint_step']} of {run.config['steps']}"
        for run, record in tested
        if record.values["config"]["protocol"]["selection"] == "last" and record.values["checkpoint_step"] < run.config["steps"]
    ]


def on_other_data(tested: Sequence[tuple[Found, Record]]) -> list[str]:
    """What is to be said of runs that were tested on other images than the first, or than those that they were trained on."""
    first = tested[0][1].values.get("data_fingerprint")
    said = [
        f"seed {run.config['seed']} was tested on other images" for run, record in tested if record.values.get("data_fingerprint") != first
    ]
    return said + [
        f"seed {run.config['seed']} was trained on other images of the same classes than it was tested on"
        for run, record in tested
        if record.values.get("other_images")
    ]


def interval(records: Sequence[Record]) -> float | None:
    """Half of the 95 % interval over test tasks of the mean over seeds. All seeds have the same tasks, so a task counts once, by its mean
    over them. None for a single task, and for a test that cannot be matched task by task.
    """
    if len(records) == 1:
        score = records[0].number()
        return score.half if score else None
    columns = [record.column() for record in records]
    tasks = list(zip(*(column.values if column else () for column in columns), strict=False))
    if len({(record.values["episodes_sha256"], record.values.get("data_fingerprint")) for record in records}) > 1 or len(tasks) < 2:
        return None
    return 1.96 * stdev(fmean(task) for task in tasks) / sqrt(len(tasks))

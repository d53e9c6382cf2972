"""A run's own part of the page."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metarun.analysis.listing.summary import measure, summary, texts
from metarun.analysis.report import origins
from metarun.analysis.report.episodes import Picture, pictures
from metarun.analysis.report.methods import band
from metarun.analysis.report.plots import Line, Plot, plot
from metarun.errors import UserError
from metarun.runs.catalogue import Found
from metarun.runs.records import Record


@dataclass(frozen=True)
class RunPage:
    """One run. id: where its part of the page is; name: its folder below that of the report; values, texts: see
    `metarun.analysis.listing.summary`; records: its tests, each with the line that repeats it; remark: why there are no pictures."""

    id: str
    name: str
    run: Found
    values: Mapping[str, Any]
    texts: Mapping[str, str]
    plot: Plot | None
    training: str | None
    records: Sequence[tuple[Record, str]]
    recipe: str
    differences: Sequence[tuple[str, str, str]] | None
    first: Sequence[Picture]
    worst: Sequence[Picture]
    remark: str


def run_pages(runs: Sequence[Found], root: Path, episodes: int) -> Iterator[RunPage]:
    taken: set[str] = set()
    for run in tqdm(runs, desc="report", unit="run", disable=None, leave=False):
        name = run.folder.name if run.folder == root else str(run.folder.relative_to(root))
        first, worst, remark = shown(run, episodes)
        values = summary(run)
        yield RunPage(
            id=identifier(name, taken),
            name=name,
            run=run,
            values=values,
            texts=texts(values, measure(run)),
            plot=curves(run, name),
            training=origins.training_command(run),
            records=[(record, origins.test_command(run, record)) for record in reversed(run.all_records)],
            recipe=origins.recipe(run),
            differences=origins.differences(run),
            first=first,
            worst=worst,
            remark=remark,
        )


def identifier(name: str, taken: set[str]) -> str:
    """A name for links, the same whenever the report is made, and no other run's."""
    plain = found = "run-" + re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")
    while found in taken:
        found = f"{plain}-{len(taken)}"
    taken.add(found)
    return found


def curves(run: Found, name: str) -> Plot | None:
    """Accuracy in training, where it is a share, and on validation."""
    lines = []
    for colour, (label, split, factor) in enumerate((("validation", "val", 1), ("training tasks", "train", 100))):
        steps, values = run.curve(split, "accuracy")
        lines.append(Line(label, colour, 0, band([(steps, [factor * value for value in values])])))
    return plot(lines, "steps", "accuracy, %", f"Accuracy against steps, {name}")


def shown(run: Found, episodes: int) -> tuple[list[Picture], list[Picture], str]:
    """Pictures of the first and the worst tasks of the run's own test, or of its last one; else a line that says why there are none."""
    records = [record for record in reversed(run.records) if record.column()]
    records.sort(key=lambda record: record.values["config"].get("protocol") != run.config["protocol"])  # stable: its own first
    remark = "They were not asked for." if records else "It was not tested."
    for record in records if episodes else []:
        try:
            return *pictures(run, record, episodes), ""
        except (UserError, OSError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if record is records[0]:
                remark = f"They cannot be shown: {' '.join(str(error).split()) or type(error).__name__}"
    return [], [], remark

"""`metarun runs [DIR]`: all runs below a folder, one line each. Needs no torch, so that hundreds are there at once."""

import csv
import io
import json
import shutil
import sys
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.analysis.listing.selection import ordered, selected, wanted_states
from metarun.analysis.listing.summary import FIELDS, measure, summary, texts
from metarun.errors import UserError
from metarun.runs.catalogue import find_runs
from metarun.runs.records import refuse_unknown as refuse_number
from metarun.runs.status import STATES
from metarun.text.grid import Column, grid
from metarun.text.measure import Measure
from metarun.text.units import counted
from metarun.text.words import Parser, taken, told_apart

EPILOG = """examples
  metarun runs --sort best                             the best first
  metarun runs number=loss --sort best                 by another number of the tests
  metarun runs algorithm=maml,anil task.shots=1        some methods, or any other key of the configuration
  metarun runs sweeps --state failed,cut-off           what did not come to its end
  metarun runs --format json | jq '.[].test'           every digit; csv has the same columns
"""
COLUMNS = (
    Column("run", least=18, middle=True), Column("algorithm", drop=9), Column("dataset", drop=6),
    Column("seed", drop=4, right=True), Column("state"), Column("step", drop=5, right=True),
    Column("rate", drop=3, right=True), Column("left", drop=10, right=True), Column("val", drop=11, right=True),
    Column("test", drop=13, right=True), Column("time", drop=2, right=True), Column("updated", drop=1), Column("error", drop=12, least=16),
)  # fmt: skip


def command(words: list[str]) -> None:
    """Prints the grid. Raises UserError for a folder that is none, and for a state or a key that there is not."""
    args = parser().parse_intermixed_args(joined(words))
    folders, pairs = told_apart(args.words)
    number, filters = taken("number", pairs)
    if len(folders) > 1:
        raise UserError(f"{folders[1]}: not understood; expected one folder, then key=value")
    states, root = wanted_states(args.state), Path(folders[0] if folders else "outputs")
    there = find_runs(root)
    refuse_number(number, (run.tested for run in there if run.tested))
    runs = [run for run in ordered(selected(there, filters), args.sort, number) if run.state in states]
    rows = [summary(run, number) for run in runs]
    if args.format == "table":
        measures = [measure(run, number) for run in runs]
        said = table(rows, measures, root, width()) if rows else f"no {'such ' if there else ''}runs below {root}"
    else:
        said = as_csv(rows) if args.format == "csv" else json.dumps(rows, indent=1)
    print(said, flush=True)


def parser() -> Parser:
    found = Parser("metarun runs", description="All runs below a folder.", epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter)
    told = "the folder (outputs), what the runs are to have, and number=NAME of the tests"
    found.add_argument("words", nargs="*", metavar="DIR key=value", help=told)
    found.add_argument("--state", help=f"only these: {', '.join(STATES)}")
    found.add_argument("--sort", metavar="KEY", help="by a column or a key of the configuration; -KEY for the largest first")
    found.add_argument("--format", choices=("table", "csv", "json"), default="table")
    return found


def joined(words: Sequence[str]) -> list[str]:
    """`--sort -test` as argparse understands it, which takes `-test` for a flag."""
    found: list[str] = []
    for word in words:
        if found[-1:] == ["--sort"] and word.startswith("-"):
            found[-1] = f"--sort={word}"
        else:
            found.append(word)
    return found


def width() -> int | None:
    """The characters in a line of the terminal; None, for as many as it takes, where a program or a file reads."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(rows: Sequence[Mapping[str, Any]], measures: Sequence[Measure], root: Path, width: int | None) -> str:
    """The aligned grid, then how many runs are in which state and what is not shown."""
    shown = [{**texts(row, by), "run": below(root, row["run"])} for row, by in zip(rows, measures, strict=True)]
    columns = [*COLUMNS[:3], *(Column(key, drop=7, right=True) for key in settings(rows)), *COLUMNS[3:]]
    lines, left_out = grid(columns, shown, width)
    states = Counter(row["state"] for row in rows)
    count = f"{counted(len(rows), 'run')}: {', '.join(f'{states[state]} {state}' for state in STATES if states[state])}"
    return "\n".join([*lines, count + f"; not shown: {', '.join(left_out)}" * bool(left_out)])


def settings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of the runs' settings, each once."""
    return list(dict.fromkeys(key for row in rows for key in row if key not in FIELDS))


def below(root: Path, folder: str) -> str:
    """A run's folder as seen from `root`, which may be the run itself."""
    return folder if Path(folder) == root else str(Path(folder).relative_to(root))


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, [*FIELDS[:3], *settings(rows), *FIELDS[3:]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().rstrip("\n")

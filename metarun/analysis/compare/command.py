"""`metarun compare`: how far runs differ on the episodes that all of them were tested on, and how sure that is."""

import csv
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from metarun.analysis.compare.choosing import chosen, found
from metarun.errors import UserError
from metarun.runs.records import SETTINGS, refuse_unknown
from metarun.text.grid import Column, grid
from metarun.text.measure import Measure
from metarun.text.words import Parser, taken, told_apart


def command(words: list[str]) -> None:
    """Compares the runs that the line names and prints the result. Raises UserError."""
    args = _parsed(words)
    try:
        from metarun.analysis.compare.comparison import compared
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "scipy":
            raise
        raise UserError("compare needs SciPy; pip install 'metarun[analysis]'") from error
    if args.overrides:
        from metarun.analysis.compare.retest import retested

        candidates = [[record] for record in retested(args.runs, args.overrides)]
    else:
        candidates = [found(run) for run in args.runs]
    records, remarks = chosen(candidates, args.record)
    for record in records:
        refuse_unknown(args.number, [record])
    score = records[0].number(args.number)
    assert score is not None  # no record is without numbers
    result = compared(records, score.measure, args.resamples, args.classes)
    result["remarks"] += dict.fromkeys(remarks)  # each once, should a run be named twice
    if args.format == "json":
        print(json.dumps(result, indent=1))
    elif args.format == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([["run", "name", "value"], *_rows(result, score.measure.name)])
        print("\n".join(result["remarks"]), file=sys.stderr)
    else:
        print("\n".join(_text(result, records[0].words, score.measure)))


def _parsed(words: list[str]) -> Namespace:
    """The line, with `runs` and `overrides` told apart. Raises UserError."""
    parser = Parser(prog="metarun compare", description="Compares runs on the episodes that all of them were tested on.")
    add, most = parser.add_argument, len(ascii_uppercase)
    add("runs", nargs="*", metavar="RUN", help="run folder, or the file of an evaluation; the others are compared with the first")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="number=NAME, of the tests; the others first evaluate every run so")
    add("--record", default="", metavar="SHA", help="the episodes to compare on, by the beginning of their hash (default: the most)")
    add("--resamples", type=int, default=9999, metavar="N", help="of the bootstrap and the permutation test (default: 9999)")
    add("--classes", type=int, default=10, metavar="N", help="show so many classes, those that differ most first (default: 10)")
    add("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    args = parser.parse_intermixed_args(words)
    args.runs, pairs = told_apart([*args.runs, *args.overrides])
    args.number, args.overrides = taken("number", pairs)
    if not 2 <= len(args.runs) <= most:
        raise UserError(f"compare: {len(args.runs)} runs given, expected 2 to {most}; metarun compare RUN_A RUN_B")
    for key, low in (("resamples", 100), ("classes", 0)):
        if getattr(args, key) < low:
            raise UserError(f"--{key}: {getattr(args, key)} is not allowed; expected an integer of at least {low}")
    return args


def _rows(result: Mapping[str, Any], number: str) -> Iterator[tuple[str, str, Any]]:
    """Run, name and value, every digit."""
    for entry in (*result["runs"], *result["comparisons"]):
        for key, value in entry.items():
            if isinstance(value, tuple):
                yield from ((entry["run"], f"{key}_{end}", limit) for end, limit in zip(("low", "high"), value, strict=True))
            elif key != "run":
                yield entry["run"], key, value
    for entry in result["per_class"]:
        yield from ((run, f"{number}/{entry['class']}", value) for run, value in entry[number].items())


def _text(result: Mapping[str, Any], words: str, measure: Measure) -> Iterator[str]:
    """Aligned lines to read."""
    r, runs = result, [entry["run"] for entry in result["runs"]]
    yield f"{r['episodes']} episodes, {words} ({r['episodes_sha256'][:8]})\n"
    yield from _aligned([["", "run", measure.heading, *SETTINGS, "step", "seed"], *(_run(entry, measure) for entry in r["runs"])], left=2)
    yield ""
    tests = [key for key in r["comparisons"][0] if key.startswith("p_")]
    titles = ["", measure.of_differences, "95 %", "bootstrap 95 %", *(key.replace("_", " ") for key in tests), "episodes to tell apart"]
    yield from _aligned([titles, *(_comparison(entry, tests, measure) for entry in r["comparisons"])])
    yield ""
    if r["per_class"]:
        numbers = [f"{run}, {measure.unit}" if measure.unit else run for run in runs]
        titles = ["class", "questions", *numbers, *(f"{run} - A" for run in runs[1:])]
        yield from _aligned([titles, *(_class(entry, measure) for entry in r["per_class"])])
        yield ""
    yield from r["remarks"]


def _run(entry: Mapping[str, Any], measure: Measure) -> list[Any]:
    number = measure.number(entry[measure.name], entry["ci95"])
    return [entry["run"], entry["folder"], number, *(entry[key] for key in (*SETTINGS, "checkpoint_step", "seed"))]


def _comparison(entry: Mapping[str, Any], tests: Sequence[str], measure: Measure) -> list[Any]:
    intervals = [f"{measure.signed(low)} to {measure.signed(high)}" for low, high in (entry["ci95"], entry["bootstrap_ci95"])]
    needed = entry["episodes_needed"] or "cannot be, however many"
    return [f"{entry['run']} - A", measure.signed(entry["difference"]), *intervals, *(f"{entry[key]:.2g}" for key in tests), needed]


def _class(entry: Mapping[str, Any], measure: Measure) -> list[Any]:
    first, *others = entry[measure.name].values()
    differences = [measure.signed(other - first) for other in others]
    return [entry["class"], entry["questions"], *(measure.number(value) for value in (first, *others)), *differences]


def _aligned(rows: Sequence[Sequence[Any]], left: int = 1) -> Iterator[str]:
    """The first `left` columns to the left, the others to the right."""
    titles = rows[0]
    columns = [Column(title, right=place >= left) for place, title in enumerate(titles)]
    yield from grid(columns, [dict(zip(titles, map(str, row), strict=True)) for row in rows[1:]])[0]

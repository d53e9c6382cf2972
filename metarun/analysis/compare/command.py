"""`metarun compare`: how far runs differ on the episodes that all of them were tested on, and how sure that is."""

import csv
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from metarun.analysis.compare.choosing import chosen, found
from metarun.errors import UserError
from metarun.runs.records import SETTINGS
from metarun.text.words import Parser


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
    result = compared(records, args.resamples, args.classes)
    result["remarks"] += dict.fromkeys(remarks)  # each once, should a run be named twice
    if args.format == "json":
        print(json.dumps(result, indent=1))
    elif args.format == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows([["run", "name", "value"], *_rows(result)])
        print("\n".join(result["remarks"]), file=sys.stderr)
    else:
        print("\n".join(_text(result)))


def _parsed(words: list[str]) -> Namespace:
    """The line, with `runs` and `overrides` told apart. Raises UserError."""
    parser = Parser(prog="metarun compare", description="Compares runs on the episodes that all of them were tested on.")
    add, most = parser.add_argument, len(ascii_uppercase)
    add("runs", nargs="*", metavar="RUN", help="run folder, or the file of an evaluation; the others are compared with the first")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="first evaluate every run so, like protocol.episodes=1000")
    add("--record", default="", metavar="SHA", help="the episodes to compare on, by the beginning of their hash (default: the most)")
    add("--resamples", type=int, default=9999, metavar="N", help="of the bootstrap and the permutation test (default: 9999)")
    add("--classes", type=int, default=10, metavar="N", help="show so many classes, those that differ most first (default: 10)")
    add("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    args = parser.parse_intermixed_args(words)
    given = [*args.runs, *args.overrides]
    args.overrides = [word for word in given if "=" in word and not Path(word).exists()]  # a folder may be named `lr=0.1`
    args.runs = [word for word in given if word not in args.overrides]
    if not 2 <= len(args.runs) <= most:
        raise UserError(f"compare: {len(args.runs)} runs given, expected 2 to {most}; metarun compare RUN_A RUN_B")
    for key, low in (("resamples", 100), ("classes", 0)):
        if getattr(args, key) < low:
            raise UserError(f"--{key}: {getattr(args, key)} is not allowed; expected an integer of at least {low}")
    return args


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Run, name and value, every digit."""
    for entry in (*result["runs"], *result["comparisons"]):
        for key, value in entry.items():
            if isinstance(value, tuple):
                yield from ((entry["run"], f"{key}_{end}", limit) for end, limit in zip(("low", "high"), value, strict=True))
            elif key != "run":
                yield entry["run"], key, value
    for entry in result["per_class"]:
        yield from ((run, f"accuracy/{entry['class']}", value) for run, value in entry["accuracy"].items())


def _text(result: Mapping[str, Any]) -> Iterator[str]:
    """Aligned lines to read."""
    r, runs = result, [entry["run"] for entry in result["runs"]]
    yield f"{r['episodes']} episodes, {r['ways']}-way {r['shots']}-shot, {r['queries']} queries a class ({r['episodes_sha256'][:8]})\n"
    yield from _aligned([["", "run", "accuracy, %", *SETTINGS, "step", "seed"], *map(_run, r["runs"])], left=2)
    yield ""
    tests = [key for key in r["comparisons"][0] if key.startswith("p_")]
    titles = ["", "points", "95 %", "bootstrap 95 %", *(key.replace("_", " ") for key in tests), "episodes to tell apart"]
    yield from _aligned([titles, *(_comparison(entry, tests) for entry in r["comparisons"])])
    yield ""
    if r["per_class"]:
        titles = ["class", "questions", *(f"{run}, %" for run in runs), *(f"{run} - A" for run in runs[1:])]
        yield from _aligned([titles, *map(_class, r["per_class"])])
        yield ""
    yield from r["remarks"]


def _run(entry: Mapping[str, Any]) -> list[Any]:
    accuracy = f"{entry['accuracy']:.2f} ± {entry['ci95']:.2f}"
    return [entry["run"], entry["folder"], accuracy, *(entry[key] for key in (*SETTINGS, "checkpoint_step", "seed"))]


def _comparison(entry: Mapping[str, Any], tests: Sequence[str]) -> list[Any]:
    intervals = [f"{low:+.2f} to {high:+.2f}" for low, high in (entry["ci95"], entry["bootstrap_ci95"])]
    needed = entry["episodes_needed"] or "cannot be, however many"
    return [f"{entry['run']} - A", f"{entry['difference']:+.2f}", *intervals, *(f"{entry[key]:.2g}" for key in tests), needed]


def _class(entry: Mapping[str, Any]) -> list[Any]:
    first, *others = entry["accuracy"].values()
    differences = [f"{other - first:+.2f}" for other in others]
    return [entry["class"], entry["questions"], *(f"{value:.2f}" for value in (first, *others)), *differences]


def _aligned(rows: Sequence[Sequence[Any]], left: int = 1) -> Iterator[str]:
    """The first `left` columns to the left, the others to the right."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell!s:{'<' if i < left else '>'}{widths[i]}}" for i, cell in enumerate(row)]
        yield "  ".join(cells).rstrip()

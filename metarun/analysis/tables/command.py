"""`metarun table NAME [DIR]`: a paper's table from the runs below a folder."""

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from metarun.analysis.tables.cells import Order, made
from metarun.analysis.tables.definition import load, names
from metarun.analysis.tables.making import make
from metarun.analysis.tables.render import FORMATS, remarks
from metarun.config.schema import near, refuse_unwritable
from metarun.errors import TrainingError, UserError
from metarun.runs.files import whole
from metarun.text.words import Parser

EPILOG = """key=value
  run=true | test           train what is missing and test it, or only test what is trained
  seeds=[0,1]               these seeds, for the numbers and for what is missing (default: whatever is there)
  set=[key=value,...]       overrides for all cells, trainings and tests
  roots.DATASET=DIR         where the data of the trainings are
  columns=[...] rows=[...]  a part of the table
  protocols=same            refuse a table whose columns are not tested by one protocol each

examples
  metarun table                                            the tables there are
  metarun table classics                                   published numbers beside those of the runs in outputs/
  metarun table maml RUNS columns=[omniglot_5w1s] roots.omniglot=DIR run=true -- hydra/launcher=joblib
  metarun table classics RUNS --format latex --out table.tex
"""
SETTINGS = {"run": ("true", "test", "false"), "protocols": ("same", "any"), "seeds": (), "set": (), "columns": (), "rows": ()}


def command(words: list[str]) -> None:
    """Prints a table, or writes it to a file. Raises UserError; and TrainingError, once the table is out, if what was run failed."""
    words, more = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    args = parser().parse_intermixed_args(words)
    name, root, settings = sorted_out(args.words)
    if name in (None, "list"):
        write("\n".join(listed(args.config_dir)), args.out)
        return
    order = ordered(name, root, settings, args)
    run = settings.get("run", "false")
    if more and run != "true":
        raise UserError(f"-- {more[0]}: only with run=true, whose sweep it is for")
    if root is not None and run != "true" and not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a folder of runs")
    if args.out:
        refuse_unwritable("--out", Path(args.out).parent)
    failed = [] if run == "false" else make(order, trainings=run == "true", more=more)
    table = made(order)
    write(FORMATS[args.format](table), args.out)
    if args.format == "csv":
        print("\n".join(remarks(table)), file=sys.stderr)
    if failed:
        raise TrainingError("not everything could be made; " + "; ".join(failed))


def parser() -> Parser:
    found = Parser("metarun table", description="A paper's table from runs.", epilog=EPILOG, formatter_class=RawDescriptionHelpFormatter)
    found.add_argument("words", nargs="*", metavar="NAME DIR key=value", help="the table, or list; the folder of the runs (outputs)")
    found.add_argument("--format", choices=tuple(FORMATS), default="terminal")
    found.add_argument("--out", metavar="FILE", help="write it there instead of printing it")
    found.add_argument("--config-dir", metavar="DIR", help="a folder with tables of your own in table/, and with your own groups")
    return found


def sorted_out(words: Sequence[str]) -> tuple[str | None, Path | None, dict[str, str]]:
    """The name, the folder and the settings that the words are."""
    places: list[str] = []
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or (places and Path(word).exists()):  # a folder may be named `lr=0.1`
            places.append(word)
        elif key in SETTINGS or key.removeprefix("roots.") not in ("", key):
            settings[key] = value
        else:
            raise UserError(f"{key}: no such key; {near(key, SETTINGS)}allowed: {', '.join(SETTINGS)}, roots.DATASET")
    if len(places) > 2:
        raise UserError(f"{places[2]}: not understood; expected a table, a folder and key=value")
    for key, value in settings.items():
        if SETTINGS.get(key) and value not in SETTINGS[key]:
            raise UserError(f"{key}: {value} is not allowed; expected one of {', '.join(SETTINGS[key])}")
    return places[0] if places else None, Path(places[1]) if len(places) > 1 else None, settings


def ordered(name: str, root: Path | None, settings: Mapping[str, str], args: Namespace) -> Order:
    """What the command line asks for."""
    lists = {key: list(items(key, settings[key])) for key in ("seeds", "set", "columns", "rows") if key in settings}
    for seed in lists.get("seeds", ()):
        if not seed.isdecimal():
            raise UserError(f"seeds: {seed} is not allowed; expected integers of at least 0")
    for word in lists.get("set", ()):
        if "=" not in word:
            raise UserError(f"set: {word} is not understood; expected key=value")
    return Order(
        name=name,
        root=root or Path("outputs"),
        seeds=[int(seed) for seed in lists["seeds"]] if "seeds" in lists else None,
        overrides=lists.get("set", ()),
        columns=lists.get("columns"),
        rows=lists.get("rows"),
        roots={key.removeprefix("roots."): value for key, value in settings.items() if key.startswith("roots.")},
        same_protocols=settings.get("protocols") == "same",
        config_dir=args.config_dir,
    )


def items(key: str, text: str) -> Iterator[str]:
    """What stands in a list, or a single value: split at commas outside of brackets and quotes. Raises UserError for an empty list."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    depth, quote, item = 0, "", ""
    for character in f"{inner},":
        if not quote and depth == 0 and character == ",":
            if not item.strip():
                raise UserError(f"{key}: {text} is not understood; expected a list like [a,b]")
            yield item.strip()
            item = ""
            continue
        if character in "'\"":
            quote = "" if character == quote else quote or character
        depth += (not quote) * ((character in "[{(") - (character in "]})"))
        item += character
    if item:
        raise UserError(f"{key}: {text} is not understood; a bracket or a quote is not closed")


def listed(config_dir: str | None) -> list[str]:
    """A line for every table."""
    there = {name: load(name, config_dir).title for name in names(config_dir)}
    return [f"{name:{max(map(len, there))}}  {title}" for name, title in there.items()]


def write(text: str, out: str | None) -> None:
    """To a file or to stdout. Raises UserError for a file that cannot be written."""
    if out is None:
        print(text, flush=True)
        return
    try:
        with whole(Path(out)) as file:
            file.write(f"{text}\n".encode())
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror})") from error

"""The formats of a table. Those that are read have the published number in parentheses below or behind ours; csv and json have all."""

import csv
import io
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields

from metarun.analysis.tables.definition import parsed
from metarun.analysis.tables.latex import latex
from metarun.analysis.tables.table import Cell, Table
from metarun.analysis.tables.wording import below, blocks, counted, heading, marks, ours, where

WIDTH = 120


def terminal(table: Table) -> str:
    """Aligned text."""
    head, rows = heading(table), blocks(table, lambda cell: f"{ours(cell)} {marks(cell)}".strip())
    widths = [max(map(len, column)) for column in zip(*head, *(line for row in rows for line in row), strict=True)]
    lines = [f"{table.title} ({table.source})", ""]
    for block in (head, *rows):
        lines += ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in block]
        lines.append("-" * (sum(widths) + 2 * len(widths) - 2) if block is head else "")
    return "\n".join([*lines, *remarks(table)])


def remarks(table: Table) -> Iterator[str]:
    """The notes, and what is missing with the commands that make it."""
    for note in table.notes:
        hanging = "    " * bool(note.mark)
        yield from textwrap.wrap(f"{note.mark:3} {note.text}".lstrip(), WIDTH, subsequent_indent=hanging, break_long_words=False)
    yield ""
    for one in table.missing:
        yield f"missing: {where(one)}: {one.what}"
        yield f"  {one.command}"
    yield counted(table)


def markdown(table: Table) -> str:
    """A table of Markdown, its notes, and what is missing as code."""
    lines = [f"**{escaped(table.title)}** ({escaped(table.source)})", "", piped(["", *(str(parsed(column)) for column in table.columns)])]
    lines.append(piped(["---"] * (len(table.columns) + 1)))
    for row in table.rows:
        texts = []
        for cell in (table.cell(row, column) for column in table.columns):
            number = escaped(ours(cell)) + (f"<sup>{marks(cell)}</sup>" if marks(cell) else "")
            texts.append(" ".join(filter(None, (number, *map(escaped, below(cell))))))
        lines.append(piped([escaped(row), *texts]))
    lines += ["", *(f"- {note.mark}{': ' if note.mark else ''}{escaped(note.text)}" for note in table.notes), "", counted(table)]
    if table.missing:
        lines += ["", "```", *(text for one in table.missing for text in (f"# {where(one)}: {one.what}", one.command)), "```"]
    return "\n".join(lines)


def piped(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def escaped(text: str) -> str:
    """Text that Markdown takes as it is."""
    return "".join(f"\\{character}" if character in "\\|*_<>`[]" else character for character in text)


def as_csv(table: Table) -> str:
    """A line for every cell with every field; what has several values has them separated by semicolons."""
    file = io.StringIO()
    names = [field.name for field in fields(Cell)]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: flattened(getattr(cell, name)) for name in names} for cell in table.cells)
    return file.getvalue().rstrip("\n")


def flattened(value: object) -> object:
    if isinstance(value, Mapping):
        return ";".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, tuple):
        return ";".join(str(getattr(each, "run", each)) for each in value)
    return value


def as_json(table: Table) -> str:
    return json.dumps(asdict(table), indent=1, ensure_ascii=False)


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "terminal": terminal,
    "markdown": markdown,
    "csv": as_csv,
    "latex": latex,
    "json": as_json,
}

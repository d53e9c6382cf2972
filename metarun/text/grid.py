"""Rows of text in aligned columns, fitted to a width without wrapping a line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GAP, DOTS = 2, "…"


@dataclass(frozen=True)
class Column:
    """A column by its name. drop: its place in the order in which a narrow grid goes without columns, None to keep it; least: the
    width down to which its entries may be shortened instead, in the middle or at the end; right: flush right, like numbers."""

    name: str
    drop: int | None = None
    least: int | None = None
    middle: bool = False
    right: bool = False


def grid(columns: Sequence[Column], rows: Sequence[Mapping[str, str]], width: int | None = None) -> tuple[list[str], list[str]]:
    """Lines of at most `width` characters, a line of names first, and the names of the columns that had to go.

    A column without a single entry is not shown.
    """
    cells = [{name: printable(text) for name, text in row.items()} for row in rows]
    shown = [column for column in columns if any(row.get(column.name) for row in cells)]
    natural = {column.name: max(len(text) for text in (column.name, *(row.get(column.name, "") for row in cells))) for column in shown}
    kept = fitting(shown, natural, width)
    widths = shared(kept, natural, width)
    lines = [line(kept, widths, {column.name: column.name for column in kept}), *(line(kept, widths, row) for row in cells)]
    return [text[:width] for text in lines], [column.name for column in shown if column not in kept]


def fitting(columns: Sequence[Column], natural: Mapping[str, int], width: int | None) -> list[Column]:
    """The columns that fit once all that may be shortened is as short as it may be."""
    kept = list(columns)
    while width is not None and sum(narrowest(column, natural) + GAP for column in kept) - GAP > width:
        next_to_go = min((column.drop for column in kept if column.drop is not None), default=None)
        if next_to_go is None:
            break
        kept = [column for column in kept if column.drop != next_to_go]
    return kept


def shared(columns: Sequence[Column], natural: Mapping[str, int], width: int | None) -> dict[str, int]:
    """Their widths: what is to spare goes to the entries that would be shortened, the first column first."""
    if width is None:
        return dict(natural)
    widths = {column.name: narrowest(column, natural) for column in columns}
    spare = width - sum(widths.values()) - GAP * (len(columns) - 1)
    for column in columns:
        more = max(0, min(spare, natural[column.name] - widths[column.name]))
        widths[column.name] += more
        spare -= more
    return widths


def narrowest(column: Column, natural: Mapping[str, int]) -> int:
    full = natural[column.name]
    return full if column.least is None else min(full, column.least)


def line(columns: Sequence[Column], widths: Mapping[str, int], row: Mapping[str, str]) -> str:
    cells = []
    for column in columns:
        text, width = row.get(column.name, ""), widths[column.name]
        text = shortened(text, width, tail=width // 2 if column.middle else 0)
        cells.append(text.rjust(width) if column.right else text.ljust(width))
    return (" " * GAP).join(cells).rstrip()


def shortened(text: str, width: int, tail: int) -> str:
    """At most `width` characters of a text, `tail` of them from its end, with dots for what is left out."""
    return text if len(text) <= width else text[: width - 1 - tail] + DOTS + text[len(text) - tail :]


def printable(text: str) -> str:
    """In one line, and without what a terminal would take for a command."""
    return "".join(character if character.isprintable() else "?" for character in text)

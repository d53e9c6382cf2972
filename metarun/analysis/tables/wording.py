"""What the formats that are read have in common: the words for a cell and for what is missing."""

from collections import Counter
from collections.abc import Callable
from itertools import zip_longest

from metarun.analysis.tables.definition import parsed
from metarun.analysis.tables.notes import SIGNS
from metarun.analysis.tables.table import Cell, Missing, Table


def ours(cell: Cell) -> str:
    """Our number; a dash where there could be one."""
    if cell.accuracy is None:
        return "—" if cell.experiment else ""
    return f"{cell.accuracy:.2f}" + (f" ± {cell.ci95:.2f}" if cell.ci95 is not None else "")


def marks(cell: Cell) -> str:
    """The marks of our number."""
    return ",".join(mark for mark in cell.marks if mark not in SIGNS)


def below(cell: Cell) -> list[str]:
    """What stands below or behind our number: the published one with its signs; how far the two are apart, and whether our interval has the
    published number; the spread over seeds."""
    signs = "".join(mark for mark in cell.marks if mark in SIGNS)
    published = f"({cell.published_text}{signs})" if cell.published_text else ""
    apart = "" if cell.difference is None else f"{cell.difference:+.2f}" + " inside" * bool(cell.inside)
    spread = "" if cell.spread is None else f"{len(cell.seeds)} seeds, sd {cell.spread:.2f}"
    return [text for text in (published, apart, spread) if text]


def heading(table: Table) -> list[list[str]]:
    """Two lines: datasets, then ways and shots."""
    settings = [parsed(column) for column in table.columns]
    return [["", *(each.dataset for each in settings)], ["", *(f"{each.ways}-way {each.shots}-shot" for each in settings)]]


def blocks(table: Table, number: Callable[[Cell], str], escaped: Callable[[str], str] = str) -> list[list[list[str]]]:
    """The lines of every row, each a text for the label and every column; `number` is how ours is written."""
    found = []
    for row in table.rows:
        cells = [table.cell(row, column) for column in table.columns]
        stacks = [[number(cell), *map(escaped, below(cell))] for cell in cells]
        found.append([list(line) for line in zip_longest([escaped(row)], *stacks, fillvalue="")])
    return found


def where(one: Missing) -> str:
    """The cells that wait for something, each row named once."""
    rows: dict[str, list[str]] = {}
    for row, column in one.cells:
        rows.setdefault(row, []).append(column)
    return "; ".join(f"{row} {', '.join(columns)}" for row, columns in rows.items())


def counted(table: Table) -> str:
    """How much of the table there is."""
    possible = [cell for cell in table.cells if cell.experiment]
    numbers = sum(cell.accuracy is not None for cell in possible)
    kinds = Counter(one.kind for one in table.missing)
    names = {"training": "to train", "test": "to test", "resume": "to go on with", "running": "running"}
    left = [f"{kinds[kind]} {name}" for kind, name in names.items() if kinds[kind]]
    return f"{numbers} of {len(possible)} cells have a number" + (f"; {', '.join(left)}" if left else "")

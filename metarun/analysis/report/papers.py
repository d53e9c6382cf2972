"""The papers' tables that the runs fill, if only in part."""

import logging
from pathlib import Path

from metarun.analysis.tables import Table, reproduce
from metarun.analysis.tables.definition import names
from metarun.errors import UserError

log = logging.getLogger(__name__)


def tables(root: Path) -> list[Table]:
    """Every table that has a number of the runs below `root` in one cell at least."""
    found = []
    for name in names():
        try:
            table = reproduce(name, root)
        except UserError as error:  # the others, and the runs, can be shown all the same
            log.warning("the table %s is left out: %s", name, error)
            continue
        if any(cell.accuracy is not None for cell in table.cells):
            found.append(table)
    return found

"""Papers' tables, made of runs: the published numbers beside ours, and between them all that sets the two apart."""

from metarun.analysis.tables.cells import reproduce
from metarun.analysis.tables.table import Cell, CellRun, Missing, Note, Table

__all__ = ["Cell", "CellRun", "Missing", "Note", "Table", "reproduce"]

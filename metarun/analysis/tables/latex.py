"""A table for a paper: booktabs, with its notes below."""

from collections.abc import Sequence

from metarun.analysis.tables.table import Cell, Table
from metarun.analysis.tables.wording import blocks, counted, heading, marks, ours, where

TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$"},
    **{"±": r"$\pm$", "—": "---", "†": r"\dag{}", "‡": r"\ddag{}", "§": r"\S{}", "[": "{[}", "]": "{]}"},  # \\ takes [...] for its own
}


def latex(table: Table) -> str:
    """An environment `table` that needs the package booktabs. What is missing stands in comments."""
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(f'{table.title} ({table.source})')}}}",
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
        r"\toprule",
        *(row([escaped(text) for text in line]) for line in heading(table)),
    ]
    for block in blocks(table, number, escaped):
        lines += [r"\midrule", *map(row, block)]
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
    lines += [
        (f"$^{{\\mathrm{{{note.mark}}}}}$~" if note.mark.isalnum() else escaped(note.mark)) + escaped(note.text) + r"\par"
        for note in table.notes
    ]
    lines += [r"\end{minipage}", r"\end{table}", f"% {counted(table)}"]
    lines += [f"% missing: {where(one)}: {one.what}: {one.command}" for one in table.missing]
    return "\n".join(lines)


def number(cell: Cell) -> str:
    return escaped(ours(cell)) + (f"$^{{\\mathrm{{{marks(cell)}}}}}$" if marks(cell) else "")


def row(texts: Sequence[str]) -> str:
    return " & ".join(texts) + r" \\"


def escaped(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text)

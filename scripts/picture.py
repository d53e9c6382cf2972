"""Draws `docs/numbers.svg`: the numbers of the committed runs beside the published ones.

python scripts/picture.py outputs/reference/omniglot_short.json docs/numbers.svg
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402


def draw(table: Path, out: Path) -> None:
    """A panel for every column of the table, as `metarun table --format json` writes it, a line for every method with a number."""
    cells = [cell for cell in json.loads(table.read_text())["cells"] if cell["accuracy"] is not None and cell["published"] is not None]
    columns = list(dict.fromkeys(cell["column"] for cell in cells))
    pyplot.rcParams.update({"svg.hashsalt": "metarun", "font.size": 8, "font.family": "sans-serif"})
    figure, panels = pyplot.subplots(1, len(columns), figsize=(9.6, 2.8), layout="constrained")
    for column, panel in zip(columns, panels, strict=True):
        rows = [cell for cell in cells if cell["column"] == column][::-1]
        at = range(len(rows))
        panel.hlines(at, [row["published"] for row in rows], [row["accuracy"] for row in rows], color="0.8", zorder=1)
        panel.scatter([row["published"] for row in rows], at, s=22, facecolors="white", edgecolors="0.3", label="published", zorder=2)
        panel.scatter([row["accuracy"] for row in rows], at, s=22, color="tab:blue", label="ours, short training", zorder=3)
        panel.set_yticks(at, [row["row"] for row in rows])
        panel.set_title(column.replace("_", " "), fontsize=9)
        panel.set_xlabel("accuracy, %")
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(out, metadata={"Date": None})


if __name__ == "__main__":
    draw(*map(Path, sys.argv[1:]))

"""Line plots as SVG that lives in a page: its text is the page's text, its colours are the page's variables."""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metarun.analysis.report.methods import Band

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa3377", "#8c6d1f", "#5b6abf")
"""Told apart by the colour-blind (after Okabe and Ito); the page has its own of the same number, for light and for dark."""
DASHES = ("-", "--", ":")
INK, FAINT = "#000001", "#000002"  # stand for the page's own colours
SIZE = (4.3, 3.0)
"""Inches: as wide as a phone, so that the text keeps its size there; a wide screen has several beside each other."""
PLACE = (0.125, 0.15, 0.86, 0.83)
"""Left, bottom, width and height of the axes in it: percentages are never long, so there is nothing to lay out."""
FEW = 12
"""Points that are marked each."""
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "metarun", "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": FAINT,
    "grid.linewidth": 0.5, "grid.alpha": 0.5, "xtick.direction": "out", "path.simplify": True, "axes.formatter.use_mathtext": False,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One line of a plot; `colour` and `dashes` are numbers in COLOURS and DASHES."""

    label: str
    colour: int
    dashes: int
    band: Band


@dataclass(frozen=True)
class Plot:
    """A drawn plot, and its lines for the legend, which the page writes."""

    svg: Markup
    lines: Sequence[Line]


def plot(lines: Sequence[Line], xlabel: str, ylabel: str, description: str) -> Plot | None:
    """Lines with bands where runs differ; None if not one has a point. `description` is for those who cannot see it."""
    lines = [line for line in lines if len(line.band.x)]
    if not lines:
        return None
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=SIZE)
        axes = figure.add_axes(PLACE)
        few = max(len(line.band.x) for line in lines) <= FEW
        for line in reversed(lines):  # the first is on top
            draw(axes, line, "o" if few else None)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Plot(Markup(in_page(file.getvalue(), description)), lines)


def draw(axes: Axes, line: Line, marker: str | None) -> None:
    """Adds the line, and its band where it has one."""
    band, colour = line.band, COLOURS[line.colour]
    axes.plot(band.x, band.mean, color=colour, linestyle=DASHES[line.dashes], linewidth=1.8, marker=marker, markersize=3.5)
    if np.any(band.high > band.low):
        axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)


def in_page(svg: str, description: str) -> str:
    """The SVG as a part of an HTML page: no header, no size and no fonts of its own, the page's colours, and no name that another plot
    has too, as long as the descriptions differ."""
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<style.*?</style>|<defs>\s*</defs>|font-family: [^;]*; ", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', body))
    salt = "p" + hashlib.sha256((description + body).encode()).hexdigest()[:10]
    body = re.sub(r' id="([^"]*)"', lambda match: f' id="{salt}-{match[1]}"' if match[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\1#{salt}-", body)
    for number, colour in enumerate(COLOURS):
        body = body.replace(colour, f"var(--c{number})")
    body = body.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    return f'<svg role="img" aria-label="{escape(description)}" {view[0]}>{body}'

"""The page: everything that it says, put into its templates. It asks nothing of a network, and its policy forbids it to."""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from metarun.analysis.report import origins, sections
from metarun.analysis.report.methods import settings
from metarun.analysis.report.papers import tables
from metarun.analysis.report.run_pages import run_pages
from metarun.analysis.tables.wording import ours
from metarun.config.schema import flat
from metarun.runs.catalogue import Found
from metarun.runs.status import STATES
from metarun.text.units import counted, size
from metarun.version import __version__

FILTERS = {"number": ours, "size": size, "written": origins.written}


def page(runs: Sequence[Found], root: Path, episodes: int) -> str:
    """The HTML of the report, with pictures of each run's first `episodes` test tasks and of as many of its worst."""
    environment = Environment(
        loader=PackageLoader("metarun.analysis.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= FILTERS
    environment.globals |= {"flat": lambda values: list(flat(values).items()), "counted": counted}
    style, script = ((files("metarun.analysis.report") / "templates" / name).read_text("utf-8") for name in ("style.css", "script.js"))
    states, by_setting, pages = Counter(run.state for run in runs), settings(runs), list(run_pages(runs, root, episodes))
    return environment.get_template("page.html.j2").render(
        root=str(root),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        now=datetime.now().strftime("%Y-%m-%d %H:%M"),
        states=[f"{states[state]} {state}" for state in STATES if states[state]],
        runs=pages,
        tables=tables(root),
        ids={page.name: page.id for page in pages},
        learning=[sections.learning_curves(*item) for item in by_setting.items()],
        inner=[curves for item in by_setting.items() if (curves := sections.inner_curves(*item))],
        costs=[(setting, sections.costs(methods)) for setting, methods in by_setting.items()],
    )

"""`metarun report DIR`: writes the page. What draws and composes it is optional, and asked for first."""

from importlib.util import find_spec
from pathlib import Path

from metarun.errors import UserError
from metarun.runs.catalogue import find_runs
from metarun.runs.files import whole
from metarun.text.units import counted, size
from metarun.text.words import Parser

NEEDED = ("matplotlib", "jinja2")


def command(words: list[str]) -> None:
    """Writes the report of all runs below a folder, and says where it is. Raises UserError, before anything is drawn where it can."""
    args = parser().parse_args(words)
    root, out = Path(args.dir), Path(args.out or Path(args.dir) / "report.html")
    for name in NEEDED:
        if find_spec(name) is None:
            raise UserError(f"report needs {name}; pip install 'metarun[analysis]'")
    if args.episodes < 0:
        raise UserError(f"--episodes: {args.episodes} is not allowed; expected an integer of at least 0")
    runs = find_runs(root)
    if not runs:
        raise UserError(f"no runs below {root}; metarun train makes one")
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; expected a file to write")
    if not out.parent.is_dir():
        raise UserError(f"--out: the folder of {out} does not exist; expected a file to write")
    from metarun.analysis.report.page import page

    html = page(runs, root, args.episodes).encode()
    write(out, html)
    print(f"{out}: {counted(len(runs), 'run')}, {size(len(html))}")


def parser() -> Parser:
    found = Parser("metarun report", description="One HTML file, without anything beside it, that shows all runs below a folder.")
    found.add_argument("dir", nargs="?", default="outputs", metavar="DIR", help="the folder (outputs)")
    found.add_argument("--out", metavar="FILE", help="the file to write (DIR/report.html)")
    found.add_argument(
        "--episodes", type=int, default=2, metavar="N", help="pictures of a run's first N test episodes and of its N worst (2); 0: none"
    )
    return found


def write(out: Path, html: bytes) -> None:
    """The whole file or none of it. Raises UserError if it cannot be written."""
    try:
        with whole(out) as file:
            file.write(html)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror})") from error

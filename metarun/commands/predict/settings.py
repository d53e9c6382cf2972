"""The words of `metarun predict` and `metarun embed`: key=value, checked before torch is imported."""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from metarun.config.schema import CHOICES, near, refuse_unwritable
from metarun.errors import UserError
from metarun.runs.files import whole
from metarun.text.words import Parser

ALLOWED = {
    "device": CHOICES["device.name"],
    "checkpoint": ("best", "last"),
    "batch_norm": CHOICES["protocol.batch_norm"][1:],
    "resample": ("nearest", "bilinear", "bicubic", "lanczos"),
    "invert": ("true", "false"),
}
SHARED = """  device=NAME         auto | cpu | cuda | mps
  checkpoint=NAME     best | last (default: as the run is tested)
  resample=FILTER     nearest | bilinear | bicubic | lanczos (default: as the run's dataset has it)
  invert=true|false   dark on light becomes light on dark, or not (default: as the run's dataset has it)
"""


def settings(command: str, about: str, epilog: str, words: Sequence[str], needed: Sequence[str], more: Sequence[str]) -> dict[str, str]:
    """What the words say: every key of `needed`, and some of `more`. Raises UserError for another key or value, and for a missing one."""
    parser = Parser(f"metarun {command}", description=about, epilog=epilog, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="key=value", help="see below")
    found: dict[str, str] = {}
    for word in parser.parse_args(words).words:
        key, equals, value = word.partition("=")
        if key not in (*needed, *more):
            raise UserError(f"{key}: no such key; {near(key, (*needed, *more))}allowed: {', '.join((*needed, *more))}")
        if not equals or not value:
            raise UserError(f"{key}: a value is needed; {key}=...")
        if value not in ALLOWED.get(key, (value,)):
            hint = near(value, ALLOWED[key], cutoff=0.9)
            raise UserError(f"{key}: {value} is not allowed; {hint}expected one of {', '.join(ALLOWED[key])}")
        found[key] = value
    for key in needed:
        if key not in found:
            raise UserError(f"{key}: a value is needed; {key}=...")
    return found


def refuse_out(out: Path) -> None:
    """Raises UserError if `out` is there already or cannot be written. Leaves nothing behind."""
    if out.exists():
        raise UserError(f"out: {out} already exists; name another file, or remove it first")
    if not out.parent.is_dir():
        raise UserError(f"out: the folder of {out} does not exist")
    refuse_unwritable("out", out.parent)


@contextmanager
def whole_out(out: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which is `out` once all went well, and gone otherwise. Raises UserError if it cannot be written."""
    try:
        with whole(out) as file:
            yield file
    except OSError as error:
        raise UserError(f"out: {out} cannot be written ({error.strerror})") from error

"""Published numbers: `conf/table/published.csv`, and a file of the same name beside the user's own tables."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from metarun.config.compose import conf_dir
from metarun.errors import UserError

KINDS = {"ci95": "95 % interval over test tasks", "std": "standard deviation over seeds", "unstated": "not stated what", "": "none"}
Key = tuple[str, str, str, int, int]


@dataclass(frozen=True)
class Published:
    """A number as it was printed, in percent. kind: one of KINDS; verified: whether every digit of it was seen in a source."""

    accuracy: str
    interval: str
    kind: str
    backbone: str
    source: str
    verified: bool

    def __str__(self) -> str:
        return f"{self.accuracy} ± {self.interval}" if self.interval else self.accuracy


@cache
def numbers(own: Path | None = None) -> dict[Key, Published]:
    """All numbers, by algorithm, variant, dataset, ways and shots. Raises UserError for a file with a line that is none."""
    found: dict[Key, Published] = {}
    for path in (conf_dir() / "table" / "published.csv", own):
        if path is None or not path.is_file():
            continue
        with open(path, newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                try:
                    key = (row["algorithm"], row["variant"], row["dataset"], int(row["ways"]), int(row["shots"]))
                    float(row["accuracy"]), float(row["interval"] or 0)
                    if row["kind"] not in KINDS or row["verified"] not in ("yes", "no"):
                        raise ValueError("kind or verified")
                    verified = row["verified"] == "yes"
                    entry = Published(row["accuracy"], row["interval"], row["kind"], row["backbone"], row["source"], verified)
                except (KeyError, TypeError, ValueError) as error:
                    raise UserError(f"{path}: line {number} is not understood ({error})") from error
                if key in found:
                    raise UserError(f"{path}: line {number} has {' '.join(map(str, key))} a second time")
                found[key] = entry
    return found

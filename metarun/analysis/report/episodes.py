"""Pictures of test episodes, made anew from the checkpoint and the images that were tested."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarun.errors import UserError
from metarun.runs.catalogue import Found
from metarun.runs.records import Record

SMALL = 180
"""Pixels across below which a picture is shown at twice its size."""


@dataclass(frozen=True)
class Picture:
    """One test task: what was tested on it, and its picture as a `data:` address with the size to show it in, in pixels."""

    episode: int
    accuracy: float
    wrong: int
    questions: int
    source: str
    width: int
    height: int


def chosen(per_episode: Sequence[float], count: int) -> tuple[list[int], list[int]]:
    """The numbers of the first `count` tasks, and of the `count` others with the lowest accuracy, the worst first."""
    first = list(range(min(count, len(per_episode))))
    worst = sorted(range(len(first), len(per_episode)), key=lambda number: (per_episode[number], number))
    return first, worst[:count]


def pictures(run: Found, record: Record, count: int) -> tuple[list[Picture], list[Picture]]:
    """Of the first and the worst tasks of a record. Raises UserError if the checkpoint or the images are no longer what was tested."""
    first, worst = chosen(_column(record), count)
    found = {picture.episode: picture for picture in _pictures(run.folder, record, [*first, *worst])}
    return [found[number] for number in first], [found[number] for number in worst]


def _column(record: Record) -> Sequence[float]:
    column = record.column()
    return column.values if column else ()


def _pictures(folder: Path, record: Record, numbers: Sequence[int]) -> Iterator[Picture]:
    from metarun.nn.device import Device
    from metarun.runs.checkpoint import file_sha256, load_checkpoint
    from metarun.training.learners import make_kind, together, trained

    values, column = record.values, _column(record)
    paths = [folder / "checkpoints" / name for name in values["checkpoint"].split("+")]
    if missing := next((path for path in paths if not path.is_file()), None):
        raise UserError(f"{missing}: not found")
    if "+".join(map(file_sha256, paths)) != values["checkpoint_sha256"]:
        raise UserError(f"{paths[0]}: has changed since it was tested")
    cfg = values["config"]
    # Wherever it was tested; a device that has no such precision takes its own.
    device = Device("auto", cfg["device"]["precision"] if cfg["device"]["precision"] != "fp16" else "fp32", keep_memory=False)
    kind = make_kind({**cfg, "protocol": {**cfg["protocol"], "batch_norm": values["batch_norm"]}}, device)
    if kind.facts(values["split"])["fingerprint"] != values["data_fingerprint"]:
        raise UserError("dataset: its images are not those that were tested")
    checkpoints = [load_checkpoint(folder, path.stem) for path in paths]
    learner, source = together(trained(cfg, kind, folder, checkpoints)), kind.evaluation(values["split"])
    questions = values["ways"] * values["queries"]
    for number in numbers:
        figure = kind.picture(learner, source, number)
        assert figure is not None
        accuracy = column[number]
        wrong = round(questions * (1 - accuracy / 100))
        _, height, width = figure.shape
        larger = 2 if width < SMALL else 1
        yield Picture(number, accuracy, wrong, questions, data_address(figure), larger * width, larger * height)


def data_address(image: np.ndarray) -> str:
    """An image (3, height, width) uint8 as a `data:` address, in the format that is the smaller: drawings as PNG, photographs as JPEG."""
    from PIL import Image

    found = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(file, kind, **options)
        found.append((len(file.getvalue()), kind, file.getvalue()))
    _, kind, content = min(found)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"

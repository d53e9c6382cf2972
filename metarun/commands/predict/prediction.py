"""One few-shot task made of the user's files."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metarun.algorithms.objectives import full
from metarun.classification.evaluation import PIXELS_AT_ONCE
from metarun.commands.predict.images import Files, batches, label
from metarun.commands.predict.model import Model
from metarun.errors import UserError
from metarun.tasks import Examples
from metarun.text.units import counted


@dataclass(frozen=True)
class Answer:
    """What an image is taken for. known: the class whose folder it lies in, empty if it is in none; probabilities: (N,)."""

    file: str
    predicted: str
    known: str
    probabilities: np.ndarray


@dataclass
class Score:
    """Answers for images of known classes, those of them that are right, and answers for other images."""

    known: int = 0
    right: int = 0
    unknown: int = 0

    def counted(self, answers: Iterable[Answer]) -> Iterator[Answer]:
        """The same answers, counted as they pass."""
        for answer in answers:
            self.known += bool(answer.known)
            self.right += answer.known == answer.predicted
            self.unknown += not answer.known
            yield answer


@dataclass(frozen=True)
class Support:
    """A task's examples, T = 1, its classes by name, and how many images each has."""

    examples: Examples
    names: list[str]
    counts: list[int]


def support_of(files: Files, place: Path, model: Model) -> Support:
    """The class folders in `place`, which holds `files`, by their names. Raises UserError if the model cannot adapt to them."""
    loose = [file for path, file in files.items() if not label(path)]
    print("".join(f"skipped: {file}: in no class folder\n" for file in loose), end="", file=sys.stderr)
    own = sorted((label(path), path) for path in files if label(path))
    names = sorted({name for name, _ in own})
    _refuse_without(place, {path.name for path in place.iterdir() if path.is_dir()} - {name.partition("/")[0] for name in names})
    read = list(batches({path: files[path] for _, path in own}, len(own), model.view, model.device))
    counts = Counter(label(path) for paths, _ in read for path in paths)
    _refuse_without(place, set(names).difference(counts))
    if len(names) < 2:
        there = counted(len(names), "class", "classes")
        raise UserError(f"support: {place} has {there}; expected two or more folders of images, one for every class")
    each = [counts[name] for name in names]
    _refuse_unfit(place, each, model)
    y = torch.arange(len(names)).repeat_interleave(torch.tensor(each))
    return Support(Examples(read[0][1][None], model.device.put(y)[None], len(names)), names, each)


def _refuse_without(place: Path, classes: set[str]) -> None:
    if lacking := sorted(name for name in classes if not name.startswith(".")):
        raise UserError(f"support: {place / lacking[0]} has no image that can be read; every class needs one")


def _refuse_unfit(place: Path, each: list[int], model: Model) -> None:
    """Raises UserError for so many images of every class that the learner is not made for."""
    learner = model.members[0]
    if learner.outputs not in (None, len(each)):
        raise UserError(f"support: {place} has {len(each)} classes; {type(learner).__name__} of this run is built for {learner.outputs}")
    if len(set(each)) > 1 and getattr(learner, "equal_shots", False):
        raise UserError(
            f"support: {place} has {min(each)} to {max(each)} images of a class; {type(learner).__name__} needs as many of each"
        )


@torch.no_grad()
def answers(model: Model, support: Support, query: Files) -> Iterator[Answer]:
    """For every image in `query` that can be read, in its order; where answers do not depend on each other, not all are in memory at once.

    Raises UserError for scores that are not finite.
    """
    with model.device.autocast():
        predictor = model.learner.eval().adapt(support.examples, model.statistics)
    at_once = len(query) if model.statistics == "query" else PIXELS_AT_ONCE // model.view.size**2
    for paths, x in batches(query, at_once, model.view, model.device):
        with model.device.autocast():
            scores = full(predictor(x[None])[0])
        probabilities = scores.softmax(1)
        if not probabilities.isfinite().all():
            raise UserError("run: this model's scores are no finite numbers; its training has diverged")
        for path, row in zip(paths, probabilities.cpu().numpy(), strict=True):
            known = label(path) if label(path) in support.names else ""
            yield Answer(str(path), support.names[row.argmax()], known, row)


def refuse_shown(query: Files, support: Files) -> None:
    """Raises UserError if a query is a file of the support: what was shown is no test."""
    shown = {os.path.realpath(file.path) for file in support.values()}
    if both := next((file for file in query.values() if os.path.realpath(file.path) in shown), None):
        raise UserError(f"query: {both} is in the support too; expected images that the model is not shown")


def summary(model: Model, support: Support, score: Score) -> Iterator[str]:
    """What was done, and how many of the answers to images of known classes are right."""
    counts = sorted(set(support.counts))
    shots = counted(counts[0], "image") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} images"
    together = " (all queries as one batch: each answer depends on the others)" if model.statistics == "query" else ""
    yield f"support: {len(support.names)} classes, {shots} each; images as {model.view}"
    yield f"checkpoint: {' + '.join(model.names)}; batch statistics: {model.statistics}{together}"
    aside = f"; {counted(score.unknown, 'image')} in no folder of a class" if score.unknown else ""
    if score.known:
        yield f"accuracy: {100 * score.right / score.known:.2f} % ({score.right} of {counted(score.known, 'image')}{aside})"
    else:
        yield f"answers: {counted(score.unknown, 'image')}, none in a folder named like a class"

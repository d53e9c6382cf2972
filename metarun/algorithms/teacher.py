"""A trained network whose scores another one learns from (Hinton, Vinyals, Dean, 2015. arXiv:1503.02531)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.errors import UserError

if TYPE_CHECKING:
    from metarun.algorithms.base import FewShotLearner


class Teacher:
    """run: the folder of the run that teaches, None for no teacher; share: of the loss that comes from it, in (0, 1]; temperature: of both
    softmaxes.

    The run is opened by `learner` only, so that a student can be tested where its teacher is no more.
    """

    def __init__(self, run: str | None = None, share: float = 0.5, temperature: float = 4.0) -> None:
        if not 0 < share <= 1:
            raise UserError(f"algorithm.teacher.share: {share} is not allowed; expected a number above 0 and up to 1")
        if temperature <= 0:
            raise UserError(f"algorithm.teacher.temperature: {temperature} is not allowed; expected a number above 0")
        self.run, self.share, self.temperature = run, share, temperature
        self.loaded: tuple[FewShotLearner, Mapping[str, Any]] | None = None

    def learner(self, classes: int, data: Mapping[str, Any] | None = None) -> "FewShotLearner":
        """The run's tested checkpoint, frozen; read once.

        Raises UserError if there is none, or if it was trained on other classes than so many, or, where `data` are given, than its
        `classes`, or on another size of `image` (H, W, C).
        """
        if self.loaded is None:
            self.loaded = _load(Path(str(self.run)), classes)
        learner, known = self.loaded
        if data is not None and data["classes"] != known["classes"]:
            raise UserError(f"algorithm.teacher.run: {self.run} was trained on other classes; a teacher knows those that are trained on")
        if data is not None and data["image"] != known["image"]:
            sizes = (f"(height, width, channels) {known['image']}", data["image"])
            raise UserError(f"algorithm.teacher.run: {self.run} was trained on images of {sizes[0]}; expected {sizes[1]}")
        return learner

    def mixed(self, losses: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
        """Per mini-batch (T,): (1 - share) losses + share τ² KL; KL is from the teacher's `targets` (T, n, N) to `scores`, mean over n."""
        log_student, log_teacher = (F.log_softmax(x / self.temperature, -1) for x in (scores, targets))
        distances = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1).mean(1)
        return (1 - self.share) * losses + self.share * self.temperature**2 * distances


def _load(run: Path, classes: int) -> "tuple[FewShotLearner, Mapping[str, Any]]":
    from metarun.config.changes import completed
    from metarun.nn.device import Device
    from metarun.runs.checkpoint import load_checkpoint, newest
    from metarun.training.build import make_learner  # which imports the algorithms' base, and they this
    from metarun.training.testing import selected

    try:
        config = completed(load_checkpoint(run, newest(run))["config"])
        checkpoint = load_checkpoint(run, selected(run, config["protocol"], "let it train up to a validation first")[0])
    except UserError as error:
        raise UserError(f"algorithm.teacher.run: {error}") from error
    if checkpoint.get("classes") != classes:
        raise UserError(f"algorithm.teacher.run: {run} was trained on {checkpoint.get('classes')} classes; expected a run on {classes}")
    # The student's random numbers go on as if nobody had made another network.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        learner = make_learner(config, Device("cpu"), classes)
    learner.load_state_dict(checkpoint["model"])
    return learner.eval().requires_grad_(False), checkpoint["data"]

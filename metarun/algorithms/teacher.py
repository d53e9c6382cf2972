"""A trained network whose scores another one learns from (Hinton, Vinyals, Dean, 2015. arXiv:1503.02531)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from metarun.errors import UserError
from metarun.kinds import TaskSpec
from metarun.tasks import MetaLearner


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
        self.opened: tuple[MetaLearner, Mapping[str, Any]] | None = None

    def learner(self, spec: TaskSpec) -> MetaLearner:
        """The run's tested checkpoint, frozen; read once.

        Raises UserError if there is none, or if it was trained on other classes than `spec` names, or on images of another shape.
        """
        if self.opened is None:
            try:
                self.opened = spec.open_run(Path(str(self.run)))
            except UserError as error:
                raise UserError(f"algorithm.teacher.run: {error}") from error
        learner, known = self.opened
        for key, what in (("classes", "{} classes"), ("names", "other classes"), ("shape", "images of (height, width, channels) {}")):
            if known[key] != spec.facts[key]:
                was, wanted = (what.format(facts[key]) for facts in (known, spec.facts))
                needs = "a teacher knows those that are trained on" if key == "names" else f"expected {wanted}"
                raise UserError(f"algorithm.teacher.run: {self.run} was trained on {was}; {needs}")
        return learner

    def mixed(self, losses: Tensor, scores: Tensor, targets: Tensor) -> Tensor:
        """Per mini-batch (T,): (1 - share) losses + share τ² KL; KL is from the teacher's `targets` (T, n, N) to `scores`, mean over n."""
        log_student, log_teacher = (F.log_softmax(x / self.temperature, -1) for x in (scores, targets))
        distances = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1).mean(1)
        return (1 - self.share) * losses + self.share * self.temperature**2 * distances

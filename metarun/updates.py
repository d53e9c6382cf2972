"""What a step of meta-training does. An update goes round another one; neither the trainer nor the records change for it."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn

from metarun.tasks import MetaLearner, Metrics, Stateful, Tasks


class Update(Stateful):
    """One step of meta-training."""

    @abstractmethod
    def __call__(self, tasks: Tasks, step: int) -> Metrics:
        """Calls the learner's `begin_step` once, then does all of the step. Returns `losses`, which were descended, `loss`, which is
        shown, and the other metrics; an entry with more axes than (T,) is for the source alone."""

    def shown(self) -> Mapping[str, float]:
        """What TensorBoard shows beside the averages: rates, bytes."""
        return {}


class GradientUpdate(Update):
    """An update in two halves: a gradient, and what is done with it."""

    learner: MetaLearner

    @abstractmethod
    def gradient(self, tasks: Tasks, step: int) -> Metrics:
        """Leaves the gradient in `grad`, in fp16 times the scaler's factor. Never calls `begin_step`: a step may ask several times."""

    @abstractmethod
    def apply(self, step: int) -> None:
        """Moves the parameters by their `grad`: unscales, clips, lets the optimizer and the schedule make a step."""

    def __call__(self, tasks: Tasks, step: int) -> Metrics:
        self.learner.begin_step(step)
        metrics = self.gradient(tasks, step)
        self.apply(step)
        return metrics


class Wrapper(GradientUpdate):
    """An update round another one, `inner`; an heir is as `inner` in all that it does not override."""

    def __init__(self, inner: GradientUpdate) -> None:
        self.inner, self.learner = inner, inner.learner

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The learner's parameters that have a gradient."""
        return [parameter for parameter in self.learner.parameters() if parameter.grad is not None]

    def gradient(self, tasks: Tasks, step: int) -> Metrics:
        return self.inner.gradient(tasks, step)

    def apply(self, step: int) -> None:
        self.inner.apply(step)

    def shown(self) -> Mapping[str, float]:
        return self.inner.shown()

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state)

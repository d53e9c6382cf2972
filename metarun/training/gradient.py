"""The step by a gradient: the mean over the tasks, as many of them at a time as fit into memory, then clipping and the optimizer."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metarun.errors import TrainingError
from metarun.nn.device import Device, is_out_of_memory
from metarun.tasks import MetaLearner, Metrics, Tasks, joined
from metarun.updates import GradientUpdate

log = logging.getLogger(__name__)


@dataclass
class MetaGradient(GradientUpdate):
    """Descends the mean over the step's tasks of the learner's losses, each times its task's importance where there is one.

    tasks_per_chunk: tasks held in memory at once; None: all. It is halved, for good, where memory runs out; any value gives the same
    gradient. clip_value, clip_norm: bounds of the gradient's entries and of its norm; None: no bound.
    """

    learner: MetaLearner
    device: Device
    optimizer: Optimizer
    scheduler: LRScheduler
    tasks_per_chunk: int | None = None
    clip_value: float | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        self.scaler = self.device.scaler()

    def gradient(self, tasks: Tasks, step: int) -> Metrics:
        """Raises TrainingError if not even one task fits into memory."""
        size = most = min(self.tasks_per_chunk or len(tasks), len(tasks))
        while (metrics := self._attempt(tasks, size)) is None:
            if size == 1:
                raise TrainingError(
                    "out of memory with one task at a time; lower task.queries or task.shots, or try device.precision=bf16 or, "
                    "for an algorithm that has it, algorithm.recompute=true"
                )
            size //= 2
        if size < most:
            self.tasks_per_chunk = size
            log.warning("out of memory with %d tasks at once; going on with tasks_per_chunk=%d, for the same gradient", most, size)
        return metrics

    def apply(self, step: int) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(self.learner.parameters(), self.clip_value)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.learner.parameters(), self.clip_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # else fp16 overflowed and the update was skipped; without a scaler both are 1
            self.scheduler.step()

    def shown(self) -> Mapping[str, float]:
        return {"lr": float(self.scheduler.get_last_lr()[0])}

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for parameter, kept in self.optimizer.state.items():  # in the parameter's memory layout, which fused optimizers rely on
            alike = {key: value for key, value in kept.items() if isinstance(value, Tensor) and value.shape == parameter.shape}
            kept.update({key: torch.empty_like(parameter).copy_(value) for key, value in alike.items()})

    def _parts(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}

    def _attempt(self, tasks: Tasks, size: int) -> Metrics | None:
        """The metrics; or None if memory ran out, with buffers and random numbers as they were before."""
        # One task at a time is the last attempt: what it spoils nobody needs. Any other may fail, in any step: shots are drawn anew, and
        # other processes take memory too.
        state = self.learner.beside_parameters() if size > 1 else {}
        random = self.device.random_state() if size > 1 else None
        try:
            return self._accumulate(tasks, size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only out here is the exception gone, and with its traceback the graph of the failed attempt.
        if random is not None:
            self.learner.load_state_dict(state, strict=False)
            self.device.set_random_state(random)
        self.device.release_memory()
        return None

    def _accumulate(self, tasks: Tasks, size: int) -> Metrics:
        self.learner.zero_grad(set_to_none=True)
        parts: list[Metrics] = []
        for chunk in tasks.chunks(size):
            with self.device.autocast():
                losses, metrics = self.learner.meta_loss(chunk.tensors())
            descended = losses if chunk.importance is None else losses * chunk.importance
            self.scaler.scale(descended.mean() * (len(chunk) / len(tasks))).backward()
            parts.append({"loss": losses.detach(), **metrics, "losses": losses.detach()})
        return joined(parts)

"""The meta-gradient of a step: the mean over its tasks, as many of them at a time as fit into memory."""

import logging
from dataclasses import dataclass

import torch

from metarun.errors import TrainingError
from metarun.nn.device import Device, is_out_of_memory
from metarun.tasks import MetaLearner, Metrics, Tasks

log = logging.getLogger(__name__)


@dataclass
class MetaGradient:
    """Leaves the mean gradient over tasks, times the factor of `scaler`, in the learner's parameters.

    tasks_per_chunk: tasks held in memory at once. It is halved, for good, where memory runs out; any value gives the same gradient.
    """

    learner: MetaLearner
    device: Device
    scaler: torch.amp.GradScaler
    tasks_per_chunk: int

    def __call__(self, tasks: Tasks) -> Metrics:
        """The metrics, means over the tasks. Raises TrainingError if not even one task fits into memory."""
        size = most = min(self.tasks_per_chunk, len(tasks))
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

    def _attempt(self, tasks: Tasks, size: int) -> Metrics | None:
        """The metrics; or None if memory ran out, with buffers and random numbers as they were before."""
        # Copied before every step, since a forward pass moves it: all but the parameters, mostly a few kilobytes of running statistics.
        parameters = dict(self.learner.named_parameters())
        state = {name: value.clone() for name, value in self.learner.state_dict().items() if name not in parameters}
        random = self.device.random_state()
        try:
            return self._accumulate(tasks, size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only out here is the exception gone, and with its traceback the graph of the failed attempt.
        self.learner.load_state_dict(state, strict=False)
        self.device.set_random_state(random)
        self.device.release_memory()
        return None

    def _accumulate(self, tasks: Tasks, size: int) -> Metrics:
        self.learner.zero_grad(set_to_none=True)
        total: Metrics = {}
        for chunk in tasks.chunks(size):
            share = len(chunk) / len(tasks)
            with self.device.autocast():
                loss, metrics = self.learner.meta_loss(chunk)
            self.scaler.scale(loss * share).backward()
            total = {name: value * share + total.get(name, 0) for name, value in metrics.items()}
        return total

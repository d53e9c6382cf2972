"""The meta-training loop. Nothing in this file knows which method is being trained.

It counts in steps: one step is `tasks_per_step` tasks, one gradient, one update. The host waits for the device only where a line
says so: to log, to validate, to save.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from metarun.config.schema import word
from metarun.errors import TrainingError
from metarun.nn.device import Device
from metarun.runs.folder import Run
from metarun.tasks import MetaLearner, Metrics, Tasks
from metarun.training.gradient import MetaGradient
from metarun.training.signals import Signals

log = logging.getLogger(__name__)


@dataclass
class Averages:
    """Running means of the metrics since the last log, kept on the device, and the first step whose loss was not finite."""

    sums: Metrics = field(default_factory=dict)
    steps: int = 0
    bad_step: Tensor | None = None

    def add(self, metrics: Metrics, step: int) -> None:
        bad = torch.where(metrics["loss"].isfinite(), 2**62, step)
        self.bad_step = bad if self.bad_step is None else torch.minimum(self.bad_step, bad)
        self.sums = {name: value + self.sums.get(name, 0) for name, value in metrics.items()}
        self.steps += 1

    def read(self) -> dict[str, float]:  # waits for the device
        return {name: float(value) / self.steps for name, value in self.sums.items()}


@dataclass
class Trainer:
    """Trains `learner` on `tasks(first, count)`, the numbered training tasks, and keeps `run` up to date.

    validate: metrics on the validation split, `accuracy` among them; facts: what every checkpoint holds beside the training state.
    The other fields are the keys of train.yaml. Afterwards `best` says which step's validation was the best and what it was, and
    `ranking` has (accuracy, step) of the `keep_best` best, whose checkpoints are kept as `val-STEP` if they are several.
    """

    learner: MetaLearner
    optimizer: Optimizer
    scheduler: LRScheduler
    device: Device
    tasks: Callable[[int, int], Tasks]
    validate: Callable[[int], Mapping[str, float]]
    run: Run
    facts: Mapping[str, Any]
    steps: int
    tasks_per_step: int
    tasks_per_chunk: int | None
    val_every: int
    log_every: int
    checkpoint_every: int
    keep_best: int
    patience: int | None
    clip_value: float | None
    clip_norm: float | None

    def __post_init__(self) -> None:
        self.step, self.best, self.averages = 0, {"step": 0, "accuracy": -1.0, "misses": 0}, Averages()
        self.ranking: list[tuple[float, int]] = []
        self.scaler = self.device.scaler()
        self.gradient = MetaGradient(self.learner, self.device, self.scaler, self.tasks_per_chunk or self.tasks_per_step)

    def fit(self) -> None:
        """Runs to the last step, or until patience ends. After SIGINT or SIGTERM saves and raises SystemExit(128 + signal)."""
        self.learner.train()
        self.clock = (time.perf_counter(), self.step)
        self.run.report(step=self.step, steps=self.steps)
        if self.step == 0:
            self.save("last")  # so that a run killed at any moment can be resumed
        bar = tqdm(total=self.steps, initial=self.step, desc="train", unit="step", disable=None)
        with Signals() as signals, bar:
            while not self.finished():
                self.advance()
                bar.update()
                if self.step % self.log_every == 0:
                    bar.set_postfix(self.log_averages())
                if self.val_every and (self.step % self.val_every == 0 or self.step == self.steps):
                    self.compare()
                due = self.checkpoint_every and self.step % self.checkpoint_every == 0
                if due or self.finished() or signals.received:
                    self.save("last")
                if signals.received:
                    bar.close()
                    log.info("stopped at step %d; go on with: metarun train %s", self.step, word("resume", self.run.folder))
                    raise SystemExit(128 + signals.received)

    def finished(self) -> bool:
        return self.step >= self.steps or (self.patience is not None and self.best["misses"] >= self.patience)

    def advance(self) -> None:
        """One step, on the tasks that its number says."""
        metrics = self.update(self.tasks(self.step * self.tasks_per_step, self.tasks_per_step))
        self.averages.add(metrics, self.step + 1)
        self.step += 1

    def update(self, tasks: Tasks) -> Metrics:
        """The mean gradient over the tasks, clipped, then the update of the weights."""
        self.learner.begin_step(self.step)
        metrics = self.gradient(tasks)
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
        return metrics

    def log_averages(self) -> dict[str, str]:
        """Writes the means since the last log; returns what the bar shows. Waits for the device."""
        self.refuse_non_finite()
        means, (since, at) = self.averages.read(), self.clock
        self.clock = (time.perf_counter(), self.step)
        rate = (self.step - at) * self.tasks_per_step / (self.clock[0] - since)
        self.run.log(self.step, "train", means)
        self.run.show(self.step, "train/tasks_per_second", rate)
        self.run.report(step=self.step, step_seconds=(self.clock[0] - since) / (self.step - at), peak_memory=self.device.peak_memory())
        self.run.show(self.step, "train/lr", float(self.scheduler.get_last_lr()[0]))
        self.averages = Averages()
        return {**{name: f"{value:.3f}" for name, value in means.items()}, "tasks/s": f"{rate:.1f}"}

    def compare(self) -> None:
        """Validates, and keeps the model if none was better. The best is written first: a later `last` may then rely on it."""
        self.refuse_non_finite()
        values = self.validate(self.step)
        self.run.log(self.step, "val", values)
        better = values["accuracy"] > self.best["accuracy"]
        if better:
            self.best = {"step": self.step, "accuracy": values["accuracy"], "misses": 0}
            self.save("best")
        else:
            self.best = {**self.best, "misses": self.best["misses"] + 1}
        self.run.report(step=self.step, best={key: self.best[key] for key in ("step", "accuracy")})
        if self.keep_best > 1:
            self.rank(values["accuracy"])
        log.info("step %d: val accuracy %.2f %%%s", self.step, values["accuracy"], " (best so far)" if better else "")
        self.clock = (time.perf_counter(), self.step)

    def rank(self, accuracy: float) -> None:
        """Keeps the model if it is among the best."""
        self.ranking = sorted([*self.ranking, (accuracy, self.step)], key=lambda entry: (-entry[0], entry[1]))[: self.keep_best]
        if (accuracy, self.step) in self.ranking:
            self.save(f"val-{self.step}")

    def refuse_non_finite(self) -> None:
        """Waits for the device. Raises TrainingError, before anything of the spoilt model is kept."""
        saved = self.run.folder / "checkpoints" / "last.pt"
        hint = f"the last good checkpoint is {saved}; try a smaller learning rate, clip_norm=1 or device.precision=fp32"
        first = None if self.averages.bad_step is None else int(self.averages.bad_step)
        if first is not None and first <= self.step:
            raise TrainingError(f"the loss is not finite since step {first}; {hint}")
        if not all(bool(value.isfinite().all()) for value in self.learner.state_dict().values()):
            raise TrainingError(f"the weights are not finite after step {self.step}; {hint}")

    def save(self, name: str) -> None:
        self.refuse_non_finite()
        self.run.save(name, {**self.facts, **self.state()})
        if name == "last":  # only then does nothing ask for the others any more
            self.run.keep([f"val-{step}" for _, step in self.ranking])

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "ranking": self.ranking,
            "model": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averages": {"sums": self.averages.sums, "steps": self.averages.steps, "bad_step": self.averages.bad_step},
            "random": self.device.random_state(),
            "metrics_bytes": self.run.flush(),
        }

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Goes back to where `checkpoint` was made, to the last bit."""
        self.step, self.best, self.ranking = checkpoint["step"], checkpoint["best"], checkpoint.get("ranking", [])
        for part, name in ((self.learner, "model"), (self.optimizer, "optimizer"), (self.scheduler, "scheduler"), (self.scaler, "scaler")):
            part.load_state_dict(checkpoint[name])
        for parameter, state in self.optimizer.state.items():  # in the parameter's memory layout, which fused optimizers rely on
            alike = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == parameter.shape}
            state.update({key: torch.empty_like(parameter).copy_(value) for key, value in alike.items()})
        kept = checkpoint["averages"]
        place = self.device.torch
        sums = {key: value.to(place) for key, value in kept["sums"].items()}
        self.averages = Averages(sums, kept["steps"], None if kept["bad_step"] is None else kept["bad_step"].to(place))
        self.device.set_random_state(checkpoint["random"])

"""The meta-training loop. Nothing in this file knows which method is being trained.

It counts in steps: one step is `tasks_per_step` tasks, one gradient, one update. The host waits for the device only where a line
says so: to log, to validate, to save.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metarun.config.schema import word
from metarun.errors import TrainingError
from metarun.nn.device import Device
from metarun.runs.checkpoint import renewed
from metarun.runs.folder import Run
from metarun.tasks import MetaLearner, Metrics, TaskSource
from metarun.text.measure import Measure
from metarun.training.signals import Signals
from metarun.updates import Update

log = logging.getLogger(__name__)


@dataclass
class Averages:
    """Sums of the metrics' means since the last log, kept on the device, and the first step with a loss that was not finite."""

    sums: Metrics = field(default_factory=dict)
    steps: int = 0
    bad_step: Tensor | None = None

    def add(self, metrics: Metrics, step: int) -> None:
        """Takes an update's metrics (T,). `losses` must be finite too but are no average: `loss` is what is shown."""
        finite = metrics["losses"].isfinite().all() & metrics["loss"].isfinite().all()
        bad = torch.where(finite, 2**62, step)
        self.bad_step = bad if self.bad_step is None else torch.minimum(self.bad_step, bad)
        means = {name: value.mean() for name, value in metrics.items() if name != "losses" and value.ndim == 1}
        self.sums = {name: value + self.sums.get(name, 0) for name, value in means.items()}
        self.steps += 1

    def read(self) -> dict[str, float]:  # waits for the device
        return {name: float(value) / self.steps for name, value in self.sums.items()}


@dataclass
class Trainer:
    """Trains `learner` by `update`, on the numbered tasks of `source`, and keeps `run` up to date.

    validate: values on the validation part, by name. measure: which of them decides, and which way is up. facts: what every checkpoint
    holds beside the training state. The other fields are the keys of train.yaml.

    Afterwards `best` has the best `step`, its `value` and the number of validations after it (`misses`); it is None if no value was
    finite. `ranking` has (value, step) of the `keep_best` best, whose checkpoints are kept as `val-STEP` if they are several.
    """

    learner: MetaLearner
    update: Update
    device: Device
    source: TaskSource
    validate: Callable[[int], Mapping[str, float]]
    measure: Measure
    run: Run
    facts: Mapping[str, Any]
    steps: int
    tasks_per_step: int
    val_every: int
    log_every: int
    checkpoint_every: int
    keep_best: int
    patience: int | None

    def __post_init__(self) -> None:
        self.step, self.averages = 0, Averages()
        self.best: dict[str, Any] | None = None
        self.ranking: list[tuple[float, int]] = []

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
        """After the last step, or after `patience` validations in a row that were not better than the best."""
        missed = self.patience is not None and self.best is not None and self.best["misses"] >= self.patience
        return missed or self.step >= self.steps

    def advance(self) -> None:
        first = self.step * self.tasks_per_step
        metrics = self.update(self.source.draw(first, self.tasks_per_step), self.step)
        self.source.feedback(first, metrics)
        self.averages.add(metrics, self.step + 1)
        self.step += 1

    def log_averages(self) -> dict[str, str]:
        """Writes the means since the last log; returns what the bar shows. Waits for the device."""
        self.refuse_non_finite()
        means, (since, at) = self.averages.read(), self.clock
        self.clock = (time.perf_counter(), self.step)
        rate = (self.step - at) * self.tasks_per_step / (self.clock[0] - since)
        self.run.log(self.step, "train", means)
        self.run.show(self.step, "train/tasks_per_second", rate)
        self.run.report(step=self.step, step_seconds=(self.clock[0] - since) / (self.step - at), peak_memory=self.device.peak_memory())
        for name, value in self.update.shown().items():
            self.run.show(self.step, f"train/{name}", value)
        self.averages = Averages()
        return {**{name: f"{value:.3f}" for name, value in means.items()}, "tasks/s": f"{rate:.1f}"}

    def compare(self) -> None:
        """Validates, and keeps the model if none was better. The best is written first: a later `last` may then rely on it."""
        self.refuse_non_finite()
        values = self.validate(self.step)
        self.run.log(self.step, "val", values)
        value = float(values[self.measure.name])
        better = self.measure.better(value, None if self.best is None else self.best["value"])
        if better:
            self.best = {"step": self.step, "value": value, "misses": 0}
            self.save("best")
        elif self.best is not None:
            self.best = {**self.best, "misses": self.best["misses"] + 1}
        self.run.report(step=self.step, best=self.best and {key: self.best[key] for key in ("step", "value")})
        if self.keep_best > 1 and isfinite(value):
            self.rank(value)
        log.info("step %d: val %s %s%s", self.step, self.measure.name, self.measure.text(value), " (best so far)" * better)
        self.clock = (time.perf_counter(), self.step)

    def rank(self, value: float) -> None:
        """Keeps the model if it is among the best; of equal ones the earlier."""
        up = -1 if self.measure.higher_is_better else 1
        self.ranking = sorted([*self.ranking, (value, self.step)], key=lambda entry: (up * entry[0], entry[1]))[: self.keep_best]
        if (value, self.step) in self.ranking:
            self.save(f"val-{self.step}")

    def refuse_non_finite(self) -> None:
        """Waits for the device, once. Raises TrainingError, before anything of the spoilt model is kept."""
        saved = self.run.folder / "checkpoints" / "last.pt"
        hint = f"the last good checkpoint is {saved}; try a smaller learning rate, clip_norm=1 or device.precision=fp32"
        place = self.device.torch
        bad = torch.tensor(2**62, device=place) if self.averages.bad_step is None else self.averages.bad_step
        finite = [value.isfinite().all().to(place) for value in self.learner.state_dict().values() if value.is_floating_point()]
        first, sound = torch.stack([bad, torch.stack(finite).all()]).tolist()
        if first <= self.step:
            raise TrainingError(f"the loss is not finite since step {first}; {hint}")
        if not sound:
            raise TrainingError(f"the weights are not finite after step {self.step}; {hint}")

    def save(self, name: str) -> None:
        self.refuse_non_finite()
        self.run.save(name, {**self.facts, **self.state()})
        if name == "last":  # only then does nothing ask for the others any more
            self.run.report(step=self.step)
            self.run.keep([f"val-{step}" for _, step in self.ranking])

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "ranking": self.ranking,
            "model": self.learner.state_dict(),
            "update": self.update.state_dict(),
            "source": self.source.state_dict(),
            "averages": {"sums": self.averages.sums, "steps": self.averages.steps, "bad_step": self.averages.bad_step},
            "random": self.device.random_state(),
            "metrics_bytes": self.run.flush(),
        }

    def load(self, checkpoint: Mapping[str, Any]) -> None:
        """Goes back to where `checkpoint` was made, to the last bit."""
        kept = renewed(checkpoint)
        self.step, self.best, self.ranking = kept["step"], kept["best"], kept["ranking"]
        for name, part in (("model", self.learner), ("update", self.update), ("source", self.source)):
            part.load_state_dict(kept[name])
        averages, place = kept["averages"], self.device.torch
        sums = {key: value.to(place) for key, value in averages["sums"].items()}
        bad = averages["bad_step"]
        self.averages = Averages(sums, averages["steps"], None if bad is None else bad.to(place))
        self.device.set_random_state(kept["random"])

"""Small training jobs on any device, and how far two results are apart: all that the checks take from metarun."""

from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from metarun.config.compose import compose, conf_dir, run_values
from metarun.nn.device import Device
from metarun.tasks import Episode, Examples
from metarun.training.build import build
from metarun.training.trainer import Trainer

SMALL = (
    *("dataset=glyphs", "dataset.classes=40", "dataset.split_sizes=[20,10,10]"),
    *("tasks_per_step=4", "val_every=0", "protocol.selection=last", "test=false"),
)
BESIDE = {  # what an algorithm needs beside its defaults
    "cavia": ["backbone.image_size=28"],
    "reptile": ["optimizer=reptile", "scheduler=linear", "task.shots=10", "task.queries=5", "protocol.shots=1"],
    "meta_baseline": ["algorithm.pretrain_steps=0"],
}


@dataclass(frozen=True)
class Made:
    """A job, ready for its first step; nothing of it is written."""

    trainer: Trainer
    device: Device

    @property
    def learner(self) -> Any:
        return self.trainer.learner

    def tasks(self, count: int) -> Any:
        return self.trainer.source.draw(0, count)


def algorithms() -> list[str]:
    return sorted(path.stem for path in (conf_dir() / "algorithm").glob("*.yaml"))


def small(name: str) -> list[str]:
    """Overrides of a small job of an algorithm."""
    return [f"algorithm={name}", *BESIDE.get(name, ()), *SMALL]


def made(overrides: Sequence[str]) -> Made:
    cfg = run_values(compose("train", Namespace(overrides=list(overrides), config_dir=None)))
    with TemporaryDirectory() as folder:
        job = build(cfg, Path(folder) / "run")
    trainer = job.trainer(run=SimpleNamespace(flush=lambda: 0), validate=lambda step: {})
    trainer.learner.train()
    return Made(trainer, job.device)


def moved(tasks: Any, place: str, dtype: torch.dtype) -> Any:
    """An episode, or mini-batches, on another device in another precision."""
    if isinstance(tasks, Episode):
        return Episode(moved(tasks.support, place, dtype), moved(tasks.query, place, dtype))
    return Examples(tasks.x.to(place, dtype), tasks.y.to(place), tasks.ways)


def noisy(tasks: Any) -> Any:
    """The same tasks with noise on their images: on blank paper the maxima of a pool are equal, and rounding decides between them."""
    dice = torch.Generator().manual_seed(0)
    for x in [tasks.support.x, tasks.query.x] if isinstance(tasks, Episode) else [tasks.x]:
        x.add_(torch.randn(x.shape, generator=dice).to(x.device), alpha=0.3)
    return tasks


def calm(learner: Any) -> None:
    """Gives Reptile's inner Adam a large second moment: without one its first updates are signs, which make much of rounding."""
    if hasattr(learner, "moment"):
        learner.moment.latest.fill_(1.0)
        learner.moment.counts = [1000, 1000]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([value.detach().double().cpu().flatten() for value in tensors])


def distance(a: Tensor, b: Tensor) -> float:
    """Of two vectors, relative to the length of `b`."""
    return float((a - b).norm() / b.norm().clamp(min=1e-300))

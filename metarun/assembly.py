"""The objects that a config describes: learner, data, numbered episodes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metarun.algorithms.base import FewShotLearner
from metarun.backbones.base import Backbone
from metarun.data.episodes import Episodes, Pixels
from metarun.data.source import Source
from metarun.data.table import ImageTable
from metarun.device import Device
from metarun.errors import UserError
from metarun.tasks import Episode

Config = Mapping[str, Any]


def make_learner(cfg: Config, device: Device) -> FewShotLearner:
    """The learner with its backbone, from the run's seed. Raises UserError for a combination that cannot work."""
    torch.manual_seed(cfg["seed"])
    backbone = instantiate(cfg["backbone"])
    if not isinstance(backbone, Backbone):
        raise UserError(f"backbone._target_: {type(backbone).__name__} is not a Backbone; put it into metarun.backbones.per_task.PerTask")
    learner: FewShotLearner = instantiate(cfg["algorithm"])(backbone=backbone)
    if device.precision == "fp16" and learner.inner_gradients:
        raise UserError(
            f"device.precision: fp16 is not allowed for {type(learner).__name__}, whose inner gradients would overflow; use bf16 or fp32"
        )
    return learner.to(device.torch)


def make_optimizer(cfg: Config, learner: FewShotLearner) -> tuple[Optimizer, LRScheduler]:
    """Optimizer and schedule over all parameters. Raises UserError for a value that torch refuses."""
    try:
        optimizer = instantiate(cfg["optimizer"])(learner.parameters())
    except ValueError as error:
        raise UserError(f"optimizer: {error}") from error
    try:
        return optimizer, instantiate(cfg["scheduler"])(optimizer)
    except ValueError as error:
        raise UserError(f"scheduler: {error}") from error


@dataclass(frozen=True)
class Split:
    """Numbered episodes of a split and the images to make them of."""

    episodes: Episodes
    pixels: Pixels

    def tasks(self, first: int, count: int) -> Episode:
        return self.pixels.episode(self.episodes.draw(first, count), self.episodes.shots)


def training_split(cfg: Config, dataset: Source, device: Device) -> Split:
    table = dataset.load("train")
    return Split(Episodes(table, **cfg["task"], seed=cfg["seed"], split="train"), Pixels(table, device, dataset.residency))


def protocol_split(cfg: Config, dataset: Source, device: Device, split: str) -> Split:
    """Validation and test have the protocol's seed: their episodes are the same for all runs."""
    p, table = cfg["protocol"], dataset.load(split)
    episodes = Episodes(table, p["ways"], p["shots"], p["queries"], p["seed"], split, key="protocol")
    return Split(episodes, Pixels(table, device, dataset.residency))


def refuse_overlap(cfg: Config, trained: Collection[str], table: ImageTable) -> None:
    """Raises UserError if classes to be tested were trained on, unless the protocol allows it."""
    both = set(trained).intersection(table.names)
    if both and not cfg["protocol"]["allow_overlap"]:
        raise UserError(
            f"protocol.split: {cfg['protocol']['split']} has {len(both)} classes that were trained on ({min(both)} among them); "
            "protocol.allow_overlap=true tests them all the same"
        )

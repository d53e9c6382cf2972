"""The objects that a config describes: learner, data, numbered episodes."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metarun.algorithms.base import FewShotLearner
from metarun.backbones.base import Backbone
from metarun.data.episodes import Episodes, Pixels
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
    return learner.to(device.torch)


def make_optimizer(cfg: Config, parameters: Iterable[nn.Parameter]) -> tuple[Optimizer, LRScheduler]:
    """Optimizer and schedule. Raises UserError for a value that torch refuses, also at the first step."""
    node = "optimizer"
    try:
        rehearsal = instantiate(cfg["optimizer"])([nn.Parameter(torch.zeros(1))])
        optimizer = instantiate(cfg["optimizer"])(parameters)
        node = "scheduler"
        later = instantiate(cfg["scheduler"])(rehearsal)
        rehearsal.step()
        later.step()
        return optimizer, instantiate(cfg["scheduler"])(optimizer)
    except (TypeError, ValueError, IndexError, ArithmeticError, InstantiationException) as error:
        if isinstance(error.__cause__, UserError):
            raise
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise UserError(f"{node}: {cfg[node]['_target_']} refuses its values ({reason})") from error


@dataclass(frozen=True)
class Split:
    """Numbered episodes of a split and the images to make them of."""

    episodes: Episodes
    pixels: Pixels

    def tasks(self, first: int, count: int) -> Episode:
        return self.pixels.episode(self.episodes.draw(first, count), self.episodes.shots)


class Data:
    """The dataset of a config; splits that are parts of one table share its images on the device."""

    def __init__(self, cfg: Config, device: Device) -> None:
        self.cfg, self.device, self.source = cfg, device, instantiate(cfg["dataset"])
        self.loaded: list[tuple[ImageTable, Pixels]] = []

    def training(self) -> Split:
        return self._split(training_episodes(self.cfg, self.source))

    def protocol(self, split: str) -> Split:
        return self._split(protocol_episodes(self.cfg, self.source, split))

    def _split(self, episodes: Episodes) -> Split:
        table = episodes.table
        pixels = next((pixels for other, pixels in self.loaded if other.images is table.images), None)
        if pixels is None:
            pixels = Pixels(table, self.device, getattr(self.source, "residency", "auto"))
            self.loaded.append((table, pixels))
        return Split(episodes, pixels)


def training_episodes(cfg: Config, source: Any) -> Episodes:
    """The tasks that are trained on. Raises UserError where the images do not suffice."""
    return Episodes(source.load(cfg["train_split"]), **cfg["task"], seed=cfg["seed"], split=cfg["train_split"])


def protocol_episodes(cfg: Config, source: Any, split: str) -> Episodes:
    """Validation and test have the protocol's seed: their episodes are the same for all runs. Raises UserError as above."""
    p = cfg["protocol"]
    return Episodes(source.load(split), p["ways"], p["shots"], p["queries"], p["seed"], split, key="protocol")


def refuse_ways(learner: FewShotLearner, episodes: Episodes, key: str) -> None:
    """Raises UserError if the tasks, configured under `key`, have more or fewer classes than the learner is built for."""
    if learner.ways not in (None, episodes.ways):
        raise UserError(f"{key}.ways: {episodes.ways} is not allowed; {type(learner).__name__} is built for {learner.ways}")


def refuse_unfit(cfg: Config, learner: FewShotLearner, training: Episodes, test: Episodes) -> None:
    """Raises UserError if the learner cannot be trained on the one, or should not be tested on the other."""
    refuse_ways(learner, training, "task")
    refuse_ways(learner, test, "protocol")
    refuse_overlap(cfg, training.table.names, test.table)


def refuse_overlap(cfg: Config, trained: Collection[str], table: ImageTable) -> None:
    """Raises UserError if classes to be tested were trained on, unless the protocol allows it."""
    both = set(trained).intersection(table.names)
    if both and not cfg["protocol"]["allow_overlap"]:
        raise UserError(
            f"protocol.split: {cfg['protocol']['split']} has {len(both)} classes that were trained on ({min(both)} among them); "
            "protocol.allow_overlap=true tests them all the same"
        )

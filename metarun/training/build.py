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
from metarun.data import augmentation
from metarun.data.batches import Batches
from metarun.data.episodes import Episodes, Pixels
from metarun.data.table import ImageTable
from metarun.errors import UserError
from metarun.nn.device import Device
from metarun.tasks import Episode, Examples, TaskSource
from metarun.training.gradient import MetaGradient

Config = Mapping[str, Any]


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


def make_update(cfg: Config, learner: FewShotLearner, device: Device) -> MetaGradient:
    """What a step does. Raises UserError as `make_optimizer` does."""
    optimizer, scheduler = make_optimizer(cfg, learner.parameters())
    return MetaGradient(learner, device, optimizer, scheduler, cfg["tasks_per_chunk"], cfg["clip_value"], cfg["clip_norm"])


@dataclass(frozen=True)
class Split(TaskSource):
    """Numbered episodes of a split and the images to make them of."""

    episodes: Episodes
    pixels: Pixels

    def draw(self, first: int, count: int) -> Episode:
        return self.pixels.episode(self.episodes.draw(first, count), self.episodes.shots)

    def sha256(self, count: int) -> str:
        return self.episodes.sha256(count)


@dataclass(frozen=True)
class Training(TaskSource):
    """What a learner is trained on: mini-batches up to the number `first`, and from there the tasks of a split, if there is one."""

    batches: Batches
    split: Split | None
    pixels: Pixels
    first: int = 0

    def draw(self, first: int, count: int) -> Episode | Examples:
        if self.split is not None and first >= self.first:
            return self.split.draw(first, count)
        draws, labels = self.batches.draw(first, count)
        return self.pixels.batch(draws, labels, self.batches.classes)

    def sha256(self, count: int) -> str:
        if self.split is None:
            return self.batches.sha256(count)
        tasks = self.split.sha256(count)
        return f"{self.batches.sha256(min(count, self.first))}+{tasks}" if self.first else tasks


class Data:
    """The dataset of a config; splits that are parts of one table share its images on the device."""

    def __init__(self, cfg: Config, device: Device) -> None:
        self.cfg, self.device, self.source = cfg, device, instantiate(cfg["dataset"])
        self.loaded: list[tuple[ImageTable, Pixels]] = []

    @property
    def facts(self) -> dict[str, Any]:
        """Of the images that are trained on."""
        return facts_of(training_batches(self.cfg, self.source, augment=False))

    def training(self, learner: FewShotLearner) -> Training:
        batches = training_batches(self.cfg, self.source, learner.augment)
        pixels = self._pixels(batches.table)
        if learner.supervised_steps is None:
            return Training(batches, None, pixels)
        split = self._split(training_episodes(self.cfg, self.source))
        return Training(batches, split, pixels, learner.supervised_steps * self.cfg["tasks_per_step"])

    def protocol(self, split: str) -> Split:
        return self._split(protocol_episodes(self.cfg, self.source, split))

    def _split(self, episodes: Episodes) -> Split:
        return Split(episodes, self._pixels(episodes.table))

    def _pixels(self, table: ImageTable) -> Pixels:
        pixels = next((pixels for other, pixels in self.loaded if other.images is table.images), None)
        if pixels is None:
            transforms = getattr(self.source, "augment", ())
            pixels = Pixels(table, self.device, getattr(self.source, "residency", "auto"), transforms)
            self.loaded.append((table, pixels))
        return pixels


def facts_of(batches: Batches) -> dict[str, Any]:
    """What a learner is told of the data that it is trained on (see `TaskSpec`)."""
    return {"classes": batches.classes, "names": list(batches.table.names), "shape": list(batches.table.images.shape[1:])}


def training_episodes(cfg: Config, source: Any) -> Episodes:
    """The tasks that are trained on. Raises UserError where the images do not suffice."""
    task, split = cfg["task"], cfg["train_split"]
    return Episodes(source.load(split), task["ways"], task["shots"], task["queries"], cfg["seed"], split, augment=task["augment"])


def training_batches(cfg: Config, source: Any, augment: bool) -> Batches:
    """The mini-batches that are trained on in a supervised stage."""
    split = cfg["train_split"]
    return Batches(source.load(split), cfg["task"]["batch"], cfg["seed"], split, augment and bool(getattr(source, "augment", ())))


def protocol_episodes(cfg: Config, source: Any, split: str) -> Episodes:
    """Validation and test have the protocol's seed: their episodes are the same for all runs. Raises UserError as above."""
    p = cfg["protocol"]
    return Episodes(source.load(split), p["ways"], p["shots"], p["queries"], p["seed"], split, key="protocol")


def refuse_ways(learner: FewShotLearner, episodes: Episodes, key: str) -> None:
    """Raises UserError if the tasks, configured under `key`, have more or fewer classes than the learner is built for."""
    if learner.outputs not in (None, episodes.ways):
        raise UserError(f"{key}.ways: {episodes.ways} is not allowed; {type(learner).__name__} is built for {learner.outputs}")


def refuse_unfit(cfg: Config, learner: FewShotLearner, source: Any) -> None:
    """Raises UserError if the learner cannot be trained, validated or tested on the data, or should not be."""
    if learner.supervised_steps is not None:
        refuse_ways(learner, training_episodes(cfg, source), "task")
    test = protocol_episodes(cfg, source, cfg["protocol"]["split"])
    if cfg["val_every"]:
        protocol_episodes(cfg, source, "val")
    refuse_ways(learner, test, "protocol")
    trained = source.load(cfg["train_split"])
    refuse_overlap(cfg, trained.names, test.table)
    learner.check_training()
    refuse_augmentation("algorithm.augment", source, test.table, learner.augment and learner.supervised_steps != 0, needed=False)
    refuse_augmentation("task.augment", source, test.table, cfg["task"]["augment"])
    refuse_augmentation("protocol.views", source, test.table, cfg["protocol"]["views"] > 1)


def refuse_augmentation(key: str, source: Any, table: ImageTable, wanted: bool, needed: bool = True) -> None:
    """Raises UserError if images are to be augmented, as `key` says, and the dataset's transforms do not fit them, or `needed` are none."""
    if not wanted:
        return
    transforms = getattr(source, "augment", ())
    if needed and not transforms:
        raise UserError(f"{key}: not allowed with an empty dataset.augment; name its transforms there")
    augmentation.refuse_unfit(transforms, table.images.shape[3], table.images.shape[1])


def refuse_overlap(cfg: Config, trained: Collection[str], table: ImageTable) -> None:
    """Raises UserError if classes to be tested were trained on, unless the protocol allows it."""
    both = set(trained).intersection(table.names)
    if both and not cfg["protocol"]["allow_overlap"]:
        raise UserError(
            f"protocol.split: {cfg['protocol']['split']} has {len(both)} classes that were trained on ({min(both)} among them); "
            "protocol.allow_overlap=true tests them all the same"
        )

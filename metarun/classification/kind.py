"""N-way K-shot classification: a learner sees K labelled images of each of N classes, and names the class of others."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from metarun.algorithms.base import FewShotLearner
from metarun.algorithms.objectives import ACCURACY, CrossEntropy
from metarun.classification import evaluation, origin
from metarun.classification.diagnostics import QUICK_MODES, diagnose, scalars
from metarun.classification.picture import episode_figure
from metarun.classification.sources import EpisodeSource, StagedSource
from metarun.data import augmentation
from metarun.data.batches import Batches
from metarun.data.episodes import Episodes, Pixels
from metarun.data.table import ImageTable
from metarun.errors import UserError
from metarun.kinds import Kind, Table
from metarun.nn.device import Device
from metarun.tasks import TaskSource
from metarun.text.measure import Measure, Scores

LOSS = Measure("loss", digits=4)


class Classification(Kind):
    """dataset: a source of images; ways, shots, queries: of a training task; augment: its images, by the dataset's transforms; batch:
    images of a mini-batch in a supervised stage. protocol: the keys of conf/protocol; loop: of the root, `seed`, `train_split` and
    `tasks_per_step`. Parts of one table share its images on the device.
    """

    measures = (ACCURACY, LOSS)

    def __init__(
        self,
        protocol: Mapping[str, Any],
        loop: Mapping[str, Any],
        device: Device,
        dataset: Any,
        ways: int,
        shots: int,
        queries: int,
        augment: bool = False,
        batch: int = 64,
    ) -> None:
        self.protocol, self.loop, self.device, self.dataset = protocol, loop, device, dataset
        self.ways, self.shots, self.queries, self.augment, self.batch = ways, shots, queries, augment, batch
        self.objective = CrossEntropy(ways)
        self.setting = {key: protocol[key] for key in ("ways", "shots")}
        self.words = f"{protocol['ways']}-way {protocol['shots']}-shot, {protocol['queries']} queries a class"
        self.loaded: list[tuple[ImageTable, Pixels]] = []

    def facts(self, part: str) -> dict[str, Any]:
        """`classes`: how many, turned ones among them where they are classes of their own; `names`; `shape` (H, W, C) of an image."""
        table = self.dataset.load(part)
        known = {"fingerprint": table.fingerprint, "names": list(table.names), "shape": list(table.images.shape[1:])}
        return {**known, "classes": Batches(table, self.batch, 0, part).classes}

    def training(self, learner: FewShotLearner) -> StagedSource:
        part, seed = self.loop["train_split"], self.loop["seed"]
        table = self.dataset.load(part)
        self._refuse_augmentation("algorithm.augment", table, learner.augment and learner.supervised_steps != 0, needed=False)
        self._refuse_augmentation("task.augment", table, self.augment)
        batches = Batches(table, self.batch, seed, part, learner.augment and bool(self.transforms))
        if learner.supervised_steps is None:
            return StagedSource(batches, None, self._pixels(table))
        episodes = Episodes(table, self.ways, self.shots, self.queries, seed, part, augment=self.augment)
        refuse_ways(learner, self.ways, "task")
        tasks = EpisodeSource(episodes, self._pixels(table), part)
        return StagedSource(batches, tasks, tasks.pixels, learner.supervised_steps * self.loop["tasks_per_step"])

    def evaluation(self, part: str) -> EpisodeSource:
        p, table = self.protocol, self.dataset.load(part)
        episodes = Episodes(table, p["ways"], p["shots"], p["queries"], p["seed"], part, key="protocol")
        return EpisodeSource(episodes, self._pixels(table), part)

    def protocol_for(self, learner: FewShotLearner, facts: Mapping[str, Any]) -> dict[str, Any]:
        table = self.dataset.load(self.protocol["split"])
        refuse_other_images(table, facts["shape"])
        self._refuse_overlap(facts["names"], table)
        self._refuse_augmentation("protocol.views", table, self.protocol["views"] > 1)
        refuse_ways(learner, self.protocol["ways"], "protocol")
        return {**self.protocol, "batch_norm": self.statistics(learner)}

    def statistics(self, learner: FewShotLearner) -> str:
        """How queries are normalised: as the protocol says, or as the method's paper does."""
        return str(self.protocol["batch_norm"] or learner.statistics)

    def score(self, learner: FewShotLearner, source: TaskSource, first: int, count: int) -> Table:
        """`accuracy` in percent and `loss` (tasks,); `classes`, their names, and `right` answers to each, (tasks, N)."""
        assert isinstance(source, EpisodeSource)
        return evaluation.score(learner, source, first, count, self.statistics(learner), self.device, self.protocol["views"])

    def summary(self, table: Table) -> Scores:
        """`groups` has percent of right answers, and questions, of every class that was drawn."""
        names, number = np.unique(table["classes"], return_inverse=True)
        asked = np.bincount(number.ravel()) * self.protocol["queries"]
        right = np.bincount(number.ravel(), weights=table["right"].ravel())
        groups = {str(name): (100 * int(some), int(of)) for name, some, of in zip(names, right, asked, strict=True)}
        return Scores(super().summary(table).numbers, groups)

    def diagnose(self, learner: FewShotLearner, source: TaskSource, count: int, quick: bool = False) -> dict[str, Any]:
        found = (source.draw(0, count), self.statistics(learner), self.device)
        return scalars(diagnose(learner, *found, QUICK_MODES)) if quick else diagnose(learner, *found)  # type: ignore[arg-type]

    def picture(self, learner: FewShotLearner, source: TaskSource, index: int) -> np.ndarray:
        return episode_figure(learner, source.draw(index, 1), self.statistics(learner), self.device)  # type: ignore[arg-type]

    def origin(self, config: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        said = origin.compared(config, checkpoint, self.dataset)
        return said, origin.remark(config, checkpoint, said)

    @property
    def transforms(self) -> Any:
        return getattr(self.dataset, "augment", ())

    def _pixels(self, table: ImageTable) -> Pixels:
        pixels = next((pixels for other, pixels in self.loaded if other.images is table.images), None)
        if pixels is None:
            pixels = Pixels(table, self.device, getattr(self.dataset, "residency", "auto"), self.transforms)
            self.loaded.append((table, pixels))
        return pixels

    def _refuse_augmentation(self, key: str, table: ImageTable, wanted: bool, needed: bool = True) -> None:
        """Raises UserError if images are to be augmented, as `key` says, and the transforms do not fit them, or `needed` are none."""
        if not wanted:
            return
        if needed and not self.transforms:
            raise UserError(f"{key}: not allowed with an empty dataset.augment; name its transforms there")
        augmentation.refuse_unfit(self.transforms, table.images.shape[3], table.images.shape[1])

    def _refuse_overlap(self, trained: list[str], table: ImageTable) -> None:
        """Raises UserError if classes to be tested were trained on, unless the protocol allows it."""
        both = set(trained).intersection(table.names)
        if both and not self.protocol["allow_overlap"]:
            raise UserError(
                f"protocol.split: {self.protocol['split']} has {len(both)} classes that were trained on ({min(both)} among them); "
                "protocol.allow_overlap=true tests them all the same"
            )


def refuse_ways(learner: FewShotLearner, ways: int, key: str) -> None:
    """Raises UserError if the tasks, configured under `key`, have more or fewer classes than the learner is built for."""
    if learner.outputs not in (None, ways):
        raise UserError(f"{key}.ways: {ways} is not allowed; {type(learner).__name__} is built for {learner.outputs}")


def refuse_other_images(table: ImageTable, trained: list[int]) -> None:
    """Raises UserError, with the overrides that help, if the images are not of the size and channels (H, W, C) that were trained on."""
    height, width, channels = trained
    if table.images.shape[1:] != (height, width, channels):
        hint = f"; dataset.image_size={height} dataset.in_channels={channels} makes them fit" if height == width else ""
        raise UserError(
            f"dataset: its images are {table.images.shape[1:]} (height, width, channels), the run's were {(height, width, channels)}{hint}"
        )

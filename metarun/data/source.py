"""What every source of images shares: its facts, their checks, and `load(split)`."""

import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

from metarun.data.table import ImageTable
from metarun.errors import UserError

Rotations = Literal["none", "classes", "per_class", "per_episode"]
Residency = Literal["auto", "device", "ram", "disk"]
SPLITS = ("train", "val", "test")
PARTS = {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")}

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Source(ABC):
    """Images in classes, and which classes are for training, validation and test. To make one costs nothing; `load` reads or builds.

    image_size: height and width in pixels. in_channels: 1 (grey) or 3 (RGB). mean, std: per channel or one for all, for pixels in
    [0, 1]. rotations: per split, what `ImageTable` says of them; `val` follows `test`. augment: torchvision's v2 transforms, or others that
    map (C, H, W) uint8 to the same, for images that are to be augmented. residency: where the table is kept in use.
    Raises UserError, naming the key, for a value that makes no sense.
    """

    image_size: int
    in_channels: Literal[1, 3] = 1
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    rotations: Mapping[str, Rotations] = field(default_factory=dict)
    residency: Residency = "auto"
    augment: Sequence[Any] = ()

    standard: ClassVar[tuple[Sequence[str], int]] = ((), 0)  # the classes of the published data set, and the images of each

    def __post_init__(self) -> None:
        whole("image_size", self.image_size, 1, 1024)
        for key in fields(self):
            if get_origin(key.type) is Literal:
                choice(key.name, getattr(self, key.name), key.type)
        self.rotations = dict(self.rotations)
        for split, value in self.rotations.items():
            choice("rotations", split, Literal["train", "val", "test"])
            choice(f"rotations.{split}", value, Rotations)
        self.mean, self.std = self._per_channel("mean", self.mean), self._per_channel("std", self.std)
        if min(self.std) <= 0:
            raise UserError(f"dataset.std: {list(self.std)} is not allowed; every value must be above 0")

    def _per_channel(self, key: str, values: Sequence[float]) -> tuple[float, ...]:
        if len(values) not in (1, self.in_channels):
            raise UserError(f"dataset.{key}: {list(values)} is not allowed; give one number, or {self.in_channels} (dataset.in_channels)")
        if not all(math.isfinite(value) for value in values):
            raise UserError(f"dataset.{key}: {list(values)} is not allowed; every value must be finite")
        return tuple(float(value) for value in values) * (self.in_channels // len(values))

    @abstractmethod
    def build(self) -> ImageTable:
        """All classes of all splits in one table, from the cache or built."""

    @abstractmethod
    def assign(self, names: Sequence[str]) -> Mapping[str, str]:
        """The split (train, val or test) of each class in `names`; a class left out is in none."""

    @cached_property
    def table(self) -> ImageTable:
        """All classes; made once for this object, and with a logged warning where the data are not the standard ones."""
        table = self.build()
        for line in self.differences(table):
            log.warning("%s: %s", type(self).__name__, line)
        return table

    def load(self, split: str) -> ImageTable:
        """The classes of `train`, `val`, `test` or `trainval`. Raises UserError for another split, or where no class is in it."""
        if split not in PARTS:
            raise UserError(f"split: {split!r} is not allowed; choose {', '.join(PARTS)}")
        names = [name for name, part in self.assign(self.table.names).items() if part in PARTS[split]]
        if not names:
            raise UserError(f"dataset: the {split} split has no class among the {len(self.table.names)} that are there")
        return replace(self.table.select(names), mean=tuple(self.mean), std=tuple(self.std), rotations=self.turns(split))

    def turns(self, split: str) -> str:
        """What `ImageTable.rotations` is in a split."""
        return self.rotations.get(PARTS[split][0]) or self.rotations.get("test" if split == "val" else "", "none")

    def differences(self, table: ImageTable) -> list[str]:
        """How the data differ from the published data set, one line each; none where there is no such set."""
        names, images = self.standard
        missing = sorted(set(names).difference(table.names))
        odd = table.counts[table.counts != images] if images else table.counts[:0]
        lines = [f"{len(missing)} of the {len(names)} standard classes are missing, {missing[0]} first"] if missing else []
        if len(odd):
            lines.append(f"{len(odd)} of {len(table.counts)} classes hold {odd.min()} to {odd.max()} images, not the standard {images}")
        return lines


def choice(key: str, value: object, allowed: object) -> None:
    """Raises UserError unless `value` is one of the Literal `allowed`."""
    names = [str(name) for name in get_args(allowed)]
    if value not in get_args(allowed):
        raise UserError(f"dataset.{key}: {value!r} is not allowed; choose {', '.join(names[:-1])} or {names[-1]}")


def whole(key: str, value: object, least: int, most: int = 2**63 - 1) -> None:
    """Raises UserError unless `value` is a whole number from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"dataset.{key}: {value!r} is not allowed; give a whole number from {least} to {most}")


def sizes_of_splits(sizes: Sequence[int]) -> tuple[int, ...]:
    """`dataset.split_sizes` as a tuple. Raises UserError unless it is three whole numbers."""
    if len(sizes) != 3:
        raise UserError(f"dataset.split_sizes: {list(sizes)} is not allowed; give the numbers of classes for train, val and test")
    for size in sizes:
        whole("split_sizes", size, 0)
    return tuple(sizes)


def existing_root(root: str | Path | None, how: str) -> Path:
    """The folder of `dataset.root`. Raises UserError, with `how` to get the data, if it is not given or not there."""
    if root is None:
        raise UserError(f"dataset.root: null is not allowed; {how}")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise UserError(f"dataset.root: {folder} is not a folder; {how}")
    return folder


def deal(names: Sequence[str], sizes: Sequence[int], seed: int) -> dict[str, str]:
    """Deals shuffled `names` to train, val and test, as many as `sizes` says; the order is that of the names' SHA-256 with `seed`."""
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    if sum(sizes) > len(order):
        raise UserError(f"dataset.split_sizes: {list(sizes)} is not allowed; there are only {len(order)} classes")
    parts = [split for split, size in zip(SPLITS, sizes, strict=True) for _ in range(size)]
    return dict(zip(order, parts, strict=False))

"""Anybody's images: a folder per class, of any size and format that Pillow reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from metarun.data.decode import Member, Resample, decode, members, stamps
from metarun.data.source import SPLITS, Source, deal, existing_root, whole
from metarun.data.table import ImageTable, cached_table
from metarun.errors import UserError

HOW = "give the folder that holds one folder of images per class, or train, val and test with such folders in each"


@dataclass(kw_only=True)
class Folder(Source):
    """Images in class folders: `root/train/CLASS/*`, `root/val/...` and `root/test/...`, or `root/CLASS/*` with classes dealt to splits.

    The classes are the folders that hold the images; where train, val or test is at the top, they are the splits, not part of the
    classes' names, and `split_fractions` and `split_seed` are not used. split_fractions: of the classes, for train, val and test.
    resample: filter to `image_size`, aspect not kept. Photographs are turned upright, as their EXIF data say. Hidden files are passed
    over; anything else that is no image is refused.
    """

    root: str | Path | None = None
    resample: Resample = "bilinear"
    split_fractions: Sequence[float] = (0.6, 0.2, 0.2)
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("split_seed", self.split_seed, 0)
        fractions = list(self.split_fractions)
        if len(fractions) != 3 or not (min(fractions) >= 0 and sum(fractions) <= 1 + 1e-9):  # so NaN is refused too
            raise UserError(f"dataset.split_fractions: {fractions} is not allowed; give three numbers from 0 up with a sum of at most 1")

    def build(self) -> ImageTable:
        root = existing_root(self.root, HOW)
        key = {"files": stamps([root]), "image_size": self.image_size, "in_channels": self.in_channels, "resample": self.resample}
        key["upright"] = True  # tables of before, in which they were not, are left alone
        read = partial(decode, image_size=self.image_size, in_channels=self.in_channels, resample=self.resample, upright=True)
        return cached_table("folder", key, lambda: self._found[0], read, (self.image_size, self.image_size, self.in_channels))

    def assign(self, names: Sequence[str]) -> Mapping[str, str]:
        """By the split in which the class lies, if the folders have splits; else dealt."""
        if splits := self._found[1]:
            return {name: splits[name] for name in names}
        ends = [round(len(names) * sum(self.split_fractions[: i + 1])) for i in range(3)]
        return deal(names, [ends[0], ends[1] - ends[0], ends[2] - ends[1]], self.split_seed)

    @cached_property
    def _found(self) -> tuple[dict[str, list[Member]], dict[str, str]]:
        return _classes(existing_root(self.root, HOW))


def _classes(root: Path) -> tuple[dict[str, list[Member]], dict[str, str]]:
    """Class -> its images, sorted by name, and class -> its split, empty where the folders have none.

    Raises UserError for an image outside a class folder and for a class in two splits.
    """
    classes: dict[str, list[Member]] = {}
    owners: dict[str, str] = {}
    files = members(root)
    tops = {path.parts[0] for path in files}
    splits = not tops.isdisjoint(SPLITS)
    if splits and not tops <= set(SPLITS):
        raise UserError(f"{root / min(tops.difference(SPLITS))}: next to {min(tops.intersection(SPLITS))}, so neither a split nor a class")
    for path, member in files.items():
        if len(path.parts) < 2 + splits:
            raise UserError(f"{member}: not in a class folder; {HOW}")
        label = "/".join(path.parts[int(splits) : -1])
        name = f"folder/{label}"
        if splits and owners.setdefault(name, path.parts[0]) != path.parts[0]:
            raise UserError(f"{root / path.parts[0] / label}: class {label} is in two splits, {owners[name]} too")
        classes.setdefault(name, []).append(member)
    if not classes:
        raise UserError(f"{root}: no images in it; {HOW}")
    return {name: classes[name] for name in sorted(classes)}, owners

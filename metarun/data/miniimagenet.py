"""miniImageNet: 100 ImageNet classes of 600 images each (Vinyals et al. 2016), split 64/16/20 as Ravi and Larochelle (2017) do."""

import csv
import io
import json
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np

from metarun.data.decode import Member, Resample, decode, members, stamps
from metarun.data.pickles import read_pickle
from metarun.data.source import SPLITS, Source, existing_root
from metarun.data.table import ImageTable, cached_table
from metarun.errors import UserError

Item = Member | np.ndarray
Classes = Mapping[str, Sequence[Item]]
Place = tuple[list[Path], Callable[..., Classes]]  # the files that hold a split, and what reads them

HOW = (
    "give a folder with train.zip, train.csv and images/, train/CLASS/*.jpg or mini-imagenet-cache-train.pkl, val and test alike "
    "(the lists of files are in github.com/twitter-research/meta-learning-lstm, the images in ImageNet)"
)
CACHE = "it must hold image_data and class_dict, or data and labels, with images as bytes of the shape (images, height, width, 1 or 3)"
RAVI = {
    f"miniimagenet/{name}": split
    for split, names in json.loads((Path(__file__).parent / "splits" / "miniimagenet_ravi.json").read_text()).items()
    for name in names
    if split != "comment"
}


@dataclass(kw_only=True)
class MiniImageNet(Source):
    """miniImageNet from images and lists (loose or zipped), class folders or pickled caches; per split, the first of these that is there.

    The split of a class is decided by its identifier (n01532829), not by where it lies; a file that says otherwise is refused.
    resample: filter to `image_size`, aspect not kept; an image that has this size is not resampled. Papers differ: bilinear (Ravi),
    lanczos (MAML, CAVIA), nearest (Reptile with the Pillow of its day). mean, std: none of MAML, ProtoNet, Reptile and Ravi normalises.
    """

    root: str | Path | None = None
    image_size: int = 84
    in_channels: Literal[1, 3] = 3
    resample: Resample = "bilinear"

    standard: ClassVar[tuple[Sequence[str], int]] = (tuple(RAVI), 600)

    def build(self) -> ImageTable:
        root = existing_root(self.root, HOW)
        found = {split: place for split in SPLITS if (place := _find(root, split))}
        if not found:
            raise UserError(f"{root}: no miniImageNet in it; {HOW}")
        files = stamps([path for paths, _ in found.values() for path in paths])
        key = {"files": files, "image_size": self.image_size, "in_channels": self.in_channels, "resample": self.resample}
        read = partial(decode, image_size=self.image_size, in_channels=self.in_channels, resample=self.resample)
        return cached_table("miniimagenet", key, partial(_classes, found), read, (self.image_size, self.image_size, self.in_channels))

    def assign(self, names: Sequence[str]) -> Mapping[str, str]:
        return {name: RAVI.get(name) or name.split("/")[1] for name in names}


def _find(root: Path, split: str) -> Place | None:
    phase = "train_phase_train" if split == "train" else split
    options: list[Place] = [
        ([root / f"{split}.zip"], _from_tree),
        ([root / f"{split}.csv", root / "images"], _from_list),
        ([root / split], _from_tree),
        *(([root / name], partial(_from_pickle, split)) for name in (f"mini-imagenet-cache-{split}.pkl", f"{split}.pkl")),
        ([root / f"miniImageNet_category_split_{phase}.pickle"], partial(_from_pickle, split)),
    ]
    return next((option for option in options if all(path.exists() for path in option[0])), None)


def _classes(found: Mapping[str, Place]) -> Classes:
    """Class -> its images, sorted by name. Raises UserError for a class in two splits or in another than Ravi's."""
    classes: dict[str, Sequence[Item]] = {}
    owner: dict[str, Path] = {}
    for split, (paths, read) in found.items():
        for label, items in read(*paths).items():
            name = f"miniimagenet/{label}"
            if name in classes:
                raise UserError(f"{paths[0]}: class {label} is in two splits; it is in {owner[name]} too")
            if RAVI.get(name, name.split("/")[1]) != split:
                raise UserError(f"{paths[0]}: class {label} is not one of the {split} classes of Ravi and Larochelle's split")
            classes[name], owner[name] = items, paths[0]
    if not any(classes.values()):
        raise UserError(f"{next(iter(found.values()))[0][0]}: no images in it; {HOW}")
    return {name: classes[name] for name in sorted(classes)}


def _from_tree(place: Path) -> Classes:
    """A zip or folder: by the list in it, if it holds one, else by the folder of each image."""
    files = members(place)
    lists = [member for path, member in files.items() if path.suffix == ".csv"]
    if lists:
        return _by_list(lists[0], {path: member for path, member in files.items() if path.suffix != ".csv"})
    return _grouped(((path.parent.name, path.name, member) for path, member in files.items()))


def _from_list(list_file: Path, images: Path) -> Classes:
    return _by_list(Member(list_file), members(images))


def _by_list(list_file: Member, files: Mapping[PurePosixPath, Member]) -> Classes:
    by_name = {path.name: member for path, member in files.items()}
    rows = list(csv.DictReader(io.StringIO(list_file.read().decode("utf-8-sig", "replace"))))
    if not rows or not {"filename", "label"} <= rows[0].keys():
        raise UserError(f"{list_file}: not a list of images; it must have the columns filename and label")
    missing = [row["filename"] for row in rows if row["filename"] not in by_name]
    if missing:
        raise UserError(f"{list_file}: {len(missing)} of its {len(rows)} images are not there, {missing[0]} first")
    return _grouped((row["label"], row["filename"], by_name[row["filename"]]) for row in rows)


def _grouped(images: Iterable[tuple[str, str, Member]]) -> Classes:
    classes: dict[str, dict[str, Member]] = {}
    for label, name, member in images:
        classes.setdefault(label, {})[name] = member
    return {label: [files[name] for name in sorted(files)] for label, files in classes.items()}


def _from_pickle(split: str, path: Path) -> Classes:
    """`image_data` with `class_dict` (class -> indices), or `data` with `labels`, named by `catname2label` or else by split and number."""
    content = read_pickle(path)
    images = content.get("image_data", content.get("data"))
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 4
        or images.shape[3] not in (1, 3)
        or not images.size
    ):
        raise UserError(f"{path}: not a known cache of miniImageNet; {CACHE}")
    try:
        groups = content["class_dict"] if "class_dict" in content else _by_label(split, content, len(images))
        indices = {label: [operator.index(index) for index in group] for label, group in groups.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a known cache of miniImageNet ({error}); {CACHE}") from error
    for label, group in indices.items():
        if group and not 0 <= min(group) <= max(group) < len(images):
            raise UserError(f"{path}: class {label} has the images {min(group)} to {max(group)} of only {len(images)}")
    images = images[..., 0] if images.shape[3] == 1 else images
    return {label: [images[index] for index in group] for label, group in indices.items()}


def _by_label(split: str, content: Mapping[str, Any], images: int) -> dict[str, list[int]]:
    names = {number: name for name, number in content.get("catname2label", {}).items()}
    labels = content["labels"]
    if len(labels) != images:
        raise ValueError(f"{len(labels)} labels for {images} images")
    groups: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        unnamed = label if isinstance(label, str) else f"{split}/{operator.index(label):03d}"
        groups.setdefault(names.get(label, unnamed), []).append(index)
    return groups

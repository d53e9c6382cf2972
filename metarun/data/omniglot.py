"""Omniglot: 1623 handwritten characters of 50 alphabets, drawn by 20 people each (Lake et al., Science 2015)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from metarun.data.decode import Member, Resample, decode, members, stamps
from metarun.data.source import SPLITS, Rotations, Source, deal, existing_root, sizes_of_splits, whole
from metarun.data.table import ImageTable, cached_table
from metarun.errors import UserError

ZIPS = ("images_background", "images_evaluation")
HOW = "put images_background.zip and images_evaluation.zip of github.com/brendenlake/omniglot there, or let dataset.download=true do it"
FACTS = json.loads((Path(__file__).parent / "splits" / "omniglot_vinyals.json").read_text())


def _vinyals() -> dict[str, str]:
    """Class -> split, from the ranges of character numbers in the package."""
    return {
        f"omniglot/{alphabet}/character{number:02d}": split
        for split in SPLITS
        for alphabet, (first, last) in FACTS[split].items()
        for number in range(first, last + 1)
    }


VINYALS = _vinyals()


@dataclass(kw_only=True)
class Omniglot(Source):
    """Omniglot from the official zips, from their extracted folders, or as torchvision keeps them (in `omniglot-py`).

    split: `vinyals`, 1028/172/423 characters (Vinyals et al. 2016, as ProtoNet uses it); `random`, `split_sizes` characters drawn
    with `split_seed` whatever their alphabet (as MAML); `lake`, background for training and evaluation for test, with the five
    validation alphabets of `vinyals`, all background, held out as val (so `trainval` is the whole background: 792/172/659).
    resample: the drawings are 1-bit. `nearest` keeps them so (0 or 255), and is what the official code of MAML, Reptile and ProtoNet
    gets, whatever filter it asks for, as Pillow turns any into nearest for 1-bit images; the others give anti-aliased grey.
    invert: ink is 255 on 0; otherwise as in the files, 0 on 255.
    """

    root: str | Path | None = None
    download: bool = False
    split: Literal["vinyals", "random", "lake"] = "vinyals"
    split_sizes: Sequence[int] = (1100, 100, 423)
    split_seed: int = 0
    image_size: int = 28
    resample: Resample = "nearest"
    invert: bool = True
    rotations: Mapping[str, Rotations] = field(default_factory=lambda: {"train": "classes", "test": "classes"})

    standard: ClassVar[tuple[Sequence[str], int]] = (tuple(VINYALS), 20)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("split_seed", self.split_seed, 0)
        self.split_sizes = sizes_of_splits(self.split_sizes)

    def build(self) -> ImageTable:
        places = self._places()
        key = {name: getattr(self, name) for name in ("image_size", "in_channels", "resample", "invert")}
        shape = (self.image_size, self.image_size, self.in_channels)
        return cached_table("omniglot", {**key, "files": stamps(places)}, partial(_classes, places), self._decode, shape)

    def assign(self, names: Sequence[str]) -> Mapping[str, str]:
        if self.split == "random":
            return deal(names, self.split_sizes, self.split_seed)
        unknown = sorted(set(names).difference(VINYALS))
        if unknown:
            raise UserError(f"{unknown[0]}: not a character of dataset.split={self.split}; choose dataset.split=random")
        if self.split == "lake":
            return {name: VINYALS[name] if _in_background(name) else "test" for name in names}
        return {name: VINYALS[name] for name in names}

    def _decode(self, item: Member) -> np.ndarray:
        image = decode(item, self.image_size, self.in_channels, self.resample)
        return 255 - image if self.invert else image

    def _places(self) -> list[Path]:
        """The two zips or folders; fetched first where there is none and `download` says so."""
        if self.download and self.root is not None and not all(_find(Path(self.root).expanduser())):
            _download(Path(self.root).expanduser())
        root = existing_root(self.root, HOW)
        found = []
        for name, place in zip(ZIPS, _find(root), strict=True):
            if place is None:
                raise UserError(f"{root}: neither {name}.zip nor a folder {name} in it; {HOW}")
            found.append(place)
        return found


def _find(root: Path) -> list[Path | None]:
    """Each of the two as a zip or, failing that, a folder: an extraction that was interrupted leaves a folder that is not whole."""
    options = [[base / file for base in (root, root / "omniglot-py") for file in (f"{name}.zip", name)] for name in ZIPS]
    return [next((path for path in paths if path.exists()), None) for paths in options]


def _download(root: Path) -> None:
    import torchvision  # takes a second, and only a download needs it

    try:
        for background in (True, False):
            torchvision.datasets.Omniglot(root, background=background, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"dataset.download: Omniglot could not be fetched into {root} ({reason}); {HOW}") from error


def _classes(places: Sequence[Path]) -> dict[str, list[Member]]:
    """Class -> its drawings in the order of the drawers, classes sorted by name. Raises UserError for a file out of place."""
    classes: dict[str, dict[str, Member]] = {}
    for place in places:
        own: dict[str, dict[str, Member]] = {}
        for path, member in members(place).items():
            if len(path.parts) < 3:
                raise UserError(f"{member}: not where Omniglot has images (ALPHABET/characterNN/NNNN_NN.png)")
            own.setdefault(f"omniglot/{path.parts[-3]}/{path.parts[-2]}", {})[path.name] = member
        for name in own.keys() & classes.keys():
            raise UserError(f"{place}: {name} is in {places[0]} too; the two share no character")
        classes |= own
    if not classes:
        raise UserError(f"{places[0]}: no images in it; {HOW}")
    return {name: [classes[name][file] for file in sorted(classes[name])] for name in sorted(classes)}


def _in_background(name: str) -> bool:
    return name.split("/")[1] in FACTS["background"]

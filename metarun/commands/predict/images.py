"""The user's own images, as a trained network wants them."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from metarun.data.decode import Member, Resample, decode, members
from metarun.data.episodes import Pixels
from metarun.data.table import ImageTable
from metarun.errors import UserError
from metarun.nn.device import Device

Files = Mapping[PurePosixPath, Member]


@dataclass(frozen=True)
class View:
    """How files become images: the size, channels, filter and inversion of the tables that were trained on, and their mean and std."""

    size: int
    channels: int
    resample: Resample
    invert: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def read(self, file: Member) -> np.ndarray | UserError:
        """The image (H, W, C) uint8, upright; the reason where the file is none."""
        try:
            image = decode(file, self.size, self.channels, self.resample, upright=True)
        except UserError as error:
            return error
        return 255 - image if self.invert else image

    def tensor(self, images: Sequence[np.ndarray], device: Device) -> Tensor:
        """Images (n, C, H, W) on the device, normalised as in training."""
        every = np.arange(len(images))
        table = ImageTable(np.stack(images), ("",), every[:1], every[-1:] + 1, "", self.mean, self.std)
        return Pixels(table, device, "disk").gather(every, np.zeros_like(every))

    def __str__(self) -> str:
        kind = {1: "grey", 3: "colour"}.get(self.channels, f"{self.channels} channels")
        return f"{self.size}x{self.size}, {kind}, {self.resample}{', inverted' * self.invert}"


def files_in(key: str, place: str) -> Files:
    """The files in a folder, by their path inside it, in its order; hidden ones are left out. Raises UserError if there are none."""
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(f"{key}: {folder} is no folder; expected a folder of images")
    found = members(folder)
    if not found:
        raise UserError(f"{key}: {folder} is empty; expected images in it")
    return found


def label(path: PurePosixPath) -> str:
    """The class folder of an image, empty for one that is in none."""
    return "" if path.parent == PurePosixPath(".") else str(path.parent)


def batches(files: Files, size: int, view: View, device: Device) -> Iterator[tuple[list[PurePosixPath], Tensor]]:
    """All images, at most `size` at a time, with their paths; what cannot be read is named on stderr and left out."""
    todo, size = list(files.items()), max(1, size)
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(todo), size):
            chunk = todo[start : start + size]
            read = pool.map(view.read, [file for _, file in chunk])
            good = {}
            for (path, _), image in zip(chunk, read, strict=True):
                if isinstance(image, UserError):
                    print(f"skipped: {image}", file=sys.stderr)
                else:
                    good[path] = image
            if good:
                yield list(good), view.tensor(list(good.values()), device)

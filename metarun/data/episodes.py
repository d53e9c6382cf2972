"""Episodes by number: episode `i` of a split is a pure function of (seed, split, i), whoever asks, wherever and in what order.

Its random words come from the counter-based generator Philox, keyed by (seed, split) and counted by `i`; only raw words are used, whose
stream NumPy keeps the same in every version. Smallest word first orders classes, and images within a class: all draws are uniform.
"""

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metarun.data.augmentation import Transform, augmented, view_words
from metarun.data.table import ImageTable
from metarun.errors import UserError
from metarun.nn.device import Device
from metarun.tasks import Episode, Examples


@dataclass(frozen=True)
class Draws:
    """T drawn tasks: classes (T, N) in the table; images (T, N, K+Q) in the table, support first; turns (T, N) by 90 degrees; and words,
    like the images, that say how each is augmented, None if none is.
    """

    classes: np.ndarray
    images: np.ndarray
    turns: np.ndarray
    words: np.ndarray | None = None


class Episodes:
    """The numbered episodes of a table: `ways` classes, `shots` support and `queries` query images of each.

    augment: every image is changed at random. Raises UserError if the table has too few classes, or a class too few images; `split` and
    `key` name what is too much in messages.
    """

    def __init__(
        self, table: ImageTable, ways: int, shots: int, queries: int, seed: int, split: str, key: str = "task", augment: bool = False
    ) -> None:
        self.table, self.ways, self.shots, self.queries, self.augment = table, ways, shots, queries, augment
        self.turned = 4 if table.rotations == "classes" else 1
        classes = len(table.names) * self.turned
        if ways > classes:
            raise UserError(f"{key}.ways: {ways} is not allowed; the {split} split has {classes} classes")
        if table.rotations != "none" and table.images.shape[1] != table.images.shape[2]:
            raise UserError(
                f"dataset.rotations: {table.rotations} is not allowed for images of {table.images.shape[1:3]}; only for square ones"
            )
        small = int(table.counts.argmin())
        if shots + queries > table.counts[small]:
            raise UserError(
                f"{key}.shots + {key}.queries: {shots} + {queries} is not allowed; "
                f"class {table.names[small]} ({split} split) has {table.counts[small]} images"
            )
        self.key = [seed % 2**64, int.from_bytes(hashlib.sha256(split.encode()).digest()[:8], "little")]

    def draw(self, first: int, count: int) -> Draws:
        """Episodes `first` to `first + count - 1`."""
        draws = [self._one(index) for index in range(first, first + count)]
        classes, images, turns = (np.stack(parts) for parts in zip(*draws, strict=True))
        return Draws(classes, images, turns, self._words(first, images.shape) if self.augment else None)

    def _words(self, first: int, shape: tuple[int, ...]) -> np.ndarray:
        counters = ([0, 0, 1, index] for index in range(first, first + shape[0]))  # apart from those of the draws
        words = [np.random.Philox(key=self.key, counter=counter).random_raw(shape[1] * shape[2]) for counter in counters]
        return np.stack(words).reshape(shape)

    def _one(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        classes, most = len(self.table.names), int(self.table.counts.max())
        words = np.random.Philox(key=self.key, counter=[0, 0, 0, index]).random_raw(classes * self.turned + self.ways + self.ways * most)
        order, turns, images = np.split(words, [classes * self.turned, classes * self.turned + self.ways])
        chosen, turn = np.divmod(_smallest(order, self.ways), self.turned)
        if self.table.rotations == "per_class":
            turn = (turns >> 62).astype(np.int64)
        elif self.table.rotations == "per_episode":
            turn = np.full(self.ways, turns[0] >> 62, dtype=np.int64)
        images = images.reshape(self.ways, most)
        images = np.where(np.arange(most) < self.table.counts[chosen, None], images, np.iinfo(np.uint64).max)
        return chosen, self.table.starts[chosen, None] + _smallest(images, self.shots + self.queries), turn

    def sha256(self, count: int) -> str:
        """Of the first `count` episodes: class names and which images of each, whatever the images are turned into."""
        digest = hashlib.sha256(json.dumps([self.table.names, self.shots, self.queries]).encode())
        for first in range(0, count, 1000):
            draws = self.draw(first, min(1000, count - first))
            places = draws.images - self.table.starts[draws.classes][..., None]
            for part in (draws.classes, places, draws.turns):
                digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        return digest.hexdigest()


def _smallest(words: np.ndarray, count: int) -> np.ndarray:
    """Where the `count` smallest words of the last axis stand, in ascending order of the words."""
    places = np.argpartition(words, count - 1, axis=-1)[..., :count]
    return np.take_along_axis(places, np.take_along_axis(words, places, -1).argsort(-1), -1)


class Pixels:
    """The images of a table and of all that were selected from it, ready to be gathered into episodes on a device.

    residency: `device` keeps the bytes there, `ram` in memory, `disk` mapped; `auto` takes the device if they fit into half of its free
    memory, else leaves them mapped. Images come out as float32 or the device's half precision, normalised by the table's mean and std.
    augment: the transforms of images that are to be augmented.
    """

    def __init__(
        self,
        table: ImageTable,
        device: Device,
        residency: Literal["auto", "device", "ram", "disk"] = "auto",
        augment: Sequence[Transform] = (),
    ) -> None:
        self.table, self.residency, self.augment, self.view = table, residency, augment, 0
        _, height, width, channels = table.images.shape
        self.device, self.shape = device, (height, width, channels)
        std = torch.tensor(table.std, dtype=torch.float32).expand(channels)
        mean = torch.tensor(table.mean, dtype=torch.float32).expand(channels)
        self.factor, self.offset = (1 / (255 * std)).to(device.torch), (-mean / std).to(device.torch)
        places = torch.arange(height * width).view(height, width)
        self.turns = torch.stack([places.rot90(k).flatten() for k in range(4)]).to(device.torch)

    @cached_property
    def bytes(self) -> Tensor:
        """All images of the table (images, H·W·C), where they reside from the first use on."""
        nbytes = self.table.images.nbytes
        on_device = self.residency == "device" or (self.residency == "auto" and nbytes < self.device.free_memory() / 2)
        images = torch.from_numpy(np.array(self.table.images) if self.residency == "ram" else self.table.images).flatten(1)
        return images.to(self.device.torch) if on_device else images

    def seen(self, view: int) -> "Pixels":
        """The same images, each changed at random in a way that is its own in this view; view 0 leaves them as they are."""
        assert self.bytes is not None  # brought once, for all views
        other = copy(self)
        other.view = view
        return other

    def gather(self, images: np.ndarray, turns: np.ndarray, words: np.ndarray | None = None) -> Tensor:
        """Images (n, C, H, W) on the device: those at `images` (n,), each, square then, turned by `turns` (n,) times 90 degrees, and
        augmented as `words` (n,) say.
        """
        if self.bytes.device.type == "cpu":
            chosen = self.device.put(self.bytes[torch.from_numpy(images)])
        else:
            chosen = self.bytes[self.device.put(images)]
        x = chosen.view(len(images), -1, self.shape[2])
        if turns.any():
            x = x.gather(1, self.turns[self.device.put(turns)].unsqueeze(2).expand_as(x))
        if self.view:
            words = view_words(images, self.view)
        if words is not None:
            changed = augmented(x.view(len(images), *self.shape).permute(0, 3, 1, 2), self.augment, words)
            x = changed.permute(0, 2, 3, 1).reshape(x.shape)
        x = torch.addcmul(self.offset, x.to(torch.float32), self.factor).to(self.device.dtype)
        return x.view(len(images), *self.shape).permute(0, 3, 1, 2)

    def episode(self, draws: Draws, shots: int) -> Episode:
        """The drawn tasks as tensors on the device."""
        tasks, ways, each = draws.images.shape
        turns = np.repeat(draws.turns.reshape(-1), each)
        words = None if draws.words is None else draws.words.reshape(-1)
        x = self.gather(draws.images.reshape(-1), turns, words).unflatten(0, (tasks, ways, each))
        labels = torch.arange(ways, device=self.device.torch)

        def part(images: Tensor) -> Examples:
            return Examples(images.flatten(1, 2), labels.repeat_interleave(images.shape[2]).expand(tasks, -1), ways)

        return Episode(part(x[:, :, :shots]), part(x[:, :, shots:]))

    def batch(self, draws: Draws, labels: np.ndarray, classes: int) -> Examples:
        """The drawn mini-batches (see `metarun.data.batches`) as tensors on the device."""
        words = None if draws.words is None else draws.words.reshape(-1)
        x = self.gather(draws.images.reshape(-1), draws.turns.reshape(-1), words).unflatten(0, labels.shape)
        return Examples(x, self.device.put(labels), classes)

"""Mini-batches by number, for the supervised stage: batch `i` of a split is a pure function of (seed, split, i), like an episode.

Every epoch goes through all images once, in an order of its own; batches follow one another without regard to where an epoch ends.
"""

import hashlib
import json
from functools import lru_cache

import numpy as np

from metarun.data.episodes import Draws
from metarun.data.table import ImageTable


class Batches:
    """The numbered mini-batches of `size` images of a table. A rotation is a class of its own where it is one in episodes.

    classes: how many there are; label `c * 4 + turn` then, else `c`.
    """

    def __init__(self, table: ImageTable, size: int, seed: int, split: str, augment: bool = False) -> None:
        self.table, self.size, self.augment = table, size, augment
        self.turned = 4 if table.rotations == "classes" else 1
        self.classes = len(table.names) * self.turned
        self.owned = np.concatenate([np.arange(start, start + count) for start, count in zip(table.starts, table.counts, strict=True)])
        self.labels = np.arange(len(table.names)).repeat(table.counts)
        self.key = [seed % 2**64, int.from_bytes(hashlib.sha256(f"batches/{split}".encode()).digest()[:8], "little")]
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def draw(self, first: int, count: int) -> tuple[Draws, np.ndarray]:
        """Batches `first` to `first + count - 1`, an image in the place of a class of `Draws`; and labels (T, B)."""
        total = len(self.owned) * self.turned
        places = np.arange(first * self.size, (first + count) * self.size)
        number = np.concatenate([self.epoch(int(epoch))[places[places // total == epoch] % total] for epoch in np.unique(places // total)])
        image, turn = (part.reshape(count, self.size) for part in np.divmod(number, self.turned))
        words = self._words(first, count) if self.augment else None
        return Draws(self.labels[image], self.owned[image][..., None], turn, words), self.labels[image] * self.turned + turn

    def sha256(self, count: int) -> str:
        """Of the first `count` mini-batches: which images of which classes, and their turns."""
        digest = hashlib.sha256(json.dumps([self.table.names, self.size]).encode())
        for number in range(count):
            draws, labels = self.draw(number, 1)
            places = draws.images[..., 0] - self.table.starts[draws.classes]
            for part in (labels, places, draws.turns):
                digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        return digest.hexdigest()

    def _epoch(self, epoch: int) -> np.ndarray:
        return self._random(0, epoch, len(self.owned) * self.turned).argsort(kind="stable")

    def _words(self, first: int, count: int) -> np.ndarray:
        return np.stack([self._random(1, index, self.size) for index in range(first, first + count)])[..., None]

    def _random(self, purpose: int, index: int, count: int) -> np.ndarray:
        return np.random.Philox(key=self.key, counter=[0, 0, purpose, index]).random_raw(count)

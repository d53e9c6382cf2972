"""Glyphs: made-up handwriting, generated where it is needed, so that everything can be tried without a download.

A class is one to four strokes through random points; every drawing of it moves those points and has a hand of its own: slant, turn,
width, height, place, pen. Only raw Philox words, the four operations and square roots are used, each of which is exact by definition, so
the same arguments give the same bytes on every machine and with every version of numpy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from metarun.data.source import Rotations, Source, deal, sizes_of_splits, whole
from metarun.data.table import ImageTable, cached_table
from metarun.errors import UserError

VERSION = 1  # of the drawing below: raise it whenever a pixel may change, so that old tables are not taken for new ones
SAMPLES = 48  # points drawn per stroke: at 28x28, closer together than the pen is wide


@dataclass(kw_only=True)
class Glyphs(Source):
    """`classes` characters of `drawers` drawings each, grey and anti-aliased, ink 255 on 0.

    split_sizes: classes of train, val and test. seed: of the characters and of their split. variation: how far drawings of one
    character differ, 0 (not at all) to 1 (the default) and above (hardly legible).
    """

    classes: int = 500
    drawers: int = 20
    seed: int = 0
    split_sizes: Sequence[int] = (300, 80, 120)
    variation: float = 1.0
    image_size: int = 28
    rotations: Mapping[str, Rotations] = field(default_factory=lambda: {"train": "none", "test": "none"})

    def __post_init__(self) -> None:
        whole("image_size", self.image_size, 1, 256)  # to draw one takes up to 800 bytes of memory per pixel
        super().__post_init__()
        whole("classes", self.classes, 1, 10000)
        whole("drawers", self.drawers, 1, 1000)
        whole("seed", self.seed, 0)
        if not 0 <= self.variation <= 10:
            raise UserError(f"dataset.variation: {self.variation!r} is not allowed; give a number from 0 to 10")
        self.split_sizes = sizes_of_splits(self.split_sizes)

    def build(self) -> ImageTable:
        facts = ("classes", "drawers", "seed", "variation", "image_size", "in_channels")
        key = {name: getattr(self, name) for name in facts}
        shape = (self.image_size, self.image_size, self.in_channels)
        return cached_table("glyphs", {**key, "version": VERSION, "name": self._name(0)}, self._classes, self._draw, shape)

    def assign(self, names: Sequence[str]) -> Mapping[str, str]:
        return deal(names, self.split_sizes, self.seed)

    def _classes(self) -> dict[str, list[tuple[int, int]]]:
        return {self._name(c): [(c, drawer) for drawer in range(self.drawers)] for c in range(self.classes)}

    def _name(self, c: int) -> str:
        """The characters of another seed are other classes; the default seed is left out."""
        return f"glyphs/{self.seed}-{c:04d}" if self.seed else f"glyphs/{c:04d}"

    def _draw(self, item: tuple[int, int]) -> np.ndarray:
        c, drawer = item
        strokes = _character(_Dice(self.seed, c, 0))
        x, y, pen = _by_hand(strokes, _Dice(self.seed, c, drawer + 1), self.variation)
        ink = _ink(x * self.image_size, y * self.image_size, pen * self.image_size, self.image_size)
        return np.repeat(ink[..., None], self.in_channels, axis=2)


class _Dice:
    """Random numbers of one drawing, in [low, high): the raw words of a Philox stream, which no version of numpy changes."""

    def __init__(self, seed: int, c: int, drawing: int) -> None:
        self.words = np.random.Philox(key=[seed, (c << 32) + drawing])

    def roll(self, low: float, high: float, *shape: int) -> np.ndarray:
        words = self.words.random_raw(int(np.prod(shape))) >> np.uint64(11)
        return low + (high - low) * (words * 2.0**-53).reshape(shape)

    def bell(self, width: float, *shape: int) -> np.ndarray:
        """Near enough to normal, with standard deviation `width`."""
        rolls = self.roll(-width, width, 3, *shape)
        return rolls[0] + rolls[1] + rolls[2]


def _character(dice: _Dice) -> np.ndarray:
    """Strokes as (strokes, 4, 2): points in the unit square that a pen passes through. Some start where another stroke has been."""
    count = 1 + int(dice.roll(0, 4, 1)[0])
    points = dice.roll(0, 1, count, 4, 2)
    straight, joined = dice.roll(0, 1, count), dice.roll(0, 1, count)
    for i in range(count):
        if i and joined[i] < 0.6:
            points[i, 0] = points[i - 1, int(joined[i] * 5)]
        if straight[i] < 0.4:
            points[i, 1] = points[i, 0] * 2 / 3 + points[i, 3] / 3
            points[i, 2] = points[i, 0] / 3 + points[i, 3] * 2 / 3
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    middle, span = (low + high) / 2, np.maximum((high - low).max(), 0.3)
    return 0.5 + (points - middle) * (0.75 / span)


def _by_hand(strokes: np.ndarray, dice: _Dice, variation: float) -> tuple[np.ndarray, np.ndarray, float]:
    """One drawing: x and y of all its points, flat, in the unit square, and the width of the pen."""
    v = variation
    points = strokes + dice.bell(0.04 * v, *strokes.shape)
    x, y = np.moveaxis(_through(points), -1, 0).reshape(2, -1) - 0.5
    half, slant, wide, high, right, down, pen = dice.roll(-1, 1, 7)
    tan = 0.13 * v * half  # of half the angle: sine and cosine without a library's rounding
    cos, sin = (1 - tan * tan) / (1 + tan * tan), 2 * tan / (1 + tan * tan)
    x = (x + 0.3 * v * slant * y) * (0.85 + 0.2 * v * wide)
    y = y * (0.85 + 0.2 * v * high)
    x, y = cos * x - sin * y + 0.5 + 0.09 * v * right, sin * x + cos * y + 0.5 + 0.09 * v * down
    return x, y, 0.075 + 0.02 * v * pen


def _through(points: np.ndarray) -> np.ndarray:
    """Catmull-Rom curves through (strokes, 4, 2) points, as (strokes, SAMPLES, 2)."""
    first, last = 2 * points[:, :1] - points[:, 1:2], 2 * points[:, -1:] - points[:, -2:-1]
    p = np.concatenate([first, points, last], axis=1)
    step = np.arange(SAMPLES) * 3 / SAMPLES
    i = step.astype(np.int64)
    t = (step - i)[:, None]
    a, b, c, d = p[:, i], p[:, i + 1], p[:, i + 2], p[:, i + 3]
    return b + t * ((c - a) + t * ((2 * a - 5 * b + 4 * c - d) + t * (3 * b - a - 3 * c + d))) / 2


def _ink(x: np.ndarray, y: np.ndarray, pen: float, size: int) -> np.ndarray:
    """(size, size) uint8: full ink within half a pen's width of a point, fading over one pixel; all lengths in pixels."""
    grid, x, y = np.arange(size, dtype=np.float32) + np.float32(0.5), x.astype(np.float32), y.astype(np.float32)
    across, along = (grid[:, None] - x) ** 2, (grid[:, None] - y) ** 2
    nearest = (along[:, None, :] + across[None, :, :]).min(axis=-1)
    return np.floor(np.clip(pen / 2 + 0.5 - np.sqrt(nearest), 0, 1) * 255 + 0.5).astype(np.uint8)

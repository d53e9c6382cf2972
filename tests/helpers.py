"""Small tasks and networks that tests share."""

import numpy as np
import torch

from metarun.data.table import ImageTable
from metarun.tasks import Episode, Examples


def random_episode(
    tasks: int, ways: int, shots: int, queries: int, channels: int = 1, size: int = 16, dtype: torch.dtype = torch.float64
) -> Episode:
    def part(each: int) -> Examples:
        labels = torch.arange(ways).repeat_interleave(each).expand(tasks, -1)
        return Examples(torch.randn(tasks, ways * each, channels, size, size, dtype=dtype), labels, ways)

    return Episode(part(shots), part(queries))


def random_table(counts: list[int], size: int = 4, channels: int = 1, rotations: str = "none") -> ImageTable:
    """A table whose images all differ."""
    sizes = np.array(counts)
    images = np.random.default_rng(0).integers(0, 256, (sizes.sum(), size, size, channels), dtype=np.uint8)
    names = tuple(f"class/{i:03d}" for i in range(len(counts)))
    return ImageTable(images, names, np.cumsum(sizes) - sizes, sizes, "fingerprint", rotations=rotations)

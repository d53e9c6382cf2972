"""Small tasks, tables and command lines that tests share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.objectives import CrossEntropy
from metarun.data.table import ImageTable
from metarun.kinds import TaskSpec
from metarun.nn.device import Device
from metarun.tasks import Episode, Examples
from metarun.training.learners import open_run

# The smallest thing that trains: few steps, a narrow network, few episodes.
TINY = (
    "steps=2 val_every=1 tasks_per_step=1 log_every=1 task.ways=3 task.shots=1 task.queries=2 backbone.widths=[4,4] "
    "protocol.episodes=3 protocol.val_episodes=2 protocol.queries=2 device=cpu device.threads=1 device.keep_memory=false"
)


CONF = Path(__file__).parents[1] / "conf"


def composed(*overrides: str) -> dict[str, Any]:
    """The resolved config of `metarun train OVERRIDES`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.masked_copy(cfg := compose("train", list(overrides)), [str(key) for key in cfg if key != "hydra"])
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


@dataclass(kw_only=True)
class RandomImages:
    """A source of noise of any size, in 25 classes a split."""

    image_size: int
    in_channels: int
    mean: Sequence[float]
    std: Sequence[float]
    rotations: Mapping[str, str]

    def load(self, split: str) -> ImageTable:
        table = random_table([16] * 25, self.image_size, self.in_channels, self.rotations.get(split, "none"))
        return replace(table, names=tuple(f"{split}/{name}" for name in table.names), mean=tuple(self.mean), std=tuple(self.std))


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str


Metarun = Callable[[str], Outcome]


def random_episode(
    tasks: int, ways: int, shots: int, queries: int, channels: int = 1, size: int = 16, dtype: torch.dtype = torch.float64
) -> Episode:
    def part(each: int) -> Examples:
        labels = torch.arange(ways).repeat_interleave(each).expand(tasks, -1)
        return Examples(torch.randn(tasks, ways * each, channels, size, size, dtype=dtype), labels, ways)

    return Episode(part(shots), part(queries))


def double_cpu() -> Device:
    """The CPU, on which images come out in float64: two ways to the same result are then told apart from a wrong one on any processor."""
    device = Device("cpu")
    device.dtype = torch.float64
    return device


def rounding(terms: int, condition: float) -> float:
    """The relative error that float32 leaves in what comes of sums of `terms` numbers, in whatever order a processor adds them up.

    A rounding is off by half of eps at most. Errors of either sign grow as the square root of their number, and what is computed from the
    sum magnifies them by `condition`.
    """
    return condition * torch.finfo(torch.float32).eps * terms**0.5


def plain_forward(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """A `Conv4` of two blocks with a linear head in plain torch functions, with the weights of `MAML.net`; x is (n, C, H, W)."""
    for block in ("backbone.blocks.0", "backbone.blocks.1"):
        x = F.conv2d(x, w[f"{block}.conv.weight"], w[f"{block}.conv.bias"], padding=1)
        x = F.batch_norm(x, None, None, w[f"{block}.norm.weight"], w[f"{block}.norm.bias"], training=True)
        x = F.max_pool2d(x, 2)
        if f"{block}.film.context" in w:
            modulation = w[f"{block}.film.linear.weight"] @ w[f"{block}.film.context"] + w[f"{block}.film.linear.bias"]
            scale, offset = modulation.chunk(2)
            x = x * scale[:, None, None] + offset[:, None, None]
        x = F.relu(x)
    return x.permute(0, 2, 3, 1).flatten(1) @ w["head.weight"].T + w["head.bias"]


def random_table(counts: list[int], size: int = 4, channels: int = 1, rotations: str = "none") -> ImageTable:
    """A table whose images all differ."""
    sizes = np.array(counts)
    images = np.random.default_rng(0).integers(0, 256, (sizes.sum(), size, size, channels), dtype=np.uint8)
    names = tuple(f"class/{i:03d}" for i in range(len(counts)))
    return ImageTable(images, names, np.cumsum(sizes) - sizes, sizes, "fingerprint", rotations=rotations)


def spec(ways: int = 5, classes: int = 5) -> TaskSpec:
    """What a learner is told of tasks of so many `ways` and of so many training `classes`, on images of any shape."""
    return TaskSpec(CrossEntropy(ways), {"classes": classes, "names": [f"class/{i:03d}" for i in range(classes)], "shape": None}, open_run)

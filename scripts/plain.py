"""What the benchmark measures against: few-shot learning as it is commonly written.

Images are opened and decoded for every episode, tasks are looped over, everything is float32 in torch's default layout.
"""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


def conv4(strides: bool) -> nn.Sequential:
    """The network of Prototypical Networks, or MAML's for Omniglot."""
    blocks: list[nn.Module] = []
    for channels in (1, 64, 64, 64):
        blocks += [nn.Conv2d(channels, 64, 3, padding=1, stride=2 if strides else 1), nn.BatchNorm2d(64), nn.ReLU()]
        blocks += [] if strides else [nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, *([nn.AdaptiveAvgPool2d(1)] if strides else []), nn.Flatten())


class Loader:
    """Episodes from a folder of class folders: `(support, labels, query, labels)` of one task."""

    def __init__(self, root: Path, ways: int, shots: int, queries: int) -> None:
        self.classes = [sorted(folder.iterdir()) for folder in sorted(root.iterdir())]
        self.ways, self.shots, self.queries = ways, shots, queries

    def __call__(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        support, query = [], []
        for files in random.sample(self.classes, self.ways):
            images = [torch.from_numpy(np.array(Image.open(path).convert("L"))).float()[None] / 255 for path in self._chosen(files)]
            support += images[: self.shots]
            query += images[self.shots :]
        labels = torch.arange(self.ways)
        return torch.stack(support), labels.repeat_interleave(self.shots), torch.stack(query), labels.repeat_interleave(self.queries)

    def _chosen(self, files: list[Path]) -> list[Path]:
        return random.sample(files, self.shots + self.queries)


class ProtoNet:
    """One training step of Prototypical Networks on one episode."""

    def __init__(self, load: Loader) -> None:
        self.load, self.net = load, conv4(strides=False)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)

    def __call__(self) -> None:
        support, support_y, query, query_y = self.load()
        z = self.net(torch.cat([support, query]))
        known, asked = z[: len(support)], z[len(support) :]
        prototypes = torch.stack([known[support_y == k].mean(0) for k in range(self.load.ways)])
        loss = F.cross_entropy(-(torch.cdist(asked, prototypes) ** 2), query_y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class MAML:
    """One step of MAML, a loop over tasks; or with `test=True` the answers to the queries after adapting, without a meta-gradient.

    The images of `tasks` tasks are in memory from the start, so that what is timed is the method alone.
    """

    def __init__(self, load: Loader, tasks: int, strides: bool, steps: int, first_order: bool, test: bool) -> None:
        self.tasks, self.steps, self.second_order, self.test = [load() for _ in range(tasks)], steps, not (first_order or test), test
        net = conv4(strides)
        self.net = nn.Sequential(net, nn.Linear(net(self.tasks[0][0]).shape[1], load.ways))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        for support, support_y, query, query_y in self.tasks:
            weights = dict(self.net.named_parameters())
            for _ in range(self.steps):
                inner = F.cross_entropy(functional_call(self.net, weights, (support,)), support_y)
                gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=self.second_order)
                weights = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
            if self.test:
                with torch.no_grad():
                    functional_call(self.net, weights, (query,)).argmax(1)
            else:
                (F.cross_entropy(functional_call(self.net, weights, (query,)), query_y) / len(self.tasks)).backward()
        if not self.test:
            self.optimizer.step()

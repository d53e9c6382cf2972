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


def conv4(strides: bool = False, channels: int = 1) -> nn.Sequential:
    """The network of Prototypical Networks, or MAML's for Omniglot."""
    blocks: list[nn.Module] = []
    for inputs in (channels, 64, 64, 64):
        blocks += [nn.Conv2d(inputs, 64, 3, padding=1, stride=2 if strides else 1), nn.BatchNorm2d(64), nn.ReLU()]
        blocks += [] if strides else [nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, *([nn.AdaptiveAvgPool2d(1)] if strides else []), nn.Flatten())


class Residual(nn.Module):
    """A block of ResNet-12."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for i in (inputs, outputs, outputs):
            parts += [nn.Conv2d(i, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1)]
        self.body = nn.Sequential(*parts[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.end = nn.Sequential(nn.LeakyReLU(0.1), nn.MaxPool2d(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.end(self.body(x) + self.shortcut(x))
        return out


def resnet12() -> nn.Sequential:
    """Without dropping, its features averaged over the image: 640 numbers."""
    widths = (3, 64, 160, 320, 640)
    blocks = [Residual(i, o) for i, o in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Loader:
    """Episodes from a folder of class folders: `(support, labels, query, labels)` of one task."""

    def __init__(self, root: Path, ways: int, shots: int, queries: int, mode: str = "L") -> None:
        self.classes = [sorted(folder.iterdir()) for folder in sorted(root.iterdir())]
        self.ways, self.shots, self.queries, self.mode = ways, shots, queries, mode

    def __call__(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        support, query = [], []
        for files in random.sample(self.classes, self.ways):
            images = [self.image(path) for path in random.sample(files, self.shots + self.queries)]
            support += images[: self.shots]
            query += images[self.shots :]
        labels = torch.arange(self.ways)
        return torch.stack(support), labels.repeat_interleave(self.shots), torch.stack(query), labels.repeat_interleave(self.queries)

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Images of all classes with their labels."""
        labels = [random.randrange(len(self.classes)) for _ in range(size)]
        return torch.stack([self.image(random.choice(self.classes[label])) for label in labels]), torch.tensor(labels)

    def image(self, path: Path) -> Tensor:
        pixels = torch.from_numpy(np.array(Image.open(path).convert(self.mode))).float() / 255
        return pixels[None] if self.mode == "L" else pixels.permute(2, 0, 1)


class ProtoNet:
    """One training step of Prototypical Networks on one episode; or with `tests` the accuracy on that many, by running statistics."""

    def __init__(self, load: Loader, net: nn.Module, tests: int = 0) -> None:
        self.load, self.net, self.tests = load, net, tests
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)

    def __call__(self) -> None:
        if self.tests:
            self.test()
            return
        scores, labels = self.scores()
        loss = F.cross_entropy(scores, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def scores(self) -> tuple[Tensor, Tensor]:
        support, support_y, query, query_y = self.load()
        z = self.net(torch.cat([support, query]))
        known, asked = z[: len(support)], z[len(support) :]
        prototypes = torch.stack([known[support_y == k].mean(0) for k in range(self.load.ways)])
        return -(torch.cdist(asked, prototypes) ** 2), query_y

    @torch.no_grad()
    def test(self) -> float:
        self.net.eval()
        right = 0.0
        for _ in range(self.tests):
            scores, labels = self.scores()
            right += (scores.argmax(1) == labels).float().mean().item()
        return right / self.tests


class Supervised:
    """One step of a classifier of all classes on a mini-batch."""

    def __init__(self, load: Loader, net: nn.Module, features: int, batch: int) -> None:
        self.load, self.batch, self.net = load, batch, nn.Sequential(net, nn.Linear(features, len(load.classes)))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)

    def __call__(self) -> None:
        images, labels = self.load.batch(self.batch)
        loss = F.cross_entropy(self.net(images), labels)
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

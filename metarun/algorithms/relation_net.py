"""Relation Networks. Sung, Yang, Zhang, Xiang, Torr, Hospedales, 2018. arXiv:1711.06025

    r_k(x) = g( concat( sum of f(x_i) over the support of class k, f(x) ) ),   loss = mean over k, x of ( r_k(x) - [y = k] )^2

f gives maps, g is two convolutions and two linear layers. As in the authors' code the support and the queries of a task are two batches
for f, in training too, all pairs of a query with a class are one batch for g, and what is tested is normalised by its own statistics.

Differs from the paper's code: the gradient's norm is limited for f and g together, not for each; the best checkpoint is chosen on
validation classes, not on those of the test; running averages have torch's momentum, not 1 (which matters for `running` only).
"""

from math import isqrt, sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.algorithms.base import MetricLearner, require
from metarun.algorithms.objectives import full
from metarun.backbones.base import Backbone
from metarun.errors import UserError
from metarun.kinds import TaskSpec
from metarun.nn.batch_norm import query_outputs
from metarun.nn.functional import max_pool2d
from metarun.nn.layers import BatchNorm2d, Conv2d, Linear, unfold
from metarun.tasks import Episode, Examples, Metrics, Predictor


class RelationNet(MetricLearner):
    """Scores are relations in (0, 1), of which the largest is the answer; their cross-entropy says little.

    hidden: units of the first linear layer; padding: of the relation module's convolutions (the paper: 1 on Omniglot, 0 on
    miniImageNet). Raises UserError where the backbone's maps are not square or too small for two convolutions and poolings.
    """

    statistics: ClassVar[str] = "query"

    def __init__(self, backbone: Backbone, spec: TaskSpec, hidden: int = 8, padding: int = 1) -> None:
        super().__init__(backbone, spec)
        require(hidden >= 1, "hidden", hidden, "a number above 0")
        require(padding in (0, 1), "padding", padding, "0 or 1")
        places = backbone.out_features // backbone.out_channels
        size = isqrt(places)
        if size * size != places:
            raise UserError(f"backbone: gives maps of {places} places; RelationNet needs square ones")
        self.relation = RelationModule(backbone.out_channels, size, hidden, padding)

    def classify(self, support: Examples) -> Predictor:
        return lambda query: self._relate(support, query, "running")

    def adapt(self, support: Examples, statistics: str = "track") -> Predictor:
        own = "running" if statistics == "running" else "query"
        known = Examples(self.embed(support.x, own), support.y, support.ways)
        if statistics == "running":
            return lambda query: self._relate(known, self.embed(query), statistics)
        return lambda query: self._relate(known, self._each(support.x, query, statistics), statistics)

    def meta_loss(self, episode: Episode) -> tuple[Tensor, Metrics]:
        """Per task (T,): the mean square of the differences between relations and labels (1: the right class, else 0), and `accuracy`."""
        relations, labels = self.adapt(episode.support)(episode.query.x), episode.query.y
        squares = F.mse_loss(relations, F.one_hot(labels, episode.query.ways).to(relations.dtype), reduction="none")
        return squares.flatten(1).mean(1), self.objective.metrics(relations.detach(), episode.query)

    def _relate(self, support: Examples, query: Tensor, statistics: str) -> Tensor:
        """Relations (T, n, N) of embeddings, the relation module of each task normalised by `statistics` of its own."""
        classes = F.one_hot(support.y, support.ways).to(support.x.dtype).mT @ support.x
        found = []
        for known, sums, asked in zip(support.x.split(1), classes.split(1), query.split(1), strict=True):
            pairs = self.relation.pairs(sums, asked)
            seen = self.relation.pairs(sums, known) if statistics.startswith("support") else pairs
            found.append(query_outputs(self.relation, {}, seen, pairs, statistics))
        return torch.cat(found)


class RelationModule(nn.Module):
    """g, in two parts: `pairs` is its first convolution, `forward` what is after it; initialised as in the paper's code."""

    def __init__(self, channels: int, size: int, hidden: int, padding: int) -> None:
        super().__init__()
        self.size = size
        least = 4 if padding else 10
        if size < least:
            raise UserError(
                f"backbone: its maps of {size}x{size} are too small for RelationNet with algorithm.padding={padding}; expected "
                f"{least}x{least} or more: backbone=conv4_relation_net, or larger images"
            )
        for _ in range(2):
            size = (size + 2 * padding - 2) // 2
        self.first, self.first_norm = Conv2d(2 * channels, channels, 3, padding=padding), BatchNorm2d(channels)
        self.second, self.second_norm = Conv2d(channels, channels, 3, padding=padding), BatchNorm2d(channels)
        self.hidden, self.out = Linear(size * size * channels, hidden), Linear(hidden, 1)
        for convolution in (self.first, self.second):
            nn.init.normal_(convolution.weight, std=sqrt(2 / (9 * channels)))
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        for linear in (self.hidden, self.out):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.ones_(linear.bias)

    def pairs(self, classes: Tensor, images: Tensor) -> Tensor:
        """The first convolution of every image (1, n, D) with every class (1, N, D): (1, n, N, C, h, w).

        It is linear: that of a class and an image side by side is the sum of two, each taken once and not once per pair.
        """
        of_class, of_image = self.first.weight.chunk(2, 1)
        a = F.conv2d(self._maps(classes), of_class, self.first.bias, padding=self.first.padding)
        b = F.conv2d(self._maps(images), of_image, padding=self.first.padding)
        return (a.unsqueeze(0) + b.unsqueeze(1)).unsqueeze(0)

    def forward(self, pairs: Tensor) -> Tensor:
        """Relations (1, n, N) from `pairs`, all of which are one batch."""
        x = pairs[0].flatten(0, 1)
        x = F.relu(max_pool2d(self.first_norm(x), 2, False))  # in this order a quarter of the work, as both are monotone
        x = F.relu(max_pool2d(self.second_norm(self.second(x)), 2, False))
        x = F.relu(self.hidden(unfold(x, 1)))
        return full(torch.sigmoid(self.out(x))).view(pairs.shape[:3])

    def _maps(self, z: Tensor) -> Tensor:
        return z[0].unflatten(1, (self.size, self.size, -1)).permute(0, 3, 1, 2)

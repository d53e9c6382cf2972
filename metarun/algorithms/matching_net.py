"""Matching Networks. Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, 2016. arXiv:1606.04080

    p(y | x) = sum_i a(x, x_i) [y_i = y],   a(x, x_i) = softmax_i( c(f(x), g(x_i)) ) over the support,   c the cosine

With raw cosines (the paper; `temperature=1`) p is at most e^2 / (e^2 + N - 1), whatever the network: with 5 classes 0.649, a loss of at
least 0.433, with 20 classes 0.280 and 1.273. Features that end in a ReLU have no negative cosine, and then it is e / (e + N - 1): 0.405 and
0.905, 0.125 and 2.078. Solved tasks then pull as hard as others, and training is slow. With ten times the cosine the loss can fall to
0.0002 (5 classes, ReLU); the squared distance has no bound.

Full context embeddings (appendix A) are LSTMs through which an embedding depends on the whole support set. Two as wide as the embedding D
have 16 D^2 parameters for the support, and one has 12 D^2 for the queries; 84x84 images and four blocks of 64 filters make D = 1600, and
41 + 31 = 72 million. That is what the paper does.

Differs from the paper, which has no code: cosines count ten times unless `temperature=1`; f' and g' are one network; h_0 = f'(x) in the
attention LSTM, which A.1 leaves open; no fine-tuning on the support.
"""

from math import log
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.algorithms.base import MetricLearner, require, squared_distances
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.tasks import Examples, Predictor


class MatchingNet(MetricLearner):
    """Scores are log p(y | x) by attention `softmax`; by `sum` they are sums of similarities over a class (Ravi and Larochelle 2017).

    distance: `cosine`, or minus the squared `euclidean` one; temperature: a factor on the similarities, None for 10 on cosines and 1 on
    distances, learned from this value on if `learned_temperature`; fce: steps of the attention LSTM of full context embeddings, or None
    for embeddings without context. Raises UserError for values that make no sense.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        distance: Literal["cosine", "euclidean"] = "cosine",
        temperature: float | None = None,
        learned_temperature: bool = False,
        attention: Literal["softmax", "sum"] = "softmax",
        fce: int | None = None,
    ) -> None:
        super().__init__(backbone, spec)
        require(distance in ("cosine", "euclidean"), "distance", distance, "cosine or euclidean")
        require(temperature is None or temperature > 0, "temperature", temperature, "a number above 0, or null")
        require(attention in ("softmax", "sum"), "attention", attention, "softmax or sum")
        require(fce is None or fce >= 1, "fce", fce, "a number of steps above 0, or null")
        self.distance, self.attention = distance, attention
        start = torch.tensor(log(temperature or (10.0 if distance == "cosine" else 1.0)))
        self.log_temperature = nn.Parameter(start, requires_grad=learned_temperature)  # of the logarithm: no step makes it negative
        self.support_context = None if fce is None else SupportContext(backbone.out_features)
        self.query_context = None if fce is None else QueryContext(backbone.out_features, fce)

    def classify(self, support: Examples) -> Predictor:
        known = support.x if self.support_context is None else self.support_context(support.x)

        def predict(query: Tensor) -> Tensor:
            asked = query if self.query_context is None else self.query_context(query, known)
            similarities = self.log_temperature.exp() * similarity(asked, known, self.distance)
            if self.attention == "sum":
                return similarities @ F.one_hot(support.y, support.ways).to(query.dtype)
            return log_attention(similarities, support.y, support.ways)

        return predict


def similarity(query: Tensor, support: Tensor, distance: str) -> Tensor:
    """Cosines, or minus squared distances, of (T, n, D) and (T, m, D): (T, n, m)."""
    if distance == "cosine":
        return F.normalize(query, dim=-1) @ F.normalize(support, dim=-1).mT
    return -squared_distances(query, support)


def log_attention(similarities: Tensor, y: Tensor, ways: int) -> Tensor:
    """The logarithm of a class's share in the softmax of similarities (T, n, m) to a support of classes y (T, m): (T, n, N)."""
    others = F.one_hot(y, ways).mT.unsqueeze(1) == 0
    attention = similarities.log_softmax(-1).unsqueeze(2)
    return attention.masked_fill(others, -torch.inf).logsumexp(-1)


class SupportContext(nn.Module):
    """g(x_i, S) = forward h_i + backward h_i + g'(x_i), a bidirectional LSTM over the support in its order (A.2)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, features, batch_first=True, bidirectional=True)

    def forward(self, support: Tensor) -> Tensor:
        """(T, n, D) -> (T, n, D)."""
        forward, backward = self.lstm(support)[0].chunk(2, -1)
        return forward + backward + support


class QueryContext(nn.Module):
    """An LSTM that in each of `steps` steps reads the support by attention (A.1), from h_0 = f'(x):

    r = sum_i softmax_i( h_{k-1} g(x_i) ) g(x_i),   u, c_k = LSTM( f'(x), [h_{k-1}, r], c_{k-1} ),   h_k = u + f'(x).
    """

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.cell = nn.LSTMCell(2 * features, features)  # r among the inputs: a cell's gates add up what all its inputs give

    def forward(self, query: Tensor, support: Tensor) -> Tensor:
        """Queries (T, n, D) that read supports (T, m, D): (T, n, D)."""
        h, c = query, torch.zeros_like(query).flatten(0, 1)
        for _ in range(self.steps):
            read = (h @ support.mT).softmax(-1) @ support
            u, c = self.cell(torch.cat([query, read], -1).flatten(0, 1), (h.flatten(0, 1), c))
            h = u.view_as(query) + query
        return h

"""Siamese networks for one-shot recognition. Koch, Zemel, Salakhutdinov, 2015. ICML Deep Learning Workshop.

    s(a, b) = w |f(a) - f(b)| + c,   loss = mean over pairs of the cross-entropy of sigmoid(s(a, b)) with [a and b are of one class]

As few-shot tables use it: an episode's pairs are all queries with all of the support, and a query goes to the class of its best pair.

Differs from the paper: pairs come from episodes, so that one in N is of one class, not one in two; the backbone is whatever is chosen, not
the paper's on 105x105 pixels; no rate of its own for every layer, no affine distortions.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.base import MetricLearner, require
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.nn.layers import Linear
from metarun.tasks import Episode, Examples, Metrics, Predictor


class Siamese(MetricLearner):
    """A class scores the `max` or the `mean` of s over its support (`shots`). Raises UserError for anything else."""

    def __init__(self, backbone: Backbone, spec: TaskSpec, shots: Literal["max", "mean"] = "max") -> None:
        super().__init__(backbone, spec)
        require(shots in ("max", "mean"), "shots", shots, "max or mean")
        self.shots = shots
        self.weigh = Linear(backbone.out_features, 1)

    def classify(self, support: Examples) -> Predictor:
        return lambda query: self._scores(self.similarity(query, support.x), support)

    def meta_loss(self, episode: Episode) -> tuple[Tensor, Metrics]:
        """Per task (T,): the mean binary cross-entropy of all pairs of a query and a support image, and `accuracy`."""
        known, asked = self.embed_together(episode)
        pairs = self.similarity(asked, known.x)
        same = episode.query.y.unsqueeze(2) == known.y.unsqueeze(1)
        each = F.binary_cross_entropy_with_logits(pairs, same.to(pairs.dtype), reduction="none")
        return each.flatten(1).mean(1), self.objective.metrics(self._scores(pairs.detach(), known), episode.query)

    def _scores(self, pairs: Tensor, support: Examples) -> Tensor:
        members = F.one_hot(support.y, support.ways).mT.unsqueeze(1)
        if self.shots == "mean":
            return (pairs.unsqueeze(2) * members).sum(-1) / members.sum(-1)
        return pairs.unsqueeze(2).masked_fill(members == 0, -torch.inf).amax(-1)

    def similarity(self, query: Tensor, support: Tensor) -> Tensor:
        """s of (T, n, D) and (T, m, D): (T, n, m).

        As two L1 distances, for w |a - b| = |w a - w b| where w > 0, and minus that elsewhere: nothing of size (T, n, m, D) is made.
        """
        more, less = F.relu(self.weigh.weight), F.relu(-self.weigh.weight)
        return torch.cdist(more * query, more * support, 1) - torch.cdist(less * query, less * support, 1) + self.weigh.bias

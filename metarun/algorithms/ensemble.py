"""Several checkpoints of a run as one learner: the mean of their scores (MAML++'s test, Antoniou et al. 2019)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from metarun.algorithms.base import FewShotLearner
from metarun.tasks import Examples, Predictor


class Ensemble(FewShotLearner):
    """Learners of one kind, each of which adapts by itself; their class scores are averaged."""

    def __init__(self, members: Sequence[FewShotLearner]) -> None:
        super().__init__(members[0].spec)
        self.members, self.outputs = nn.ModuleList(members), members[0].outputs

    def adapt(self, support: Examples, statistics: str = "track") -> Predictor:
        return _mean([member.adapt(support, statistics) for member in self.members])  # type: ignore[operator]

    def trajectory(self, support: Examples, statistics: str = "track") -> Iterator[Predictor]:
        trajectories = [member.trajectory(support, statistics) for member in self.members]  # type: ignore[operator]
        for predictors in zip(*trajectories, strict=True):
            yield _mean(predictors)


def _mean(predictors: Sequence[Predictor]) -> Predictor:
    def mean_scores(query: Tensor) -> Tensor:
        return torch.stack([predictor(query) for predictor in predictors]).mean(0)

    return mean_scores

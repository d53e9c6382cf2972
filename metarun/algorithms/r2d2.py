"""R2-D2. Bertinetto, Henriques, Torr, Vedaldi, 2019. arXiv:1805.08136

    W = argmin_W |X W - Y|^2 / n + lambda |W|^2,   scores = alpha f(x) W + beta

with the n embedded support images, and 1 for an intercept, as rows of X, and their one-hot classes as rows of Y. Learned: f, alpha, beta.

Differs from the paper's code: with `random_shots` the tasks of a step share the number drawn (the code's step is a single task); a learned
lambda (which the code's published settings do not have either) is learned as its logarithm and so stays above 0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.algorithms.base import MetricLearner, require
from metarun.algorithms.solvers.ridge import ridge
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.tasks import Episode, Examples, Metrics, Predictor


class R2D2(MetricLearner):
    """l2: lambda, or where it starts if `learn_l2`. scale: where alpha starts, above 0; beta starts at 0.

    random_shots: the least and the most support images of a class in training: a number drawn at every step, the same for its tasks;
    the rest of a class's images are queries. None for what `task.shots` says. Raises UserError for what makes no sense.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        l2: float = 50.0,
        learn_l2: bool = False,
        scale: float = 10.0,
        random_shots: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(backbone, spec)
        require(l2 > 0, "l2", l2, "a number above 0")
        require(scale > 0, "scale", scale, "a number above 0")
        fits = random_shots is None or (len(random_shots) == 2 and 1 <= random_shots[0] <= random_shots[1])
        require(fits, "random_shots", random_shots, "[least, most] with 1 <= least <= most, or null")
        self.l2, self.random_shots, self.step = l2, random_shots, 0
        self.log_l2 = nn.Parameter(torch.tensor(float(l2)).log()) if learn_l2 else None
        self.scale, self.bias = nn.Parameter(torch.tensor(float(scale))), nn.Parameter(torch.zeros(()))

    def begin_step(self, step: int) -> None:
        self.step = step

    def classify(self, support: Examples) -> Predictor:
        size = support.x.shape[1] ** 0.5
        x = F.pad(support.x, (0, 1), value=1.0) / size
        y = F.one_hot(support.y, support.ways).to(x.dtype) / size
        weight, intercept = ridge(x, y, self.l2 if self.log_l2 is None else self.log_l2.exp()).split([x.shape[2] - 1, 1], 1)
        return lambda z: self.scale * (z @ weight + intercept) + self.bias

    def meta_loss(self, episode: Episode) -> tuple[Tensor, Metrics]:
        if self.random_shots is None:
            return super().meta_loss(episode)
        least, most = self.random_shots
        images = (episode.support.y.shape[1] + episode.query.y.shape[1]) // episode.support.ways
        require(most < images, "random_shots", list(self.random_shots), f"a most below {images}, which is task.shots + task.queries")
        return super().meta_loss(divided(episode, drawn(least, most, self.step)))


def drawn(least: int, most: int, step: int) -> int:
    """A number from `least` to `most`, the same whenever asked for the same step."""
    return int(torch.randint(least, most + 1, (), generator=torch.Generator().manual_seed(step)))


def divided(episode: Episode, shots: int) -> Episode:
    """The same images, the first `shots` of every class as support and the others as queries."""
    ways, parts = episode.support.ways, (episode.support, episode.query)
    x = torch.cat([part.x.unflatten(1, (ways, -1)) for part in parts], 2)
    y = torch.cat([part.y.unflatten(1, (ways, -1)) for part in parts], 2)

    def examples(start: int, stop: int | None) -> Examples:
        return Examples(x[:, :, start:stop].flatten(1, 2), y[:, :, start:stop].flatten(1, 2), ways)

    return Episode(examples(0, shots), examples(shots, None))

"""What all few-shot learners have in common: adapt to a support set, answer for the queries."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.algorithms.objectives import full
from metarun.backbones.base import Backbone
from metarun.errors import UserError
from metarun.kinds import TaskSpec
from metarun.nn.batch_norm import normalise_by, query_outputs
from metarun.tasks import Episode, Examples, MetaLearner, Metrics, Predictor


class FewShotLearner(MetaLearner):
    """A method for few-shot tasks: `adapt` is all it must define.

    `statistics` is how its paper normalises test queries (see `metarun.nn.batch_norm`), for protocols that leave it open.
    `outputs` is how many of them its head has, None where a support decides. `supervised_steps` is for how many of the first steps
    `meta_loss` is given mini-batches of labelled images (`Examples` of all training classes) in place of tasks, None for all; `augment`
    says whether these images are augmented.
    """

    statistics: ClassVar[str] = "running"
    outputs: int | None = None
    supervised_steps: int | None = 0
    augment: bool = False

    def __init__(self, spec: TaskSpec) -> None:
        """Raises UserError if the learner has no loss for such tasks."""
        super().__init__()
        if spec.objective is None:
            raise UserError(f"algorithm: {type(self).__name__} learns from examples and answers; the task has none")
        self.spec, self.objective = spec, spec.objective

    def check_training(self) -> None:
        """Raises UserError if the learner cannot be trained, for a reason that a test of it would not have."""

    @abstractmethod
    def adapt(self, support: Examples, statistics: str = "track") -> Predictor:
        """A predictor for the tasks of `support`; the learner itself stays as it was.

        `statistics`: how the predictor's queries are normalised; `track` is for training, and moves the running averages.
        """

    def trajectory(self, support: Examples, statistics: str = "track") -> Iterator[Predictor]:
        """Predictors after 0, 1, ... inner steps, the last of which is `adapt`'s; of a method without an inner loop that one alone."""
        yield self.adapt(support, statistics)

    def meta_loss(self, episode: Episode) -> tuple[Tensor, Metrics]:
        """Per task (T,): the queries' mean loss after adaptation, and the objective's metrics."""
        return self.scored(self.adapt(episode.support)(episode.query.x), episode.query)

    def scored(self, outputs: Tensor, query: Examples) -> tuple[Tensor, Metrics]:
        """The objective's loss and metrics of outputs (T, n, ...) for queries, each (T,)."""
        return self.objective.loss(outputs, query), self.objective.metrics(outputs.detach(), query)


@contextmanager
def testing(learner: nn.Module) -> Iterator[None]:
    """`learner` as it is when it is tested; afterwards it is as before."""
    before = learner.training
    learner.eval()
    try:
        yield
    finally:
        learner.train(before)


class MetricLearner(FewShotLearner):
    """A learner that embeds every image and then compares: `classify` sees embeddings only.

    Statistics apply to the embedding: the support set is normalised by its own batch, except under `running`. In training, support
    and queries of a task are one batch. With `running` an image's embedding depends on nothing else, so that a whole split can be
    embedded once and any number of episodes scored on it.
    """

    def __init__(self, backbone: Backbone, spec: TaskSpec) -> None:
        """Raises UserError for tasks without classes."""
        super().__init__(spec)
        if "classes" not in spec.facts:
            raise UserError(f"algorithm: {type(self).__name__} compares with the classes of a support; the task has none")
        self.backbone = backbone

    @abstractmethod
    def classify(self, support: Examples) -> Predictor:
        """A predictor from query embeddings (T, n, D) to class scores, given support embeddings as `support.x` (T, n, D)."""

    def embed(self, x: Tensor, statistics: str = "running") -> Tensor:
        """Embeddings (T, n, D), in float32 at least, of images (T, n, C, H, W), each task normalised by `statistics` of its own."""
        if statistics == "running":  # no task sees another's images then, so they may go together
            with normalise_by(self.backbone, "running"):
                return full(self.backbone(x.flatten(0, 1)[None])[0]).unflatten(0, x.shape[:2])
        return self._each(x, x, statistics)

    def _each(self, support: Tensor, query: Tensor, statistics: str) -> Tensor:
        pairs = zip(support.split(1), query.split(1), strict=True)
        return full(torch.cat([query_outputs(self.backbone, {}, s, q, statistics) for s, q in pairs]))

    def adapt(self, support: Examples, statistics: str = "track") -> Predictor:
        own = "running" if statistics == "running" else "query"
        classifier = self._compare(Examples(self.embed(support.x, own), support.y, support.ways))
        if statistics == "running":
            return lambda query: classifier(self.embed(query))
        return lambda query: classifier(self._each(support.x, query, statistics))

    def meta_loss(self, episode: Episode) -> tuple[Tensor, Metrics]:
        known, asked = self.embed_together(episode)
        return self.scored(self._compare(known)(asked), episode.query)

    def embed_together(self, episode: Episode) -> tuple[Examples, Tensor]:
        """For training, embeddings of the support as examples (T, n, D) and of the queries (T, n, D), each task's as one batch."""
        support, query = episode.support, episode.query
        embedded = self.embed(torch.cat([support.x, query.x], 1), "track")
        known, asked = embedded.split([support.x.shape[1], query.x.shape[1]], 1)
        return Examples(known, support.y, support.ways), asked

    def _compare(self, support: Examples) -> Predictor:
        """`classify` in full precision: differences of long vectors cancel, and half precision would be left with noise."""
        kind = support.x.device.type
        with torch.autocast(kind, enabled=False):
            classifier = self.classify(support)

        def predict(query: Tensor) -> Tensor:
            with torch.autocast(kind, enabled=False):
                return classifier(query)

        return predict


def class_means(x: Tensor, y: Tensor, ways: int) -> Tensor:
    """Mean of x (T, n, D) per class of y (T, n): (T, N, D)."""
    members = F.one_hot(y, ways).to(x.dtype)
    return members.mT @ x / members.sum(1).unsqueeze(2)


def squared_distances(x: Tensor, others: Tensor) -> Tensor:
    """Of x (T, n, D) to others (T, m, D): (T, n, m), by one matrix multiplication instead of a (T, n, m, D) difference."""
    return x.square().sum(-1, keepdim=True) - (2 * x @ others.mT - others.square().sum(-1).unsqueeze(1))


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Refuses a setting of the algorithm: raises UserError with the key, the value and what is allowed."""
    if not condition:
        raise UserError(f"algorithm.{key}: {value} is not allowed; expected {allowed}")

"""Reptile. Nichol, Achiam, Schulman, 2018. arXiv:1803.02999

    phi_T = Adam(theta, L_support), `inner_steps` mini-batches long;   theta <- theta + epsilon * mean_T (phi_T - theta)

The inner Adam has beta1 = 0, and its second moment goes on from task to task and into the test, as in the paper's code. epsilon is the
learning rate of a plain SGD.

Differs from the paper's code: strided convolutions pad evenly where TensorFlow's pad one side more; the tasks of a step start from the
same second moment instead of one from where the other ended (it then moves as if they had), and take their mini-batches in the same
order of positions, so that a task does not depend on its neighbours; test tasks are evaluated several at a time.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.algorithms.base import FewShotLearner, require
from metarun.algorithms.maml import HeadInit, classifier
from metarun.algorithms.objectives import full
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.nn.batch_norm import normalise_by, query_outputs, scratch_buffers
from metarun.tasks import Episode, Examples, Metrics, Predictor

BETA2, EPSILON = 0.999, 1e-8


class Reptile(FewShotLearner):
    """inner_lr: of the inner Adam; inner_steps, test_inner_steps: its updates in training and else.

    inner_batch, test_inner_batch: images of an update, taken in turn from the shuffled support, which may be smaller; None for the whole
    support. The `test_` ones may be None for the same as in training. head_init: as in MAML. Raises UserError for what makes no sense.
    """

    statistics: ClassVar[str] = "support+one"

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        inner_lr: float = 1e-3,
        inner_steps: int = 5,
        inner_batch: int | None = 10,
        test_inner_steps: int | None = 50,
        test_inner_batch: int | None = 5,
        head_init: HeadInit = "xavier",
    ) -> None:
        super().__init__(spec)
        require(inner_lr > 0, "inner_lr", inner_lr, "a number above 0")
        require(inner_steps >= 1, "inner_steps", inner_steps, "1 or more")
        require(test_inner_steps is None or test_inner_steps >= 0, "test_inner_steps", test_inner_steps, "0 or more, or null")
        for key, size in (("inner_batch", inner_batch), ("test_inner_batch", test_inner_batch)):
            require(size is None or size >= 2, key, size, "2 or more (batch norm needs them), or null")
        self.outputs, self.inner_lr, self.step = self.objective.outputs, inner_lr, 0
        self.steps = {True: inner_steps, False: inner_steps if test_inner_steps is None else test_inner_steps}
        self.batch = {True: inner_batch, False: inner_batch if test_inner_batch is None else test_inner_batch}
        self.net = classifier(backbone, self.outputs, head_init)
        self.moment = SecondMoment(sum(parameter.numel() for parameter in self.net.parameters()))

    def begin_step(self, step: int) -> None:
        self.step = step
        self.moment.begin_step()

    def adapt(self, support: Examples, statistics: str = "track") -> Predictor:
        weights, _ = self._inner_loop(support)
        return lambda query: query_outputs(self.net, weights, support.x, query, statistics, support.x.shape[0])

    def meta_loss(self, episode: Episode) -> tuple[Tensor, Metrics]:
        """Per task (T,): |theta - phi_T|² / 2. The mean's gradient is theta - mean_T phi_T, so that SGD with rate epsilon is the update.

        The metrics, `loss` among them, are those of the queries after adaptation, which the gradient does not know of.
        """
        support, query = episode.support, episode.query
        weights, moments = self._inner_loop(support)
        with torch.no_grad():
            self.moment.move(moments, self.steps[self.training])
            shown, metrics = self.scored(query_outputs(self.net, weights, support.x, query.x, "track", len(episode)), query)
            reached = torch.cat([value.flatten(1) for value in weights.values()], 1)
        start = torch.cat([value.flatten() for value in self.net.parameters()])
        return (start - reached).square().sum(1) / 2, {"loss": shown, **metrics}

    @torch.no_grad()
    def _inner_loop(self, support: Examples) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Adapted weights and the second moments they end with, each (T, *shape); no graph leads back from one update to the last."""
        tasks, images = support.y.shape
        steps, size = self.steps[self.training], self.batch[self.training] or images
        order = minibatches(images, size, steps, seed=self.step + 1 if self.training else 0).to(support.x.device, non_blocking=True)
        parameters = dict(self.net.named_parameters())
        weights = {name: repeated(value, tasks, like=value) for name, value in parameters.items()}
        state, count = self.moment.state(self.training)
        starts = state.split([value.numel() for value in parameters.values()])
        moments = [repeated(start, tasks, like=value) for start, value in zip(starts, parameters.values(), strict=True)]
        with normalise_by(self.net, "batch"):
            buffers = scratch_buffers(self.net, tasks)
            for update, chosen in enumerate(order, count + 1):
                batch = Examples(support.x[:, chosen], support.y[:, chosen], support.ways)
                gradients = self._gradients(weights, buffers, batch)
                adam(list(weights.values()), gradients, moments, self.inner_lr, update)
        return weights, moments

    def _gradients(self, weights: dict[str, Tensor], buffers: dict[str, Tensor], batch: Examples) -> tuple[Tensor, ...]:
        with torch.enable_grad(), torch.autocast(batch.x.device.type, enabled=False):  # as in MAML, whose inner loop has full precision too
            leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
            # The sum over tasks, since each task's weights see only its own part of it.
            loss = self.objective.loss(functional_call(self.net, {**leaves, **buffers}, (full(batch.x),)), batch).sum()
            return torch.autograd.grad(loss, list(leaves.values()))


class SecondMoment(nn.Module):
    """Adam's mean of squared gradients, a vector over all parameters, and of how many updates: where a step began, and by now."""

    begin: Tensor
    latest: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("begin", torch.zeros(size), persistent=False)  # every step sets it anew
        self.register_buffer("latest", torch.zeros(size))
        # Older checkpoints have `begin` too.
        self.register_load_state_dict_pre_hook(lambda _, state, prefix, *rest: state.pop(f"{prefix}begin", None))
        self.counts = [0, 0]  # on the host, where the bias correction is computed

    def begin_step(self) -> None:
        self.begin.copy_(self.latest)
        self.counts[0] = self.counts[1]

    def state(self, training: bool) -> tuple[Tensor, int]:
        return (self.begin, self.counts[0]) if training else (self.latest, self.counts[1])

    def move(self, ends: list[Tensor], updates: int) -> None:
        """Adds what the tasks, which ended with `ends` (T, ...) after as many `updates` each, would have left one after another."""
        tasks, kept = ends[0].shape[0], BETA2**updates
        share = kept ** torch.arange(tasks - 1, -1, -1, dtype=self.latest.dtype, device=self.latest.device)
        with torch.autocast(share.device.type, enabled=False):
            seen = torch.cat([share @ end.flatten(1) for end in ends])
        begun = sum(kept**later for later in range(1, tasks + 1))
        self.latest.mul_(kept**tasks).add_(seen).sub_(self.begin, alpha=begun).clamp_(min=0)  # rounding must not make it negative
        self.counts[1] += tasks * updates

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.counts)

    def set_extra_state(self, state: Tensor) -> None:
        self.counts = state.tolist()


def repeated(value: Tensor, tasks: int, like: Tensor) -> Tensor:
    """Copies (T, *shape) of `value` that lie in memory as the parameter `like` does, and so as its gradients do."""
    return like.new_empty_strided((tasks, *like.shape), (like.numel(), *like.stride())).copy_(value.view_as(like))


def adam(weights: list[Tensor], gradients: tuple[Tensor, ...], moments: list[Tensor], lr: float, update: int) -> None:
    """The `update`-th update, counted from 1, in place, with beta1 = 0 and the bias correction of TensorFlow (epsilon stays outside)."""
    torch._foreach_mul_(moments, BETA2)
    torch._foreach_addcmul_(moments, gradients, gradients, 1 - BETA2)
    scale = torch._foreach_sqrt(moments)
    torch._foreach_add_(scale, EPSILON)
    torch._foreach_addcdiv_(weights, gradients, scale, -lr * (1 - BETA2**update) ** 0.5)


def minibatches(images: int, size: int, count: int, seed: int) -> Tensor:
    """Positions (count, size) among `images`: all of them in a random order, then all in another; a batch may straddle the two."""
    dice = torch.Generator().manual_seed(seed)
    passes = [torch.randperm(images, generator=dice) for _ in range(count * size // images + 1)]
    return torch.cat(passes)[: count * size].view(count, size)

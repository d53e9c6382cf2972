"""MAML++. Antoniou, Edwards, Storkey, 2019. arXiv:1810.09502

    theta_{T,k+1} = theta_{T,k} - alpha_{layer,k} grad L_support(theta_{T,k});   minimise  sum_T sum_k w_k L_query(theta_{T,k})

over theta, the rates alpha and batch norm's scale and offset of every step; w_k moves from all steps alike to the last one alone.

The paper's cosine schedule is `scheduler=cosine`, its ensemble of checkpoints `protocol.ensemble`.

Differs from the paper's code: w moves with every step, not once per 500. Running statistics are one set for all inner steps; like the
paper's they are not used unless a protocol asks for them.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metarun.algorithms.base import require
from metarun.algorithms.maml import MAML, HeadInit
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec
from metarun.tasks import Episode, Metrics

LEAST = 0.03
"""Of an even share: below this no step's weight falls while the loss is taken at all steps (as in the paper's code)."""


class MAMLPlusPlus(MAML):
    """MAML with what its authors' successors found to make it stable; each part can be switched off.

    learn_rates: a learned inner rate for every parameter and inner step, starting at `inner_lr`. norm_per_step: batch norm has a scale
    and an offset of its own at every inner step, which the inner loop leaves alone. multi_step_loss: for how many meta-steps the
    queries' loss is taken after every inner step; 0 for after the last only. second_order_from: the meta-step from which on second
    derivatives are taken. The other arguments are MAML's.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        inner_lr: float = 0.1,
        inner_steps: int = 5,
        test_inner_steps: int | None = None,
        inner_loss: Literal["mean", "sum_over_ways"] = "mean",
        adapts: Sequence[str] = ("*",),
        head_init: HeadInit = "torch",
        recompute: bool = False,
        learn_rates: bool = True,
        norm_per_step: bool = True,
        multi_step_loss: int = 5000,
        second_order_from: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            spec,
            inner_lr,
            inner_steps,
            test_inner_steps=test_inner_steps,
            inner_loss=inner_loss,
            adapts=adapts,
            head_init=head_init,
            recompute=recompute,
        )
        require(multi_step_loss >= 0, "multi_step_loss", multi_step_loss, "0 or more")
        require(second_order_from >= 0, "second_order_from", second_order_from, "0 or more")
        self.multi_step_loss, self.second_order_from, self.meta_step = multi_step_loss, second_order_from, 0
        rates = torch.full((len(self.adapted), inner_steps), inner_lr)
        self.learned_rates = nn.Parameter(rates) if learn_rates else None
        self.norms, self.norms_by_step = [], nn.ParameterList()
        if norm_per_step:
            layers = [(name, layer) for name, layer in self.net.named_modules() if isinstance(layer, _BatchNorm)]
            self.norms = [f"{name}.{own}" for name, layer in layers for own, _ in layer.named_parameters()]
            for name in self.norms:
                parameter = self.net.get_parameter(name).requires_grad_(False)  # no step uses it
                self.norms_by_step.append(parameter.expand(inner_steps, -1).clone())
            self.head_only = False  # the features differ from step to step

    def begin_step(self, step: int) -> None:
        self.meta_step, self.first_order = step, step < self.second_order_from

    def rate(self, name: str, step: int) -> float | Tensor:
        if self.learned_rates is None:
            return super().rate(name, step)
        return self.learned_rates[self.adapted.index(name), min(step, self.steps[True] - 1)]

    def at_step(self, step: int) -> dict[str, Tensor]:
        return {name: values[min(step, len(values) - 1)] for name, values in zip(self.norms, self.norms_by_step, strict=True)}

    def meta_loss(self, episode: Episode) -> tuple[Tensor, Metrics]:
        """The weighted sum of the queries' losses after every inner step, while that is due; `accuracy` is that after the last."""
        if self.meta_step >= self.multi_step_loss:
            return super().meta_loss(episode)
        _, *predictors = self.trajectory(episode.support)
        *earlier, last = [predictor(episode.query.x) for predictor in predictors]
        losses, metrics = self.scored(last, episode.query)
        weights = step_weights(self.steps[True], self.meta_step / self.multi_step_loss)
        total = weights[-1] * losses
        for weight, outputs in zip(weights, earlier, strict=False):
            total = total + weight * self.objective.loss(outputs, episode.query)
        return total, metrics


def step_weights(steps: int, progress: float) -> list[float]:
    """How much each inner step's loss counts: evenly at `progress` 0, (nearly) the last one's alone at 1; they add up to 1."""
    each = max(1 - progress, LEAST) / steps
    return [each] * (steps - 1) + [1 - each * (steps - 1)]

"""Meta-SGD. Li, Zhou, Chen, Li, 2017. arXiv:1707.09835

    theta_T = theta - alpha o grad L_support(theta);   minimise  sum_T L_query(theta_T)  over theta and alpha, which has theta's shape

Differs from the paper: nothing that is known. The authors published no code.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from metarun.algorithms.base import require
from metarun.algorithms.maml import MAML, HeadInit
from metarun.backbones.base import Backbone
from metarun.kinds import TaskSpec


class MetaSGD(MAML):
    """MAML whose inner learning rates are learned, one for every entry of every adapted parameter.

    rate_init: (low, high), between which the rates are drawn at first; equal ones for a constant. The other arguments are MAML's.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        rate_init: Sequence[float] = (0.005, 0.1),
        inner_steps: int = 1,
        test_inner_steps: int | None = None,
        first_order: bool = False,
        inner_loss: Literal["mean", "sum_over_ways"] = "mean",
        adapts: Sequence[str] = ("*",),
        adapt_norm: bool = False,
        head_init: HeadInit = "torch",
        recompute: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            spec,
            inner_steps=inner_steps,
            test_inner_steps=test_inner_steps,
            first_order=first_order,
            inner_loss=inner_loss,
            adapts=adapts,
            adapt_norm=adapt_norm,
            head_init=head_init,
            recompute=recompute,
        )
        require(len(rate_init) == 2 and rate_init[0] <= rate_init[1], "rate_init", list(rate_init), "two numbers, the smaller one first")
        start = dict(self.net.named_parameters())
        self.learned_rates = nn.ParameterList(torch.empty_like(start[name]).uniform_(*rate_init) for name in self.adapted)

    def rate(self, name: str, step: int) -> Tensor:
        return self.learned_rates[self.adapted.index(name)]

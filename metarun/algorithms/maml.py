"""Model-Agnostic Meta-Learning. Finn, Abbeel, Levine, 2017. arXiv:1703.03400

    theta_T = theta - alpha * grad L_support(theta), repeated `inner_steps` times;   minimise  sum_T L_query(theta_T)

FOMAML is `first_order: true`; ANIL, BOIL and the like are choices of `adapts`.

The paper's code sums the inner loss over the classes (`inner_loss: sum_over_ways`), so its alpha is N times smaller than one for the
usual mean.

Differs from the paper's code: strided convolutions pad evenly where TensorFlow's pad one side more; training tasks are drawn afresh and
not from a list of 200,000; test tasks are evaluated several at a time, which changes nothing but rounding.
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from metarun.algorithms.base import FewShotLearner, cross_entropy, require
from metarun.backbones.base import Backbone
from metarun.batch_statistics import normalise_by, query_outputs, scratch_buffers
from metarun.errors import UserError
from metarun.layers import Linear
from metarun.tasks import Examples, Predictor


class MAML(FewShotLearner):
    """ways: classes of a task, at test too; inner_lr, inner_steps: in training; test_inner_lr, test_inner_steps: else, None for the same.

    first_order: leave out the second derivatives. inner_loss: `mean` over the support, or `sum_over_ways` (N times the mean). adapts:
    patterns (`*` for any text) of the parameters that the inner loop changes, under `backbone.` and `head.`; adapt_norm: those of
    batch norm too. head_init: of the head's weights, `torch`'s default, `normal` (std 1: the paper on Omniglot) or `xavier`
    (miniImageNet), the latter two with zero biases. Raises UserError if `adapts` names nothing.
    """

    statistics: ClassVar[str] = "query"
    inner_gradients: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        ways: int,
        inner_lr: float = 0.4,
        inner_steps: int = 1,
        test_inner_lr: float | None = None,
        test_inner_steps: int | None = None,
        first_order: bool = False,
        inner_loss: Literal["mean", "sum_over_ways"] = "mean",
        adapts: Sequence[str] = ("*",),
        adapt_norm: bool = False,
        head_init: Literal["torch", "normal", "xavier"] = "torch",
    ) -> None:
        super().__init__()
        require(inner_lr > 0, "inner_lr", inner_lr, "a number above 0")
        require(test_inner_lr is None or test_inner_lr > 0, "test_inner_lr", test_inner_lr, "a number above 0, or null")
        require(inner_steps >= 1, "inner_steps", inner_steps, "1 or more")
        require(test_inner_steps is None or test_inner_steps >= 0, "test_inner_steps", test_inner_steps, "0 or more, or null")
        self.ways, self.first_order = ways, first_order
        self.rates = {True: inner_lr, False: inner_lr if test_inner_lr is None else test_inner_lr}
        self.steps = {True: inner_steps, False: inner_steps if test_inner_steps is None else test_inner_steps}
        self.loss_scale = ways if inner_loss == "sum_over_ways" else 1
        self.net = nn.Sequential()
        self.net.add_module("backbone", backbone)
        self.net.add_module("head", _head(backbone.out_features, ways, head_init))
        self.adapted = _adapted(self.net, adapts, adapt_norm)

    def adapt(self, support: Examples, statistics: str = "track") -> Predictor:
        learning, tasks = torch.is_grad_enabled(), support.x.shape[0]
        weights = {name: value.expand(tasks, *value.shape) for name, value in self.net.named_parameters()}
        with torch.enable_grad(), normalise_by(self.net, "batch"):
            buffers = scratch_buffers(self.net, tasks)
            if not learning:  # the way back to the meta-parameters is not needed
                weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
            for _ in range(self.steps[self.training]):
                loss = self._inner_loss(functional_call(self.net, {**weights, **buffers}, (support.x,)), support.y)
                fast = [weights[name] for name in self.adapted]
                gradients = torch.autograd.grad(loss, fast, create_graph=learning and not self.first_order)
                weights |= {name: w - self.rates[self.training] * g for name, w, g in zip(self.adapted, fast, gradients, strict=True)}
        if not learning:
            weights = {name: value.detach() for name, value in weights.items()}
        return lambda query: query_outputs(self.net, weights, support.x, query, statistics, tasks)

    def _inner_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over tasks, since each task's weights see only its own part of it."""
        return cross_entropy(logits, labels, "sum") * (self.loss_scale / labels.shape[1])


def _head(features: int, ways: int, init: str) -> Linear:
    head = Linear(features, ways)
    if init == "torch":
        return head
    nn.init.zeros_(head.bias)
    (nn.init.normal_ if init == "normal" else nn.init.xavier_uniform_)(head.weight)
    return head


def _adapted(net: nn.Module, patterns: Sequence[str], norm: bool) -> list[str]:
    layers = [name for name, layer in net.named_modules() if isinstance(layer, _BatchNorm)]
    names = [name for name, _ in net.named_parameters() if norm or name.rpartition(".")[0] not in layers]
    chosen = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    if not chosen:
        raise UserError(f"algorithm.adapts: {list(patterns)} names no parameter; there are {', '.join(names)}")
    return chosen

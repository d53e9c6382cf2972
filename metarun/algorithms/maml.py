"""Model-Agnostic Meta-Learning. Finn, Abbeel, Levine, 2017. arXiv:1703.03400

    theta_T = theta - alpha * grad L_support(theta), repeated `inner_steps` times;   minimise  sum_T L_query(theta_T)

FOMAML is `first_order: true`; ANIL, BOIL and CAVIA are choices of `adapts`.

The paper's code sums the inner loss over the classes (`inner_loss: sum_over_ways`), so its alpha is N times smaller than one for the
usual mean.

Differs from the paper's code: strided convolutions pad evenly where TensorFlow's pad one side more; training tasks are drawn afresh and
not from a list of 200,000; test tasks are evaluated several at a time, which changes nothing but rounding.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from metarun.algorithms.base import FewShotLearner, require
from metarun.algorithms.objectives import full
from metarun.backbones.base import Backbone
from metarun.errors import UserError
from metarun.kinds import TaskSpec
from metarun.nn.batch_norm import normalise_by, query_outputs, scratch_buffers
from metarun.nn.layers import Linear
from metarun.nn.recompute import recomputed
from metarun.tasks import Examples, Predictor

HeadInit = Literal["torch", "normal", "truncated", "xavier", "kaiming"]


class MAML(FewShotLearner):
    """inner_lr, inner_steps: in training; test_inner_lr, test_inner_steps: else, None for the same.

    first_order: leave out the second derivatives. inner_loss: `mean` over the support, or `sum_over_ways` (N times the mean). adapts:
    patterns (`*` for any text) of the parameters that the inner loop changes, under `backbone.` and `head.`; adapt_norm: those of
    batch norm too. head_init: of the head's weights, `torch`'s default, or with zero biases `normal` (std 1: the paper on Omniglot),
    `truncated` normal (std 0.01: its network without convolutions), `xavier` (miniImageNet) or `kaiming` (CAVIA). recompute: keep no
    inner step's activations but compute them again for the meta-gradient, which takes the memory of one step instead of all. Raises
    UserError if a pattern of `adapts` names nothing.
    """

    statistics: ClassVar[str] = "query"

    def __init__(
        self,
        backbone: Backbone,
        spec: TaskSpec,
        inner_lr: float = 0.4,
        inner_steps: int = 1,
        test_inner_lr: float | None = None,
        test_inner_steps: int | None = None,
        first_order: bool = False,
        inner_loss: Literal["mean", "sum_over_ways"] = "mean",
        adapts: Sequence[str] = ("*",),
        adapt_norm: bool = False,
        head_init: HeadInit = "torch",
        recompute: bool = False,
    ) -> None:
        super().__init__(spec)
        require(inner_lr > 0, "inner_lr", inner_lr, "a number above 0")
        require(test_inner_lr is None or test_inner_lr > 0, "test_inner_lr", test_inner_lr, "a number above 0, or null")
        require(inner_steps >= 1, "inner_steps", inner_steps, "1 or more")
        require(test_inner_steps is None or test_inner_steps >= 0, "test_inner_steps", test_inner_steps, "0 or more, or null")
        self.outputs, self.first_order, self.recompute = self.objective.outputs, first_order, recompute
        self.rates = {True: inner_lr, False: inner_lr if test_inner_lr is None else test_inner_lr}
        self.steps = {True: inner_steps, False: inner_steps if test_inner_steps is None else test_inner_steps}
        self.loss_scale = self.outputs if inner_loss == "sum_over_ways" else 1
        self.net = classifier(backbone, self.outputs, head_init)
        self.adapted = _adapted(self.net, adapts, adapt_norm)
        self.head_only = all(name.startswith("head.") for name in self.adapted)  # then features are computed once for all steps

    def adapt(self, support: Examples, statistics: str = "track") -> Predictor:
        return deque(self.trajectory(support, statistics), maxlen=1).pop()

    def trajectory(self, support: Examples, statistics: str = "track") -> Iterator[Predictor]:
        tasks, steps = support.x.shape[0], self.steps[self.training]
        buffers, start = scratch_buffers(self.net, tasks), self._weights({}, 0, tasks)
        fast = {name: start[name] for name in self.adapted}
        inputs = self._features(start | buffers, support.x) if self.head_only else support.x
        for step in range(steps + 1):
            weights = self._weights(fast, max(step - 1, 0), tasks)
            how = "query" if statistics == "track" and step < steps else statistics  # running averages move once, with the last
            yield lambda query, weights=weights, how=how: query_outputs(self.net, weights, support.x, query, how, tasks)  # type: ignore[misc]
            if step < steps:
                fast = self._updated(self._weights(fast, step, tasks) | buffers, inputs, support, step)

    def at_step(self, step: int) -> dict[str, Tensor]:
        """Parameters of `net` that are not adapted but have a value of their own at inner step `step`; none here."""
        return {}

    def rate(self, name: str, step: int) -> float | Tensor:
        """Learning rate of a parameter at an inner step: a number, or one per entry (*shape)."""
        return self.rates[self.training]

    def _weights(self, fast: Mapping[str, Tensor], step: int, tasks: int) -> dict[str, Tensor]:
        slow = {**dict(self.net.named_parameters()), **self.at_step(step)}
        return {name: value.expand(tasks, *value.shape) for name, value in slow.items()} | dict(fast)

    def _features(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return _call(self.net.get_submodule("backbone"), "backbone.", weights, full(x))

    def _updated(self, weights: Mapping[str, Tensor], inputs: Tensor, support: Examples, step: int) -> dict[str, Tensor]:
        """The adapted weights after an inner step; the loss is summed over tasks, since each task's weights see only its own part."""
        names, prefix = list(weights), "head." if self.head_only else ""
        module = self.net.get_submodule(prefix.removesuffix("."))

        def update(inputs: Tensor, *values: Any) -> tuple[Tensor, ...]:
            learning, weights = torch.is_grad_enabled(), dict(zip(names, values, strict=False))
            # Half precision would round every inner step, and the meta-gradient turn away (to a cosine of 0.95 and less, measured).
            with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
                fast = [weights[name] for name in self.adapted]
                fast = [value if learning and value.requires_grad else value.detach().requires_grad_() for value in fast]
                scores = _call(module, prefix, weights | dict(zip(self.adapted, fast, strict=True)), full(inputs))
                loss = self.objective.loss(scores, support).sum() * self.loss_scale
                gradients = torch.autograd.grad(loss, fast, create_graph=learning and not self.first_order)
            return tuple(map(_descend, fast, gradients, values[len(names) :]))

        rates = [self.rate(name, step) for name in self.adapted]
        run = recomputed(update) if self.recompute and not self.first_order else update
        return dict(zip(self.adapted, run(inputs, *weights.values(), *rates), strict=True))


def _descend(weight: Tensor, gradient: Tensor, rate: Tensor | float) -> Tensor:
    return weight.addcmul(gradient, rate, value=-1) if isinstance(rate, Tensor) else weight.sub(gradient, alpha=rate)


def _call(module: nn.Module, prefix: str, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """`module`'s outputs by its own part of `weights` and the batch's statistics."""
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    with normalise_by(module, "batch"):
        return functional_call(module, own, (x,))


def classifier(backbone: Backbone, outputs: int, head_init: str) -> nn.Sequential:
    """`backbone`, then a linear `head` of so many outputs, initialised as `head_init` says (see `MAML`)."""
    head = Linear(backbone.out_features, outputs)
    if head_init != "torch":
        nn.init.zeros_(head.bias)
    if head_init == "xavier":
        nn.init.xavier_uniform_(head.weight)
    elif head_init == "normal":
        nn.init.normal_(head.weight)
    elif head_init == "truncated":
        nn.init.trunc_normal_(head.weight, std=0.01, a=-0.02, b=0.02)
    elif head_init == "kaiming":
        nn.init.kaiming_uniform_(head.weight, nonlinearity="linear")
    net = nn.Sequential()
    net.add_module("backbone", backbone)
    net.add_module("head", head)
    return net


def _adapted(net: nn.Module, patterns: Sequence[str], norm: bool) -> list[str]:
    layers = [name for name, layer in net.named_modules() if isinstance(layer, _BatchNorm)]
    names = [name for name, _ in net.named_parameters() if norm or name.rpartition(".")[0] not in layers]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            hint = "; a backbone has one with film_block (conv4_cavia)" if pattern.endswith("context") else ""
            raise UserError(f"algorithm.adapts: {pattern} names no parameter{hint}; there are {', '.join(names)}")
    require(len(patterns) > 0, "adapts", list(patterns), "patterns of parameters' names")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]

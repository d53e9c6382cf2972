"""Less memory for more time: what a function computes is not kept for its gradient, but computed again when the gradient is asked for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from metarun.nn.device import Device


def recomputed(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """The same function of the same arguments, the first of them a tensor, whose graph exists only while its gradient is computed.

    It is run without gradients first, and must give the same then: it finds torch's random numbers as they were the first time, and
    gets copies of arguments without gradient, which it may change. It sets its own precision, as autocast is over when a gradient is
    taken. Unlike `torch.utils.checkpoint`, it may itself take gradients inside.
    Gradients reach its arguments only: what it takes from elsewhere counts as constant.
    """
    return lambda *arguments: _Recomputed.apply(function, *arguments)


class _Recomputed(Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., tuple[Tensor, ...]], *arguments: Any) -> tuple[Tensor, ...]:
        ctx.function, ctx.arguments = function, [None if isinstance(value, Tensor) else value for value in arguments]
        ctx.save_for_backward(*(value for value in arguments if isinstance(value, Tensor)))
        ctx.device = Device(arguments[0].device.type)
        ctx.random = ctx.device.random_state()
        return function(*map(_own, arguments))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        saved = iter(ctx.saved_tensors)
        arguments = [next(saved).detach() if value is None else value for value in ctx.arguments]
        leaves = [value.requires_grad_() for value, want in zip(arguments, wanted, strict=True) if want]
        now = ctx.device.random_state()
        ctx.device.set_random_state(ctx.random)
        with torch.enable_grad():
            outputs = ctx.function(*map(_own, arguments))
        ctx.device.set_random_state(now)
        gradients = iter(torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True))
        return None, *(next(gradients) if want else None for want in wanted)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and not value.requires_grad else value

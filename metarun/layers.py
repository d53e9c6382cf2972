"""Layers that take one set of weights, or one set per task.

Images of T tasks travel as (n, T·C, H, W), channels last, of which (T, n, C, H, W) is a view: one grouped convolution, one batch
norm over T·C channels and one batched product serve all tasks, and no task sees another's images. A layer's parameters have
their usual shapes (then T = 1), or are replaced through `torch.func.functional_call` by tensors (T, *shape).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fold(x: Tensor) -> Tensor:
    """(T, n, C, H, W) -> (n, T·C, H, W), channels last."""
    t, n, c, h, w = x.shape
    return x.permute(1, 3, 4, 0, 2).reshape(n, h, w, t * c).permute(0, 3, 1, 2)


def unfold(x: Tensor, tasks: int) -> Tensor:
    """(n, T·C, H, W) -> (T, n, H·W·C): the features of every image, as `Linear` takes them."""
    return x.permute(0, 2, 3, 1).unflatten(3, (tasks, -1)).permute(3, 0, 1, 2, 4).flatten(2)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` on (n, T·C, H, W), with weight (out, in, k, k) or (T, out, in, k, k)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 4:
            return super().forward(x)
        bias = None if self.bias is None else self.bias.flatten()
        return F.conv2d(x, self.weight.flatten(0, 1), bias, self.stride, self.padding, groups=self.weight.shape[0])


class Linear(nn.Linear):
    """`torch.nn.Linear` with bias on (T, n, in), with weight (out, in) or (T, out, in)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return super().forward(x)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` on (n, T·C, H, W), every task by its own statistics, with parameters and buffers (C,) or (T, C).

    `scale=False` leaves out the factor (gamma), as MAML's networks do.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, scale: bool = True) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        if not scale:
            self.weight = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        tasks, momentum = x.shape[1] // self.num_features, self.momentum or 0.0
        weight, bias = None if self.weight is None else _per_channel(self.weight, tasks), _per_channel(self.bias, tasks)
        if self.training and momentum == 0:
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        assert self.running_mean is not None and self.running_var is not None
        mean, var = _per_channel(self.running_mean, tasks), _per_channel(self.running_var, tasks)
        if not self.training:
            return F.batch_norm(x, mean, var, weight, bias, eps=self.eps)
        shared = tasks > 1 and self.running_mean.dim() == 1  # then `mean` and `var` are copies, and get each task's own statistics
        out = F.batch_norm(x, mean, var, weight, bias, True, 1.0 if shared else momentum, self.eps)
        if shared:
            self._track(mean.unflatten(0, (tasks, -1)), var.unflatten(0, (tasks, -1)))
        elif momentum == 1:  # recorded to be used in place of the batch: its own variance, not the unbiased one that torch keeps
            count = x.numel() // x.shape[1]
            self.running_var.mul_((count - 1) / count)
        return out

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        """Moves the running statistics as T updates one after another would, so they do not depend on how tasks are chunked."""
        momentum = self.momentum or 0.0
        age = torch.arange(mean.shape[0] - 1, -1, -1, dtype=mean.dtype, device=mean.device)
        share = momentum * (1 - momentum) ** age
        for running, seen in ((self.running_mean, mean), (self.running_var, var)):
            running.mul_((1 - momentum) ** mean.shape[0]).add_(share @ seen)  # type: ignore[union-attr]


def _per_channel(value: Tensor, tasks: int) -> Tensor:
    """(C,) or (T, C) -> (T·C,); a (T, C) buffer keeps its memory, so that an update in place reaches it."""
    return value.repeat(tasks) if value.dim() == 1 and tasks > 1 else value.flatten()

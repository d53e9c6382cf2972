"""Layers that take one set of weights, or one set per task.

Images of T tasks travel as (n, T·C, H, W), channels last, of which (T, n, C, H, W) is a view: one grouped convolution, one batch
norm over T·C channels and one batched product serve all tasks, and no task sees another's images. A layer's parameters have
their usual shapes (then T = 1), or are replaced through `torch.func.functional_call` by tensors (T, *shape).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.nn.functional import batch_norm, batch_statistics, conv2d


def fold(x: Tensor) -> Tensor:
    """(T, n, C, H, W) -> (n, T·C, H, W), channels last."""
    t, n, c, h, w = x.shape
    return x.permute(1, 3, 4, 0, 2).contiguous().view(n, h, w, t * c).permute(0, 3, 1, 2)


def unfold(x: Tensor, tasks: int) -> Tensor:
    """(n, T·C, H, W) -> (T, n, H·W·C): the features of every image, as `Linear` takes them."""
    return x.permute(0, 2, 3, 1).unflatten(3, (tasks, -1)).permute(3, 0, 1, 2, 4).flatten(2)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` on (n, T·C, H, W), with weight (out, in, k, k), which all tasks share, or (T, out, in, k, k)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.to(memory_format=torch.channels_last)  # as the images are: what is made of the weights then never has to be turned

    def forward(self, x: Tensor) -> Tensor:
        shared = self.weight.dim() == 4
        tasks = x.shape[1] // self.in_channels if shared else self.weight.shape[0]
        if shared and tasks <= 1:
            return super().forward(x)
        each = self.weight.expand(tasks, *self.weight.shape[-4:])
        weight = each.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias.expand(tasks, -1).flatten()
        assert isinstance(self.padding, tuple)
        return conv2d(x, weight, bias, self.stride, self.padding, tasks)


class Linear(nn.Linear):
    """`torch.nn.Linear` with bias on (T, n, in), with weight (out, in) or (T, out, in), in full precision under autocast too.

    It costs little beside convolutions, and half precision leaves too little of the differences between scores.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight.dtype)
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
        scale = torch.ones_like(self.bias) if self.weight is None else self.weight  # on CUDA, torch takes no offset without a factor
        weight, bias = _per_channel(scale, tasks), _per_channel(self.bias, tasks)
        if not self.training:
            assert self.running_mean is not None and self.running_var is not None
            mean, var = _per_channel(self.running_mean, tasks), _per_channel(self.running_var, tasks)
            return F.batch_norm(x, mean, var, weight, bias, eps=self.eps)
        mean, var = batch_statistics(x)
        if momentum:
            self._track(mean.unflatten(0, (tasks, -1)), var.unflatten(0, (tasks, -1)), x.numel() // x.shape[1])
        return batch_norm(x, weight, bias, mean, var, self.eps)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Moves the running statistics by those of T tasks, (T, C) each, of `count` values a channel.

        Buffers that tasks share move as by T updates one after another, so they do not depend on how tasks are chunked.
        """
        momentum = self.momentum or 0.0
        if momentum < 1:  # at 1 they are recorded to be used in place of the batch: its own variance, not the unbiased one
            var = var * (count / (count - 1))
        for running, seen in ((self.running_mean, mean), (self.running_var, var)):
            assert running is not None
            if running.dim() == 2:  # a task's own
                running.mul_(1 - momentum).add_(seen, alpha=momentum)
                continue
            age = torch.arange(seen.shape[0] - 1, -1, -1, dtype=seen.dtype, device=seen.device)
            share = momentum * (1 - momentum) ** age
            moved = (share[:, None] * seen).sum(0)  # not a product of matrices, which autocast would round
            running.mul_((1 - momentum) ** seen.shape[0]).add_(moved)


class Film(nn.Module):
    """Feature-wise linear modulation (Perez et al. 2018) of (n, T·C, H, W): every channel's scale and offset are linear in a context.

    The context is a parameter that starts at zero and that only an inner loop changes (CAVIA, Zintgraf et al. 2019, section 3.2).
    """

    def __init__(self, context: int, channels: int) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.zeros(context), requires_grad=False)
        self.linear = Linear(context, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        own = self.context.dim() == 2
        values = self.linear(self.context.unsqueeze(1) if own else self.context[None, None])[:, 0]  # (T, 2C), or (1, 2C) for all tasks
        tasks = 2 * x.shape[1] // values.shape[1]
        scale, offset = (_per_channel(value if own else value[0], tasks) for value in values.chunk(2, 1))
        return x * scale.to(x.dtype)[:, None, None] + offset.to(x.dtype)[:, None, None]


def _per_channel(value: Tensor, tasks: int) -> Tensor:
    """(C,) or (T, C) -> (T·C,); a (T, C) buffer keeps its memory, so that an update in place reaches it."""
    return value.repeat(tasks) if value.dim() == 1 and tasks > 1 else value.flatten()

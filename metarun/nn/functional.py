"""Convolution and batch norm whose second derivatives are made of the same native kernels as their first.

MAML differentiates a gradient. PyTorch does that for convolutions of groups by a loop over the groups, and for batch norm by a chain
of about twenty elementwise passes. Both have closed forms. With v, V, c the cotangents of the gradients for x, w, b (what the second
backward pass is given):

convolution  y = x * w + b.   <v, gx> + <V, gw> + <c, gb> is linear in each of gy, x, w, v, V, c; hence
             for gy: v * w + x * V + c;   for x and w: what the gradient of a convolution gives for gy, with v as input and V as weight
batch norm   y = w xh + b,   xh = (x - mean) r,   gx = w r P gy   with   P u = u - mean(u) - xh mean(u xh)   per channel of m numbers:
             for gy: w r P v + V xh + c                                                    (P is symmetric)
             for x:  r P(V gy - w r mean(v xh) gy - w r mean(gy xh) v) - r (<v, gx> / m) xh (r and xh depend on x)
             for w:  <v, gx> / w

Third derivatives are refused by autograd.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from metarun.nn.device import adds_row_by_row

Sizes = tuple[int, ...]
ROWS = 1024
"""Rows of channels-last images that are added up one by one in float32."""
_convolution_backward = torch.ops.aten.convolution_backward
_max_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, groups: int) -> Tensor:
    """`torch.nn.functional.conv2d`, in autocast's precision where that is on."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _Convolution.apply(x, weight, bias, (stride, padding, groups))


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of x (n, C, H, W) over all but the channels, the variance divided by n·H·W.

    On the CPU torch adds the rows of channels-last images one by one, and 58,800 of them leave four digits in float32.
    So parts of the batch are summed up on their own and then joined (Chan et al. 1979). Raises ValueError if there is
    one value per channel only.
    """
    if x.numel() == x.shape[1]:
        raise ValueError(f"batch norm needs more than one value per channel, got {tuple(x.shape)}")
    with torch.no_grad():
        kind = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        if not adds_row_by_row(x.device):
            variance, mean = torch.var_mean(x.to(kind), (0, 2, 3), correction=0)
            return mean, variance
        unused = torch.ones(x.shape[1], dtype=kind)  # running statistics, which say in what precision the answer is
        parts = x.split(max(1, ROWS // (x.shape[2] * x.shape[3])))
        found = [torch.ops.aten.batch_norm_update_stats(part, unused, unused, 0.0) for part in parts]
        means, variances = (torch.stack(each) for each in zip(*found, strict=True))
        share = torch.tensor([len(part) / len(x) for part in parts], dtype=kind).unsqueeze(1)
        mean = (share * means).sum(0)
        return mean, (share * (variances + (means - mean).square())).sum(0)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """`torch.nn.functional.batch_norm` by the batch's own statistics, which `batch_statistics` found."""
    return _BatchNorm.apply(x, weight, bias, mean, variance, eps)


def max_pool2d(x: Tensor, size: int, ceil: bool) -> Tensor:
    """`torch.nn.functional.max_pool2d`."""
    return _MaxPool.apply(x, size, ceil)


class _Convolution(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, geometry):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        stride, padding, groups = geometry
        return torch.conv2d(x, weight, bias, stride, padding, 1, groups)

    @staticmethod
    def backward(ctx, gy):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        return *_ConvolutionGradient.apply(gy, x, weight, ctx.geometry, ctx.needs_input_grad[:3]), None


class _ConvolutionGradient(Function):
    @staticmethod
    def forward(ctx, gy, x, weight, geometry, wanted):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(gy, x, weight)
        ctx.set_materialize_grads(False)
        ctx.geometry = geometry
        stride, padding, groups = geometry
        sizes = [weight.shape[0]]
        return _convolution_backward(gy, x, weight, sizes, stride, padding, [1, 1], False, [0, 0], groups, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx, v, big_v, c):  # type: ignore[no-untyped-def]
        gy, x, weight = ctx.saved_tensors
        stride, padding, groups = ctx.geometry

        def conv(x, weight, bias=None):  # type: ignore[no-untyped-def]
            return torch.conv2d(x, weight, bias, stride, padding, 1, groups)

        for_gy = None if c is None else _as_channels(c, gy).expand_as(gy)
        if v is not None:
            for_gy = conv(v, weight, c)
        if big_v is not None:
            for_gy = conv(x, big_v, c) if for_gy is None or v is None else for_gy.add_(conv(x, big_v))
        wanted = [ctx.needs_input_grad[1] and big_v is not None, ctx.needs_input_grad[2] and v is not None, False]
        for_x = for_w = None
        if any(wanted):
            like_x, like_w = x if v is None else v, weight if big_v is None else big_v
            for_x, for_w, _ = _convolution_backward(gy, like_x, like_w, None, stride, padding, [1, 1], False, [0, 0], groups, wanted)
        return for_gy, for_x, for_w, None, None


class _BatchNorm(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, mean, variance, eps):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps = eps
        return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx, gy):  # type: ignore[no-untyped-def]
        x, weight, mean, r = ctx.saved_tensors
        return *_BatchNormGradient.apply(gy, x, weight, mean, r, ctx.eps), None, None, None


class _BatchNormGradient(Function):
    @staticmethod
    def forward(ctx, gy, x, weight, mean, r, eps):  # type: ignore[no-untyped-def]
        gx, gw, gb = _batch_norm_backward(gy, x, weight, None, None, mean, r, True, eps, [True, True, True])
        ctx.save_for_backward(gy, x, weight, mean, r, gw, gb)
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        return gx, gw, gb

    @staticmethod
    @once_differentiable
    def backward(ctx, v, big_v, c):  # type: ignore[no-untyped-def]
        gy, x, weight, mean, r, gy_xh, gy_1 = ctx.saved_tensors
        m, wr = x.numel() // x.shape[1], weight * r
        if v is None:
            v = torch.zeros_like(x)
        for_gy, v_xh, v_1 = _batch_norm_backward(v, x, weight, None, None, mean, r, True, ctx.eps, [True, True, True])
        _, v_gy, _ = _batch_norm_backward(
            v, gy, weight, None, None, torch.zeros_like(r), torch.ones_like(r), True, ctx.eps, [False, True, False]
        )
        v_gx = v_gy - (v_1 * gy_1 + v_xh * gy_xh) / m  # divided by wr
        a, b = -r * wr * v_xh / m, -r * wr * gy_xh / m  # for_x = a gy + b v + e xh + d
        if big_v is not None:
            a = a + r * big_v
        d, e = -(a * gy_1 + b * v_1) / m, -(a * gy_xh + b * v_xh + r * wr * v_gx) / m
        for_x = _affine(gy, a, v, b, x, e * r, d - e * r * mean)
        if big_v is not None:
            for_gy.addcmul_(x, _as_channels(big_v * r, x)).sub_(_as_channels(big_v * r * mean, x))
        if c is not None:
            for_gy.add_(_as_channels(c, x))
        return for_gy, for_x, r * v_gx, None, None, None


def _affine(gy: Tensor, a: Tensor, v: Tensor, b: Tensor, x: Tensor, e: Tensor, d: Tensor) -> Tensor:
    out = torch.addcmul(_as_channels(d, x), x, _as_channels(e, x))
    return out.addcmul_(v, _as_channels(b, x)).addcmul_(gy, _as_channels(a, x))


def _as_channels(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype).view(1, -1, 1, 1)


class _MaxPool(Function):
    @staticmethod
    def forward(ctx, x, size, ceil):  # type: ignore[no-untyped-def]
        y, places = torch.ops.aten.max_pool2d_with_indices(x, [size, size], ceil_mode=ceil)
        ctx.save_for_backward(places)
        ctx.shape, ctx.size, ctx.ceil = x.shape, size, ceil
        return y

    @staticmethod
    def backward(ctx, gy):  # type: ignore[no-untyped-def]
        return _MaxPoolGradient.apply(gy, *ctx.saved_tensors, ctx.shape, ctx.size, ctx.ceil), None, None


class _MaxPoolGradient(Function):
    @staticmethod
    def forward(ctx, gy, places, shape, size, ceil):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(places)
        like = torch.empty(shape, dtype=gy.dtype, device=gy.device, memory_format=torch.channels_last)
        return _max_pool_backward(gy, like, [size, size], [size, size], [0, 0], [1, 1], ceil, places)

    @staticmethod
    @once_differentiable
    def backward(ctx, v):  # type: ignore[no-untyped-def]
        (places,) = ctx.saved_tensors
        n, c, h, w = places.shape
        rows = v.permute(0, 2, 3, 1).flatten(1, 2).gather(1, places.permute(0, 2, 3, 1).flatten(1, 2))
        return rows.view(n, h, w, c).permute(0, 3, 1, 2), None, None, None, None

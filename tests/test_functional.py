"""Derivatives that are written out by hand, against finite differences: of the functions, and of their gradients."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from metarun.functional import batch_norm, conv2d, max_pool2d


def leaf(*shape: int) -> Tensor:
    torch.manual_seed(sum(shape))
    value = torch.randn(*shape, dtype=torch.float64)
    return (value.to(memory_format=torch.channels_last) if len(shape) == 4 else value).requires_grad_()


def check(function, inputs) -> None:  # type: ignore[no-untyped-def]
    assert gradcheck(function, inputs) and gradgradcheck(function, inputs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution(stride: int, bias: bool) -> None:
    inputs = (leaf(3, 4, 6, 6), leaf(6, 2, 3, 3), *([leaf(6)] if bias else []))
    where = ((stride, stride), (1, 1), 2)
    check(lambda x, w, b=None: conv2d(x, w, b, *where), inputs)
    assert torch.equal(conv2d(*inputs, *([] if bias else [None]), *where), F.conv2d(*inputs, stride=stride, padding=1, groups=2))  # type: ignore[misc]
    images = inputs[0].detach()  # no gradient for the first layer's images
    check(lambda w: conv2d(images, w, None, *where), (inputs[1],))


@pytest.mark.parametrize("parameters", ["both", "offset", "none"])
def test_batch_norm(parameters: str) -> None:
    x, scale, offset = leaf(3, 4, 5, 5), leaf(4), leaf(4)
    kept = {"both": (scale, offset), "offset": (offset,), "none": ()}[parameters]
    check(lambda x, *own: batch_norm(x, own[0] if len(own) == 2 else None, own[-1] if own else None, 1e-3), (x, *kept))
    weight, bias = (scale if "both" in parameters else None), (offset if kept else None)
    torch.testing.assert_close(batch_norm(x, weight, bias, 1e-3), F.batch_norm(x, None, None, weight, bias, True, eps=1e-3))


@pytest.mark.parametrize("ceil", [True, False])
def test_max_pooling(ceil: bool) -> None:
    x = leaf(2, 3, 7, 7)
    check(lambda x: max_pool2d(x, 2, ceil), (x,))
    assert torch.equal(max_pool2d(x, 2, ceil), F.max_pool2d(x, 2, ceil_mode=ceil))

"""Derivatives that are written out by hand, against finite differences: of the functions, and of their gradients."""

import pytest
import torch
from helpers import random_episode
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from metarun.algorithms.maml import MAML
from metarun.backbones.conv4 import Conv4
from metarun.nn import functional
from metarun.nn.functional import batch_norm, conv2d, max_pool2d


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


def test_batch_norm() -> None:
    x, scale, offset = leaf(3, 4, 5, 5), leaf(4), leaf(4)
    check(lambda x, w, b: batch_norm(x, w, b, 1e-3), (x, scale, offset))
    constant = torch.ones(4, dtype=torch.float64)
    check(lambda x, b: batch_norm(x, constant, b, 1e-3), (x, offset))
    torch.testing.assert_close(batch_norm(x, scale, offset, 1e-3), F.batch_norm(x, None, None, scale, offset, True, eps=1e-3))
    with pytest.raises(ValueError, match="more than one value per channel"):
        batch_norm(leaf(1, 4, 1, 1), scale, offset, 1e-3)


@pytest.mark.parametrize("ceil", [True, False])
def test_max_pooling(ceil: bool) -> None:
    x = leaf(2, 3, 7, 7)
    check(lambda x: max_pool2d(x, 2, ceil), (x,))
    assert torch.equal(max_pool2d(x, 2, ceil), F.max_pool2d(x, 2, ceil_mode=ceil))


def test_no_kernel_of_batch_norm_is_called_without_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA torch then answers with empty gradients for the parameters."""
    native, calls = functional._batch_norm_backward, []

    def watched(gy, x, weight, *rest):  # type: ignore[no-untyped-def]
        calls.append(weight)
        return native(gy, x, weight, *rest)

    monkeypatch.setattr(functional, "_batch_norm_backward", watched)
    learner = MAML(Conv4(1, 16, (4, 4), scale=False), 3, 0.1).double()
    learner.meta_loss(random_episode(2, 3, 1, 2))[0].mean().backward()
    assert calls and all(weight is not None for weight in calls)

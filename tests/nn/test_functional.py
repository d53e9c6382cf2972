"""Derivatives that are written out by hand, against finite differences: of the functions, and of their gradients."""

import numpy as np
import pytest
import torch
from helpers import random_episode, rounding, spec
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from metarun.algorithms.maml import MAML
from metarun.backbones.conv4 import Conv4
from metarun.nn import functional
from metarun.nn.functional import ROWS, batch_norm, batch_statistics, conv2d, max_pool2d
from metarun.tasks import Episode, Examples


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


def normalised(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    return batch_norm(x, scale, offset, *batch_statistics(x), 1e-3)


def test_batch_norm() -> None:
    x, scale, offset = leaf(3, 4, 5, 5), leaf(4), leaf(4)
    check(normalised, (x, scale, offset))
    constant = torch.ones(4, dtype=torch.float64)
    check(lambda x, b: normalised(x, constant, b), (x, offset))
    torch.testing.assert_close(normalised(x, scale, offset), F.batch_norm(x, None, None, scale, offset, True, eps=1e-3))
    with pytest.raises(ValueError, match="more than one value per channel"):
        batch_statistics(leaf(1, 4, 1, 1))


@pytest.mark.parametrize("shape", [(75, 3, 28, 28), (7, 3, 20, 20), (2, 3, 40, 40), (40, 3, 1, 1)])
def test_statistics_of_parts_are_those_of_the_whole(shape: tuple[int, ...]) -> None:
    x = 3 + torch.randn(shape, dtype=torch.float64).to(memory_format=torch.channels_last)
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close(batch_statistics(x), (mean, variance), rtol=1e-13, atol=0)
    rows = x.numel() // x.shape[1]
    for found, exact in zip(batch_statistics(x.float()), (mean, variance), strict=True):
        assert ((found - exact).abs() <= rounding(min(rows, ROWS * 2), 2) * exact).all()


def strokes(tasks: int, ways: int, each: int, size: int, seed: int) -> Tensor:
    """Mostly black images (T, N*n, 1, H, W) of two white strokes a class, moved a little in every image."""
    draw = np.random.default_rng(seed)
    images = np.zeros((tasks, ways, each, size, size))
    for task, way in np.ndindex(tasks, ways):
        rows, columns = draw.integers(4, size - 6, 2), draw.integers(2, size // 2, 2)
        for image in images[task, way]:
            image[rows[0] : rows[0] + 2, columns[0] : columns[0] + 10] = 1
            image[columns[1] : columns[1] + 10, rows[1] : rows[1] + 2] = 1
            image[:] = np.roll(image, draw.integers(-2, 3, 2), (0, 1))
    return torch.from_numpy(images).flatten(1, 2).unsqueeze(2)


def test_single_precision_gives_the_meta_gradient_of_five_inner_steps() -> None:
    """Sums of one value after the other would not: 59,000 of them leave a cosine below 0.995 here."""
    support, query = strokes(4, 5, 1, 28, seed=0), strokes(4, 5, 15, 28, seed=0)

    def gradient(dtype: torch.dtype) -> Tensor:
        torch.manual_seed(0)
        learner = MAML(Conv4(1, 28), spec(5), inner_lr=0.1, inner_steps=5).to(dtype)
        parts = [(x.to(dtype), torch.arange(5).repeat_interleave(x.shape[1] // 5).expand(4, -1)) for x in (support, query)]
        learner.meta_loss(Episode(*(Examples(x, y, 5) for x, y in parts)))[0].mean().backward()
        return torch.cat([value.grad.double().flatten() for value in learner.parameters() if value.grad is not None])

    assert F.cosine_similarity(gradient(torch.float32), gradient(torch.float64), 0) >= 0.99999


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
    learner = MAML(Conv4(1, 16, (4, 4), scale=False), spec(3), 0.1).double()
    learner.meta_loss(random_episode(2, 3, 1, 2))[0].mean().backward()
    assert calls and all(weight is not None for weight in calls)

"""Multinomial logistic regression of many tasks at once, by Newton's method with conjugate gradients."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

NEWTON_STEPS, INNER_STEPS = 100, 200


@torch.no_grad()
def logistic_regression(x: Tensor, y: Tensor, ways: int, penalty: float) -> tuple[Tensor, Tensor]:
    """The W (T, D, N) and b (T, 1, N) with the least sum of cross-entropies of x W + b plus penalty/2 |W|^2, for x (T, n, D), y (T, n).

    Solved until the gradient is a rounding error, or for `NEWTON_STEPS`; a task that is done does not move while others go on.
    """
    # W lies in the span of the support, so that with x = r q (q of orthonormal rows) the same problem has r for features: n at most.
    q, r = torch.linalg.qr(x.mT) if x.shape[1] < x.shape[2] else (None, x.mT)
    features = F.pad(r.mT, (0, 1), value=1.0)  # of the last weight, the bias, which is not penalised
    decay = torch.full((features.shape[2], 1), penalty, dtype=x.dtype, device=x.device)
    decay[-1] = 0
    labels = F.one_hot(y, ways).to(x.dtype)
    weights = features.new_zeros(len(x), features.shape[2], ways)
    enough = 10 * torch.finfo(x.dtype).eps * features.abs().sum((1, 2))
    for _ in range(NEWTON_STEPS):
        p = (features @ weights).softmax(2)
        gradient = features.mT @ (p - labels) + decay * weights
        done = gradient.abs().amax((1, 2)) <= enough
        if done.all():
            break

        def curvature(v: Tensor, p: Tensor = p) -> Tensor:
            change = p * (features @ v)
            return features.mT @ (change - p * change.sum(2, keepdim=True)) + decay * v

        step = conjugate_gradients(curvature, -gradient)
        # Along a step, the third derivative is at most s times the second, with s the widest range of the changes of an image's scores.
        # By that, log(1 + s)/s of a Newton step lowers the loss for sure, and near the end it is all of it (Bach 2010, arXiv:0910.4627).
        change = features @ step
        s = (change.amax(2) - change.amin(2)).amax(1).clamp(min=torch.finfo(x.dtype).eps)
        weights = weights + torch.where(done, 0, s.log1p() / s)[:, None, None] * step
    weight, bias = weights[:, :-1], weights[:, -1:]
    return weight if q is None else q @ weight, bias


def conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor, tolerance: float = 1e-3) -> Tensor:
    """The v (T, k, N) for which `product(v)` is `target`, to a residual of `tolerance` times the target's norm; each task stops there."""
    v, residual, direction = torch.zeros_like(target), target, target
    size = residual.square().sum((1, 2), keepdim=True)
    enough = tolerance**2 * size
    for _ in range(INNER_STEPS):
        active = size > enough
        if not active.any():
            break
        image = product(direction)
        along = (direction * image).sum((1, 2), keepdim=True)
        rate = torch.where(active, size / along, 0)
        v, residual = v + rate * direction, residual - rate * image
        before, size = size, torch.where(active, residual.square().sum((1, 2), keepdim=True), size)
        direction = residual + torch.where(active, size / before, 0) * direction
    return v

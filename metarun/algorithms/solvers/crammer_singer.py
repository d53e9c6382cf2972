"""The multi-class support vector machine of Crammer and Singer (2001), for many tasks at once and differentiable.

    min_alpha  sum_m alpha_m' K alpha_m / 2 - sum_i alpha_{y_i,i}   subject to   alpha_{m,i} <= C [m = y_i],   sum_m alpha_{m,i} = 0

Class m then scores sum_i alpha_{m,i} k(x_i, .). A primal-dual interior-point method (Mehrotra's predictor and corrector) solves it. Its
linear systems have one block (n, n) for each class, which only the sums to 0 tie together, so that a step takes N + 1 inverses (n, n).
"""

from collections.abc import Callable

import torch
from torch import Tensor

Newton = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def crammer_singer(gram: Tensor, member: Tensor, c: float, iterations: int) -> Tensor:
    """The dual solution alpha (T, N, n) for kernel matrices (T, n, n) and one-hot classes `member` (T, N, n), in double precision.

    The gradient is the derivative of the solution by the kernel (the implicit function theorem); second derivatives would be wrong.
    """
    precise = torch.float32 if gram.device.type == "mps" else torch.float64  # Apple's devices have no other
    q, member = c * gram.to(precise).unsqueeze(1), member.to(precise)  # of alpha / C, whose bounds are then 0 and 1
    with torch.no_grad():
        a, s, nu, z = interior_point(q, member, iterations)
        step = newton(q, z / s)
    # The value is the solution's: where it is found, a Newton step is 0. Its derivative by q is the solution's too.
    return (a + step(member - times(q, a) - z - nu, torch.zeros_like(nu))[0]) * c


def interior_point(q: Tensor, upper: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solves min sum_m a_m' q a_m / 2 - sum(a upper) subject to a <= upper, sum_m a_m = 0, from a start inside of all bounds.

    Returns a (T, N, n), s = upper - a, and the multipliers nu (T, 1, n) of the sums and z (T, N, n) of the bounds; q is (T, 1, n, n).
    The number of iterations is fixed, so that nothing waits for the device; what has converged stays where it is.
    """
    scale = q.diagonal(dim1=2, dim2=3).amax(2, keepdim=True) + 1
    least = 10 * torch.finfo(q.dtype).eps * scale
    a = (upper - (1 - upper) / (upper.shape[1] - 1)) / 2
    s = upper - a
    slope = upper - times(q, a)
    nu = slope.amin(1, keepdim=True) - 1
    z = slope - nu
    for _ in range(iterations):
        step = newton(q, z / s)
        dual, primal = upper - times(q, a) - nu, -a.sum(1, keepdim=True)
        da, _ = step(dual, primal)  # towards s z = 0
        dz = z / s * da - z
        gap, length = (s * z).mean((1, 2), keepdim=True), reach(s, -da, z, dz)
        centre = ((s - length * da) * (z + length * dz)).mean((1, 2), keepdim=True)
        target = (gap * (centre / gap) ** 3).maximum(least) + da * dz
        da, dnu = step(dual - target / s, primal)  # towards s z = target
        dz = (target + z * da) / s - z
        length = 0.995 * reach(s, -da, z, dz)
        # s on its own, since upper - a has no digits left close to the bound
        a, s, nu, z = a + length * da, s - length * da, nu + length * dnu, z + length * dz
    return a, s, nu, z


def newton(q: Tensor, weight: Tensor) -> Newton:
    """The solution (x, y) of (q + diag(weight_m)) x_m + y = right_m for all m, sum_m x_m = total, as a function of right and total.

    q gets a small diagonal more, without which little is left of the digits where q is singular. This slows the iteration a little
    down (as a proximal term does) and does not change where it ends.
    """
    size = q.diagonal(dim1=2, dim2=3).mean(2, keepdim=True)
    inverse = torch.linalg.inv_ex(q + torch.diag_embed(weight + torch.finfo(q.dtype).eps ** 0.5 * size))[0]
    between = torch.linalg.inv_ex(inverse.sum(1, keepdim=True))[0]

    def step(right: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        x = times(inverse, right)
        y = times(between, x.sum(1, keepdim=True) - total)
        return x - times(inverse, y), y

    return step


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def reach(s: Tensor, ds: Tensor, z: Tensor, dz: Tensor) -> Tensor:
    """How far, at most 1, every task can go until an s or z is 0: (T, 1, 1)."""
    rate = torch.maximum(-ds / s, -dz / z).amax((1, 2), keepdim=True)
    return 1 / rate.clamp(min=1)

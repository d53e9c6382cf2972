"""Ridge regression of many tasks at once, as a differentiable function of the features."""

import torch
from torch import Tensor


def ridge(x: Tensor, y: Tensor, l2: float | Tensor) -> Tensor:
    """The W (T, D, N) with the least |x W - y|^2 + l2 |W|^2 for x (T, n, D) and y (T, n, N), by whichever system is smaller."""
    few = x.shape[1] <= x.shape[2]
    gram = x @ x.mT if few else x.mT @ x
    system = gram + l2 * torch.eye(gram.shape[1], dtype=x.dtype, device=x.device)
    # LU and not Cholesky, which fails where l2 is lost in the rounding of a large gram; `_ex` does not wait for the device.
    if few:  # Woodbury: (x'x + l2)^-1 x' = x' (xx' + l2)^-1
        return x.mT @ torch.linalg.solve_ex(system, y)[0]
    return torch.linalg.solve_ex(system, x.mT @ y)[0]

"""Classifiers that are fitted to the supports of many tasks at once, on features that stay as they are."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.base import require

Kind = Literal["linear", "cosine"]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent on the cross-entropy of a new head, as `torch.optim.SGD` would do it for every task by itself.

    lr, momentum, dampening, weight_decay: torch's; epochs, batch: passes over the support, images of an update, of which an epoch's last
    may have fewer. The first weights, torch's for a linear layer, and the order of the images are functions of `seed` and sizes alone.
    Raises UserError for what makes no sense.
    """

    lr: float = 0.01
    momentum: float = 0.9
    dampening: float = 0.9
    weight_decay: float = 1e-3
    epochs: int = 100
    batch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.lr > 0, "head.lr", self.lr, "a number above 0")
        require(0 <= self.momentum < 1, "head.momentum", self.momentum, "0 or more and below 1")
        require(0 <= self.dampening <= 1, "head.dampening", self.dampening, "a number from 0 to 1")
        require(self.weight_decay >= 0, "head.weight_decay", self.weight_decay, "0 or more")
        require(self.epochs >= 0, "head.epochs", self.epochs, "0 or more")
        require(self.batch >= 1, "head.batch", self.batch, "1 or more")

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, ways: int, kind: Kind, scale: float) -> tuple[Tensor, Tensor]:
        """Weights (T, N, D) and biases (T, 1, N) of the scores z·w + b, from features x (T, n, D) and labels y (T, n).

        `cosine`: b = 0 and w = scale g v/|v| with g and v fitted (weight normalisation), for features that are unit vectors.
        """
        # The weights never leave the span of where they start and of the support, so that what is fitted are their coefficients
        # (T, N, N+n) there: no update touches a vector of D numbers, and the numbers are those of SGD on the weights.
        weight, bias, order = self.start(ways, x.shape[2], x.shape[1])
        basis = torch.cat([weight.to(x).expand(len(x), -1, -1), x], 1)
        products = basis @ basis.mT
        coefficients = torch.eye(ways, basis.shape[1], dtype=x.dtype, device=x.device).repeat(len(x), 1, 1)
        lengths = weight.to(x).norm(dim=1)
        second = (bias.to(x) if kind == "linear" else lengths).repeat(len(x), 1)
        fitted, moving = [coefficients, second], list[Tensor]()
        labels = F.one_hot(y, ways).to(x.dtype)
        for chosen in (some for epoch in order.to(x.device) for some in epoch.split(self.batch)):
            rows = ways + chosen
            gradient = linear_gradient if kind == "linear" else cosine_gradient
            gradients = gradient(coefficients, second, products, rows, labels[:, chosen], scale)
            moving = self.update(fitted, gradients, moving)
        weights = coefficients @ basis
        if kind == "cosine":
            return F.normalize(weights, dim=2) * (scale * second.unsqueeze(2)), torch.zeros_like(second).unsqueeze(1)
        return weights, second.unsqueeze(1)

    def start(self, ways: int, features: int, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """The first weights (N, D) and biases (N,), and the order of the images (epochs, n), on the CPU."""
        dice = torch.Generator().manual_seed(self.seed)
        weight, bias = first_weights(ways, features, dice)
        order = [torch.randperm(images, generator=dice) for _ in range(self.epochs)]
        return weight, bias, torch.stack(order) if order else torch.empty(0, images, dtype=torch.int64)

    def update(self, fitted: list[Tensor], gradients: list[Tensor], moving: list[Tensor]) -> list[Tensor]:
        """Moves `fitted` in place; returns the momentum, which is the gradient itself at first, as in torch."""
        torch._foreach_add_(gradients, fitted, alpha=self.weight_decay)
        if not moving:
            moving = gradients
        else:
            torch._foreach_mul_(moving, self.momentum)
            torch._foreach_add_(moving, gradients, alpha=1 - self.dampening)
        torch._foreach_add_(fitted, moving, alpha=-self.lr)
        return moving


def first_weights(ways: int, features: int, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of a linear layer: weights (N, D) and biases (N,), distributed as torch's own."""
    bound = features**-0.5
    weight = torch.empty(ways, features).uniform_(-bound, bound, generator=dice)
    return weight, torch.empty(ways).uniform_(-bound, bound, generator=dice)


def linear_gradient(coefficients: Tensor, bias: Tensor, products: Tensor, rows: Tensor, labels: Tensor, scale: float) -> list[Tensor]:
    """Of the mean cross-entropy of the basis vectors `rows` with one-hot `labels` (T, b, N), in coefficients and biases (T, N)."""
    wrong = torch.baddbmm(bias.unsqueeze(1), products[:, rows], coefficients.mT).softmax(2).sub_(labels).div_(len(rows))
    return [torch.zeros_like(coefficients).index_copy_(2, rows, wrong.mT), wrong.sum(1)]


def cosine_gradient(coefficients: Tensor, norm: Tensor, products: Tensor, rows: Tensor, labels: Tensor, scale: float) -> list[Tensor]:
    """The same for weights scale·g·v/|v|, in the coefficients of v and in the norms g (T, N)."""
    length = (coefficients @ products).mul_(coefficients).sum(2).sqrt_()
    cosines = (products[:, rows] @ coefficients.mT).div_(length.unsqueeze(1))
    wrong = (cosines * (scale * norm).unsqueeze(1)).softmax(2).sub_(labels).mul_(scale / len(rows))
    along = (wrong * cosines).sum(1)  # dL/dg: the part of dL/dw that is parallel to v
    across = (-along / length).unsqueeze(2) * coefficients
    return [across.index_add_(2, rows, wrong.mT).mul_((norm / length).unsqueeze(2)), along]


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1; of one near zero, what Baseline++'s code makes of it."""
    return x / (x.norm(dim=-1, keepdim=True) + 1e-5)

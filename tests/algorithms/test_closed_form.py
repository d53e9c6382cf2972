"""R2-D2 and MetaOptNet against brute force, scikit-learn, finite differences and the conditions that a solution has to meet."""

import numpy as np
import pytest
import torch
from helpers import random_episode, rounding, spec
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn import functional as F

from metarun.algorithms.base import MetricLearner
from metarun.algorithms.meta_opt_net import MetaOptNet
from metarun.algorithms.r2d2 import R2D2, divided, drawn
from metarun.algorithms.solvers.crammer_singer import crammer_singer, interior_point
from metarun.backbones.conv4 import Conv4
from metarun.errors import UserError
from metarun.tasks import Episode, Examples

BACKBONE = Conv4(1, 8, (3,))


def clusters(tasks: int, ways: int, shots: int, features: int, norm: float = 1.0) -> Examples:
    """Embeddings in float64 whose classes overlap."""
    y = torch.arange(ways).repeat_interleave(shots)
    x = torch.randn(tasks, ways, features, dtype=torch.float64)[:, y] + torch.randn(tasks, len(y), features, dtype=torch.float64)
    return Examples(norm * x / features**0.5, y.expand(tasks, -1), ways)


def one_hot(support: Examples) -> Tensor:
    return F.one_hot(support.y, support.ways).to(support.x.dtype)


def every_head() -> list[MetricLearner]:
    return [R2D2(BACKBONE, spec()), MetaOptNet(BACKBONE, spec()), MetaOptNet(BACKBONE, spec(), "ridge")]


@pytest.mark.parametrize("features", [3, 40], ids=["primal", "woodbury"])
@pytest.mark.parametrize("learn_l2", [False, True])
def test_r2d2_solves_the_normal_equations(features: int, learn_l2: bool) -> None:
    torch.manual_seed(0)
    learner = R2D2(BACKBONE, spec(), l2=0.7, learn_l2=learn_l2, scale=3.0).double()
    nn.init.constant_(learner.bias, 0.25)
    support, query = clusters(2, 4, 3, features, norm=3.0), torch.randn(2, 5, features, dtype=torch.float64)
    scores = learner.classify(support)(query)
    for t in range(2):
        x = np.column_stack([support.x[t].numpy(), np.ones(12)])
        w = np.linalg.inv(x.T @ x / 12 + 0.7 * np.eye(features + 1)) @ x.T @ one_hot(support)[t].numpy() / 12
        expected = 3 * np.column_stack([query[t].numpy(), np.ones(5)]) @ w + 0.25
        np.testing.assert_allclose(scores[t].detach().numpy(), expected, rtol=1e-6 if learn_l2 else 1e-10)  # its logarithm was float32


@pytest.mark.parametrize("features", [3, 40], ids=["primal", "woodbury"])
def test_ridge_head_is_that_of_the_dual(features: int) -> None:
    """The paper's dual, max over a of -|a|^2 l2 / 2 - |X' a|^2 / 2 + 2 tr(a' Y), by its own linear system."""
    torch.manual_seed(0)
    support, query = clusters(2, 4, 3, features), torch.randn(2, 5, features, dtype=torch.float64)
    alpha = torch.linalg.solve(support.x @ support.x.mT + 50 * torch.eye(12, dtype=torch.float64), 2 * one_hot(support))
    scores = MetaOptNet(BACKBONE, spec(), "ridge", l2=50.0).double().classify(support)(query)
    torch.testing.assert_close(scores, query @ support.x.mT @ alpha, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("c", [0.01, 0.1, 10.0])
@pytest.mark.parametrize("norm", [1.0, 10.0])
def test_svm_scores_are_those_of_scikit_learn(c: float, norm: float) -> None:
    torch.manual_seed(0)
    support, query = clusters(2, 3, 6, 10, norm), torch.randn(2, 9, 10, dtype=torch.float64)
    scores = MetaOptNet(BACKBONE, spec(), c=c, diagonal=0.0).double().classify(support)(query)
    for t in range(2):
        svm = LinearSVC(multi_class="crammer_singer", C=c, fit_intercept=False, loss="hinge", tol=1e-9, max_iter=10**6, random_state=0)
        svm.fit(support.x[t].numpy(), support.y[t].numpy())
        expected = svm.decision_function(query[t].numpy())
        np.testing.assert_allclose(scores[t].detach().numpy(), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0, 1e3])
@pytest.mark.parametrize(("ways", "shots", "features"), [(5, 1, 1600), (5, 5, 64), (5, 15, 20), (20, 2, 30), (2, 10, 3)])
def test_solver_meets_the_conditions_of_a_solution(ways: int, shots: int, features: int, c: float) -> None:
    """Tasks of different difficulty in one batch; in every other one, an image is also in another class and twice in its own."""
    torch.manual_seed(0)
    support = clusters(8, ways, shots, features)
    x = support.x * torch.tensor([0.1, 0.1, 1, 1, 10, 10, 300, 300], dtype=torch.float64)[:, None, None]
    x[1::2, 1] = x[1::2, -1] = x[1::2, 0]
    q, upper = c * (x @ x.mT).unsqueeze(1), one_hot(support).mT
    a, _, nu, z = interior_point(q, upper, MetaOptNet(BACKBONE, spec()).iterations)
    least = 1e-8 * q.amax((1, 2, 3)).clamp(min=1)
    for violation in (
        (q @ a.unsqueeze(3)).squeeze(3) - upper + nu + z,
        a.sum(1, keepdim=True),
        (a - upper).clamp(min=0),
        z.clamp(max=0),
        (upper - a) * z,
    ):
        assert (violation.abs().amax((1, 2)) < least).all()


@pytest.mark.parametrize("features", [3, 12])
def test_r2d2_gradient_is_that_of_finite_differences(features: int) -> None:
    torch.manual_seed(0)
    learner, support = R2D2(BACKBONE, spec(), l2=0.5, learn_l2=True).double(), clusters(2, 3, 2, features)
    query = torch.randn(2, 4, features, dtype=torch.float64, requires_grad=True)

    def scores(x: Tensor, query: Tensor, *parameters: Tensor) -> Tensor:
        return learner.classify(Examples(x, support.y, 3))(query)

    own = (learner.scale, learner.bias, learner.log_l2)
    assert torch.autograd.gradcheck(scores, (support.x.requires_grad_(), query, *own))


@pytest.mark.parametrize("diagonal", [0.0, 1.0])
@pytest.mark.parametrize("c", [0.1, 1.0, 100.0])
def test_svm_gradient_is_that_of_finite_differences(c: float, diagonal: float) -> None:
    torch.manual_seed(0)
    learner, support = MetaOptNet(BACKBONE, spec(), c=c, diagonal=diagonal).double(), clusters(2, 3, 3, 12, norm=2.0)
    query, direction = torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        return (learner.classify(Examples(x, support.y, 3))(query) * direction).sum()

    (gradient,) = torch.autograd.grad(value(x := support.x.clone().requires_grad_()), x)
    with torch.no_grad():
        for _ in range(5):
            move = 1e-5 * torch.randn_like(x)
            slope = (value(x + move) - value(x - move)) / 2
            torch.testing.assert_close((gradient * move).sum(), slope, rtol=1e-5, atol=1e-10)


def test_svm_weights_stay_within_their_bounds() -> None:
    torch.manual_seed(0)
    support = clusters(3, 5, 4, 8, norm=5.0)
    alpha = crammer_singer(support.x @ support.x.mT, one_hot(support).mT, 0.1, 20)
    assert alpha.max() < 0.1 + 1e-9 and (alpha * (1 - one_hot(support).mT)).max() < 1e-9
    assert alpha.max() > 0.05


@pytest.mark.parametrize(("features", "norm"), [(1600, 1.0), (1600, 40.0), (16000, 1e4)])
def test_single_precision_suffices(features: int, norm: float) -> None:
    torch.manual_seed(0)
    support, query = clusters(2, 5, 15, features, norm), clusters(2, 5, 3, features, norm).x
    condition = float(torch.linalg.cond(support.x @ support.x.mT).max())  # of the images' products, which are sums of so many features
    assert condition < 50
    for learner in every_head():
        exact = learner.double().classify(support)(query).detach()
        x = support.x.float().requires_grad_()
        scores = learner.float().classify(Examples(x, support.y, 5))(query.float())
        F.cross_entropy(scores.flatten(0, 1), torch.arange(5).repeat_interleave(3).repeat(2)).backward()
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() > 0
        assert (scores - exact).abs().max() < rounding(features, 2 * condition) * exact.abs().max()


def test_a_task_alone_gets_the_same_scores() -> None:
    torch.manual_seed(0)
    support, query = clusters(4, 5, 3, 20, norm=4.0), torch.randn(4, 6, 20, dtype=torch.float64)
    for learner in every_head():
        together = learner.double().classify(support)(query)
        alone = [learner.classify(support.tasks(t, t + 1))(query[t : t + 1]) for t in range(4)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-9, atol=1e-12)


def test_random_shots_depend_on_the_step_and_keep_classes_together() -> None:
    assert [drawn(1, 9, step) for step in range(50)] == [drawn(1, 9, step) for step in range(50)]
    assert {drawn(1, 9, step) for step in range(200)} == set(range(1, 10))
    episode = random_episode(2, 3, 2, 4)
    again = divided(episode, 5)
    assert torch.equal(again.support.y[0], torch.arange(3).repeat_interleave(5)) and torch.equal(again.query.y[0], torch.arange(3))
    for k in range(3):
        images = torch.cat([episode.support.x[:, 2 * k : 2 * k + 2], episode.query.x[:, 4 * k : 4 * k + 4]], 1)
        assert torch.equal(again.support.x[:, 5 * k : 5 * k + 5], images[:, :5]) and torch.equal(again.query.x[:, k], images[:, 5])


def test_random_shots_change_what_is_learned_from() -> None:
    torch.manual_seed(0)
    episode = random_episode(2, 3, 2, 3, size=8)
    learner = R2D2(BACKBONE, spec(), random_shots=(1, 4)).double()
    step = next(step for step in range(100) if drawn(1, 4, step) == 3)
    learner.begin_step(step)
    torch.testing.assert_close(
        learner.meta_loss(episode)[0].mean(), R2D2(BACKBONE, spec()).double().meta_loss(divided(episode, 3))[0].mean()
    )
    with pytest.raises(UserError, match=r"random_shots: \[1, 5\] is not allowed; expected a most below 5"):
        R2D2(BACKBONE, spec(), random_shots=(1, 5)).double().meta_loss(episode)


def test_smoothed_labels_go_to_the_other_classes() -> None:
    torch.manual_seed(0)
    episode: Episode = random_episode(2, 3, 2, 3, size=8)
    smooth = MetaOptNet(BACKBONE, spec(), label_smoothing=0.1).double()
    losses, metrics = smooth.meta_loss(episode)
    assert "loss" not in metrics  # so what is minimised is shown
    images = torch.cat([episode.support.x, episode.query.x], 1)
    embedded = smooth.embed(images, "track")
    logits = smooth.classify(Examples(embedded[:, :6], episode.support.y, 3))(embedded[:, 6:])
    labels = F.one_hot(episode.query.y, 3)
    expected = -((0.9 * labels + 0.05 * (1 - labels)) * logits.log_softmax(-1)).sum(-1).mean(1)
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("values", [{"l2": 0}, {"scale": -1}, {"random_shots": [3, 1]}, {"random_shots": [0, 1]}, {"random_shots": [2]}])
def test_r2d2_refuses(values: dict) -> None:
    with pytest.raises(UserError, match=f"algorithm.{next(iter(values))}: "):
        R2D2(BACKBONE, spec(), **values)


@pytest.mark.parametrize("values", [{"head": "tree"}, {"c": 0}, {"diagonal": -1}, {"iterations": 0}, {"l2": -2}, {"label_smoothing": 1}])
def test_meta_opt_net_refuses(values: dict) -> None:
    with pytest.raises(UserError, match=f"algorithm.{next(iter(values))}: "):
        MetaOptNet(BACKBONE, spec(), **values)

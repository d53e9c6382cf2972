"""Methods that are trained as one classifier: their heads, and their training, against computations by hand and other libraries."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, Metarun, random_episode, spec
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from metarun.algorithms.baseline import Baseline
from metarun.algorithms.fine_tune import FineTune
from metarun.algorithms.logistic_regression import LogisticRegression
from metarun.algorithms.meta_baseline import MetaBaseline
from metarun.algorithms.nearest_neighbour import NearestNeighbour
from metarun.algorithms.simple_shot import SimpleShot
from metarun.algorithms.solvers.heads import SGD, first_weights
from metarun.algorithms.solvers.newton import logistic_regression
from metarun.algorithms.supervised import SupervisedLearner
from metarun.algorithms.teacher import Teacher
from metarun.backbones.conv4 import Conv4
from metarun.errors import UserError
from metarun.runs.checkpoint import facts_of, load_checkpoint
from metarun.tasks import Episode, Examples


def backbone() -> Conv4:
    torch.manual_seed(0)
    return Conv4(1, 8, (4, 6))


def support(tasks: int = 3, ways: int = 3, shots: int = 5, features: int = 24) -> Examples:
    torch.manual_seed(1)
    labels = torch.arange(ways).repeat_interleave(shots)
    x = torch.randn(tasks, ways * shots, features, dtype=torch.float64) + F.one_hot(labels % features, features)
    return Examples(x, labels.expand(tasks, -1), ways)


def batch(tasks: int = 1, images: int = 12, classes: int = 4, size: int = 8) -> Examples:
    torch.manual_seed(2)
    x = torch.randn(tasks, images, 1, size, size, dtype=torch.float64)
    return Examples(x, torch.randint(classes, (tasks, images)), classes)


class OfficialCosine(nn.Module):
    """Baseline++'s layer as its authors describe it: unit features, weight normalisation, a fixed scale."""

    def __init__(self, features: int, ways: int) -> None:
        super().__init__()
        self.linear = weight_norm(nn.Linear(features, ways, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.linear(x / (x.norm(dim=1, keepdim=True) + 1e-5))


def linear(weight: Tensor, bias: Tensor) -> nn.Module:
    layer = nn.Linear(weight.shape[1], len(weight)).double()
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def cosine(weight: Tensor, bias: Tensor) -> nn.Module:
    layer = OfficialCosine(weight.shape[1], len(weight)).double()
    state = {"original0": weight.double().norm(dim=1, keepdim=True), "original1": weight}
    layer.load_state_dict({f"linear.parametrizations.weight.{name}": value for name, value in state.items()})
    return layer


@pytest.mark.parametrize("make, kind", [(linear, "linear"), (cosine, "cosine")])
@pytest.mark.parametrize("features", [24, 4])
def test_a_head_by_sgd_is_torchs_task_by_task(make: Callable[[Tensor, Tensor], nn.Module], kind: str, features: int) -> None:
    known, asked = support(features=features), torch.randn(3, 7, features, dtype=torch.float64)
    head = SGD(lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.05, epochs=12, batch=4, seed=5)
    with torch.no_grad():
        scores = Baseline(backbone(), spec(classes=4), head, kind).classify(known)(asked)  # type: ignore[arg-type]
    weight, bias, order = head.start(3, features, 15)
    assert all(sorted(epoch) == list(range(15)) for epoch in order.tolist()) and order.shape == (12, 15)
    for t in range(3):
        layer = make(weight, bias)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1, 0.8, 0.3, 0.05)
        for epoch in order:
            for chosen in epoch.split(4):
                optimizer.zero_grad()
                F.cross_entropy(layer(known.x[t, chosen]), known.y[t, chosen]).backward()
                optimizer.step()
        torch.testing.assert_close(scores[t], layer(asked[t]).detach(), rtol=1e-9, atol=1e-9)
        assert (scores[t] - make(weight, bias)(asked[t])).abs().max() > 0.1  # it has learned something


def test_simple_shot_by_hand() -> None:
    known, asked = support(features=24), torch.randn(3, 7, 24, dtype=torch.float64)
    learner = SimpleShot(backbone(), spec(classes=4)).double()
    middle = torch.linspace(-0.5, 0.5, 24, dtype=torch.float64)
    learner.total.copy_(0.25 * middle)
    learner.share.fill_(0.25)
    for learner.transform in ("un", "l2n", "cl2n"):

        def transform(x: Tensor) -> Tensor:
            x = x - middle if learner.transform == "cl2n" else x
            return x if learner.transform == "un" else x / x.norm(dim=-1, keepdim=True)

        centroids = transform(known.x).unflatten(1, (3, 5)).mean(2)
        expected = -(transform(asked).unsqueeze(2) - centroids.unsqueeze(1)).square().sum(-1)
        torch.testing.assert_close(learner.classify(known)(asked), expected)


def test_the_mean_of_simple_shot_is_that_of_training_and_moves_nowhere_else() -> None:
    learner, tasks = SimpleShot(backbone(), spec(classes=4), momentum=0.8).double(), batch(3)
    assert not learner.mean.any()
    seen = [learner.embed(x[None], "query")[0].mean(0) for x in tasks.x]
    learner.meta_loss(tasks)
    weights = torch.tensor([0.8**2, 0.8, 1.0], dtype=torch.float64)
    torch.testing.assert_close(learner.mean, torch.stack(seen).T @ weights / weights.sum())
    alone = SimpleShot(backbone(), spec(classes=4), momentum=0.8).double()
    for part in tasks.chunks(1):
        alone.meta_loss(part)
    torch.testing.assert_close(alone.state_dict(), learner.state_dict())
    before = learner.mean.clone()
    learner.adapt(Examples(tasks.x[:, :4], torch.arange(4).expand(3, -1), 4))(tasks.x)
    assert torch.equal(learner.mean, before)


def plain_scores(learner: SupervisedLearner, x: Tensor) -> Tensor:
    """By the classifier's weights, of images (T, B, C, H, W) normalised by mini-batch."""
    layer = learner.classifier
    assert isinstance(layer, nn.Linear)
    return learner.embed(x, "query") @ layer.weight.T + layer.bias


def test_label_smoothing_is_torchs() -> None:
    learner, tasks = NearestNeighbour(backbone(), spec(classes=4), label_smoothing=0.2).double(), batch(2)
    losses, metrics = learner.meta_loss(tasks)
    loss = losses.mean()
    scores = plain_scores(learner, tasks.x).flatten(0, 1)
    torch.testing.assert_close(loss, F.cross_entropy(scores, tasks.y.flatten(), label_smoothing=0.2))
    spread = F.one_hot(tasks.y.flatten(), 4) * 0.8 + 0.2 / 4
    torch.testing.assert_close(loss, -(spread * scores.log_softmax(1)).sum(1).mean())
    torch.testing.assert_close(metrics["accuracy"], (scores.argmax(1) == tasks.y.flatten()).float().view(2, -1).mean(1))
    with pytest.raises(TypeError):
        learner.meta_loss(Episode(tasks, tasks))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_distillation_by_hand_and_its_gradient(share: float) -> None:
    expert = NearestNeighbour(Conv4(1, 8, (5, 3)), spec(classes=4)).double().eval().requires_grad_(False)
    teacher = Teacher("somewhere", share=share, temperature=2.0)
    teacher.opened = (expert, spec(classes=4).facts)
    learner, tasks = NearestNeighbour(backbone(), spec(classes=4), teacher=teacher).double(), batch(2)
    kept = {name: value.clone() for name, value in expert.state_dict().items()}
    parameters = list(learner.parameters())
    losses, metrics = learner.meta_loss(tasks)
    loss = losses.mean()
    scores = plain_scores(learner, tasks.x).flatten(0, 1)
    layer = expert.classifier
    q = ((expert.embed(tasks.x) @ layer.weight.T + layer.bias) / 2).softmax(-1).flatten(0, 1)  # type: ignore[operator]
    apart = (q * (q.log() - (scores / 2).log_softmax(1))).sum(1).view(2, -1).mean(1)
    each = torch.stack([F.cross_entropy(mine, y) for mine, y in zip(scores.view(2, -1, 4), tasks.y, strict=True)])
    torch.testing.assert_close(losses, (1 - share) * each + share * 4 * apart)
    assert "loss" not in metrics
    expected = (1 - share) * F.cross_entropy(scores, tasks.y.flatten()) + share * 4 * apart.mean()
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(expert.state_dict(), kept, rtol=0, atol=0)
    assert len(learner.state_dict()) == len(NearestNeighbour(backbone(), spec(classes=4)).state_dict())


@pytest.mark.parametrize("penalty, features", [(1.0, 40), (1e-3, 40), (0.1, 6)])
def test_logistic_regression_is_scikit_learns(penalty: float, features: int) -> None:
    from sklearn.linear_model import LogisticRegression as Reference

    known, asked = support(features=features), torch.randn(3, 7, features, dtype=torch.float64)
    scores = LogisticRegression(backbone(), spec(classes=4), penalty).classify(known)(asked)
    for t in range(3):
        reference = Reference(C=1 / penalty, tol=1e-10, max_iter=10000)
        reference.fit(F.normalize(known.x[t], dim=1).numpy(), known.y[t].numpy())
        expected = torch.from_numpy(reference.decision_function(F.normalize(asked[t], dim=1).numpy()))
        torch.testing.assert_close(scores[t].log_softmax(1), expected.log_softmax(1), rtol=1e-5, atol=1e-5)


def test_logistic_regression_takes_single_precision_and_any_scale() -> None:
    """Far from the unit vectors that it is used on, where Newton's steps have to be shortened and the curvature is badly scaled."""
    known = support(ways=20, shots=2, features=8)
    for factor in (0.01, 1.0, 5.0):
        weight, bias = logistic_regression(factor * known.x.float(), known.y, 20, 1e-2)
        exact = logistic_regression(factor * known.x, known.y, 20, 1e-2)
        scores, expected = (factor * known.x @ w.double() + b.double() for w, b in ((weight, bias), exact))
        torch.testing.assert_close(scores.softmax(2), expected.softmax(2), rtol=0, atol=2e-3)
        x = (factor * known.x).requires_grad_()
        w, b = (value.requires_grad_() for value in exact)
        loss = F.cross_entropy((x @ w + b).flatten(0, 1), known.y.flatten(), reduction="sum") + 0.005 * w.square().sum()
        assert all(slope.abs().max() < 1e-9 * max(1, factor) for slope in torch.autograd.grad(loss, [w, b]))


def test_nearest_neighbours_by_hand() -> None:
    known, asked = support(), torch.randn(3, 7, 24, dtype=torch.float64)
    cosines = F.cosine_similarity(asked.unsqueeze(2), known.x.unsqueeze(1), dim=-1)
    distances = -(asked.unsqueeze(2) - known.x.unsqueeze(1)).square().sum(-1)
    for distance, near in (("cosine", cosines), ("euclidean", distances)):
        scores = NearestNeighbour(backbone(), spec(classes=4), distance).classify(known)(asked)  # type: ignore[arg-type]
        torch.testing.assert_close(scores, near.unflatten(2, (3, 5)).amax(3))
        assert torch.equal(scores.argmax(2), near.argmax(2) // 5)


def test_meta_baseline_has_two_stages() -> None:
    learner, tasks = MetaBaseline(backbone(), spec(classes=4), pretrain_steps=7).double(), batch(2)
    assert learner.supervised_steps == 7 and MetaBaseline(backbone(), spec(classes=4), pretrain_steps=None).supervised_steps is None
    first = learner.meta_loss(tasks)[0].mean()
    torch.testing.assert_close(first, F.cross_entropy(plain_scores(learner, tasks.x).flatten(0, 1), tasks.y.flatten()))
    slopes = torch.autograd.grad(first, [learner.scale, learner.classifier.bias], allow_unused=True)  # type: ignore[list-item]
    assert slopes[0] is None and slopes[1] is not None
    episode = random_episode(2, 3, 2, 4, size=8)
    second = learner.meta_loss(episode)[0].mean()
    z = learner.embed(torch.cat([episode.support.x, episode.query.x], 1), "query")
    centroids = z[:, :6].unflatten(1, (3, 2)).mean(2)
    scores = 10 * F.cosine_similarity(z[:, 6:].unsqueeze(2), centroids.unsqueeze(1), dim=-1)
    torch.testing.assert_close(second, F.cross_entropy(scores.flatten(0, 1), episode.query.y.flatten()))
    assert torch.autograd.grad(second, learner.scale)[0] != 0


@pytest.mark.parametrize("head_only", [False, True])
@pytest.mark.parametrize("statistics", ["running", "query"])
def test_fine_tuning_is_a_plain_loop_over_tasks(statistics: str, head_only: bool) -> None:
    optimizer = partial(torch.optim.Adam, lr=0.01, weight_decay=0.1)
    learner = FineTune(backbone(), spec(classes=4), optimizer, steps=5, head_only=head_only, seed=3).double()
    learner.meta_loss(batch())  # so that the running statistics are not those that it started with
    episode = random_episode(2, 3, 2, 4, size=8)
    with torch.no_grad():
        scores = learner.adapt(episode.support, statistics)(episode.query.x)
    weight, bias = first_weights(3, 24, torch.Generator().manual_seed(3))
    for t in range(2):
        network, head = copy.deepcopy(learner.trained.backbone), linear(weight, bias)
        network.train(statistics != "running").requires_grad_(not head_only)
        steps = optimizer([p for p in (*network.parameters(), *head.parameters()) if p.requires_grad])
        for _ in range(5):
            steps.zero_grad()
            F.cross_entropy(head(network(episode.support.x[t : t + 1])[0]), episode.support.y[t]).backward()
            steps.step()
        with torch.no_grad():
            expected = head(network(episode.query.x[t : t + 1])[0])
        torch.testing.assert_close(scores[t], expected)


def test_a_run_teaches_another_and_a_wrong_one_is_refused(metarun: Metarun, tmp_path: Path, trained: Path) -> None:
    line = f"train algorithm=logistic_regression {TINY} task.batch=8"
    assert metarun(f"{line} hydra.run.dir=first").code == 0
    facts = facts_of(load_checkpoint(Path("first"), "last"))

    def student_of(**changes: Any) -> LogisticRegression:
        told = replace(spec(), facts={**facts, **changes})
        return LogisticRegression(backbone(), told, teacher=Teacher("first"))

    student = student_of()
    torch.manual_seed(5)
    student.check_training()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))  # no random number was used up
    taught = student.expert()
    assert not taught.training and not any(p.requires_grad for p in taught.parameters())
    best = load_checkpoint(Path("first"), "best")["model"]
    assert all(torch.equal(value, best[name]) for name, value in taught.state_dict().items())
    with pytest.raises(UserError, match="other classes"):
        student_of(names=facts["names"][::-1]).check_training()
    with pytest.raises(UserError, match=r"on \d+ classes; expected 3 classes"):
        student_of(classes=3).check_training()
    with pytest.raises(UserError, match="images of"):
        student_of(shape=[32, 32, 1]).check_training()
    outcome = metarun(f"{line} algorithm.teacher.run=first hydra.run.dir=second")
    assert outcome.code == 0, outcome.err
    Path("first").rename("elsewhere")
    assert metarun("evaluate run=second device=cpu").code == 0
    for run, reason in (("trained", "no classifier"), ("first", "algorithm.teacher.run: first: no such run")):
        outcome = metarun(f"{line} algorithm.teacher.run={run} hydra.run.dir={run}-pupil")
        assert outcome.code == 2 and reason in outcome.err and len(outcome.err.strip().splitlines()) == 1, outcome.err

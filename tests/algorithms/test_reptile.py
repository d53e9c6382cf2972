"""Reptile against a loop over tasks and mini-batches in plain torch functions, with Adam written out."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers import TINY, Metarun, plain_forward, random_episode, spec
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.reptile import Reptile, SecondMoment, minibatches
from metarun.backbones.conv4 import Conv4
from metarun.errors import UserError
from metarun.tasks import Episode

Weights = dict[str, Tensor]
LR, STEPS, BATCH, TEST_STEPS, TEST_BATCH = 0.01, 4, 5, 6, 4


def learner() -> Reptile:
    torch.manual_seed(0)
    return Reptile(Conv4(1, 16, (5, 6)), spec(3), LR, STEPS, BATCH, TEST_STEPS, TEST_BATCH).double()


def plain_adam(w: Weights, v: Weights, count: int, x: Tensor, y: Tensor, order: Tensor) -> tuple[Weights, Weights]:
    """One task: a new phi and a new second moment, from `count` updates before."""
    for k, chosen in enumerate(order, 1):
        w = {name: value.detach().requires_grad_() for name, value in w.items()}
        gradients = torch.autograd.grad(F.cross_entropy(plain_forward(w, x[chosen]), y[chosen]), list(w.values()))
        v = {name: 0.999 * v[name] + 0.001 * g**2 for name, g in zip(w, gradients, strict=True)}
        rate = LR * (1 - 0.999 ** (count + k)) ** 0.5
        w = {name: w[name].detach() - rate * g / (v[name].sqrt() + 1e-8) for name, g in zip(w, gradients, strict=True)}
    return w, v


def plain_step(w: Weights, v: Weights, count: int, episode: Episode, step: int) -> tuple[Weights, Weights]:
    """The mean of phi, and the second moment after all tasks: every task starts from `v`, their changes follow one another."""
    order, phis, after = minibatches(episode.support.x.shape[1], BATCH, STEPS, seed=step + 1), [], v
    for x, y in zip(episode.support.x, episode.support.y, strict=True):
        phi, end = plain_adam(w, v, count, x, y, order)
        phis.append(phi)
        after = {name: 0.999**STEPS * after[name] + (end[name] - 0.999**STEPS * v[name]) for name in v}
    return {name: torch.stack([phi[name] for phi in phis]).mean(0) for name in w}, after


def flat(values: Weights) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def gradient(of: Reptile, episode: Episode, chunk: int) -> list[Tensor]:
    of.zero_grad()
    for part in episode.chunks(chunk):
        (of.meta_loss(part)[0].mean() * len(part) / len(episode)).backward()
    return [parameter.grad for parameter in of.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("chunk", [3, 1])
def test_two_steps_and_a_test_equal_a_plain_loop_over_tasks(chunk: int) -> None:
    ours = learner()
    w = {name: value.detach().clone() for name, value in ours.net.named_parameters()}
    v, count = {name: torch.zeros_like(value) for name, value in w.items()}, 0
    for step in range(2):  # the second one goes on with the second moment of the first
        episode = random_episode(3, 3, 4, 1)
        phi, moved = plain_step(w, v, count, episode, step)
        ours.begin_step(step)
        for ours_p, name in zip(gradient(ours, episode, chunk), w, strict=True):
            noise = 1e-8 if "conv.bias" in name else 1e-10  # before batch norm its gradient is rounding, which Adam divides by 1e-8
            torch.testing.assert_close(ours_p, w[name] - phi[name], rtol=1e-10, atol=noise)
        torch.testing.assert_close(ours.moment.latest, flat(moved), rtol=1e-10, atol=1e-14)
        torch.optim.SGD(ours.parameters(), lr=1.0).step()
        w, v, count = phi, moved, count + 3 * STEPS
    ours.eval()
    before, episode = deepcopy(ours.state_dict()), random_episode(2, 3, 2, 2)
    with torch.no_grad():
        scores = ours.adapt(episode.support, "query")(episode.query.x)
    order = minibatches(6, TEST_BATCH, TEST_STEPS, seed=0)
    for t in range(2):  # every test task starts from where training ended, whatever was tested before
        tested, _ = plain_adam(w, v, count, episode.support.x[t], episode.support.y[t], order)
        torch.testing.assert_close(scores[t], plain_forward(tested, episode.query.x[t]), rtol=1e-9, atol=1e-9)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_resumed_learner_takes_the_same_step_to_the_last_bit() -> None:
    ours, resumed, episode = learner(), learner(), random_episode(2, 3, 4, 1)
    ours.begin_step(0)
    gradient(ours, episode, 2)
    resumed.load_state_dict(deepcopy(ours.state_dict()))
    for one in (ours, resumed):
        one.begin_step(1)
    for a, b in zip(gradient(ours, episode, 2), gradient(resumed, episode, 2), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(ours.moment.latest, resumed.moment.latest) and ours.moment.counts == resumed.moment.counts == [8, 16]


def test_half_precision_does_not_reach_the_second_moment() -> None:
    ends = [torch.rand(3, 50, 2), torch.rand(3, 7)]
    exact, under = SecondMoment(107), SecondMoment(107)
    exact.move(ends, STEPS)
    with torch.autocast("cpu", torch.bfloat16):
        under.move(ends, STEPS)
    assert torch.equal(exact.latest, under.latest)


@pytest.mark.parametrize(("images", "size", "count"), [(7, 3, 14), (3, 5, 6), (4, 4, 3)])
def test_minibatches_take_every_image_equally_often_and_shuffle_every_pass(images: int, size: int, count: int) -> None:
    order = minibatches(images, size, count, seed=1)
    assert order.shape == (count, size) and torch.equal(order, minibatches(images, size, count, seed=1))
    passes = order.view(-1, images)
    assert torch.equal(passes.sort(1).values, torch.arange(images).expand_as(passes))
    assert len({tuple(one) for one in passes.tolist()}) > 1 and not torch.equal(order, minibatches(images, size, count, seed=2))


@pytest.mark.parametrize(
    "wrong", [{"inner_lr": 0.0}, {"inner_steps": 0}, {"test_inner_steps": -1}, {"inner_batch": 1}, {"test_inner_batch": 1}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"algorithm.{next(iter(wrong))}: "):
        Reptile(Conv4(1, 8, (3,)), spec(3), **wrong)  # type: ignore[arg-type]


def test_it_trains_with_more_shots_than_it_is_tested_with(metarun: Metarun, tmp_path: Path) -> None:
    outer = "optimizer=sgd optimizer.lr=1 optimizer.momentum=0 optimizer.weight_decay=0 optimizer.nesterov=false scheduler=linear"
    shots = "task.shots=4 task.queries=1 protocol=nichol2018 protocol.shots=1 protocol.queries=1"
    outcome = metarun(f"train algorithm=reptile {outer} {TINY} {shots} algorithm.test_inner_steps=2 hydra.run.dir=reptile")
    assert outcome.code == 0, outcome.err
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "reptile" / "evaluations").glob("*.json"))
    assert (record["shots"], record["queries"], record["batch_norm"], record["checkpoint"]) == (1, 1, "support+one", "last.pt")
    saved = torch.load(tmp_path / "reptile" / "checkpoints" / "last.pt", weights_only=True)
    assert saved["update"]["optimizer"]["param_groups"][0]["lr"] == 0 and saved["model"]["moment.latest"].max() > 0

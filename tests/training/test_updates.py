"""What every update by a gradient has to do: `begin_step` once a step, per-task losses, importance weights, state."""

from importlib import import_module
from inspect import isabstract
from io import BytesIO
from pathlib import Path

import pytest
import torch
from helpers import random_episode, spec

import metarun.training
from metarun.algorithms.protonet import ProtoNet
from metarun.algorithms.reptile import Reptile
from metarun.backbones.conv4 import Conv4
from metarun.nn.device import Device
from metarun.tasks import Episode, MetaLearner, Metrics, Tasks
from metarun.training.gradient import MetaGradient
from metarun.updates import GradientUpdate, Wrapper


def meta_gradient(learner: MetaLearner) -> GradientUpdate:
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.5, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return MetaGradient(learner, Device("cpu"), optimizer, scheduler, tasks_per_chunk=3)


UPDATES = {MetaGradient: meta_gradient}
"""How each update is made; a new one is added here."""


class Twice(Wrapper):
    """Asks for the gradient twice a step, as sharpness-aware minimisation does."""

    def gradient(self, tasks: Tasks, step: int) -> Metrics:
        super().gradient(tasks, step)
        return super().gradient(tasks, step)


ROUND = {"alone": lambda update: update, "wrapped": Wrapper, "twice": Twice, "wrapped twice": lambda update: Wrapper(Twice(update))}


class Counting(ProtoNet):
    def __init__(self) -> None:
        super().__init__(Conv4(1, 8, (3, 4)), spec())
        self.begun: list[int] = []

    def begin_step(self, step: int) -> None:
        self.begun.append(step)


def counting() -> Counting:
    torch.manual_seed(0)
    return Counting().double()


def test_every_update_is_tested() -> None:
    folder = Path(metarun.training.__path__[0])
    modules = [import_module(f"metarun.training.{path.stem}") for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    kinds = {
        value for module in modules for value in vars(module).values() if isinstance(value, type) and issubclass(value, GradientUpdate)
    }
    assert {kind for kind in kinds if not isabstract(kind) and kind is not Wrapper} == set(UPDATES)


@pytest.mark.parametrize("make", UPDATES.values(), ids=lambda make: make.__name__)
@pytest.mark.parametrize("around", ROUND)
class TestEveryUpdate:
    def test_a_step_begins_once_and_gives_every_tasks_losses(self, make: type, around: str) -> None:
        learner, tasks = counting(), random_episode(4, 3, 1, 2, size=8)
        update = ROUND[around](make(learner))
        for step in (0, 1):
            before = [parameter.clone() for parameter in learner.parameters()]
            expected, _ = learner.meta_loss(tasks)
            metrics = update(tasks, step)
            assert learner.begun == list(range(step + 1))
            assert {name: value.shape for name, value in metrics.items()} == dict.fromkeys(("loss", "accuracy", "losses"), (4,))
            torch.testing.assert_close(metrics["losses"], expected.detach())
            assert torch.equal(metrics["losses"], metrics["loss"])
            assert not all(map(torch.equal, before, learner.parameters()))

    def test_the_gradient_is_that_of_the_mean_weighted_by_importance(self, make: type, around: str) -> None:
        learner, plain = counting(), random_episode(4, 3, 1, 2, size=8)
        weights = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
        update = ROUND[around](make(learner))
        for importance, by in ((None, torch.ones_like(weights)), (weights, weights)):
            metrics = update.gradient(Episode(plain.support, plain.query, importance), 0)
            losses = torch.stack([learner.meta_loss(one)[0][0] for one in plain.chunks(1)])
            expected = torch.autograd.grad((by * losses).sum() / 4, list(learner.parameters()))
            for parameter, hand in zip(learner.parameters(), expected, strict=True):
                torch.testing.assert_close(parameter.grad, hand, rtol=1e-10, atol=1e-13)
            torch.testing.assert_close(metrics["losses"], losses.detach())

    def test_a_step_goes_on_from_what_was_saved(self, make: type, around: str) -> None:
        tasks, ends = random_episode(4, 3, 1, 2, size=8), []
        learner = counting()
        update = ROUND[around](make(learner))
        update(tasks, 0)
        kept, model = update.state_dict(), {name: value.clone() for name, value in learner.state_dict().items()}
        for again in (False, True):
            other = counting() if again else learner
            goes_on = ROUND[around](make(other)) if again else update
            if again:
                other.load_state_dict(model)
                goes_on.load_state_dict(kept)
            else:
                kept = torch.load(_saved(kept), weights_only=True)
            goes_on(tasks, 1)
            ends.append(other.state_dict())
        assert goes_on.shown() == update.shown() == {"lr": 0.5}
        for name, value in ends[0].items():
            assert torch.equal(value, ends[1][name]), name


def _saved(state: object) -> BytesIO:
    buffer = BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_reptiles_second_moment_moves_once_a_step_and_its_queries_are_shown() -> None:
    learner = Reptile(Conv4(1, 8, (3,)), spec(3), inner_steps=2).double()
    metrics = meta_gradient(learner)(random_episode(4, 3, 2, 2, size=8), 0)
    assert learner.moment.counts == [0, 8] and not torch.equal(metrics["loss"], metrics["losses"])

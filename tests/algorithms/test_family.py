"""The gradient-based family against one straight implementation, task by task in plain torch functions, and against finite differences."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import plain_forward, random_episode, spec
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.maml import MAML
from metarun.algorithms.maml_plus_plus import MAMLPlusPlus, step_weights
from metarun.algorithms.meta_sgd import MetaSGD
from metarun.backbones.conv4 import Conv4
from metarun.classification.sources import EpisodeSource
from metarun.data.episodes import Episodes, Pixels
from metarun.data.glyphs import Glyphs
from metarun.errors import UserError
from metarun.nn.device import Device
from metarun.tasks import Episode

Weights = dict[str, Tensor]


def network(film: bool = False) -> Conv4:
    return Conv4(1, 16, (5, 6), film_block=1 if film else None, context=3)


def plain_loss(
    learner: MAML,
    episode: Episode,
    adapted: Callable[[str], bool],
    rate: Callable[[str, int], Any],
    steps: int = 3,
    first_order: bool = False,
    scale: float = 1,
    at_step: Callable[[int], Weights] = lambda step: {},
    step_weights: Sequence[float] = (0, 0, 1),
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for t in range(len(episode)):
        w = dict(learner.net.named_parameters())
        for step in range(steps):
            w = {name: value if value.requires_grad else value.clone().requires_grad_() for name, value in {**w, **at_step(step)}.items()}
            inner = scale * F.cross_entropy(plain_forward(w, episode.support.x[t]), episode.support.y[t])
            names = [name for name in w if adapted(name)]
            gradients = torch.autograd.grad(inner, [w[name] for name in names], create_graph=not first_order)
            w = {**w, **{name: w[name] - rate(name, step) * g for name, g in zip(names, gradients, strict=True)}}
            total = total + step_weights[step] * F.cross_entropy(plain_forward(w, episode.query.x[t]), episode.query.y[t])
    return total / len(episode)


def no_norm(name: str) -> bool:
    return ".norm." not in name


def gradients_of(loss: Tensor, learner: MAML) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in learner.parameters() if p.requires_grad], materialize_grads=True))


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


VARIANTS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "maml": ({}, no_norm),
    "maml, summed over ways": ({"inner_loss": "sum_over_ways"}, no_norm),
    "fomaml": ({"first_order": True}, no_norm),
    "anil": ({"adapts": ["head.*"]}, lambda name: name.startswith("head.")),
    "boil": ({"adapts": ["backbone.*"], "adapt_norm": True}, lambda name: name.startswith("backbone.")),
    "cavia": ({"adapts": ["*.context"]}, lambda name: name.endswith(".context")),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_maml_has_the_meta_gradient_of_a_plain_loop_over_tasks(variant: str, recompute: bool) -> None:
    torch.manual_seed(1)
    settings, adapted = VARIANTS[variant]
    learner = MAML(network(film=variant == "cavia"), spec(4), 0.3, 3, recompute=recompute, **settings).double()
    episode, scale = random_episode(3, 4, 2, 3), 4 if "summed" in variant else 1
    plain = plain_loss(learner, episode, adapted, lambda name, step: 0.3, first_order=variant == "fomaml", scale=scale)
    same(gradients_of(learner.meta_loss(episode)[0].mean(), learner), gradients_of(plain, learner))


@pytest.mark.parametrize("recompute", [False, True])
def test_meta_sgd_has_the_meta_gradient_of_a_plain_loop(recompute: bool) -> None:
    torch.manual_seed(2)
    learner, episode = MetaSGD(network(), spec(4), (0.1, 0.4), 3, recompute=recompute).double(), random_episode(3, 4, 2, 3)
    rates = dict(zip(learner.adapted, learner.learned_rates, strict=True))
    plain = plain_loss(learner, episode, no_norm, lambda name, step: rates[name])
    same(gradients_of(learner.meta_loss(episode)[0].mean(), learner), gradients_of(plain, learner))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("meta_step", [0, 30, 100])
def test_maml_plus_plus_has_the_meta_gradient_of_a_plain_loop(meta_step: int, recompute: bool) -> None:
    torch.manual_seed(3)
    learner = MAMLPlusPlus(network(), spec(4), 0.2, 3, multi_step_loss=100, recompute=recompute).double()
    for parameter in learner.parameters():  # so that no two steps are alike
        parameter.data += 0.05 * torch.randn_like(parameter)
    episode = random_episode(3, 4, 2, 3)
    learner.begin_step(meta_step)
    rates, norms = (
        dict(zip(learner.adapted, learner.learned_rates, strict=True)),
        dict(zip(learner.norms, learner.norms_by_step, strict=True)),
    )
    weights = {0: (1 / 3, 1 / 3, 1 / 3), 30: (0.7 / 3, 0.7 / 3, 1.6 / 3), 100: (0, 0, 1)}[meta_step]
    plain = plain_loss(
        learner,
        episode,
        no_norm,
        lambda name, step: rates[name][step],
        at_step=lambda step: {name: values[step] for name, values in norms.items()},
        step_weights=weights,
    )
    loss = learner.meta_loss(episode)[0].mean()
    torch.testing.assert_close(loss, plain)
    same(gradients_of(loss, learner), gradients_of(plain, learner))


def test_maml_plus_plus_on_the_head_alone_sees_every_steps_own_norm() -> None:
    torch.manual_seed(9)
    learner, episode = (
        MAMLPlusPlus(network(), spec(4), 0.2, 3, adapts=["head.*"], multi_step_loss=0, learn_rates=False).double(),
        random_episode(2, 4, 2, 3),
    )
    for parameter in learner.norms_by_step:
        parameter.data += 0.3 * torch.randn_like(parameter)
    norms = dict(zip(learner.norms, learner.norms_by_step, strict=True))
    plain = plain_loss(
        learner,
        episode,
        lambda name: name.startswith("head."),
        lambda name, step: 0.2,
        at_step=lambda step: {name: values[step] for name, values in norms.items()},
    )
    same(gradients_of(learner.meta_loss(episode)[0].mean(), learner), gradients_of(plain, learner))


def test_step_weights_go_from_even_to_the_last_alone() -> None:
    assert step_weights(5, 0) == pytest.approx([0.2] * 5)
    assert step_weights(5, 0.5) == pytest.approx([0.1] * 4 + [0.6])
    assert step_weights(5, 1) == pytest.approx([0.006] * 4 + [0.976])


def test_meta_sgd_with_constant_rates_and_maml_plus_plus_with_everything_off_are_maml() -> None:
    episode = random_episode(2, 4, 2, 3)
    off = {"learn_rates": False, "norm_per_step": False, "multi_step_loss": 0}
    learners = []
    for make in (
        lambda: MAML(network(), spec(4), 0.25, 3),
        lambda: MetaSGD(network(), spec(4), (0.25, 0.25), 3),
        lambda: MAMLPlusPlus(network(), spec(4), 0.25, 3, **off),  # type: ignore[arg-type]
    ):
        torch.manual_seed(4)
        learners.append(make().double())
    maml, *others = [torch.autograd.grad(learner.meta_loss(episode)[0].mean(), list(learner.net.parameters())) for learner in learners]
    for other in others:
        same(other, maml)


def test_maml_plus_plus_begins_with_first_derivatives_if_told_to() -> None:
    torch.manual_seed(5)
    learner = MAMLPlusPlus(
        network(), spec(4), 0.2, 3, multi_step_loss=0, learn_rates=False, norm_per_step=False, second_order_from=10
    ).double()
    episode = random_episode(2, 4, 2, 3)
    for step, first_order in ((9, True), (10, False)):
        learner.begin_step(step)
        plain = plain_loss(learner, episode, no_norm, lambda name, step: 0.2, first_order=first_order)
        same(gradients_of(learner.meta_loss(episode)[0].mean(), learner), gradients_of(plain, learner))


def test_boils_head_is_meta_learned_yet_frozen_inside() -> None:
    learner = MAML(network(), spec(4), 0.3, 3, adapts=["backbone.*"], adapt_norm=True).double()
    assert not any(name.startswith("head.") for name in learner.adapted)
    assert torch.autograd.grad(learner.meta_loss(random_episode(2, 4, 2, 3))[0].mean(), learner.net.head.weight)[0].abs().max() > 1e-3  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize("steps", [1, 3])
def test_an_adapted_head_answers_as_if_the_backbone_were_fixed(steps: int) -> None:
    """ANIL's inner loop by hand, on features that are computed once."""
    torch.manual_seed(6)
    learner, episode = MAML(network(), spec(4), 0.5, steps, adapts=["head.*"]).double(), random_episode(1, 4, 2, 3)
    w = {name: value.detach() for name, value in learner.net.named_parameters()}
    eye = {**w, "head.weight": torch.eye(w["head.weight"].shape[1], dtype=torch.float64), "head.bias": torch.zeros(1, dtype=torch.float64)}
    support, query = plain_forward(eye, episode.support.x[0]), plain_forward(eye, episode.query.x[0])
    weight, bias = w["head.weight"].clone().requires_grad_(), w["head.bias"].clone().requires_grad_()
    for _ in range(steps):
        loss = F.cross_entropy(support @ weight.T + bias, episode.support.y[0])
        dw, db = torch.autograd.grad(loss, (weight, bias))
        weight, bias = (weight - 0.5 * dw).detach().requires_grad_(), (bias - 0.5 * db).detach().requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(learner.adapt(episode.support)(episode.query.x)[0], query @ weight.T + bias)


@pytest.mark.parametrize("kind", ["maml", "meta_sgd", "maml_plus_plus", "cavia"])
def test_the_meta_gradient_is_that_of_finite_differences(kind: str) -> None:
    torch.manual_seed(7)
    learner = {
        "maml": lambda: MAML(Conv4(1, 8, (3,)), spec(3), 0.2, 2, adapt_norm=True),
        "meta_sgd": lambda: MetaSGD(Conv4(1, 8, (3,)), spec(3), (0.1, 0.3), 2),
        "maml_plus_plus": lambda: MAMLPlusPlus(Conv4(1, 8, (3,), slope=0.01), spec(3), 0.2, 2),
        "cavia": lambda: MAML(Conv4(1, 8, (3,), film_block=0, context=4), spec(3), 1.0, 2, adapts=["*.context"]),
    }[kind]().double()
    episode, parameters = random_episode(2, 3, 1, 2, size=8), [p for p in learner.parameters() if p.requires_grad]
    directions = [torch.randn_like(p) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients_of(learner.meta_loss(episode)[0].mean(), learner), directions, strict=True))

    def moved(step: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=step)
        return learner.meta_loss(episode)[0].mean().detach()

    h = 1e-6
    measured = (moved(h) - moved(-2 * h)) / (2 * h)
    torch.testing.assert_close(slope, measured, rtol=1e-5, atol=1e-7)


def test_the_trajectory_ends_where_adapting_does() -> None:
    learner, episode = MAML(network(), spec(4), 0.3, 1, test_inner_steps=4).double().eval(), random_episode(2, 4, 2, 3)
    with torch.no_grad():
        scores = [predictor(episode.query.x) for predictor in learner.trajectory(episode.support, "query")]
        assert len(scores) == 5 and not torch.equal(scores[3], scores[4])
        torch.testing.assert_close(scores[4], learner.adapt(episode.support, "query")(episode.query.x))
        plain = torch.stack([plain_forward(dict(learner.net.named_parameters()), x) for x in episode.query.x])
        torch.testing.assert_close(scores[0], plain)


def test_adapts_chooses_parameters_and_refuses_what_names_none() -> None:
    head_only = MAML(Conv4(1, 8, (3,)), spec(3), adapts=["head.*"])
    assert head_only.adapted == ["head.weight", "head.bias"]
    assert not any(".norm." in name for name in MAML(Conv4(1, 8, (3,)), spec(3)).adapted)
    with pytest.raises(UserError, match="algorithm.adapts"):
        MAML(Conv4(1, 8, (3,)), spec(3), adapts=["body.*"])


@pytest.mark.parametrize("steps", [1, 5])
def test_half_precision_keeps_the_direction_of_the_meta_gradient(steps: int) -> None:
    torch.manual_seed(8)
    device, table = Device("cpu"), Glyphs().load("train")
    episode = EpisodeSource(Episodes(table, 5, 1, 15, 0, "train"), Pixels(table, device), "train").draw(0, 16)
    learner = MAML(Conv4(1, 28), spec(5), 0.1, steps)
    exact = torch.cat([g.flatten() for g in gradients_of(learner.meta_loss(episode)[0].mean(), learner)])
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        loss = learner.meta_loss(episode)[0].mean()
    rounded = torch.cat([g.flatten() for g in gradients_of(loss, learner)])
    assert F.cosine_similarity(exact, rounded, dim=0) >= 0.999

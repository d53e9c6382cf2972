"""The methods against computations written out by hand, and a contract that every file of conf/algorithm has to meet."""

from pathlib import Path

import pytest
import torch
from helpers import CONF, composed, random_episode, rounding, spec
from hydra.utils import instantiate
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.base import FewShotLearner
from metarun.algorithms.protonet import ProtoNet
from metarun.backbones.base import Backbone
from metarun.backbones.conv4 import Conv4
from metarun.nn.batch_norm import MODES
from metarun.nn.device import Device
from metarun.tasks import Episode, Examples
from metarun.training.learners import make_kind, make_learner

ALGORITHMS = sorted((CONF / "algorithm").rglob("*.yaml"))
BACKBONES = sorted((CONF / "backbone").rglob("*.yaml"))


def test_the_groups_are_found() -> None:
    assert len(ALGORITHMS) >= 9 and len(BACKBONES) >= 3


def learner_of(path: Path) -> FewShotLearner:
    torch.manual_seed(0)
    cfg = composed(f"algorithm={path.stem}", "backbone=conv4", "task.ways=3")
    cfg["backbone"] |= {"image_size": 16, "widths": [4, 6], "film_block": 1 if path.stem == "cavia" else None, "context": 3}
    return make_learner(cfg, make_kind(cfg, Device("cpu")), spec(classes=3).facts).double()


def training_tasks(learner: FewShotLearner, episode: Episode) -> Episode | Examples:
    """What such a learner is trained on at first."""
    return episode if learner.supervised_steps == 0 else episode.support


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda path: path.stem)
class TestEveryAlgorithm:
    def test_adapting_leaves_the_learner_as_it_was(self, path: Path) -> None:
        learner, episode = learner_of(path), random_episode(2, 3, 2, 2)
        before = {name: value.clone() for name, value in learner.state_dict().items()}
        with torch.no_grad():
            for mode in MODES:
                scores = learner.adapt(episode.support, mode)(episode.query.x)
                assert scores.shape == (2, 6, 3) and scores.isfinite().all() and not scores.requires_grad
        learner.adapt(episode.support)
        for name, value in learner.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_a_task_does_not_depend_on_its_batch(self, path: Path) -> None:
        learner, episode = learner_of(path), random_episode(3, 3, 1, 2)
        learner.eval()
        with torch.no_grad():
            for mode in MODES:
                together = learner.adapt(episode.support, mode)(episode.query.x)
                for t, alone in enumerate(episode.chunks(1)):
                    torch.testing.assert_close(together[t : t + 1], learner.adapt(alone.support, mode)(alone.query.x))

    def test_its_gradient_is_the_mean_over_tasks_and_training_lowers_the_loss(self, path: Path) -> None:
        learner, episode = learner_of(path), random_episode(2, 3, 2, 2)
        parameters = [p for p in learner.parameters() if p.requires_grad]
        tasks = training_tasks(learner, episode)
        whole = torch.autograd.grad(learner.meta_loss(tasks)[0].mean(), parameters, materialize_grads=True)
        parts = [torch.autograd.grad(learner.meta_loss(one)[0].mean(), parameters, materialize_grads=True) for one in tasks.chunks(1)]
        losses, metrics = learner.meta_loss(tasks)
        assert losses.shape == (2,) and all(value.shape == (2,) and not value.requires_grad for value in metrics.values())
        each = torch.cat([learner.meta_loss(one)[0] for one in tasks.chunks(1)])
        torch.testing.assert_close(losses, each, rtol=1e-9, atol=1e-11)
        for together, first, second in zip(whole, *parts, strict=True):
            torch.testing.assert_close(together, (first + second) / 2, rtol=1e-9, atol=1e-11)
        alike = episode.support.x + 0.5 * torch.randn_like(episode.support.x)  # Reptile learns from nothing but the support
        tasks = training_tasks(learner, Episode(episode.support, Examples(alike, episode.query.y, 3)))
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        losses = []
        for _ in range(20):
            descended, metrics = learner.meta_loss(tasks)
            optimizer.zero_grad()
            descended.mean().backward()
            optimizer.step()
            losses.append(float(metrics.get("loss", descended.detach()).mean()))
        assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("path", BACKBONES, ids=lambda path: path.stem)
def test_every_backbone_answers_with_its_features(path: Path) -> None:
    cfg = composed(f"backbone={path.stem}")
    channels, size = cfg["dataset"]["in_channels"], cfg["dataset"]["image_size"]
    backbone = instantiate(cfg["backbone"], _convert_="all")
    assert isinstance(backbone, Backbone)
    assert backbone(torch.randn(1, 3, channels, size, size)).shape == (1, 3, backbone.out_features)


class Far(Backbone):
    """Eight of an image's pixels, far from zero, in numbers that bfloat16 has."""

    out_features = out_channels = 8

    def forward(self, x: Tensor) -> Tensor:
        return (1000 + 8 * x.flatten(2)[..., :8].round()).bfloat16()


@pytest.mark.parametrize("statistics", ["running", "query"])
def test_half_precision_stops_at_the_embedding(statistics: str) -> None:
    """Distances of a few units between vectors of length 1000: bfloat16 has steps of 4 there, and of 32,768 for their squares."""
    torch.manual_seed(0)
    learner, episode = ProtoNet(Far(), spec()), random_episode(2, 3, 1, 4, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = learner.adapt(episode.support, statistics)(episode.query.x)
    known, asked = (learner.backbone(x).double() for x in (episode.support.x, episode.query.x))
    assert scores.dtype == torch.float32
    error = scores + (asked.unsqueeze(2) - known.unsqueeze(1)).square().sum(-1)
    assert error.abs().max() < rounding(8, 4) * known.square().sum(-1).max()


def test_prototypical_scores_by_hand() -> None:
    torch.manual_seed(0)
    backbone = Conv4(1, 8, (3,))
    support = Examples(torch.randn(2, 6, 5, dtype=torch.float64), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2), 3)
    query = torch.randn(2, 4, 5, dtype=torch.float64)
    euclidean = ProtoNet(backbone, spec()).classify(support)(query)
    cosine = ProtoNet(backbone, spec(), "cosine", scale=10.0).classify(support)(query)
    for t in range(2):
        for i in range(4):
            for k in range(3):
                prototype = (support.x[t, k] + support.x[t, k + 3]) / 2
                torch.testing.assert_close(euclidean[t, i, k], -((query[t, i] - prototype) ** 2).sum())
                torch.testing.assert_close(cosine[t, i, k], 10 * F.cosine_similarity(query[t, i], prototype, dim=0))

"""The methods against computations written out by hand, and a contract that every file of conf/algorithm has to meet."""

from pathlib import Path

import pytest
import torch
from helpers import random_episode
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.nn import functional as F

from metarun.algorithms.base import FewShotLearner
from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.backbones.base import Backbone
from metarun.backbones.conv4 import Conv4
from metarun.batch_statistics import MODES
from metarun.errors import UserError
from metarun.tasks import Episode, Examples

CONF = Path(__file__).parents[1] / "conf"
ALGORITHMS = sorted((CONF / "algorithm").rglob("*.yaml"))
BACKBONES = sorted((CONF / "backbone").rglob("*.yaml"))


def test_the_groups_are_found() -> None:
    assert len(ALGORITHMS) >= 2 and len(BACKBONES) >= 3


def learner_of(path: Path) -> FewShotLearner:
    torch.manual_seed(0)
    cfg = OmegaConf.create({"task": {"ways": 3}, "algorithm": OmegaConf.load(path)})
    return instantiate(cfg, _convert_="all")["algorithm"](backbone=Conv4(1, 16, widths=(4, 6))).double()


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
        parameters = list(learner.parameters())
        whole = torch.autograd.grad(learner.meta_loss(episode)[0], parameters, materialize_grads=True)
        parts = [torch.autograd.grad(learner.meta_loss(one)[0], parameters, materialize_grads=True) for one in episode.chunks(1)]
        for together, first, second in zip(whole, *parts, strict=True):
            torch.testing.assert_close(together, (first + second) / 2, rtol=1e-9, atol=1e-11)
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        losses = []
        for _ in range(20):
            loss, metrics = learner.meta_loss(episode)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(metrics["loss"]))
        assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("path", BACKBONES, ids=lambda path: path.stem)
def test_every_backbone_answers_with_its_features(path: Path) -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"backbone={path.stem}"])
    backbone = instantiate(OmegaConf.to_container(cfg, resolve=True)["backbone"], _convert_="all")  # type: ignore[index,call-overload]
    assert isinstance(backbone, Backbone)
    assert backbone(torch.randn(1, 3, cfg.dataset.in_channels, cfg.dataset.image_size, cfg.dataset.image_size)).shape == (
        1,
        3,
        backbone.out_features,
    )


def plain_maml_loss(learner: MAML, episode: Episode, lr: float, steps: int, first_order: bool, scale: float) -> torch.Tensor:
    """MAML as a loop over tasks in plain torch functions: convolution, batch norm, ReLU, pooling, linear."""

    def forward(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        for block in ("backbone.blocks.0", "backbone.blocks.1"):
            x = F.conv2d(x, w[f"{block}.conv.weight"], w[f"{block}.conv.bias"], padding=1)
            x = F.batch_norm(x, None, None, w[f"{block}.norm.weight"], w[f"{block}.norm.bias"], training=True)
            x = F.max_pool2d(F.relu(x), 2)
        return x.permute(0, 2, 3, 1).flatten(1) @ w["head.weight"].T + w["head.bias"]

    losses = []
    for t in range(len(episode)):
        w = dict(learner.net.named_parameters())
        for _ in range(steps):
            inner = scale * F.cross_entropy(forward(w, episode.support.x[t]), episode.support.y[t])
            names = [name for name in w if ".norm." not in name]
            gradients = torch.autograd.grad(inner, [w[name] for name in names], create_graph=not first_order)
            w = {**w, **{name: w[name] - lr * g for name, g in zip(names, gradients, strict=True)}}
        losses.append(F.cross_entropy(forward(w, episode.query.x[t]), episode.query.y[t]))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("first_order", "inner_loss"), [(False, "mean"), (False, "sum_over_ways"), (True, "mean")])
def test_maml_has_the_meta_gradient_of_a_plain_loop_over_tasks(first_order: bool, inner_loss: str) -> None:
    torch.manual_seed(1)
    learner = MAML(Conv4(1, 16, (5, 6)), 4, 0.3, 3, first_order=first_order, inner_loss=inner_loss).double()  # type: ignore[arg-type]
    episode = random_episode(3, 4, 2, 3)
    ours = torch.autograd.grad(learner.meta_loss(episode)[0], list(learner.parameters()))
    plain = plain_maml_loss(learner, episode, 0.3, 3, first_order, 4 if inner_loss == "sum_over_ways" else 1)
    theirs = torch.autograd.grad(plain, list(learner.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_maml_has_the_meta_gradient_of_finite_differences() -> None:
    torch.manual_seed(2)
    learner, episode = MAML(Conv4(1, 8, (3,)), 3, 0.2, 2, adapt_norm=True).double(), random_episode(2, 3, 1, 2, size=8)
    parameters = list(learner.parameters())
    gradients = torch.autograd.grad(learner.meta_loss(episode)[0], parameters)
    directions = [torch.randn_like(p) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))

    def moved(step: float) -> torch.Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=step)
        return learner.meta_loss(episode)[0].detach()

    h = 1e-6
    measured = (moved(h) - moved(-2 * h)) / (2 * h)
    torch.testing.assert_close(slope, measured, rtol=1e-5, atol=1e-7)


def test_adapts_chooses_parameters_and_refuses_what_names_none() -> None:
    head_only = MAML(Conv4(1, 8, (3,)), 3, adapts=["head.*"])
    assert head_only.adapted == ["head.weight", "head.bias"]
    assert not any(".norm." in name for name in MAML(Conv4(1, 8, (3,)), 3).adapted)
    with pytest.raises(UserError, match="algorithm.adapts"):
        MAML(Conv4(1, 8, (3,)), 3, adapts=["body.*"])


@pytest.mark.parametrize("statistics", ["running", "query"])
def test_half_precision_stops_at_the_embedding(statistics: str) -> None:
    """Distances of a few units between vectors of length 1000: bfloat16 has steps of 4 there."""
    torch.manual_seed(0)
    learner, episode = ProtoNet(Conv4(1, 16, (8,))), random_episode(2, 3, 1, 4, dtype=torch.float32)
    torch.nn.init.constant_(learner.backbone.blocks[0].norm.bias, 100.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = learner.adapt(episode.support, statistics)(episode.query.x)
        known, asked = (learner._each(episode.support.x, x, statistics) for x in (episode.support.x, episode.query.x))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, -(asked.unsqueeze(2) - known.unsqueeze(1)).square().sum(-1), rtol=1e-2, atol=0.5)


def test_prototypical_scores_by_hand() -> None:
    torch.manual_seed(0)
    backbone = Conv4(1, 8, (3,))
    support = Examples(torch.randn(2, 6, 5), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2), 3)
    query = torch.randn(2, 4, 5)
    euclidean = ProtoNet(backbone).classify(support)(query)
    cosine = ProtoNet(backbone, "cosine", scale=10.0).classify(support)(query)
    for t in range(2):
        for i in range(4):
            for k in range(3):
                prototype = (support.x[t, k] + support.x[t, k + 3]) / 2
                torch.testing.assert_close(euclidean[t, i, k], -((query[t, i] - prototype) ** 2).sum())
                torch.testing.assert_close(cosine[t, i, k], 10 * F.cosine_similarity(query[t, i], prototype, dim=0))

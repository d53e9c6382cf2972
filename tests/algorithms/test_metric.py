"""Methods that compare images, against loops over tasks, queries and support, written with plain functions of torch in float64."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from helpers import random_episode, spec
from torch import Tensor
from torch.nn import functional as F

from metarun.algorithms.matching_net import MatchingNet, QueryContext, SupportContext
from metarun.algorithms.relation_net import RelationNet
from metarun.algorithms.siamese import Siamese
from metarun.backbones.conv4 import Conv4
from metarun.errors import UserError
from metarun.nn.batch_norm import MODES
from metarun.nn.layers import Linear
from metarun.tasks import Examples


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def embeddings(features: int = 5) -> tuple[Examples, Tensor]:
    """The support of two tasks, 3-way 2-shot in no order, and four queries of each."""
    y = torch.tensor([0, 1, 0, 2, 2, 1]).expand(2, -1)
    return Examples(torch.randn(2, 6, features).double(), y, 3), torch.randn(2, 4, features).double()


def compared(support: Examples, query: Tensor, compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`compare` of every query with every support image, one by one: (T, n, m)."""
    tasks = zip(query, support.x, strict=True)
    return torch.stack([torch.stack([torch.stack([compare(q, s) for s in known]) for q in asked]) for asked, known in tasks])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("learned", [False, True])
def test_matching_by_hand(distance: Literal["cosine", "euclidean"], learned: bool) -> None:
    support, query = embeddings()
    soft = MatchingNet(Conv4(1, 8, (3,)), spec(), distance, 3.0, learned).double().classify(support)(query)
    summed = MatchingNet(Conv4(1, 8, (3,)), spec(), distance, 3.0, learned, "sum").double().classify(support)(query)
    close = compared(
        support, query, lambda q, s: 3 * (F.cosine_similarity(q, s, dim=0) if distance == "cosine" else -(q - s).square().sum())
    )
    share = close.exp() / close.exp().sum(-1, keepdim=True)
    for k in range(3):
        torch.testing.assert_close(soft[..., k].exp(), share[..., support.y[0] == k].sum(-1), rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(summed[..., k], close[..., support.y[0] == k].sum(-1), rtol=1e-6, atol=1e-7)


def test_matching_has_no_log_of_zero_and_learns_its_temperature() -> None:
    support, query = embeddings()
    far = Examples((1000 * support.x).requires_grad_(), support.y, 3)
    learner = MatchingNet(Conv4(1, 8, (3,)), spec(), "euclidean", 1.0, learned_temperature=True).double()
    scores = learner.classify(far)(query)
    assert (scores.exp() == 0).any() and scores.isfinite().all()
    scores.sum().backward()
    assert far.x.grad is not None and far.x.grad.isfinite().all() and learner.log_temperature.grad != 0
    fixed = MatchingNet(Conv4(1, 8, (3,)), spec()).log_temperature
    assert not fixed.requires_grad and fixed.exp().item() == pytest.approx(10)


def test_raw_cosines_bound_the_loss() -> None:
    """The figures of the module's docstring, from the best embeddings there are."""
    y = torch.arange(5)[None]
    for features, least in ((torch.eye(5), 0.905), (torch.tensor([[1.0], [-1.0], [-1.0], [-1.0], [-1.0]]), 0.433)):
        scores = MatchingNet(Conv4(1, 8, (3,)), spec(), temperature=1.0).classify(Examples(features[None], y, 5))(features[None, :1])
        assert -scores[0, 0, 0].item() == pytest.approx(least, abs=1e-3)


def lstm(x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One step of one example, by its equations (Hochreiter and Schmidhuber 1997, with a forget gate)."""
    in_x, in_h, bias_x, bias_h = weights
    i, f, g, o = (in_x @ x + bias_x + in_h @ h + bias_h).chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def test_full_context_embeddings_by_hand() -> None:
    support, query = embeddings()
    learner = MatchingNet(Conv4(1, 8, (3,)), spec(), fce=3).double()
    learner.support_context, learner.query_context = SupportContext(5).double(), QueryContext(5, 3).double()
    weights = dict(learner.support_context.lstm.named_parameters())
    ways = [[weights[f"{name}_l0{way}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")] for way in ("", "_reverse")]
    known, asked, zero = support.x.clone(), query.clone(), torch.zeros(5).double()
    for t in range(2):
        for order, way in zip((range(6), reversed(range(6))), ways, strict=True):
            h = c = zero
            for i in order:
                h, c = lstm(support.x[t, i], h, c, way)
                known[t, i] += h
        for j, x in enumerate(query[t]):
            h, c = x, zero
            for _ in range(3):
                attention = torch.stack([h @ g for g in known[t]]).softmax(0)
                read = sum(a * g for a, g in zip(attention, known[t], strict=True))
                h, c = lstm(torch.cat([x, read]), h, c, list(learner.query_context.cell.parameters()))
                h = h + x
            asked[t, j] = h
    plain = MatchingNet(Conv4(1, 8, (3,)), spec()).double()
    torch.testing.assert_close(learner.classify(support)(query), plain.classify(Examples(known, support.y, 3))(asked))


def block(x: Tensor, batch: Tensor | None, conv: Any, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Convolution, batch norm by the statistics of `batch` (None: the running ones), ReLU and pooling, of `x` and of `batch`."""

    def of(images: Tensor) -> Tensor:
        return F.conv2d(images, conv.weight, conv.bias, padding=conv.padding)

    if batch is None:
        mean, var = norm.running_mean, norm.running_var
    else:
        mean, var = of(batch).mean((0, 2, 3)), of(batch).var((0, 2, 3), correction=0)

    def after(images: Tensor) -> Tensor:
        shaped = [v.view(1, -1, 1, 1) for v in (mean, var + norm.eps, norm.weight, norm.bias)]
        return F.max_pool2d(F.relu((of(images) - shaped[0]) / shaped[1].sqrt() * shaped[2] + shaped[3]), 2)

    return after(x), None if batch is None else after(batch)


def related(net: RelationNet, maps: Tensor, classes: Tensor, batch: Tensor | None) -> Tensor:
    """Relations (n, N) of maps (n, C, h, w) and classes (N, C, h, w), normalised as the pairs of `batch` (m, C, h, w) and the classes."""

    def pairs(images: Tensor) -> Tensor:
        return torch.stack([torch.cat([k, image]) for image in images for k in classes])

    g = net.relation
    x, like = block(pairs(maps), None if batch is None else pairs(batch), g.first, g.first_norm)
    x, _ = block(x, like, g.second, g.second_norm)
    x = F.relu(F.linear(x.permute(0, 2, 3, 1).flatten(1), g.hidden.weight, g.hidden.bias))
    return F.linear(x, g.out.weight, g.out.bias).sigmoid().view(len(maps), len(classes))


def relation_net(padding: int) -> Any:
    """With maps of 10x10, and with statistics and linear layers that make a difference."""
    net: Any = RelationNet(Conv4(1, 20, (3,)), spec(), hidden=4, padding=padding).double()
    with torch.no_grad():
        for norm in (net.backbone.blocks[0].norm, net.relation.first_norm, net.relation.second_norm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
        for linear in (net.relation.hidden, net.relation.out):
            linear.weight.normal_(std=0.3)
    return net


def as_maps(z: Tensor) -> Tensor:
    return z.unflatten(-1, (10, 10, 3)).permute(0, 3, 1, 2)


def sums(maps: Tensor) -> Tensor:
    """Of the maps of each of two classes, by two shots."""
    return torch.stack([maps[0] + maps[1], maps[2] + maps[3]])


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_relations_by_hand(mode: str, padding: int) -> None:
    net, episode = relation_net(padding), random_episode(2, 2, 2, 2, size=20)
    with torch.no_grad():
        found = net.adapt(episode.support, mode)(episode.query.x)
        known = net.embed(episode.support.x, "running" if mode == "running" else "query")
        asked = net._each(episode.support.x, episode.query.x, mode)
        for t in range(2):
            support, query = as_maps(known[t]), as_maps(asked[t])
            if mode == "support+one":
                each = [related(net, one[None], sums(support), torch.cat([support, one[None]])) for one in query]
                expected = torch.cat(each)
            else:
                expected = related(net, query, sums(support), {"query": query, "running": None, "support": support}[mode])
            torch.testing.assert_close(found[t], expected)
        if mode == "running":
            torch.testing.assert_close(net.classify(Examples(known, episode.support.y, 2))(asked), found)


def test_the_loss_of_relations_and_its_gradient() -> None:
    """Support and queries of a task are two batches, all pairs of its queries with its classes are one."""
    net, episode = relation_net(0), random_episode(2, 2, 2, 3, size=20)
    encode = net.backbone.blocks[0]
    losses = []
    for one in episode.chunks(1):
        support, query = (block(x[0], x[0], encode.conv, encode.norm)[0] for x in (one.support.x, one.query.x))
        relations = related(net, query, sums(support), query)
        right = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3).double()
        losses.append(((relations - right) ** 2).sum() / 12)
    plain = (losses[0] + losses[1]) / 2
    each, metrics = net.meta_loss(episode)
    torch.testing.assert_close(each, torch.stack(losses))
    loss = each.mean()
    assert ((metrics["accuracy"] >= 0) & (metrics["accuracy"] <= 1)).all()
    for mine, hand in zip(*(torch.autograd.grad(value, list(net.parameters())) for value in (loss, plain)), strict=True):
        torch.testing.assert_close(mine, hand, rtol=1e-8, atol=1e-11)


def test_relation_module_begins_as_in_the_papers_code() -> None:
    module: Any = RelationNet(Conv4(1, 8, (32,)), spec()).relation
    for convolution in (module.first, module.second):
        assert convolution.weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05) and not convolution.bias.any()
    assert module.hidden.weight.std().item() == pytest.approx(0.01, rel=0.15) and (module.hidden.bias == 1).all()


@pytest.mark.parametrize("shots", ["max", "mean"])
def test_siamese_by_hand(shots: Literal["max", "mean"]) -> None:
    support, query = embeddings()
    learner = Siamese(Conv4(1, 8, (3,)), spec(), shots).double()
    learner.weigh = Linear(5, 1).double()
    pairs = compared(support, query, lambda q, s: (learner.weigh.weight[0] * (q - s).abs()).sum() + learner.weigh.bias[0])
    scores = learner.classify(support)(query)
    for k in range(3):
        first, second = pairs[..., support.y[0] == k].unbind(-1)
        torch.testing.assert_close(scores[..., k], torch.maximum(first, second) if shots == "max" else (first + second) / 2)


def test_the_loss_of_pairs_and_its_gradient() -> None:
    learner, episode = Siamese(Conv4(1, 16, (4, 3)), spec()).double(), random_episode(2, 3, 2, 2)
    losses, metrics = learner.meta_loss(episode)
    loss = losses.mean()
    both = learner.embed(torch.cat([episode.support.x, episode.query.x], 1), "query")
    total = torch.zeros(()).double()
    for t in range(2):
        for i, a in enumerate(both[t, 6:]):
            for j, b in enumerate(both[t, :6]):
                same = (learner.weigh.weight[0] @ (a - b).abs() + learner.weigh.bias[0]).sigmoid()
                total = total - (same if i // 2 == j // 2 else 1 - same).log()
    plain = total / (2 * 6 * 6)
    torch.testing.assert_close(loss, plain)
    scores = learner.adapt(episode.support, "query")(episode.query.x)
    assert scores.shape == (2, 6, 3) and losses.shape == metrics["accuracy"].shape == (2,)
    for mine, hand in zip(*(torch.autograd.grad(value, list(learner.parameters())) for value in (loss, plain)), strict=True):
        torch.testing.assert_close(mine, hand, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: MatchingNet(Conv4(1, 8, (3,)), spec(), distance="manhattan"), "algorithm.distance: manhattan"),  # type: ignore[arg-type]
        (lambda: MatchingNet(Conv4(1, 8, (3,)), spec(), temperature=0), "algorithm.temperature: 0"),
        (lambda: MatchingNet(Conv4(1, 8, (3,)), spec(), attention="hard"), "algorithm.attention: hard"),  # type: ignore[arg-type]
        (lambda: MatchingNet(Conv4(1, 8, (3,)), spec(), fce=0), "algorithm.fce: 0"),
        (lambda: RelationNet(Conv4(1, 8, (3,)), spec(), hidden=0), "algorithm.hidden: 0"),
        (lambda: RelationNet(Conv4(1, 8, (3,)), spec(), padding=2), "algorithm.padding: 2"),
        (lambda: RelationNet(Conv4(1, 6, (3,)), spec()), "maps of 3x3 are too small .* expected 4x4"),
        (lambda: RelationNet(Conv4(1, 18, (3,)), spec(), padding=0), "maps of 9x9 are too small .* expected 10x10"),
        (lambda: Siamese(Conv4(1, 8, (3,)), spec(), shots="min"), "algorithm.shots: min"),  # type: ignore[arg-type]
    ],
)
def test_refuses(make: Callable[[], object], key: str) -> None:
    with pytest.raises(UserError, match=key):
        make()

"""Mini-batches by number, and random changes to images that depend on their word alone."""

import numpy as np
import pytest
import torch
from helpers import composed, double_cpu, random_table, spec
from torchvision.transforms import v2

from metarun.algorithms.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.classification.evaluation import score
from metarun.classification.sources import EpisodeSource
from metarun.data.augmentation import augmented
from metarun.data.batches import Batches
from metarun.data.episodes import Episodes, Pixels
from metarun.errors import UserError
from metarun.nn.device import Device
from metarun.tasks import Episode, Examples
from metarun.training.build import fitted
from metarun.training.learners import make_kind, make_learner

CHANGES = [v2.RandomResizedCrop((8, 8)), v2.ColorJitter(0.4, 0.4, 0.4), v2.RandomHorizontalFlip()]


@pytest.mark.parametrize("rotations", ["none", "classes"])
def test_an_epoch_is_every_image_once_and_a_batch_is_its_number(rotations: str) -> None:
    table = random_table([3, 5, 4], rotations=rotations).select(["class/000", "class/002"])  # 7 images, of places 0-2 and 8-11
    batches = Batches(table, 4, seed=1, split="train", augment=True)
    turned = 4 if rotations == "classes" else 1
    assert batches.classes == 2 * turned
    draws, labels = batches.draw(0, 7 * turned)  # four epochs
    assert labels.shape == draws.turns.shape == (7 * turned, 4) and draws.images.shape == draws.words.shape == (7 * turned, 4, 1)
    seen = np.stack([draws.images.ravel(), draws.turns.ravel(), labels.ravel()], 1).reshape(4, 7 * turned, 3)
    expected = {(i, t, (i >= 8) * turned + t) for i in (0, 1, 2, 8, 9, 10, 11) for t in range(turned)}
    assert all({tuple(entry) for entry in epoch} == expected for epoch in seen.tolist())
    assert not np.array_equal(seen[0], seen[1]) and len(np.unique(draws.words)) == draws.words.size
    later, later_labels = Batches(table, 4, seed=1, split="train", augment=True).draw(5, 2)
    for ours, theirs in ((later.images, draws.images), (later.turns, draws.turns), (later.words, draws.words), (later_labels, labels)):
        assert np.array_equal(ours, theirs[5:7])
    assert not np.array_equal(Batches(table, 4, seed=2, split="train").draw(0, 3)[0].images, draws.images[:3])


def test_an_image_is_changed_by_its_word_alone() -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    state = torch.get_rng_state()
    together = augmented(images, CHANGES, [5, 2**64 - 1, 7])
    assert torch.equal(torch.get_rng_state(), state) and together.dtype == torch.uint8 and not torch.equal(together, images)
    assert torch.equal(together[2:], augmented(images[2:], CHANGES, [7]))
    torch.manual_seed(7)
    by_hand = images[2]
    for change in CHANGES:
        by_hand = change(by_hand)
    assert torch.equal(together[2], by_hand)


def test_only_what_is_to_be_augmented_is() -> None:
    table, device = random_table([6, 6, 6], size=8, channels=3), Device("cpu")
    pixels, plain = Pixels(table, device, augment=CHANGES), Pixels(table, device)
    usual, changed = (Episodes(table, 2, 1, 3, 0, "train", augment=augment) for augment in (False, True))
    assert torch.equal(pixels.episode(usual.draw(0, 2), 1).query.x, plain.episode(usual.draw(0, 2), 1).query.x)
    both, one = pixels.episode(changed.draw(0, 2), 1), pixels.episode(changed.draw(1, 1), 1)
    assert np.array_equal(changed.draw(0, 2).images, usual.draw(0, 2).images)
    assert torch.equal(both.query.x[1:], one.query.x) and not torch.equal(both.query.x, plain.episode(usual.draw(0, 2), 1).query.x)


@pytest.mark.parametrize("statistics", ["running", "query"])
def test_views_are_averaged_as_probabilities(statistics: str) -> None:
    torch.manual_seed(0)
    table, device = random_table([6] * 4, size=8, channels=3), double_cpu()
    learner, episodes = ProtoNet(Conv4(3, 8, (4,)), spec(), scale=0.1).double().eval(), Episodes(table, 3, 1, 4, 0, "test")
    pixels = Pixels(table, device, augment=CHANGES)
    table = score(learner, EpisodeSource(episodes, pixels, "test"), 0, 5, statistics, device, views=3)
    draws, expected = episodes.draw(0, 5), torch.zeros(5, 12, 3, dtype=torch.float64)
    for view in range(3):
        episode: Episode = pixels.seen(view).episode(draws, 1)
        with torch.no_grad():
            expected += learner.adapt(episode.support, statistics)(episode.query.x).softmax(-1) / 3
    labels: Examples = episode.query
    np.testing.assert_allclose(table["accuracy"], 100 * (expected.argmax(-1) == labels.y).float().mean(1), rtol=1e-5)
    assert table["loss"].mean() == pytest.approx(
        float(torch.nn.functional.nll_loss(expected.log().flatten(0, 1), labels.y.flatten())), rel=1e-5
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["protocol.views=2"], "protocol.views: not allowed with an empty dataset.augment"),
        (["task.augment=true"], "task.augment: not allowed with an empty dataset.augment"),
        (["task.augment=true", "dataset.augment=[{_target_: torchvision.transforms.v2.Resize, size: [9, 9]}]"], "dataset.augment: makes"),
        (
            ["protocol.views=2", "dataset.augment=[{_target_: torchvision.transforms.v2.RandomCrop, size: [99, 99]}]"],
            "dataset.augment: cannot",
        ),
    ],
)
def test_changes_that_cannot_be_made_are_refused(words: list[str], said: str) -> None:
    cfg = composed("dataset.classes=30", "dataset.split_sizes=[10,10,10]", "protocol.ways=3", *words)
    kind = make_kind(cfg, Device("cpu"))
    facts = kind.facts("train")
    learner = make_learner(cfg, kind, facts)
    with pytest.raises(UserError, match=said):
        fitted(cfg, kind, learner, facts)

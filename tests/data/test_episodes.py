"""Episodes are functions of their number: what they promise, checked over many of them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_table

from metarun.data.episodes import Episodes, Pixels
from metarun.errors import UserError
from metarun.nn.device import Device

COUNTS = [7, 5, 6, 9, 5, 8, 12, 5]


def test_support_and_query_are_disjoint_and_classes_distinct() -> None:
    table = random_table(COUNTS, rotations="classes")
    draws = Episodes(table, 5, 2, 3, seed=3, split="train").draw(0, 200)
    assert draws.images.shape == (200, 5, 5) and draws.classes.shape == (200, 5)
    for classes, images, turns in zip(draws.classes, draws.images, draws.turns, strict=True):
        assert len({*zip(classes.tolist(), turns.tolist(), strict=True)}) == 5
        for c, own in zip(classes, images, strict=True):
            assert len(set(own.tolist())) == 5
            assert (own >= table.starts[c]).all() and (own < table.starts[c] + table.counts[c]).all()


def test_an_episode_is_a_function_of_seed_split_and_number() -> None:
    table = random_table(COUNTS)

    def episodes(seed: int = 0, split: str = "train") -> Episodes:
        return Episodes(table, 3, 1, 2, seed, split)

    many, later = episodes().draw(0, 20), episodes().draw(13, 4)
    np.testing.assert_array_equal(many.images[13:17], later.images)
    np.testing.assert_array_equal(many.classes[13:17], later.classes)
    assert episodes().sha256(50) == episodes().sha256(50)
    assert len({episodes().sha256(50), episodes(seed=1).sha256(50), episodes(split="val").sha256(50), episodes().sha256(49)}) == 4


def test_another_process_draws_the_same_episodes() -> None:
    code = "from helpers import random_table; from metarun.data.episodes import Episodes; "
    code += f"print(Episodes(random_table({COUNTS}), 3, 1, 2, 0, 'train').sha256(100))"
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert other == Episodes(random_table(COUNTS), 3, 1, 2, 0, "train").sha256(100)
    assert other == "d8d64ed160e4a5db16e628db58b7724171f2dc8ed63f56750d990864cbc7a034"  # whatever the machine and the versions


def test_classes_images_turns_and_labels_are_uniform() -> None:
    """Chi-squared statistics below their 99.99 % quantiles, for a fixed seed."""
    draws = Episodes(random_table([6] * 10, rotations="per_class"), 4, 1, 2, seed=0, split="train").draw(0, 6000)

    def chi2(values: np.ndarray, kinds: int) -> float:
        seen = np.bincount(values.reshape(-1), minlength=kinds)
        assert len(seen) == kinds
        return float(((seen - seen.mean()) ** 2 / seen.mean()).sum())

    for label in range(4):  # a label is tied to no class
        assert chi2(draws.classes[:, label], 10) < 33.7
    for place in range(3):  # neither support nor query prefers an image
        assert chi2(draws.images[..., place] % 6, 6) < 25.7
    assert chi2(draws.turns, 4) < 21.1


def test_images_come_out_turned_normalised_and_labelled() -> None:
    table = random_table([5] * 6, size=3, channels=2, rotations="per_class")
    object.__setattr__(table, "mean", (0.5, 0.25))
    object.__setattr__(table, "std", (2.0, 4.0))
    episodes = Episodes(table, 4, 2, 3, seed=0, split="train")
    draws = episodes.draw(0, 3)
    episode = Pixels(table, Device("cpu")).episode(draws, shots=2)
    assert episode.support.x.shape == (3, 8, 2, 3, 3) and episode.query.x.shape == (3, 12, 2, 3, 3)
    assert episode.support.y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 3
    for t, n, k in np.ndindex(3, 4, 5):
        pixels = np.rot90(table.images[draws.images[t, n, k]], draws.turns[t, n]) / 255
        expected = torch.tensor((pixels - [0.5, 0.25]) / [2, 4]).permute(2, 0, 1).float()
        part, each, index = (episode.support, 2, k) if k < 2 else (episode.query, 3, k - 2)
        torch.testing.assert_close(part.x[t, n * each + index], expected)


def test_residency_changes_nothing() -> None:
    table = random_table([5] * 6)
    draws = Episodes(table, 3, 1, 2, 0, "train").draw(0, 4)
    first, *others = [Pixels(table, Device("cpu"), kind).episode(draws, 1).query.x for kind in ("disk", "ram", "device", "auto")]
    assert all(torch.equal(first, other) for other in others)


def test_what_a_table_cannot_give_is_refused() -> None:
    table = random_table([5, 3, 6])
    with pytest.raises(UserError, match=r"task\.ways: 4 is not allowed; the train split has 3 classes"):
        Episodes(table, 4, 1, 1, 0, "train")
    with pytest.raises(UserError, match=r"class class/001 \(train split\) has 3 images"):
        Episodes(table, 2, 2, 2, 0, "train")

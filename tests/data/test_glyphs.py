"""Glyphs: the same bytes everywhere."""

import numpy as np
import pytest

from metarun.data.glyphs import Glyphs

# Of the table of `small()`: it may only change together with `glyphs.VERSION`.
SHA256 = "d02ee4083bab4b9b74f96bcde8d31d5b18933bee1f8ccd4ce24a6d0ab161f100"


def small(**changes: int) -> Glyphs:
    return Glyphs(**({"classes": 6, "drawers": 3} | changes), split_sizes=(3, 1, 2))  # type: ignore[arg-type]


def test_pixels_are_pinned() -> None:
    table = small().table
    assert table.fingerprint == SHA256
    assert table.images.shape == (18, 28, 28, 1)
    assert table.images.reshape(18, -1).max(axis=1).min() == 255
    assert len({image.tobytes() for image in table.images}) == 18


def test_another_seed_draws_other_characters() -> None:
    assert not np.array_equal(small(seed=1).table.images, small().table.images)
    assert set(small(seed=1).table.names).isdisjoint(small().table.names)


def test_a_class_does_not_depend_on_how_many_there_are() -> None:
    assert np.array_equal(small(classes=8).table.images[:18], small().table.images)


def test_default_has_500_classes_in_disjoint_splits() -> None:
    data = Glyphs()
    names = [f"glyphs/{c:04d}" for c in range(data.classes)]
    parts = list(data.assign(names).values())
    assert [parts.count(split) for split in ("train", "val", "test")] == [300, 80, 120]


@pytest.mark.parametrize("size", [14, 56])
def test_size_is_free(size: int) -> None:
    coarse = small(image_size=size).table.images
    assert coarse.shape == (18, size, size, 1) and coarse.any(axis=(1, 2)).all()

"""Omniglot: its layouts, splits and preprocessing."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarun.commands.verify import verify
from metarun.data.omniglot import VINYALS, Omniglot
from metarun.errors import UserError
from tests.data.samples import omniglot_files, write_files, write_omniglot


def test_zips_folders_and_torchvisions_layout_give_the_same_table(tmp_path: Path) -> None:
    roots = [write_omniglot(tmp_path / "zips"), write_files(tmp_path / "folders", omniglot_files())]
    write_files(tmp_path / "torchvision" / "omniglot-py", omniglot_files())
    tables = [Omniglot(root=root).table for root in [*roots, tmp_path / "torchvision"]]
    assert tables[0].images.shape == (15, 28, 28, 1)
    assert len({table.fingerprint for table in tables}) == 1
    assert tables[0].names == tuple(sorted(tables[0].names))


@pytest.mark.parametrize(
    ("split", "sizes"),
    [("vinyals", {"train": 2, "val": 1, "test": 2, "trainval": 3}), ("lake", {"train": 2, "val": 1, "test": 2, "trainval": 3})],
)
def test_named_splits(tmp_path: Path, split: str, sizes: dict[str, int]) -> None:
    data = Omniglot(root=write_omniglot(tmp_path), split=split)  # type: ignore[arg-type]
    assert {part: len(data.load(part).names) for part in sizes} == sizes


def test_vinyals_split_has_the_published_sizes() -> None:
    parts = list(VINYALS.values())
    assert [parts.count(split) for split in ("train", "val", "test")] == [1028, 172, 423]
    assert VINYALS["omniglot/Gurmukhi/character41"] == "train"
    assert VINYALS["omniglot/Gurmukhi/character42"] == "test"


def test_lake_split_is_background_against_evaluation() -> None:
    parts = list(Omniglot(split="lake").assign(list(VINYALS)).values())
    assert [parts.count(split) for split in ("train", "val", "test")] == [792, 172, 659]


def test_random_split_follows_its_seed_alone() -> None:
    names = list(VINYALS)
    first = Omniglot(split="random").assign(names)
    assert first == Omniglot(split="random").assign(names[::-1])
    assert first != Omniglot(split="random", split_seed=1).assign(names)
    assert [list(first.values()).count(split) for split in ("train", "val", "test")] == [1100, 100, 423]


def test_nearest_is_binary_as_in_the_papers_code_and_others_are_grey(tmp_path: Path) -> None:
    root = write_omniglot(tmp_path)
    table = Omniglot(root=root, invert=False).table
    assert set(np.unique(table.images)) == {0, 255}
    write_files(tmp_path / "one", {"image.png": omniglot_files()["images_background/Greek/character01/0000_01.png"]})
    drawing = Image.open(tmp_path / "one" / "image.png")
    assert drawing.mode == "1"
    official = np.asarray(drawing.resize((28, 28), Image.Resampling.LANCZOS)).astype(np.uint8) * 255
    assert np.array_equal(table.images[0, :, :, 0], official)
    assert len(np.unique(Omniglot(root=root, resample="lanczos").table.images)) > 10
    assert np.array_equal(Omniglot(root=root).table.images, 255 - table.images)


def test_rotations_are_per_split_and_val_follows_test(tmp_path: Path) -> None:
    data = Omniglot(root=write_omniglot(tmp_path), rotations={"train": "classes", "test": "per_class"})
    assert [data.load(split).rotations for split in ("train", "trainval", "val", "test")] == ["classes"] * 2 + ["per_class"] * 2


def test_other_counts_than_the_standard_ones_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = Omniglot(root=write_omniglot(tmp_path))
    data.load("train")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "Omniglot: 1618 of the 1623 standard classes are missing, omniglot/Alphabet_of_the_Magi/character01 first",
        "Omniglot: 5 of 5 classes hold 3 to 3 images, not the standard 20",
    ]
    said = list(verify(data))
    assert said[0] == "train: 2 classes, 6 images, 3 to 3 per class"
    assert said[3].startswith("differs: 1618 of the 1623") and said[-1] == f"fingerprint: {data.table.fingerprint}"


def test_download_is_only_tried_where_nothing_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(root: Path, background: bool, download: bool) -> None:
        if background:
            write_omniglot(root / "omniglot-py")
        calls.append(background)

    calls: list[bool] = []
    monkeypatch.setattr("torchvision.datasets.Omniglot", fetch)
    for _ in range(2):
        assert len(Omniglot(root=tmp_path, download=True).table.names) == 5
    assert calls == [True, False]


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.Omniglot", fail)
    with pytest.raises(UserError, match=r"^dataset.download: [^\n]*no route[^\n]*images_background.zip[^\n]*$"):
        Omniglot(root=tmp_path, download=True).load("train")

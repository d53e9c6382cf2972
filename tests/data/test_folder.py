"""Anybody's images."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarun.data.folder import Folder
from tests.data.samples import picture, write_files


def test_split_folders_and_any_format(tmp_path: Path) -> None:
    kinds = {"png": "RGB", "jpeg": "L", "gif": "L", "bmp": "1", "tiff": "RGB", "webp": "RGB"}
    files = {f"{split}/cat-{split}/{k}.{k}": picture(1, kinds[k], (30, 40), k) for split in ("train", "val", "test") for k in kinds}
    data = Folder(root=write_files(tmp_path, files | {".DS_Store": b"", "train/.hidden": b""}), image_size=16, in_channels=3)
    assert data.load("test").names == ("folder/cat-test",)
    assert data.table.images.shape == (18, 16, 16, 3)


def test_classes_are_dealt_by_fraction_and_seed(tmp_path: Path) -> None:
    root = write_files(tmp_path, {f"c{n}/{i}.png": picture(n, "L", (8, 8)) for n in range(10) for i in range(2)})
    data = Folder(root=root, image_size=8, in_channels=1)
    names = [data.load(split).names for split in ("train", "val", "test")]
    assert [len(part) for part in names] == [6, 2, 2] and len(set().union(*names)) == 10
    assert Folder(root=root, image_size=8, split_seed=1).load("train").names != names[0]


def test_a_class_moved_or_renamed_is_seen(tmp_path: Path) -> None:
    classes = ("test/eel", "train/ant", "train/cat", "val/dog")
    root = write_files(tmp_path, {f"{name}/1.png": picture(n, "L", (8, 8)) for n, name in enumerate(classes)})
    assert Folder(root=root, image_size=8).load("train").names == ("folder/ant", "folder/cat")
    (root / "train" / "cat").rename(root / "val" / "cat")  # every file keeps its name, size, time and place among the others
    for _ in range(2):  # built, then cached
        data = Folder(root=root, image_size=8)
        assert [data.load(split).names for split in ("train", "val")] == [("folder/ant",), ("folder/cat", "folder/dog")]
    (root / "val" / "cat").rename(root / "val" / "cow")
    assert Folder(root=root, image_size=8).load("val").names == ("folder/cow", "folder/dog")


def test_two_roots_name_a_class_alike_whatever_its_split(tmp_path: Path) -> None:
    cat = picture(1, "L", (8, 8))
    roots = [write_files(tmp_path / name, {f"{name}/cat/1.png": cat}) for name in ("train", "test")]
    dealt = write_files(tmp_path / "dealt", {"cat/1.png": cat})
    assert [Folder(root=root, image_size=8).table.names for root in [*roots, dealt]] == [("folder/cat",)] * 3


@pytest.mark.parametrize(
    ("array", "mode", "grey"),
    [(np.full((4, 4), 0x8000, np.uint16), "I;16", 0x80), (np.zeros((4, 4, 4), np.uint8), "RGBA", 255)],
)
def test_deep_and_transparent_pixels(tmp_path: Path, array: np.ndarray, mode: str, grey: int) -> None:
    file = io.BytesIO()
    image = Image.fromarray(array)
    assert image.mode == mode
    image.save(file, "png")
    table = Folder(root=write_files(tmp_path, {"a/1.png": file.getvalue()}), image_size=4, in_channels=1).table
    assert np.unique(table.images).tolist() == [grey]

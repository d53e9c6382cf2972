"""miniImageNet: its layouts, and pickles that must not run."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metarun.data.miniimagenet import RAVI, MiniImageNet
from metarun.data.pickles import read_pickle
from metarun.errors import UserError
from tests.data.samples import MINI, mini_images, write_files, write_mini


def pixels(split: str) -> np.ndarray:
    paths = [content for label in MINI[split] for content in mini_images()[label].values()]
    return np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in paths])


def class_dict(split: str) -> dict[str, Any]:
    return {"image_data": pixels(split), "class_dict": {label: [3 * n, 3 * n + 1, 3 * n + 2] for n, label in enumerate(MINI[split])}}


def labels(split: str) -> dict[str, Any]:
    numbers = [n for n in range(len(MINI[split])) for _ in range(3)]
    return {"data": pixels(split), "labels": numbers, "catname2label": {label: n for n, label in enumerate(MINI[split])}}


def test_every_layout_gives_the_same_table(tmp_path: Path) -> None:
    roots = [write_mini(tmp_path / layout, layout) for layout in ("zips", "lists", "folders")]
    for name, make in {"mini-imagenet-cache-{}.pkl": class_dict, "{}.pkl": labels}.items():
        for protocol in (2, 5):
            roots.append(write_files(tmp_path / f"{protocol}{name}", {name.format(s): pickle.dumps(make(s), protocol) for s in MINI}))
    tables = [MiniImageNet(root=root).table for root in roots]
    assert tables[0].images.shape == (12, 84, 84, 3)
    assert np.array_equal(tables[0].images[:6], pixels("train"))  # 84x84 is not resampled
    assert [table.fingerprint for table in tables] == [tables[0].fingerprint] * 7
    data = MiniImageNet(root=roots[0])
    assert {split: [f"miniimagenet/{label}" for label in MINI[split]] for split in MINI} == {s: list(data.load(s).names) for s in MINI}


def test_ravi_split_has_the_published_sizes() -> None:
    assert [list(RAVI.values()).count(split) for split in ("train", "val", "test")] == [64, 16, 20]


def test_labels_without_names_keep_the_split_of_their_file(tmp_path: Path) -> None:
    files = {f"{split}.pkl": pickle.dumps({"data": pixels(split), "labels": [7, 7, 8][:3] * len(MINI[split])}) for split in MINI}
    data = MiniImageNet(root=write_files(tmp_path, files))
    assert data.load("val").names == ("miniimagenet/val/007", "miniimagenet/val/008")


def test_indices_and_labels_may_be_arrays(tmp_path: Path) -> None:
    cache = class_dict("train")
    arrays = {"image_data": cache["image_data"], "class_dict": {label: np.array(i) for label, i in cache["class_dict"].items()}}
    named = labels("train") | {"labels": np.array(labels("train")["labels"])}
    grey = cache | {"image_data": cache["image_data"][..., :1]}
    makes = {"lists": cache, "arrays": arrays, "named": named, "grey": grey}
    tables = [
        MiniImageNet(root=write_files(tmp_path / name, {"train.pkl": pickle.dumps(content, protocol)})).table
        for protocol in (2, 5)
        for name, content in makes.items()
    ]
    assert [table.fingerprint == tables[0].fingerprint for table in tables] == [True, True, True, False] * 2
    assert np.array_equal(tables[3].images, np.repeat(pixels("train")[..., :1], 3, axis=3))


IMAGES = np.zeros((3, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"image_data": IMAGES, "class_dict": {"n01532829": [0, 3]}}, "class n01532829 has the images 0 to 3 of only 3"),
        ({"image_data": IMAGES, "class_dict": {"n01532829": [-1, 2]}}, "class n01532829 has the images -1 to 2 of only 3"),
        ({"image_data": IMAGES, "class_dict": {"n01532829": [0.5]}}, "'float' object"),
        ({"image_data": IMAGES, "class_dict": {"n01532829": np.zeros((2, 2), int)}}, "integer scalar"),
        ({"image_data": IMAGES, "class_dict": {"n01532829": []}}, "no images"),
        ({"image_data": IMAGES, "class_dict": [0, 1]}, "not a known cache"),
        ({"image_data": IMAGES}, "'labels'"),
        ({"data": IMAGES, "labels": [0] * 4}, "4 labels for 3 images"),
        ({"data": IMAGES, "labels": [None] * 3}, "not a known cache"),
        ({"data": IMAGES, "labels": [0] * 3, "catname2label": ["n01532829"]}, "not a known cache"),
        ({"data": IMAGES, "labels": [0] * 3, "catname2label": {"n01532829": [0]}}, "not a known cache"),
        ({"image_data": IMAGES.transpose(0, 3, 1, 2), "class_dict": {"n01532829": [0]}}, "height, width"),
        ({"image_data": IMAGES[..., :2], "class_dict": {"n01532829": [0]}}, "height, width"),
        ({"image_data": IMAGES[:, :0], "class_dict": {"n01532829": [0]}}, "height, width"),
        ({"image_data": IMAGES[0], "class_dict": {"n01532829": [0]}}, "height, width"),
        ({"image_data": [1, 2], "class_dict": {"n01532829": [0]}}, "height, width"),
        ([IMAGES], "holds a list"),
    ],
)
def test_a_pickle_that_makes_no_sense_is_refused(tmp_path: Path, content: object, reason: str) -> None:
    file = write_files(tmp_path, {"train.pkl": pickle.dumps(content)}) / "train.pkl"
    with pytest.raises(UserError) as refused:
        MiniImageNet(root=tmp_path).load("train")
    assert str(refused.value).startswith(f"{file}: ") and reason in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resampling_is_pillows_filter_of_that_name(tmp_path: Path, resample: Any) -> None:
    table = MiniImageNet(root=write_mini(tmp_path, "zips"), image_size=32, resample=resample).table
    expected = Image.fromarray(pixels("train")[0]).resize((32, 32), Image.Resampling[resample.upper()])
    assert np.array_equal(table.images[0], np.asarray(expected))


class Evil:
    def __init__(self, call: Callable[..., Any], *args: Any) -> None:
        self.reduced = (call, args)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize(
    "evil",
    [
        lambda path: Evil(os.system, f"touch {path}"),
        lambda path: Evil(eval, f"open({str(path)!r}, 'w')"),
        lambda path: {"image_data": np.array([Evil(os.mkdir, str(path))], dtype=object), "class_dict": {}},
        lambda path: Evil(getattr, str(path), "upper"),
        lambda path: Evil(np.load, str(path)),
        lambda path: {"image_data": np.zeros(2, dtype=[("a", "O"), ("b", "i8")])},
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_cannot_run_code(tmp_path: Path, evil: Callable[[Path], object], protocol: int) -> None:
    target = tmp_path / "was-run"
    file = tmp_path / "mini-imagenet-cache-train.pkl"
    file.write_bytes(pickle.dumps(evil(target), protocol))
    with pytest.raises(UserError) as refused:
        MiniImageNet(root=tmp_path).load("train")
    assert str(refused.value).startswith(f"{file}: not a pickle that can be read safely") and "\n" not in str(refused.value)
    assert not target.exists()


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    array = (  # protocol 2, as Python 2 wrote numpy.arange(4, dtype=numpy.uint8).reshape(2, 2)
        b"\x80\x02}q\x00U\x04dataq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07"
        b"(K\x01K\x02K\x02\x86q\x08cnumpy\ndtype\nq\tU\x02u1q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01|q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
        b"tq\x0eb\x89U\x04\x00\x01\xc8\xffq\x0ftq\x10bs."
    )
    content = read_pickle(write_files(tmp_path, {"old.pkl": array}) / "old.pkl")
    assert content["data"].tolist() == [[0, 1], [200, 255]] and content["data"].dtype == np.uint8

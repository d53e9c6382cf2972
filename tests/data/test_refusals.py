"""Data that are not what they should be: one line that names the file or the key, and nothing left behind."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from metarun.commands.verify import verify
from metarun.data.folder import Folder
from metarun.data.glyphs import Glyphs
from metarun.data.miniimagenet import MiniImageNet
from metarun.data.omniglot import Omniglot
from metarun.data.source import Source
from metarun.data.table import DRAFT
from metarun.errors import UserError
from tests.data.samples import CHARACTERS, MINI, mini_images, omniglot_files, picture, write_files, write_mini, write_omniglot, write_zip

GOOD = picture(0, "L", (9, 9))
HTML = b"\n<!DOCTYPE html><html>404</html>"
IMAGE = "images_background/Greek/character01/0000_01.png"


def omniglot(root: Path, **files: bytes) -> Source:
    write_files(root, omniglot_files() | {name: content for name, content in files.items()})
    return Omniglot(root=root)


def omniglot_zips(root: Path, content: bytes) -> Source:
    write_files(write_omniglot(root), {"images_evaluation.zip": content})
    return Omniglot(root=root)


def half_a_zip(root: Path) -> Source:
    whole = (write_omniglot(root) / "images_evaluation.zip").read_bytes()
    return omniglot_zips(root, whole[: len(whole) // 2])


def damaged_zip(root: Path) -> Source:
    files = {name: content for name, content in omniglot_files().items() if name.startswith("images_background")}
    path = write_zip(write_omniglot(root) / "images_background.zip", files)
    path.write_bytes(path.read_bytes().replace(omniglot_files()[IMAGE][40:60], bytes(20)))
    return Omniglot(root=root)


def mini(root: Path, files: dict[str, bytes]) -> Source:
    return MiniImageNet(root=write_files(write_mini(root, "lists"), files))


def folder(root: Path, files: dict[str, bytes], link: str = "") -> Source:
    write_files(root, files)
    if link:
        (root / link).symlink_to("nowhere")
    return Folder(root=root, image_size=8)


def empty_omniglot(root: Path) -> Path:
    for part in CHARACTERS:
        (root / part).mkdir()
    return root


NAN = float("nan")
LIST = "filename,label\n"
TRAIN = next(iter(mini_images()[MINI["train"][0]]))

# data -> what its one line must hold: the name of the file first, then what is the matter
REFUSED: dict[str, tuple[Callable[[Path], Source], str, str]] = {
    "truncated image": (lambda root: omniglot(root, **{IMAGE: omniglot_files()[IMAGE][:80]}), IMAGE, "cannot be read"),
    "empty image": (lambda root: omniglot(root, **{IMAGE: b""}), IMAGE, "not an image"),
    "text as image": (lambda root: omniglot(root, **{IMAGE: HTML}), IMAGE, "not an image"),
    "damaged member": (damaged_zip, f"images_background.zip/{IMAGE}", "Bad CRC"),
    "HTML as zip": (lambda root: omniglot_zips(root, HTML), "images_evaluation.zip", "HTML page"),
    "half a zip": (half_a_zip, "images_evaluation.zip", "not a zip archive"),
    "empty zip file": (lambda root: omniglot_zips(root, b""), "images_evaluation.zip", "not a zip archive"),
    "one zip missing": (
        lambda root: Omniglot(root=write_files(root, {"images_background.zip": b""})),
        "images_evaluation.zip",
        "dataset.download=true",
    ),
    "character in both parts": (
        lambda root: omniglot(root, **{"images_evaluation/Greek/character01/1.png": GOOD}),
        "images_evaluation",
        "omniglot/Greek/character01",
    ),
    "file out of place": (lambda root: omniglot(root, **{"images_background/readme.png": GOOD}), "readme.png", "not where"),
    "unknown alphabet": (lambda root: omniglot(root, **{"images_background/Runes/character01/1.png": GOOD}), "Runes", "random"),
    "split too large": (lambda root: Omniglot(root=omniglot(root).root, split="random"), "dataset.split_sizes", "only 5"),  # type: ignore[attr-defined]
    "class in two splits": (lambda root: mini(root, {"val.csv": f"{LIST}{TRAIN},n01532829".encode()}), "val.csv", "n01532829 is in two"),
    "another's class": (lambda root: mini(root, {"train.csv": f"{LIST}{TRAIN},n01930112".encode()}), "train.csv", "not one of the train"),
    "foreign class": (lambda root: mini(root, {"train.csv": f"{LIST}{TRAIN},n09999999".encode()}), "train.csv", "n09999999"),
    "list without columns": (lambda root: mini(root, {"train.csv": b"a,b\n1,2"}), "train.csv", "filename and label"),
    "listed image missing": (lambda root: mini(root, {"train.csv": f"{LIST}no.jpg,n01532829".encode()}), "train.csv", "no.jpg"),
    "no miniImageNet": (lambda root: MiniImageNet(root=root), "{root}", "train.zip"),
    "not a pickle": (
        lambda root: MiniImageNet(root=write_files(root, {"mini-imagenet-cache-train.pkl": HTML})),
        "mini-imagenet-cache-train.pkl",
        "not a pickle",
    ),
    "no image at all": (lambda root: Omniglot(root=empty_omniglot(root)), "images_background", "no images"),
    "broken link": (lambda root: folder(root, {"cat/1.png": GOOD}, link="cat/2.png"), "cat/2.png", "cannot be read"),
    "folder: two splits": (lambda root: folder(root, {"train/cat/1.png": GOOD, "test/cat/1.png": GOOD}), "cat", "in two splits"),
    "folder: stray folder": (lambda root: folder(root, {"train/cat/1.png": GOOD, "extra/cat/1.png": GOOD}), "extra", "next to train"),
    "folder: no class": (lambda root: folder(root, {"1.png": GOOD}), "1.png", "not in a class folder"),
    "folder: no image": (lambda root: folder(root, {"cat/note.txt": b"hello"}), "note.txt", "not an image"),
    "folder: nothing": (lambda root: folder(root, {".hidden": b""}), "{root}", "no images"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("read", [lambda data: data.load("train"), lambda data: list(verify(data))])
def test_bad_data_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, read: Callable[[Source], object]
) -> None:
    make, file, reason = REFUSED[case]
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    monkeypatch.setenv("METARUN_CACHE", str(cache))
    data = make(root)
    with pytest.raises(UserError) as refused:
        read(data)
    line = str(refused.value)
    assert "\n" not in line
    assert file.format(root=root) in line and reason in line
    whole_table = case in ("unknown alphabet", "split too large")  # good images, of which only the split makes no sense
    assert len(list(cache.glob("*"))) == whole_table


@pytest.mark.parametrize(
    ("make", "how"), [(Omniglot, "dataset.download=true"), (MiniImageNet, "train.zip"), (Folder, "one folder of images per class")]
)
@pytest.mark.parametrize("missing", [None, "nowhere"])
def test_a_missing_root_says_how_to_get_the_data(make: Callable[..., Source], how: str, missing: str | None, tmp_path: Path) -> None:
    root = missing and tmp_path / missing
    size = {"image_size": 8} if make is Folder else {}
    data = make(root=root, **size)
    with pytest.raises(UserError, match=r"^dataset.root: [^\n]+$") as refused:
        data.load("train")
    assert how in str(refused.value) and str(missing or "null") in str(refused.value)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Omniglot(split="foo"), "dataset.split: 'foo' is not allowed; choose vinyals, random or lake"),  # type: ignore[arg-type]
        (
            lambda: Omniglot(resample="cubic"),  # type: ignore[arg-type]
            "dataset.resample: 'cubic' is not allowed; choose nearest, bilinear, bicubic or lanczos",
        ),
        (lambda: Omniglot(in_channels=2), "dataset.in_channels: 2 is not allowed; choose 1 or 3"),  # type: ignore[arg-type]
        (lambda: Omniglot(image_size=0), "dataset.image_size: 0 is not allowed; give a whole number from 1 to 1024"),
        (lambda: Omniglot(image_size=10**9), "dataset.image_size: 1000000000 is not allowed; give a whole number from 1 to 1024"),
        (lambda: Glyphs(image_size=1024), "dataset.image_size: 1024 is not allowed; give a whole number from 1 to 256"),
        (lambda: Glyphs(classes=10**9), "dataset.classes: 1000000000 is not allowed; give a whole number from 1 to 10000"),
        (lambda: Glyphs(drawers=0), "dataset.drawers: 0 is not allowed; give a whole number from 1 to 1000"),
        (lambda: Glyphs(seed=2**63), f"dataset.seed: {2**63} is not allowed; give a whole number from 0 to {2**63 - 1}"),
        (lambda: Omniglot(split_seed=-1), f"dataset.split_seed: -1 is not allowed; give a whole number from 0 to {2**63 - 1}"),
        (
            lambda: Folder(image_size=8, split_seed=2**63),
            f"dataset.split_seed: {2**63} is not allowed; give a whole number from 0 to {2**63 - 1}",
        ),
        (lambda: Glyphs(split_sizes=(-1, 1, 1)), f"dataset.split_sizes: -1 is not allowed; give a whole number from 0 to {2**63 - 1}"),
        (
            lambda: Glyphs(split_sizes=(10**18, 0, 0)).assign(["a"]),
            f"dataset.split_sizes: [{10**18}, 0, 0] is not allowed; there are only 1 classes",
        ),
        (lambda: Glyphs(variation=-1.0), "dataset.variation: -1.0 is not allowed; give a number from 0 to 10"),
        (lambda: Glyphs(variation=NAN), "dataset.variation: nan is not allowed; give a number from 0 to 10"),
        (lambda: Omniglot(mean=(NAN,)), "dataset.mean: [nan] is not allowed; every value must be finite"),
        (lambda: Omniglot(std=(float("inf"),)), "dataset.std: [inf] is not allowed; every value must be finite"),
        (
            lambda: Folder(image_size=8, split_fractions=(NAN, 0.5, 0.5)),
            "dataset.split_fractions: [nan, 0.5, 0.5] is not allowed; give three numbers from 0 up with a sum of at most 1",
        ),
        (lambda: Omniglot(mean=(0.5, 0.5)), "dataset.mean: [0.5, 0.5] is not allowed; give one number, or 1 (dataset.in_channels)"),
        (lambda: Omniglot(std=(0.0,)), "dataset.std: [0.0] is not allowed; every value must be above 0"),
        (
            lambda: Omniglot(rotations={"train": "all"}),  # type: ignore[dict-item]
            "dataset.rotations.train: 'all' is not allowed; choose none, classes, per_class or per_episode",
        ),
        (lambda: Omniglot(rotations={"tain": "none"}), "dataset.rotations: 'tain' is not allowed; choose train, val or test"),
        (lambda: Glyphs(residency="gpu"), "dataset.residency: 'gpu' is not allowed; choose auto, device, ram or disk"),  # type: ignore[arg-type]
        (lambda: Glyphs().load("tset"), "split: 'tset' is not allowed; choose train, val, test, trainval"),
    ],
)
def test_bad_values_are_refused_by_key(make: Callable[[], object], line: str) -> None:
    with pytest.raises(UserError) as refused:
        make()
    assert str(refused.value) == line


@pytest.mark.parametrize("zipped", [True, False])
def test_a_changed_file_rebuilds_and_an_unchanged_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "root"
    write_omniglot(root) if zipped else write_files(root, omniglot_files())
    before = Omniglot(root=root).table.fingerprint
    stamp = next((tmp_path / "cache").glob("*/table.json")).stat().st_mtime_ns
    assert Omniglot(root=root).table.fingerprint == before
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/table.json")] == [stamp]
    files = omniglot_files() | {IMAGE: picture(999, "1", (105, 105))}
    if zipped:
        path = write_zip(root / "images_background.zip", {n: c for n, c in files.items() if n.startswith("images_background")})
    else:
        path = write_files(root, files) / IMAGE
    os.utime(path, ns=(1, 1))
    assert Omniglot(root=root).table.fingerprint != before


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("table.json", None),
        ("table.json", b"\xff{"),
        ("table.json", b"[]"),
        ("table.json", b'{"names": [], "counts": []}'),
        ("images.npy", None),
        ("images.npy", b""),
        ("images.npy", b"half"),
    ],
)
def test_a_damaged_table_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, file: str, content: bytes | None
) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    whole = Glyphs(classes=2).table
    path = next(tmp_path.glob(f"*/{file}"))
    part = path.read_bytes()[:-1] if content == b"half" else content
    path.unlink()  # not overwritten: `whole` has it mapped
    if part is not None:
        path.write_bytes(part)
    again = Glyphs(classes=2).table
    assert again.fingerprint == whole.fingerprint and again.images.tobytes() == whole.images.tobytes()
    line = caplog.records[0].getMessage()
    assert line.startswith(f"{path.parent}: not a readable table") and "\n" not in line
    assert Glyphs(classes=2).table.fingerprint == whole.fingerprint and len(caplog.records) == 1
    assert list(tmp_path.iterdir()) == [path.parent]


def test_the_draft_of_a_killed_build_is_removed_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    old, new, other = (tmp_path / name for name in (f"{DRAFT}old", f"{DRAFT}new", ".glyphs-mine"))
    for folder in (old, new, other):
        write_files(folder, {"table/images.npy": b""})
    for folder in (old, other):
        os.utime(folder, (0, 0))
    Glyphs(classes=2).build()
    assert [folder.exists() for folder in (old, new, other)] == [False, True, True]


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ({"ways": 3, "shots": 1, "queries": 1}, None),
        ({"ways": 4, "shots": 1, "queries": 1}, "task.ways: 4 is not allowed; the train split has 3 classes"),
        (
            {"ways": 2, "shots": 1, "queries": 2},
            "task.shots + task.queries: 1 + 2 is not allowed; class folder/c2 (train split) has 2 images",
        ),
    ],
)
def test_verify_refuses_what_a_task_cannot_be_drawn_from(tmp_path: Path, task: dict[str, int], reason: str | None) -> None:
    sizes = {"c1": 3, "c2": 2, "c3": 4}
    root = write_files(tmp_path, {f"train/{name}/{i}.png": picture(i, "L", (8, 8)) for name, size in sizes.items() for i in range(size)})
    lines, refused = [], None
    try:
        for line in verify(Folder(root=root, image_size=8), task):
            lines.append(line)
    except UserError as error:
        refused = str(error)
    assert refused == reason
    assert lines[:2] == ["train: 3 classes, 9 images, 2 to 4 per class", "val: no classes"] and "fingerprint" in lines[-1]


def test_verify_counts_rotations_as_classes(tmp_path: Path) -> None:
    root = write_files(tmp_path, {f"train/c{n}/{i}.png": picture(i, "L", (8, 8)) for n in range(2) for i in range(2)})
    data = Folder(root=root, image_size=8, rotations={"train": "classes"})
    assert list(verify(data, {"ways": 8, "shots": 1, "queries": 1}))


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    data = Omniglot(root=write_omniglot(tmp_path / "root"))
    whole = Omniglot._decode
    done: list[int] = []

    def interrupted(self: Omniglot, item: object) -> object:
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return whole(self, item)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Omniglot, "_decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.load("train")
    assert not list((tmp_path / "cache").iterdir())
    assert data.load("train").counts.sum() == 3 * 2


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"^METARUN_CACHE: cannot write [^\n]*images.npy: No space left on device$"):
        Glyphs(classes=2).load("train")
    assert not list((tmp_path / "cache").iterdir())

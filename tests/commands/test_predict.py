"""Trained models on the user's own images: the same numbers as by hand, every learner, and records of other datasets kept apart."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CONF, TINY, Metarun, composed, rounding, spec
from PIL import Image, ImageOps
from tables import fabricate, record, table_of
from torch import Tensor

from metarun.algorithms.base import FewShotLearner
from metarun.algorithms.maml_plus_plus import MAMLPlusPlus
from metarun.backbones.conv4 import Conv4
from metarun.commands.predict.features import embedder
from metarun.commands.predict.images import View
from metarun.nn.device import Device
from metarun.runs.catalogue import read_run
from metarun.runs.checkpoint import save_checkpoint
from metarun.tasks import Examples
from metarun.training.learners import make_kind, make_learner

ALGORITHMS = sorted(path.stem for path in (CONF / "algorithm").rglob("*.yaml"))
SHOTS = {"ant": 1, "bee": 3, "cat": 2}
SIZE = 16
NET = (
    *("backbone=conv4", "backbone.widths=[4,4]", f"dataset.image_size={SIZE}", "task.ways=3"),
    *("device=cpu", "device.threads=1", "device.keep_memory=false"),
)


def model(folder: Path, *words: str) -> FewShotLearner:
    """A run in `folder`, with a checkpoint of a network that never saw anything; returns its learner."""
    cfg = composed(*NET, *words)
    learner = make_learner(cfg, make_kind(cfg, Device("cpu")), spec(classes=7).facts).eval()
    (folder / "checkpoints").mkdir(parents=True)
    image = [cfg["dataset"]["image_size"]] * 2 + [cfg["dataset"]["in_channels"]]
    facts = {"config": cfg, "choices": {}, "data": {"fingerprint": "", "image": image, "classes": list("abcdefg")}, "step": 1}
    save_checkpoint(folder / "checkpoints/best.pt", {**facts, "model": learner.state_dict()})
    return learner


def noise(number: int, size: tuple[int, int] = (30, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (size[1], size[0]), dtype=np.uint8))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """`known/CLASS/*.png` with as many as SHOTS says, `new/CLASS/*.png`, two of each."""
    for place, counts in (("known", SHOTS), ("new", dict.fromkeys(SHOTS, 2))):
        for c, (name, count) in enumerate(counts.items()):
            (tmp_path / place / name).mkdir(parents=True)
            for i in range(count):
                noise(100 * (place == "new") + 10 * c + i).save(tmp_path / place / name / f"{i}.png")
    return tmp_path


def tensor(folder: Path, invert: bool = False) -> Tensor:
    """All images of a folder, by their paths: (1, n, 1, SIZE, SIZE)."""
    images = [
        ImageOps.exif_transpose(Image.open(path)).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for path in sorted(folder.rglob("*.png"))
    ]
    return values(np.stack([np.asarray(image) for image in images])[None, :, None], invert)


def values(grey: np.ndarray, invert: bool) -> Tensor:
    """Bytes as numbers from 0 to 1: by float32, as a table's images come out, and then in the precision of the test."""
    one = 1 / torch.tensor(255, dtype=torch.float32)
    return (torch.tensor(255 - grey if invert else grey).to(torch.float32) * one).to(torch.get_default_dtype())


def probabilities(text: str) -> Tensor:
    rows = list(csv.reader(io.StringIO(text)))[1:]
    return torch.tensor([[float(value) for value in row[3:]] for row in rows])


def support(folder: Path) -> Examples:
    y = torch.arange(len(SHOTS)).repeat_interleave(torch.tensor(list(SHOTS.values())))
    return Examples(tensor(folder), y[None], len(SHOTS))


def test_there_are_algorithms() -> None:
    assert {"maml", "protonet", "reptile"} <= set(ALGORITHMS)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_answers_as_by_hand(metarun: Metarun, pictures: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    learner = model(pictures / "run", f"algorithm={name}", *film(name))
    sizes: list[int] = []
    tensor_of = View.tensor
    monkeypatch.setattr(View, "tensor", lambda view, images, device: sizes.append(len(images)) or tensor_of(view, images, device))
    monkeypatch.setattr("metarun.commands.predict.prediction.PIXELS_AT_ONCE", 4 * SIZE**2)
    outcome = metarun("predict run=run support=known query=new")
    if getattr(learner, "equal_shots", False):
        assert outcome.code == 2 and "1 to 3 images of a class" in outcome.err
        return
    assert outcome.code == 0, outcome.err
    with torch.no_grad():
        scores = learner.adapt(support(pictures / "known"), learner.statistics)(tensor(pictures / "new"))[0]
    torch.testing.assert_close(probabilities(outcome.out), scores.softmax(1), rtol=1e-7, atol=1e-9)
    assert sizes == ([6, 6] if learner.statistics == "query" else [6, 4, 2])
    assert ("all queries as one batch" in outcome.err) == (learner.statistics == "query")
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    assert [row["file"] for row in rows] == [f"{name}/{i}.png" for name in SHOTS for i in range(2)]
    assert [row["predicted"] for row in rows] == [list(SHOTS)[k] for k in scores.argmax(1)]
    right = sum(row["predicted"] == row["class"] == row["file"].split("/")[0] for row in rows)
    assert f"accuracy: {100 * right / 6:.2f} % ({right} of 6 images)" in outcome.err


def film(name: str) -> list[str]:
    return ["backbone.film_block=1"] if name == "cavia" else []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_classes_of_unequal_numbers_are_told_apart(name: str) -> None:
    """Where the order of the classes makes no difference to equal classes, it makes none to unequal ones."""
    torch.manual_seed(0)
    cfg = composed(*NET, f"algorithm={name}", *film(name))
    learner = make_learner(cfg, make_kind(cfg, Device("cpu")), spec(classes=7).facts).double().eval()
    query = torch.rand(1, 5, 1, SIZE, SIZE, dtype=torch.float64)

    def answers(groups: list[Tensor]) -> Tensor:
        y = torch.arange(3).repeat_interleave(torch.tensor([group.shape[1] for group in groups]))
        return learner.adapt(Examples(torch.cat(groups, 1), y[None], 3), "running")(query)

    def same(*counts: int) -> bool:
        groups = [torch.rand(1, count, 1, SIZE, SIZE, dtype=torch.float64) for count in counts]
        return torch.allclose(answers(groups), answers(groups[::-1]).flip(2), rtol=1e-6, atol=1e-9)

    if learner.outputs is None and not getattr(learner, "equal_shots", False):
        with torch.no_grad():
            assert same(1, 3, 2) or not same(2, 2, 2)
    assert name != "protonet" or same(2, 2, 2)


def formats(folder: Path, image: Image.Image) -> None:
    """The same grey picture in many files."""
    deep = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned = image.rotate(90, expand=True)
    folder.mkdir()
    for kind in ("gif", "bmp", "tiff"):
        image.save(folder / f"plain.{kind}")
    image.convert("RGB").save(folder / "lossless.webp", lossless=True)
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "rgba.png")
    deep.save(folder / "deep.png")
    turned.save(folder / "turned.png", exif=exif)
    turned.save(folder / "turned.jpg", exif=exif, quality=100)


@pytest.mark.usefixtures("float64")
def test_any_format_and_what_cannot_be_read(metarun: Metarun, pictures: Path) -> None:
    learner = model(pictures / "run")
    image = noise(7)
    formats(pictures / "flat", image)
    (pictures / "flat/broken.jpg").write_bytes((pictures / "flat/turned.jpg").read_bytes()[:300])
    for hidden in ("flat/.hidden", "known/.DS_Store", "known/loose.txt", "known/bee/notes.txt"):
        (pictures / hidden).write_text("no image")
    outcome = metarun("predict run=run support=known query=flat invert=true out=a.csv batch_norm=support+one")
    assert outcome.code == 0, outcome.err
    said = outcome.err.splitlines()
    assert len(said) == 3 and all(line.startswith("skipped: ") for line in said)
    assert "loose.txt: in no class folder" in said[0] and "notes.txt" in said[1] and "broken.jpg: cannot be read" in said[2]
    rows = list(csv.DictReader(io.StringIO((pictures / "a.csv").read_text())))
    assert [row["file"] for row in rows] == sorted(
        path.name for path in pictures.glob("flat/*.*") if path.stem not in ("broken", ".hidden")
    )
    x = values(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))[None, None, None], invert=True)
    known = Examples(tensor(pictures / "known", invert=True), support(pictures / "known").y, 3)
    with torch.no_grad():
        expected = learner.adapt(known, "support+one")(x)[0].softmax(1)
    for row in rows:
        found = torch.tensor([[float(row[f"p({name})"]) for name in SHOTS]])
        tolerance = 0.02 if row["file"].endswith("jpg") else 1e-9
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, msg=row["file"])
        assert row["class"] == ""
    assert "answers: 9 images, none in a folder named like a class" in outcome.out and "inverted" in outcome.out
    assert metarun("predict run=run support=known query=flat invert=true out=b.csv batch_norm=support+one").code == 0
    assert (pictures / "a.csv").read_bytes() == (pictures / "b.csv").read_bytes()


def test_queries_in_other_folders_are_not_counted(metarun: Metarun, pictures: Path) -> None:
    model(pictures / "run")
    (pictures / "new/ant").rename(pictures / "new/zebra")
    outcome = metarun("predict run=run support=known query=new")
    assert "of 4 images; 2 images in no folder of a class)" in outcome.err
    assert [row["class"] for row in csv.DictReader(io.StringIO(outcome.out))] == ["bee", "bee", "cat", "cat", "", ""]


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"")


def diverged(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints/best.pt")
    values = {key: value * float("nan") if value.is_floating_point() else value for key, value in checkpoint["model"].items()}
    save_checkpoint(run / "checkpoints/best.pt", {**checkpoint, "model": values})


def unvalidated(root: Path) -> None:
    (root / "run/checkpoints/best.pt").rename(root / "run/checkpoints/last.pt")


GOOD = "predict run=run support=known query=new out=a.csv"
REFUSED: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "nothing": ("predict", "run: a value is needed", Path.iterdir),
    "no query": ("predict run=run support=known", "query: a value is needed", Path.iterdir),
    "unknown key": (f"{GOOD} qery=new", "qery: no such key; did you mean query?", Path.iterdir),
    "no value": ("predict run= support=known", "run: a value is needed", Path.iterdir),
    "flag": (f"{GOOD} --fast", "unrecognized arguments: --fast", Path.iterdir),
    "batch_norm": (f"{GOOD} batch_norm=best", "batch_norm: best is not allowed; expected one of query, running", Path.iterdir),
    "device": (f"{GOOD} device=gpu", "device: gpu is not allowed; did you mean cuda?", Path.iterdir),
    "no run": (GOOD.replace("run=run", "run=nowhere"), "nowhere: no such run directory", Path.iterdir),
    "empty run": (GOOD.replace("run=run", "run=known"), "not a run directory", Path.iterdir),
    "last": (f"{GOOD} checkpoint=last", "last.pt: not found; run has best only", Path.iterdir),
    "no best yet": (GOOD, "run: no checkpoint is its best, as no validation", unvalidated),
    "no best yet, but asked for": (f"{GOOD} checkpoint=best", "so far; checkpoint=last takes the last one", unvalidated),
    "no support": (GOOD.replace("known", "unknown"), "support: unknown is no folder", Path.iterdir),
    "file as query": (GOOD.replace("query=new", "query=known/ant/0.png"), "0.png is no folder", Path.iterdir),
    "empty query": (GOOD.replace("query=new", "query=empty"), "query: empty is empty", lambda root: (root / "empty").mkdir()),
    "nothing readable": (GOOD.replace("query=new", "query=new/ant"), "query: no file in it can be", lambda root: emptied(root / "new/ant")),
    "class unreadable": (GOOD, "support: known/bee has no image that can be read", lambda root: emptied(root / "known/bee")),
    "class empty": (GOOD, "support: known/dog has no image that can be read", lambda root: (root / "known/dog").mkdir()),
    "flat support": (GOOD.replace("known", "known/bee"), "has 0 classes; expected two or more", Path.iterdir),
    "four classes": (
        GOOD,
        "known has 4 classes; MAML of this run is built for 3",
        lambda root: noise(0).save(made(root / "known/dog/1.png")),
    ),
    "same images": (GOOD.replace("query=new", "query=known"), "known/ant/0.png is in the support too", Path.iterdir),
    "out is there": (GOOD, "out: a.csv already exists", lambda root: (root / "a.csv").write_text("mine")),
    "out nowhere": (GOOD.replace("a.csv", "no/a.csv"), "out: the folder of no/a.csv does not exist", Path.iterdir),
    "NaN": (GOOD, "run: this model's scores are no finite numbers", lambda root: diverged(root / "run")),
    "embed: kind": ("embed run=run images=new out=a.pt", "out: a.pt is not allowed; expected a file that ends in .npz", Path.iterdir),
    "embed: pyarrow": ("embed run=run images=new out=a.parquet", "pip install 'metarun[parquet]'", Path.iterdir),
    "embed: key": ("embed run=run images=new out=a.npz batch_norm=query", "batch_norm: no such key", Path.iterdir),
    "embed: nothing": ("embed run=run images=new/ant out=a.npz", "images: no file in it can be", lambda root: emptied(root / "new/ant")),
}


def made(path: Path) -> Path:
    path.parent.mkdir()
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(metarun: Metarun, pictures: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    line, said, prepare = REFUSED[case]
    model(pictures / "run", "algorithm=maml")
    prepare(pictures)
    monkeypatch.setattr("metarun.commands.predict.embedding.find_spec", lambda name: None)
    before = sorted(pictures.rglob("*"))
    outcome = metarun(line)
    last = [text for text in outcome.err.splitlines() if not text.startswith("skipped: ")]
    assert outcome.code == 2 and len(last) == 1 and last[0].startswith("metarun: ") and said in last[0], outcome.err
    assert sorted(pictures.rglob("*")) == before and outcome.out == ""


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", ["protonet", "maml_plus_plus"])
def test_embeddings_are_the_backbones(metarun: Metarun, pictures: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    learner = model(pictures / "run", f"algorithm={name}")
    monkeypatch.setattr("metarun.commands.predict.features.PIXELS_AT_ONCE", 4 * SIZE**2)
    outcome = metarun("embed run=run images=new out=a.npz")
    assert outcome.code == 0 and "6 images of 6 files, 64 numbers each" in outcome.out, outcome.err
    backbone = next(module for module in learner.modules() if isinstance(module, Conv4)).eval()
    with torch.no_grad():
        expected = backbone(tensor(pictures / "new"))[0]
    with np.load(pictures / "a.npz") as found:
        assert found["files"].tolist() == [f"{name}/{i}.png" for name in SHOTS for i in range(2)]
        assert found["labels"].tolist() == [name for name in SHOTS for _ in range(2)] and found["features"].dtype == np.float32
        features = torch.from_numpy(found["features"]).double()  # float32 in the file
        torch.testing.assert_close(features, expected, rtol=rounding(1, 1), atol=0)
    assert metarun("embed run=run images=new/ant out=flat.npz").code == 0
    with np.load(pictures / "flat.npz") as found:
        assert sorted(found) == ["features", "files"]


def test_an_embedding_has_the_scales_of_the_first_inner_step() -> None:
    learner = MAMLPlusPlus(Conv4(1, 8, (3,)), spec(2)).double().eval()
    x = torch.rand(1, 4, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        before = embedder(learner)(x)
        for values in learner.norms_by_step:
            values[1:] = 9.0
        assert torch.equal(embedder(learner)(x), before)
        for values in learner.norms_by_step:
            values[0] = 2.0
        changed = embedder(learner)(x)
        for name in learner.norms:
            learner.net.get_parameter(name).fill_(2.0)
        torch.testing.assert_close(changed, learner.net.get_submodule("backbone")(x))
    assert not torch.allclose(before, changed)


def records(run: Path) -> dict[bool, dict[str, object]]:
    found = [json.loads(path.read_text()) for path in run.glob("evaluations/*.json")]
    assert len({values["cross_domain"] for values in found}) == len(found)
    return {values["cross_domain"]: values for values in found}


def photographs(root: Path, mode: str) -> Path:
    for c in range(10):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(3):
            noise(10 * c + i + len(root.name)).convert(mode).save(root / f"class{c}" / f"{i}.png")
    return root


def test_a_test_on_another_dataset_fits_it_and_says_so(metarun: Metarun, trained: Path, tmp_path: Path) -> None:
    root = photographs(tmp_path / "mine", "RGB")
    line = f"evaluate run=trained dataset=folder dataset.root={root} dataset.split_fractions=[0.3,0.3,0.4]"
    assert "dataset.image_size=28 dataset.in_channels=1" in metarun(f"{line} dataset.image_size=84").err
    outcome = metarun(line)
    assert outcome.code == 0 and outcome.out.rstrip().endswith("trained on glyphs, not on folder)"), outcome.err
    found = records(trained)
    assert set(found) == {False, True} and found[True]["config"]["dataset"]["image_size"] == 28  # type: ignore[index]
    for values in found.values():
        on = values["trained_on"]
        assert on == {"dataset": "glyphs", "fingerprint": found[False]["data_fingerprint"], "split": "train"}
    run = read_run(trained)
    assert (
        run
        and [record.values["data_fingerprint"] for record in run.records] == [found[False]["data_fingerprint"]]
        and len(run.all_records) == 2
    )


def test_other_images_of_the_same_classes_are_no_other_dataset_but_are_said(metarun: Metarun, tmp_path: Path) -> None:
    ours, theirs = (photographs(tmp_path / name, "L") for name in ("ours", "theirs"))
    given = "dataset=folder dataset.image_size=8 dataset.in_channels=3 dataset.split_fractions=[0.3,0.3,0.4]"
    assert metarun(f"train {TINY} {given} dataset.root={ours} hydra.run.dir=run").code == 0
    said = "on other images of the same classes than in training)"
    assert said in metarun(f"evaluate run=run dataset.root={theirs}").out
    assert said in metarun("evaluate run=run dataset.resample=nearest").out
    found = [json.loads(path.read_text()) for path in (tmp_path / "run/evaluations").glob("*.json")]
    assert sorted((values["cross_domain"], values["other_images"]) for values in found) == [(False, False), (False, True), (False, True)]
    assert (
        len({values["dataset"]["classes_sha256"] for values in found}) == 1 and len({values["data_fingerprint"] for values in found}) == 3
    )
    ours.rename(tmp_path / "moved")
    outcome = metarun(f"evaluate run=run dataset.root={tmp_path / 'moved'}")
    assert outcome.code == 0 and "not on" not in outcome.out and said not in outcome.out
    (theirs / "class0").rename(theirs / "dog")
    for path in theirs.iterdir():
        path.rename(theirs / f"my_{path.name}")
    assert "trained on other classes, of another folder)" in metarun(f"evaluate run=run dataset.root={theirs}").out


OWN = """
from dataclasses import dataclass, replace
from helpers import random_table

@dataclass(kw_only=True)
class Mine:
    image_size: int = 8
    in_channels: int = 1

    def load(self, split):
        if split == "trainval":
            raise KeyError(split)
        table = random_table([6] * 5, 8)
        return replace(table, names=tuple(f"{split}/{name}" for name in table.names), fingerprint=f"images of {split}")
"""


def test_a_source_of_ones_own_is_the_dataset_that_it_was_trained_on(
    metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_images.py").write_text(OWN)
    (tmp_path / "own/dataset").mkdir(parents=True)
    (tmp_path / "own/dataset/mine.yaml").write_text("_target_: own_images.Mine\nimage_size: 8\nin_channels: 1\n")
    outcome = metarun(f"train --config-dir own dataset=mine {TINY} hydra.run.dir=run")
    assert outcome.code == 0 and "batch statistics: running, step" in outcome.out and "trained on" not in outcome.out, outcome.err
    found = records(tmp_path / "run")[False]
    assert found["other_images"] is False and found["dataset"]["target"] == "own_images.Mine"  # type: ignore[index]
    run = read_run(tmp_path / "run")
    assert run is not None and len(run.records) == 1
    assert f"{found['accuracy']:.2f}" in metarun("runs run").out


def test_no_cell_of_a_table_takes_a_test_on_another_dataset(tmp_path: Path) -> None:
    words = ["experiment=maml_omniglot_5w1s"]
    fabricate(tmp_path / "run", words, accuracy=None)
    record(tmp_path / "run", words, None, 99.0, cross_domain=True)

    def accuracies() -> set[float | None]:
        return {cell.accuracy for cell in table_of("maml", tmp_path).cells}

    run = read_run(tmp_path / "run")
    assert accuracies() == {None} and run is not None and not run.tested
    record(tmp_path / "run", words, None, 90.0, cross_domain=False)
    assert accuracies() == {None, 90.0}


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_help_names_every_key(metarun: Metarun, command: str) -> None:
    outcome = metarun(f"{command} --help")
    assert outcome.code == 0 and all(f"  {key}=" in outcome.out for key in ("run", "out", "device", "checkpoint", "invert"))

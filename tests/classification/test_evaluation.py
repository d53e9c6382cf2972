"""Tested numbers: the same by every route, and a record that says how they came about."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, Metarun, composed, double_cpu, random_table, spec

from metarun.algorithms.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.classification.evaluation import _by_embedding, _by_task
from metarun.data.episodes import Episodes, Pixels
from metarun.kinds import Kind
from metarun.nn.device import Device
from metarun.runs.checkpoint import file_sha256
from metarun.runs.folder import Run
from metarun.training.learners import make_kind


@pytest.mark.parametrize("rotations", ["none", "classes"])
def test_scoring_stored_embeddings_equals_running_the_network_per_task(rotations: str) -> None:
    torch.manual_seed(0)
    table, device = random_table([6, 7, 8, 6, 9, 6, 7], size=8, rotations=rotations), double_cpu()
    part = table.select(table.names[2:])
    learner, episodes, pixels = (
        ProtoNet(Conv4(1, 8, (4,)), spec()).double().eval(),
        Episodes(part, 3, 2, 3, 0, "test"),
        Pixels(part, device),
    )
    with torch.no_grad():
        fast = torch.cat([logits for logits, _ in _by_embedding(learner, episodes, pixels, range(3, 43), device)])
        slow = torch.cat([logits for logits, _ in _by_task(learner, episodes, pixels, range(3, 43), "running", device)])
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_accuracy_and_interval_by_hand() -> None:
    kind = make_kind(composed("task.ways=3", "task.queries=2", "protocol.queries=2"), Device("cpu"))
    learner, source = ProtoNet(Conv4(1, 28, (4,)), spec()), kind.evaluation("val")
    table = kind.score(learner, source, 0, 30)
    assert table["accuracy"].shape == (30,) and learner.training
    parts = [kind.score(learner, source, first, 15) for first in (0, 15)]  # a row depends on no other
    for name, column in table.items():
        assert np.array_equal(column, np.concatenate([part[name] for part in parts])), name
    by_hand = {"accuracy": np.array([0.0, 50.0, 100.0, 50.0, np.nan]), "loss": np.ones(5)}
    (accuracy, loss) = Kind.summary(kind, by_hand).numbers
    assert accuracy.value == 50 and accuracy.half == pytest.approx(1.96 * 40.8248 / 2, rel=1e-4)
    assert loss.value == 1 and loss.half == 0 and loss.measure.name == "loss"


def test_a_record_carries_its_protocol_and_can_be_had_again(metarun: Metarun, trained: Path) -> None:
    (first,) = (trained / "evaluations").iterdir()
    record = json.loads(first.read_text())
    expected = {
        "episodes": 3,
        "ways": 3,
        "shots": 1,
        "queries": 2,
        "batch_norm": "query",
        "split": "test",
        "seed": 0,
        "checkpoint": "best.pt",
    }
    assert {key: record[key] for key in expected} == expected
    assert record["accuracy"] == pytest.approx(np.mean(record["per_episode"]), abs=1e-3) and len(record["per_episode"]) == 3
    assert record["checkpoint_sha256"] == file_sha256(trained / "checkpoints" / "best.pt")
    assert metarun(f"evaluate run={trained}").code == 0
    again = json.loads(first.read_text())
    assert {**again, "tested": record["tested"]} == record and len(list((trained / "evaluations").iterdir())) == 1
    again = metarun(f"evaluate run={trained} protocol.batch_norm=running protocol.episodes=4")
    assert again.code == 0 and "4 episodes" in again.out and "batch statistics: running" in again.out
    assert len(list((trained / "evaluations").iterdir())) == 2


def test_views_need_transforms_and_are_a_test_of_their_own(metarun: Metarun, trained: Path) -> None:
    flips, crops = (
        f"dataset.augment=[{{_target_:torchvision.transforms.v2.{name}}}]" for name in ("RandomHorizontalFlip", "CenterCrop,size:9")
    )
    for words, reason in (("", "protocol.views: not allowed with an empty dataset.augment"), (crops, "dataset.augment: makes")):
        outcome = metarun(f"evaluate run={trained} protocol.views=3 {words}")
        assert outcome.code == 2 and reason in outcome.err and outcome.err.count("\n") == 1
    assert len(list((trained / "evaluations").iterdir())) == 1
    for views in (1, 3):
        assert metarun(f"evaluate run={trained} protocol.views={views} {flips}").code == 0
    records = [json.loads(path.read_text()) for path in (trained / "evaluations").iterdir()]
    assert sorted(record["views"] for record in records) == [1, 1, 3]


def test_classes_that_were_trained_on_are_not_tested_unless_allowed(metarun: Metarun, trained: Path) -> None:
    refused = metarun(f"evaluate run={trained} protocol.split=train")
    assert refused.code == 2 and "300 classes that were trained on" in refused.err and refused.err.count("\n") == 1
    assert metarun(f"evaluate run={trained} protocol.split=train protocol.allow_overlap=true").code == 0


def test_a_run_directory_in_use_is_refused(metarun: Metarun, tmp_path: Path) -> None:
    with Run(tmp_path / "held"):
        outcome = metarun(f"train {TINY} hydra.run.dir=held")
    assert outcome.code == 2 and "held: this run is in use by another process" in outcome.err and outcome.err.count("\n") == 1

"""The loop by itself: gradients over chunks, clipping, patience, losses that are not finite, and what a full disk leaves."""

import errno
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_episode, spec
from torch import nn

from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.errors import TrainingError, UserError
from metarun.nn.device import Device
from metarun.runs.checkpoint import load_checkpoint, renewed, save_checkpoint
from metarun.runs.folder import Run
from metarun.tasks import Episode, MetaLearner, Metrics, TaskSource
from metarun.text.measure import Measure
from metarun.training.gradient import MetaGradient
from metarun.training.testing import selected
from metarun.training.trainer import Trainer

PERCENT = Measure("accuracy", "%", higher_is_better=True)


class Dice(TaskSource):
    def draw(self, first: int, count: int) -> Episode:
        torch.manual_seed(first)
        return random_episode(count, 3, 1, 2, size=8)

    def sha256(self, count: int) -> str:
        return ""


def fit(learner: MetaLearner, folder: Path, **settings: Any) -> Trainer:
    loop: dict[str, Any] = {
        "steps": 6, "tasks_per_step": 4, "val_every": 0, "log_every": 1, "checkpoint_every": 1, "keep_best": 1, "patience": None,
        "measure": PERCENT, "validate": lambda step: {"accuracy": 50.0},
    }  # fmt: skip
    of_update = {key: settings.pop(key) for key in ("tasks_per_chunk", "clip_value", "clip_norm") if key in settings}
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    update = MetaGradient(learner, Device("cpu"), optimizer, scheduler, **of_update)
    with Run(folder) as run:
        trainer = Trainer(learner, update, Device("cpu"), Dice(), run=run, facts={}, **{**loop, **settings})
        trainer.fit()
    return trainer


@pytest.mark.parametrize("method", [MAML, ProtoNet])
def test_chunks_of_any_size_make_the_same_steps(method: type, tmp_path: Path) -> None:
    states = []
    for chunk in (None, 3, 1):
        torch.manual_seed(0)
        learner = method(Conv4(1, 8, (3, 4)), spec(3)).double()
        fit(learner, tmp_path / str(chunk), tasks_per_chunk=chunk)
        states.append(learner.state_dict())
    for other in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)


class Hungry(ProtoNet):
    """Runs out of memory where `fails(call, tasks)` says so, with the forward pass done, random numbers drawn and statistics moved."""

    def __init__(self, fails: Callable[[int, int], bool], error: Callable[[], object]) -> None:
        super().__init__(Conv4(1, 8, (3, 4)), spec())
        self.calls, self.fails, self.error = 0, fails, error
        self.graphs: list[weakref.ref[torch.Tensor]] = []

    def meta_loss(self, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        assert not any(graph() is not None for graph in self.graphs), "a failed attempt still holds its memory"
        self.calls += 1
        losses, metrics = super().meta_loss(episode)
        losses = losses * (1 + torch.rand(()))
        if self.fails(self.calls, len(episode)):
            self.graphs.append(weakref.ref(losses))
            self.error()
        return losses, metrics


def cuda_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def ram_is_full() -> None:
    torch.empty(2**60)


def kernel_fails() -> None:
    raise RuntimeError("expected scalar type Float but found Double")


@pytest.mark.parametrize(
    ("error", "chunk", "fails", "left"),
    [
        (cuda_is_full, None, lambda call, tasks: tasks > 2, 2),
        (ram_is_full, None, lambda call, tasks: tasks > 1, 1),
        (ram_is_full, 2, lambda call, tasks: call == 2, 1),  # when a first chunk has left its gradient already
    ],
)
def test_out_of_memory_halves_the_chunk_and_changes_nothing_else(
    error: Any, chunk: int | None, fails: Any, left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    states = []
    for given, failing in ((chunk, fails), (left, lambda call, tasks: False)):
        torch.manual_seed(0)
        learner = Hungry(failing, error).double()
        fit(learner, tmp_path / str(given), tasks_per_chunk=given, steps=2, checkpoint_every=0)
        states.append(learner.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    said = [record.getMessage() for record in caplog.records if "memory" in record.getMessage()]
    assert len(said) == 1 and f"tasks_per_chunk={left}," in said[0]


def test_a_task_that_does_not_fit_ends_training_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"one task at a time; lower task\.queries .*device\.precision=bf16 .*algorithm\.recompute=true"
    ):
        fit(Hungry(lambda call, tasks: True, ram_is_full).double(), tmp_path)


def test_other_failures_are_not_taken_for_want_of_memory(tmp_path: Path) -> None:
    learner = Hungry(lambda call, tasks: True, kernel_fails).double()
    with pytest.raises(RuntimeError, match="expected scalar type"):
        fit(learner, tmp_path)
    assert learner.calls == 1


class Slope(MetaLearner):
    """A learner whose gradient is known: `slope` for each of its two weights, or not finite from a step on."""

    def __init__(self, slope: float, spoilt_from: int = 10**9) -> None:
        super().__init__()
        self.weight, self.slope, self.step, self.spoilt_from = nn.Parameter(torch.zeros(2)), slope, 0, spoilt_from

    def meta_loss(self, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        self.step += 1
        loss = self.slope * self.weight.sum() * (float("nan") if self.step >= self.spoilt_from else 1.0)
        losses = loss.expand(len(episode))
        return losses, {"accuracy": losses.detach() * 0}


@pytest.mark.parametrize(("settings", "moved"), [({}, 0.3), ({"clip_value": 1.0}, 0.1), ({"clip_norm": 1.0}, 0.1 / 2**0.5)])
def test_clipping(settings: dict[str, float], moved: float, tmp_path: Path) -> None:
    learner = Slope(3.0)
    fit(learner, tmp_path, steps=1, **settings)
    torch.testing.assert_close(learner.weight.detach(), torch.full((2,), -moved), rtol=1e-5, atol=1e-6)


MSE = Measure("mse")
RETURN = Measure("return", "points", higher_is_better=True, digits=1)
VALIDATIONS = {
    "the best is kept": (PERCENT, (50.0, 70.0, 60.0, 70.0, 90.0), 2, (2, 70.0), 4),
    "lower is better": (MSE, (0.5, 0.7, 0.4, 0.4, 0.9), 2, (3, 0.4), 5),
    "all below zero": (RETURN, (-38.4, -36.0), None, (2, -36.0), 6),
    "what is not finite": (RETURN, (float("nan"), float("inf"), -40.0, float("inf")), 1, (3, -40.0), 4),
}


@pytest.mark.parametrize("case", VALIDATIONS)
def test_the_measure_says_what_is_best_and_patience_ends_training(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    measure, values, patience, (best, value), last = VALIDATIONS[case]

    def validate(step: int) -> dict[str, float]:
        return {measure.name: values[min(step, len(values)) - 1], "another": float(step)}

    trainer = fit(Slope(1.0), tmp_path, val_every=1, patience=patience, measure=measure, validate=validate)
    assert trainer.step == last and trainer.best == {"step": best, "value": value, "misses": last - best}
    assert load_checkpoint(tmp_path, "best")["step"] == best and load_checkpoint(tmp_path, "last")["best"] == trainer.best
    assert json.loads((tmp_path / "status.json").read_text())["best"] == {"step": best, "value": value}
    said = f"step {best}: val {measure.name} {measure.text(value)} (best so far)"
    assert said in [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("measure", [PERCENT, MSE])
def test_the_ranking_goes_by_the_measure(measure: Measure, tmp_path: Path) -> None:
    values = (3.0, float("nan"), 1.0, 3.0, float("-inf"), 2.0)
    trainer = fit(Slope(1.0), tmp_path, val_every=1, keep_best=3, measure=measure, validate=lambda step: {measure.name: values[step - 1]})
    assert trainer.ranking == ([(3.0, 1), (3.0, 4), (2.0, 6)] if measure is PERCENT else [(1.0, 3), (2.0, 6), (3.0, 1)])
    kept = {path.stem for path in (tmp_path / "checkpoints").glob("val-*.pt")}
    assert kept == {f"val-{step}" for _, step in trainer.ranking}


def test_without_a_finite_validation_there_is_no_best_and_a_test_of_it_is_refused(tmp_path: Path) -> None:
    trainer = fit(Slope(1.0), tmp_path, val_every=2, patience=1, keep_best=2, validate=lambda step: {"accuracy": float("nan")})
    assert trainer.best is None and trainer.step == 6 and not trainer.ranking
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]
    protocol = {"ensemble": 1, "selection": "best_val"}
    with pytest.raises(UserError, match=r"no validation of .* gave a finite number.*; protocol\.selection=last tests"):
        selected(tmp_path, protocol)
    assert selected(tmp_path, {**protocol, "selection": "last"}) == ["last"]


def test_checkpoints_of_before_go_on(tmp_path: Path) -> None:
    """Those had the parts of the update beside one another, and an accuracy as best, -1 before the first validation."""
    now = fit(Slope(1.0), tmp_path, val_every=4, validate=lambda step: {"accuracy": 60.0}, steps=5)
    kept = load_checkpoint(tmp_path, "last")
    assert renewed(kept) == kept
    older = {**kept, **kept["update"], "best": {"step": 4, "accuracy": 60.0, "misses": 1}}
    del older["update"], older["source"], older["ranking"]
    assert renewed(older)["update"] == kept["update"] and renewed(older)["best"] == {"step": 4, "value": 60.0, "misses": 1}
    assert renewed({**older, "best": {"step": 0, "accuracy": -1.0, "misses": 0}})["best"] is None
    now.step, now.best = 0, None
    now.load(older)
    assert now.step == 5 and now.best == {"step": 4, "value": 60.0, "misses": 1}


def test_a_loss_that_is_not_finite_names_its_step_and_spoils_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"not finite since step 4; .*last\.pt; try"):
        fit(Slope(1.0, spoilt_from=4), tmp_path, checkpoint_every=2, log_every=100)
    saved = load_checkpoint(tmp_path, "last")
    assert saved["step"] == 2 and saved["model"]["weight"].isfinite().all()


def test_a_full_disk_is_one_line_and_the_old_checkpoint_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    path.parent.mkdir()
    save_checkpoint(path, {"step": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"last\.pt: cannot be written \(No space left on device\); the previous checkpoint is kept"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(tmp_path, "last")["step"] == 1 and list(path.parent.iterdir()) == [path]


def test_foreign_and_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.pt"
    path.parent.mkdir()
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="not a checkpoint of metarun"):
        load_checkpoint(tmp_path, "last")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        load_checkpoint(tmp_path, "last")

"""The loop by itself: gradients over chunks, clipping, patience, losses that are not finite, and what a full disk leaves."""

import errno
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_episode
from torch import nn

from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.errors import TrainingError, UserError
from metarun.nn.device import Device
from metarun.runs.checkpoint import load_checkpoint, save_checkpoint
from metarun.runs.folder import Run
from metarun.tasks import Episode, MetaLearner, Metrics
from metarun.training.trainer import Trainer


def fit(learner: MetaLearner, folder: Path, **settings: Any) -> Trainer:
    loop: dict[str, Any] = {
        "steps": 6, "tasks_per_step": 4, "tasks_per_chunk": None, "val_every": 0, "log_every": 1, "checkpoint_every": 1,
        "keep_best": 1, "patience": None, "clip_value": None, "clip_norm": None, "validate": lambda step: {"accuracy": 50.0},
    }  # fmt: skip

    def tasks(first: int, count: int) -> Any:
        torch.manual_seed(first)
        return random_episode(count, 3, 1, 2, size=8)

    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    with Run(folder) as run:
        trainer = Trainer(learner, optimizer, scheduler, Device("cpu"), tasks, run=run, facts={}, **{**loop, **settings})
        trainer.fit()
    return trainer


@pytest.mark.parametrize("method", [MAML, ProtoNet])
def test_chunks_of_any_size_make_the_same_steps(method: type, tmp_path: Path) -> None:
    states = []
    for chunk in (None, 3, 1):
        torch.manual_seed(0)
        learner = method(Conv4(1, 8, (3, 4)), **({"ways": 3} if method is MAML else {})).double()
        fit(learner, tmp_path / str(chunk), tasks_per_chunk=chunk)
        states.append(learner.state_dict())
    for other in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)


class Hungry(ProtoNet):
    """Runs out of memory where `fails(call, tasks)` says so, with the forward pass done, random numbers drawn and statistics moved."""

    def __init__(self, fails: Callable[[int, int], bool], error: Callable[[], object]) -> None:
        super().__init__(Conv4(1, 8, (3, 4)))
        self.calls, self.fails, self.error = 0, fails, error
        self.graphs: list[weakref.ref[torch.Tensor]] = []

    def meta_loss(self, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        assert not any(graph() is not None for graph in self.graphs), "a failed attempt still holds its memory"
        self.calls += 1
        loss, metrics = super().meta_loss(episode)
        loss = loss * (1 + torch.rand(()))
        if self.fails(self.calls, len(episode)):
            self.graphs.append(weakref.ref(loss))
            self.error()
        return loss, metrics


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
        return loss, {"loss": loss.detach(), "accuracy": loss.detach() * 0}


@pytest.mark.parametrize(("settings", "moved"), [({}, 0.3), ({"clip_value": 1.0}, 0.1), ({"clip_norm": 1.0}, 0.1 / 2**0.5)])
def test_clipping(settings: dict[str, float], moved: float, tmp_path: Path) -> None:
    learner = Slope(3.0)
    fit(learner, tmp_path, steps=1, **settings)
    torch.testing.assert_close(learner.weight.detach(), torch.full((2,), -moved), rtol=1e-5, atol=1e-6)


def test_patience_ends_training_and_the_best_is_kept(tmp_path: Path) -> None:
    accuracies = {1: 50.0, 2: 70.0, 3: 60.0, 4: 70.0, 5: 90.0}
    trainer = fit(Slope(1.0), tmp_path, val_every=1, patience=2, validate=lambda step: {"accuracy": accuracies[step]})
    assert trainer.step == 4 and trainer.best == {"step": 2, "accuracy": 70.0, "misses": 2}
    assert load_checkpoint(tmp_path, "best")["step"] == 2 and load_checkpoint(tmp_path, "last")["step"] == 4


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

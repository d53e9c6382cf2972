"""The loop by itself: gradients over chunks, clipping, patience, losses that are not finite, and what a full disk leaves."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_episode
from torch import nn

from metarun.algorithms.maml import MAML
from metarun.algorithms.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4
from metarun.checkpoint import load_checkpoint, save_checkpoint
from metarun.device import Device
from metarun.errors import TrainingError, UserError
from metarun.run import Run
from metarun.trainer import Trainer


def fit(learner: nn.Module, folder: Path, **settings: Any) -> Trainer:
    loop: dict[str, Any] = {
        "steps": 6, "tasks_per_step": 4, "tasks_per_chunk": None, "val_every": 0, "log_every": 1, "checkpoint_every": 1,
        "patience": None, "clip_value": None, "clip_norm": None, "validate": lambda step: {"accuracy": 50.0},
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


class Slope(nn.Module):
    """A learner whose gradient is known: `slope` for each of its two weights, or not finite from a step on."""

    def __init__(self, slope: float, spoilt_from: int = 10**9) -> None:
        super().__init__()
        self.weight, self.slope, self.step, self.spoilt_from = nn.Parameter(torch.zeros(2)), slope, 0, spoilt_from

    def meta_loss(self, episode: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
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
    with pytest.raises(UserError, match=r"last\.pt: cannot be written \(No space left on device\); the checkpoint of before is kept"):
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

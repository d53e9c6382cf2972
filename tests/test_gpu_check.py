"""The checks for a card, rehearsed on the CPU in their smallest size, and the wheels that travel with them."""

import json
import subprocess
import sys
import time
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def test_the_rehearsal_does_every_check(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--quick", "--only", "protonet", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, ROOT / "scripts/gpu_check.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    results = {entry["unit"].split()[0]: entry for entry in json.loads((tmp_path / "report.json").read_text())["results"]}
    assert set(results) == {"environment", "norm", "gradient", "steps", "residency", "resume", "memory", "rate", "train"}
    assert all(entry["ok"] for name, entry in results.items() if name not in ("environment", "rate"))
    assert results["rate"]["ms"] > 0 and results["train"]["state"] == "finished" and results["train"]["step"] == 4


def test_a_check_that_fails_or_hangs_costs_itself_alone(scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu import checks, units

    class Off(checks.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1.001 if x.dtype == torch.float32 else 1.0) + (x.dtype == torch.float32) * 0.01

    monkeypatch.setattr(checks, "BatchNorm2d", Off)
    assert checks.norm("cpu", "float64")["ok"] and not checks.norm("cpu", "float32")["ok"]
    todo = [("gradient", "no_such_method"), ("steps", "maml", "fp32"), ("environment",)]
    found = dict(units.run(todo, "cpu", True, time.monotonic() + 200, most=100))
    assert "no_such_method" in found[todo[0]]["error"] and found[todo[1]]["ok"] and found[todo[2]]["device"] == "cpu"
    ((_, late),) = units.run(todo[1:2], "cpu", True, time.monotonic() + 200, most=0.01)
    assert late == {"ok": False, "error": "it took too long"}


def test_trainings_go_on_and_end_within_their_time(scripts: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gpu import trainings

    class Process:
        def __init__(self, command: list[str], **_: object) -> None:
            self.words, self.told = command[4:], False
            started.append(self)

        def wait(self, seconds: float | None = None) -> int:
            if not self.told and "resume" in self.words[0]:
                raise subprocess.TimeoutExpired("metarun", seconds)
            return 143 if self.told else 0

        def terminate(self) -> None:
            self.told = True

    started: list[Process] = []
    monkeypatch.setattr("subprocess.Popen", Process)
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    (tmp_path / "half" / "checkpoints" / "last.pt").touch()
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "status.json").write_text(json.dumps({"state": "finished", "step": 9}))
    cells = ["experiment=whole", "experiment=half", "experiment=new steps=2"]
    found = [cell for _, cell in trainings.train(cells, "cpu", "zips", tmp_path, time.monotonic() + 1000)]
    assert found[0] == {"ok": True, "state": "finished", "step": 9} and [cell["ok"] for cell in found] == [True] * 3
    beside = ["device=cpu", "device.threads=1", "dataset.root=zips"]
    assert [process.words for process in started] == [
        [f"resume={tmp_path / 'half'}", *beside],
        ["experiment=new", "steps=2", f"hydra.run.dir={tmp_path / 'new'}", *beside],
    ]
    assert started[0].told and not started[1].told
    assert list(trainings.train(cells, "cpu", None, tmp_path, time.monotonic() + trainings.SAVING - 1)) == []


def test_the_wheels_are_what_pyproject_needs_but_for_torch(scripts: None) -> None:
    tomllib = pytest.importorskip("tomllib")
    from gpu import wheels

    listed = [Requirement(text) for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]
    found = wheels.wheels()
    assert {canonicalize_name(needed.name) for needed in listed} - set(found) == {"torch", "torchvision"}
    for name in found:  # and all that each of them needs in turn, in a version that it takes
        for needed in [*listed, *filter(wheels.applies, map(Requirement, distribution(name).requires or ()))]:
            package = canonicalize_name(needed.name)
            assert package in wheels.KEPT or found[package] in needed.specifier, (name, needed)
    download, build, install = wheels.commands()
    assert "hydra-core==" in download and "torch" not in download and "antlr4" not in download
    assert "antlr4-python3-runtime==" in build and "--no-index" in install

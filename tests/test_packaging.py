"""A wheel, installed in a folder of its own, does what the checkout does: the defaults of `conf/` are inside."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import TINY

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("metarun-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, "-m", "metarun", *words], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_every_default(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    yamls = {f"metarun/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert "metarun/conf/train.yaml" in yamls and yamls <= inside
    data = {str(path.relative_to(ROOT)) for path in (ROOT / "metarun").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert data <= inside
    assert not any(name.startswith(("tests/", "conf/")) for name in inside)


def test_the_installed_wheel_composes_its_own_defaults(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "train", "--info", "searchpath")
    assert shown.returncode == 0 and str(installed / "metarun" / "conf") in shown.stdout, shown.stderr
    assert "inner_lr:" in run(installed, tmp_path, "train", "--cfg", "job", "algorithm=maml").stdout


def test_the_installed_wheel_trains(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "train", *TINY.split(), "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run/evaluations").glob("*.json"))


def test_the_console_script_is_the_dispatcher() -> None:
    script = Path(sys.executable).with_name("metarun")
    assert subprocess.run([script, "--version"], capture_output=True, text=True, check=True).stdout.startswith("metarun ")

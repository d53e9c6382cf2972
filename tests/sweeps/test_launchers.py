"""Sweeps through launchers that are installed apart: what is killed costs itself alone, and the same line again goes on with it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY

Sweep = Callable[[str], "subprocess.Popen[bytes]"]
TINY_TASKS = f"{TINY} checkpoint_every=10 log_every=5"
JOBLIB = "hydra/launcher=joblib hydra.launcher.n_jobs=2"
SLURM = (
    "hydra/launcher=submitit_slurm hydra.launcher.cpus_per_task=1 hydra.launcher.mem_gb=2 hydra.launcher.timeout_min=10 "
    "hydra.launcher.max_num_timeout=3 hydra.launcher.array_parallelism=2"
)
HAS_JOBLIB = bool(find_spec("joblib") and find_spec("hydra_plugins.hydra_joblib_launcher"))
HAS_SUBMITIT = bool(find_spec("submitit") and find_spec("hydra_plugins.hydra_submitit_launcher"))


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    """Starts the real command, a process of its own, which prints into a file beside the sweep's folder; ends what is left of it."""
    drivers = []

    def start(line: str) -> subprocess.Popen[bytes]:
        words = ["train", "--multirun", *TINY_TASKS.split(), f"hydra.sweep.dir={tmp_path / 'sweep'}", *line.split()]
        with open(tmp_path / "sweep.txt", "wb") as out:
            drivers.append(subprocess.Popen([sys.executable, "-m", "metarun", *words], stdout=out, stderr=subprocess.STDOUT))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.kill()
        driver.wait()
    for path in (tmp_path / "sweep/.submitit").glob("[0-9]*/*_submission.sh"):
        subprocess.run(["scancel", path.parent.name])


def slurm_answers() -> bool:
    """Whether there is a SLURM to submit to, which says so at once."""
    with suppress(FileNotFoundError, subprocess.TimeoutExpired):
        return subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=10).returncode == 0
    return False


def end_of(driver: subprocess.Popen[bytes], folder: Path, seconds: float) -> tuple[int, str]:
    """The exit code, and what was printed."""
    code = driver.wait(timeout=seconds)
    return code, folder.with_suffix(".txt").read_text()


def statuses(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/status.json"))}


def wait_for(condition: Callable[[], Any], seconds: float) -> Any:
    """What `condition` returns as soon as that is true."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return found


def under_way(folder: Path, seed: int) -> tuple[str, dict[str, Any]] | None:
    """The run with this seed, once it has a checkpoint of its own."""
    found = [(name, said) for name, said in statuses(folder).items() if f"-{seed}-" in name and 20 <= said.get("step", 0) < said["steps"]]
    return found[0] if found else None


def logged_steps(run: Path) -> list[int]:
    """The steps whose losses the run logged, in the file's order."""
    with open(run / "metrics.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if (row["split"], row["name"]) == ("train", "loss")]


@pytest.mark.skipif(not HAS_JOBLIB, reason="hydra-joblib-launcher is not installed")
def test_joblib_a_failing_and_a_killed_job_cost_themselves_alone(sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    line = f'{JOBLIB} steps=250 val_every=250 hydra.sweeper.points=[["seed=0"],["seed=1"],["seed=2","optimizer.lr=1e30"]]'
    driver = sweep(line)
    killed, said = wait_for(lambda: under_way(folder, 0), 120)
    os.kill(said["pid"], signal.SIGKILL)
    code, printed = end_of(driver, folder, 240)
    after = statuses(folder)
    assert code == 1 and "2 of 3 jobs did not finish" in printed, printed
    expected = {name: "cut off" if name == killed else "failed" if "-2-" in name else "finished" for name in after}
    assert {name: status["state"] for name, status in after.items()} == expected
    assert f"cut off: {killed} at step {after[killed]['step']}: killed (SIGKILL)" in printed and "the loss is not finite" in printed

    code, printed = end_of(sweep(f"{line} sweep.retry=none"), folder, 240)
    assert code == 1 and "3 jobs, 1 of them to do" in printed and "1 of 3 jobs did not finish" in printed, printed
    again = statuses(folder)
    assert again[killed]["state"] == "finished"
    assert all(again[name] == after[name] for name in after if name != killed), "nothing is done twice"
    assert logged_steps(folder / killed) == list(range(5, 251, 5)), "it went on from its checkpoint"


@pytest.mark.skipif(not HAS_SUBMITIT, reason="hydra-submitit-launcher is not installed")
@pytest.mark.skipif(not slurm_answers(), reason="there is no SLURM (sinfo does not answer)")
def test_slurm_a_preempted_job_goes_on_in_its_folder(sweep: Sweep, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    driver = sweep(f"{SLURM} steps=400 val_every=400 checkpoint_every=400 seed=0,1")
    name, said = wait_for(lambda: under_way(folder, 0), 120)
    job = said["slurm_job"]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)  # what submitit asks a cluster for, before it ends a job
    wait_for(lambda: "PENDING" in subprocess.run(["squeue", "-h", "-o%T", "-j", job], capture_output=True, text=True).stdout, 60)
    stopped = statuses(folder)[name]
    assert stopped["state"] == "cut off" and 20 <= stopped["step"] < 400
    subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], check=True)  # SLURM would have it wait for two minutes
    code, printed = end_of(driver, folder, 120)
    assert code == 0 and "2 of 2 jobs finished" in printed, printed
    after = statuses(folder)
    assert len(after) == 2 and after[name]["slurm_job"] == job and after[name]["pid"] != said["pid"]
    assert "stopped at step" in (folder / name / "console.log").read_text(), "it saved where it stood, not where a checkpoint was due"
    assert logged_steps(folder / name) == list(range(5, 401, 5)), "it went on from there"

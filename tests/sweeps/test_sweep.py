"""Sweeps: every point checked first, every job by itself, and the same line again goes on with what is left."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, Metarun, composed
from PIL import Image

from metarun.runs.status import held
from metarun.sweeps.sweep import run_name

SWEEP = f"train --multirun {TINY} hydra.sweep.dir=sweep"
LONG = "steps=400 val_every=200 checkpoint_every=10 log_every=10"


def statuses(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/status.json"))}


def wait_until(condition: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("seed=0,1,-1", "seed: -1 is not allowed; expected an integer of at least 0 (at seed=-1)"),
        ("optimizer.lr=0.1,abc seed=0,1", "optimizer.lr: 'abc' is not a float"),
        ("algorithm=protonet,protonte", "algorithm=protonte: no such choice; did you mean protonet?"),
        ("algorithm=protonet,maml algorithm.distance=cosine", "algorithm.distance: no such key"),
        ("optimizer.lr=0.1,-1", "optimizer: torch.optim.Adam refuses its values (Invalid learning rate: -1)"),
        ("task.ways=3,100000", "task.ways: 100000 is not allowed; the train split has 300 classes (at task.ways=100000)"),
        ("algorithm=maml protocol.ways=3,4", "protocol.ways: 4 is not allowed; MAML is built for 3 (at protocol.ways=4)"),
        ("seed=0,1 sweep.retry=maybe", "sweep.retry: maybe is not allowed; expected one of failed, none"),
        ("sweep=null", "sweep.retry: null is not allowed"),
        ("device.threads=1,2", "device.threads: 1 and 2 make one and the same run"),
        ("'seed=range(0,0)'", "a sweep without a point"),
        ("'optimizer.lr=interval(0,1)'", "metarun tune searches intervals"),
        ("seed=0,1 hydra.sweeper.max_batch_size=0", "hydra.sweeper.max_batch_size: 0 is not allowed"),
        ("'hydra.sweeper.points=[[1,2]]'", "hydra.sweeper.points: expected a list of lists of overrides"),
        ("seed=0,1 hydra/launcher=rocket", "hydra/launcher=rocket: no such choice"),
        ('\'hydra.sweeper.points=[["seed=0"],["sed=1"]]\'', "sed: no such key"),
    ],
)
def test_a_bad_point_is_refused_before_the_first_job(metarun: Metarun, tmp_path: Path, words: str, line: str) -> None:
    outcome = metarun(f"{SWEEP} {words}")
    assert (outcome.code, outcome.out) == (2, "")
    assert line in outcome.err and len(outcome.err.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_one_failing_job_costs_itself_alone_and_the_same_line_goes_on(metarun: Metarun, tmp_path: Path) -> None:
    line = f"{SWEEP} 'optimizer.lr=1e30,0.001' steps=3"
    first = metarun(line)
    assert first.code == 1
    assert "1 of 2 jobs did not finish" in first.err and "the loss is not finite since step 2" in first.err.splitlines()[-1]
    found = {said["state"]: name for name, said in statuses(tmp_path / "sweep").items()}
    assert set(found) == {"failed", "finished"} and found["failed"] in first.err

    alone = metarun(f"train {TINY} optimizer.lr=0.001 steps=3 hydra.run.dir=alone")  # in this process, after other runs
    assert alone.code == 0
    done = tmp_path / "sweep" / found["finished"]
    assert (done / "metrics.csv").read_bytes() == (tmp_path / "alone/metrics.csv").read_bytes()

    before = statuses(tmp_path / "sweep")
    assert metarun(f"{line} sweep.retry=none").code == 1
    assert statuses(tmp_path / "sweep") == before, "nothing was to be done"
    again = metarun(line)
    assert again.code == 1 and "1 of 2 jobs finished, 1 of them before" in again.out
    after = statuses(tmp_path / "sweep")
    assert after[found["finished"]] == before[found["finished"]], "what is finished is left alone"
    assert after[found["failed"]]["pid"] != before[found["failed"]]["pid"], "what failed is tried again"


def test_a_run_belongs_to_the_images_that_it_was_begun_with(metarun: Metarun, tmp_path: Path) -> None:
    words = f"{SWEEP} dataset=folder dataset.image_size=8"
    for place in "ab":
        for split, name in (("train", "x"), ("val", "v"), ("test", "t")):
            for number in range(3):
                (tmp_path / place / split / f"{name}{number}").mkdir(parents=True)
                for image in range(4):
                    shade = (10 * number + image + 100 * (place == "b") + 40 * (split == "test"),) * 3
                    Image.new("RGB", (8, 8), shade).save(tmp_path / place / split / f"{name}{number}" / f"{image}.png")
    outcome = metarun(f"{words} dataset.root={tmp_path / 'a'},{tmp_path / 'b'}")
    assert outcome.code == 2 and "dataset.root: " in outcome.err and "make one and the same run" in outcome.err, outcome.err
    assert metarun(f"{words} dataset.root={tmp_path / 'a'} seed=0").code == 0
    outcome = metarun(f"{words} dataset.root={tmp_path / 'b'} seed=0")
    assert outcome.code == 2 and "its images are not those that" in outcome.err


def test_a_killed_sweep_loses_nothing_and_runs_nothing_twice(metarun: Metarun, tmp_path: Path) -> None:
    words = [*f"{SWEEP} {LONG} seed=0,1".split()]
    driver = subprocess.Popen([sys.executable, "-m", "metarun", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    said = statuses
    wait_until(lambda: any(status.get("step", 0) >= 20 for status in said(tmp_path / "sweep").values()))
    (name, status), *_ = said(tmp_path / "sweep").items()
    os.kill(status["pid"], signal.SIGKILL)  # the job; the sweep goes on with the next
    wait_until(lambda: any(status.get("step", 0) >= 20 for other, status in said(tmp_path / "sweep").items() if other != name))
    driver.kill()  # the sweep; its job saves and ends by itself
    driver.wait()
    other = next(folder for folder in said(tmp_path / "sweep") if folder != name)
    wait_until(lambda: not held(tmp_path / "sweep" / other))
    killed = said(tmp_path / "sweep")
    assert killed[name]["error"].startswith("killed (SIGKILL)") and killed[name]["state"] == "cut off"
    assert killed[other]["state"] == "cut off" and killed[other]["step"] < 400

    with open(tmp_path / "sweep" / other / ".lock") as lock:  # as if another sweep had just begun it
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = metarun(" ".join(words))
    assert outcome.code == 1 and f"running: {other}" in outcome.err
    assert said(tmp_path / "sweep")[other] == killed[other], "another process has it"
    assert said(tmp_path / "sweep")[name]["state"] == "finished"

    assert metarun(" ".join(words)).code == 0
    for seed, folder in ((0, name), (1, other)):
        assert metarun(f"train {TINY} {LONG} seed={seed} hydra.run.dir=plain{seed}").code == 0
        whole = (tmp_path / f"plain{seed}" / "metrics.csv").read_bytes()
        assert (tmp_path / "sweep" / folder / "metrics.csv").read_bytes() == whole, "as if it had never been stopped"


def test_points_of_ones_own_groups(metarun: Metarun, tmp_path: Path) -> None:
    (tmp_path / "own groups/experiment").mkdir(parents=True)
    (tmp_path / "own groups/experiment/mine.yaml").write_text("# @package _global_\noptimizer: {lr: 0.5}\n")
    outcome = metarun(
        f"train --multirun {TINY} --config-dir 'own groups' \"hydra.sweep.dir='a, b'\" "
        '\'hydra.sweeper.points=[["experiment=mine"],["experiment=mine","seed=0"]]\''
    )
    assert outcome.code == 0, outcome.err
    (run,) = (tmp_path / "a, b").glob("protonet-*")  # the two are one: in other words the same
    assert json.loads((run / "config.json").read_text())["config"]["optimizer"]["lr"] == 0.5


def test_a_folder_is_named_by_what_makes_another_run() -> None:
    choices = {"algorithm": "protonet", "dataset": "glyphs"}
    base = composed()
    name = run_name(base, choices)
    assert name.startswith("protonet-glyphs-5w1s-0-")
    for words, same in (
        (["dataset=omniglot", "dataset.root=here"], ["dataset=omniglot", "dataset.root=there"]),
        ([], ["device.threads=3", "tasks_per_chunk=1"]),
        (["optimizer.lr=1"], ["optimizer.lr=1.0"]),
    ):
        assert run_name(composed(*words), choices) == run_name(composed(*same), choices), same
    older = {key: value for key, value in base.items() if key not in ("test", "keep_best")}  # as they were before there were these keys
    assert run_name(older, choices) == name
    assert run_name(base, {**choices, "experiment": "mine"}) != name
    others = ("seed=1", "optimizer.lr=0.5", "device.precision=bf16", "protocol.episodes=7", "optimizer=sgd")
    assert len({name, *(run_name(composed(other), choices) for other in others)}) == 1 + len(others)

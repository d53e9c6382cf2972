"""Searches: how a space is read, and real trials that finish, fail, fall behind, are interrupted and killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import TINY, Metarun
from optuna.samplers import BaseSampler, GridSampler
from optuna.trial import Trial

from metarun.config import compose
from metarun.sweeps.tune import command, study
from metarun.sweeps.tune.space import described, read
from metarun.sweeps.tune.trials import Worker

SPACES = {
    "optimizer.lr=interval(0,1)": "0.0 to 1.0",
    "optimizer.lr=tag(log,interval(1e-4,1e-1))": "0.0001 to 0.1 on a log scale",
    "optimizer.lr=int(interval(1,4))": "integers from 1 to 4",
    "optimizer.lr=range(0,1,0.25)": "0.0 to 0.75 by 0.25",
    "clip_norm=interval(1,4)": "1.0 to 4.0",  # null now
    "tasks_per_step=interval(1,4)": "integers from 1 to 4",  # an integer now
    "tasks_per_step=tag(log,interval(1,64))": "integers from 1 to 64 on a log scale",
    "tasks_per_step=range(1,6)": "integers from 1 to 5",
    "tasks_per_step=range(9,0,-4)": "integers from 1 to 9 by 4",
    "tasks_per_step=8,4,8": "8, 4",
    "backbone=glob(conv4*,exclude=conv4_*)": "conv4",
    "backbone.widths=choice([8,8],[4])": "[8,8], [4]",
    "clip_norm=null,1.5,'2'": "null, 1.5, '2'",
    "+backbone.groups=1,2": "1, 2",
}


@pytest.mark.parametrize("word", SPACES)
def test_a_space_is_read_from_hydras_grammar(word: str) -> None:
    space = read(Namespace(overrides=["seed=3", word, "tune.trials=2"], config_dir=None))
    ((key, distribution),) = space.dimensions.items()
    assert (described(distribution), space.fixed, space.tuned) == (SPACES[word], ("seed=3",), ("tune.trials=2",))
    assert all(space.words(point)[-1].startswith(f"{key}=") for _, point in space.points()) and word.startswith(f"{key}=")


REFUSED = {
    "": "nothing to search",
    "optimizer.lrr=interval(0,1)": "did you mean optimizer.lr?",
    "optimizer.lr=interval(1,0)": "optimizer.lr: interval(1,0) is not allowed",
    "optimizer.lr=interval(0,inf)": "expected two numbers",
    "optimizer.lr=tag(log,interval(0,1))": "must hold for `log=True`",
    "optimizer.lr=tag(exp,interval(0,1))": "exp: no such tag; expected log",
    "optimizer.lr=interval(0,1) optimizer.lr=1": "optimizer.lr: is searched, so it can be given only once",
    "optimizer.lr=0.1,fast": "optimizer.lr: 'fast' is not a float",
    "seed=range(0)": "seed: range(0) is not allowed",
    "seed=-1,0": "seed: -1 is not allowed",
    "tasks_per_step=interval(1,2.5)": "expected two integers",
    "tasks_per_step=interval(0,4)": "tasks_per_step: 0 is not allowed",
    "backbone=conv4,conv5": "backbone=conv5: no such choice",
    "algorithm=maml,protonet algorithm.inner_steps=1": "algorithm.inner_steps: no such key",
    "task.ways=range(3,6)": "task.ways: cannot be searched, protocol.ways would be 3 or 5; trials are compared on the same tasks",
    "seed=0,1 val_every=0": "val_every: 0 is not allowed",
    "val_every=0,1": "val_every: 0 is not allowed",
    "seed=0,1 ~patience": "~patience: not allowed here",
    "seed=0,1 test=true": "test: not allowed here",
    "seed=0,1 hydra.run.dir=x": "hydra.run.dir: not allowed here",
    "seed=0,1 experiment=best": "experiment=best: not allowed here",
    "tune.trials=1,2": "tune.trials: cannot be searched",
    "seed=0,1 tune.trials=0": "tune.trials: 0 is not allowed; expected an integer of at least 1",
    "seed=0,1 tune.sampler=grid": "tune.sampler: grid is not allowed; expected one of tpe, random",
    "seed=0,1 tune.timeout=0": "tune.timeout: 0 is not allowed; expected a number of seconds above 0 or null",
    "seed=0,1 tune.dir=/proc/x": "tune.dir: /proc/x cannot be written",
    "seed=0,1 tune.storage=nowhere": "tune.storage: cannot be opened",
    "seed=0,1 dataset=omniglot dataset.root=nowhere": "dataset.root",
    "--multirun seed=0,1": "--multirun: tune takes one run at a time",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(metarun: Metarun, tmp_path: Path, words: str) -> None:
    outcome = metarun(f"tune {words}")
    assert outcome.code == 2
    assert outcome.err.startswith("metarun: ") and outcome.err.count("\n") == 1 and REFUSED[words] in outcome.err, outcome.err
    assert not list(tmp_path.iterdir())


def test_help_and_cfg_job_show_and_write_nothing(metarun: Metarun, tmp_path: Path) -> None:
    helped, shown = metarun("tune seed=0,1 --help"), metarun("tune 'optimizer.lr=interval(0,1)' tune.trials=7 --cfg job")
    assert helped.code == shown.code == 0, shown.err
    assert "metarun tune " in helped.out and "conv4_32" in helped.out and "${" not in helped.out
    assert "trials: 7\n" in shown.out and "optimizer.lr: 0.0 to 1.0" in shown.out and "${" not in shown.out
    assert not list(tmp_path.iterdir())


def test_without_optuna_it_says_how_to_get_it(metarun: Metarun, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "metarun.sweeps.tune.command")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert metarun("tune seed=0,1").err == "metarun: tune needs Optuna; pip install 'metarun[tune]'\n"


LINE = f"tune experiment=protonet_glyphs_5w1s scheduler=linear {TINY} +optimizer.amsgrad=true tune.dir='my study' tune.pruner=none"


def test_a_study_finishes_fails_goes_on_and_leaves_the_recipe_of_its_best_trial(
    metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = ["0.001", "0.02", "1e+38"]
    monkeypatch.setattr(command, "sampler", lambda settings, stream: GridSampler({"optimizer.lr": rates}, seed=0))
    line = f"{LINE} optimizer.lr=0.001,0.02,1e38"
    first = metarun(f"{line} tune.trials=2")
    second = metarun(f"{line} tune.trials=3")
    assert (first.code, second.code) == (0, 0), first.err + second.err
    folder = tmp_path / "my study"
    runs = {path.name: json.loads((path / "status.json").read_text()) for path in (folder / "trials").iterdir()}
    assert sorted(runs) == ["0", "1", "2"] and (first.out + second.out).count(" begins: ") == 3
    assert sorted(run["state"] for run in runs.values()) == ["failed", "finished", "finished"]
    assert not list(folder.glob("trials/*/evaluations"))  # the test's classes are never looked at
    assert "failed: the loss is not finite" in first.out + second.out or "failed: the weights are not finite" in first.out + second.out
    best = max((name for name in runs if runs[name]["state"] == "finished"), key=lambda name: (runs[name]["best"]["value"], -int(name)))
    assert second.out.splitlines()[-4].split()[:2] == [best, f"{runs[best]['best']['value']:.2f}"]
    recipe_is_the_trial(folder, best)
    for change, said in (("seed=1", "seed: the study my study was begun with 0, not 1"), ("seed=0,1", "seed: the study my study searches")):
        refused = metarun(f"{line} {change}")
        assert refused.code == 2 and refused.err.count("\n") == 1 and said in refused.err, refused.err


def recipe_is_the_trial(folder: Path, number: str) -> None:
    text = (folder / "experiment/best.yaml").read_text().splitlines()
    assert text[:2] == ["# @package _global_", "# metarun train --config-dir 'my study' experiment=best"]
    composed = compose.run_values(compose.compose("train", Namespace(overrides=["experiment=best"], config_dir=str(folder))))
    trained = json.loads((folder / "trials" / number / "config.json").read_text())["config"]
    assert trained.pop("test") is False and composed.pop("test") is True and composed == trained


def test_a_trial_that_falls_behind_is_stopped(metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "pruner", lambda settings, cfg: optuna.pruners.ThresholdPruner(lower=101))
    outcome = metarun(f"tune {TINY} steps=20000 'optimizer.lr=interval(0,1)' tune.trials=1 tune.dir=s")
    assert outcome.code == 1 and outcome.err.count("\n") == 1 and "no trial was finished; trial 0: stopped at step 1," in outcome.err
    assert json.loads((tmp_path / "s/trials/0/status.json").read_text())["state"] == "cut off"
    assert (tmp_path / "s/trials/0/checkpoints/last.pt").exists() and not (tmp_path / "s/experiment").exists()


def test_an_interrupted_trial_goes_on_after_ctrl_c_and_after_a_kill(
    metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"tune {TINY} steps=400 val_every=20 log_every=20 'optimizer.lr=interval(0,0.01)' tune.trials=1 tune.dir=s"
    run = tmp_path / "s/trials/0"
    watcher = when(lambda: validations(run) >= 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    stopped = metarun(line)
    watcher.join()
    assert stopped.code == 130 and "the same command goes on with the study s" in stopped.out, stopped.err
    before = validations(run)
    with subprocess.Popen(
        [sys.executable, "-m", "metarun", *line.replace("'", "").split()], cwd=tmp_path, stdout=subprocess.DEVNULL
    ) as killed:
        when(lambda: validations(run) > before or killed.poll() is not None, killed.kill).join()
    monkeypatch.setattr(study, "HEARTBEAT", 1)
    monkeypatch.setattr(study, "GRACE", 1)
    finished = metarun(line)
    assert finished.code == 0 and "trial 0 goes on: " in finished.out, finished.err
    assert [path.name for path in (tmp_path / "s/trials").iterdir()] == ["0"]
    assert validations(run) == 20 and (run / "console.log").read_text().count("go on with: metarun train resume=") == 2
    assert "Trial 0 of the study s" in (tmp_path / "s/experiment/best.yaml").read_text()


def when(reached: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Acts once, as soon as something is reached, from a thread of its own; also after five minutes, so that the test ends."""

    def wait() -> None:
        limit = time.monotonic() + 300
        while not reached() and time.monotonic() < limit:
            time.sleep(0.005)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def validations(run: Path) -> int:
    try:
        return (run / "metrics.csv").read_text().count(",val,accuracy,")
    except FileNotFoundError:
        return 0


class Quick(Worker):
    """A worker whose trials take no process."""

    def objective(self, trial: Trial) -> float:
        self.space.suggest(trial)
        self.turn.release()
        time.sleep(0.02)
        return 0.0


def test_workers_at_once_do_as_many_trials_as_were_asked_for_and_none_twice(tmp_path: Path) -> None:
    space = read(Namespace(overrides=["optimizer.lr=interval(0,1)"], config_dir=None))
    settings: dict[str, Any] = {"storage": None, "seed": 0, "sampler": "random", "pruner": "none", "startup_trials": 0, "warmup": 0}
    cfg = {"val_every": 1, "steps": 2}

    def sampler(stream: int) -> BaseSampler:
        return study.sampler(settings, stream)

    with study.opened(tmp_path, settings, cfg) as first, study.opened(tmp_path, settings, cfg) as second:
        workers = [Quick(each, tmp_path, space, 9, sampler, [], lambda number, trial: None) for each in (first, second)]
        threads = [threading.Thread(target=worker.work, args=(None,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        drawn = [trial.params["optimizer.lr"] for trial in first.trials]
    assert len(drawn) == len(set(drawn)) == 9

"""The trials of a study: who does which, each in a process of its own, and what becomes of one that was interrupted."""

import logging
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from optuna import Study, TrialPruned
from optuna.samplers import BaseSampler
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from metarun.runs.catalogue import read_run
from metarun.runs.files import Lock, held
from metarun.runs.status import FINISHED, read_json, state
from metarun.sweeps import child
from metarun.sweeps.job import explain, is_begun, words
from metarun.sweeps.tune.space import Space

log = logging.getLogger("metarun")
POLL = 0.3
"""Seconds between two looks at what a trial, or another process, has done."""


class TrialFailed(Exception):
    """The process of a trial ended with an error: one line."""


@dataclass
class Worker:
    """One of the processes that do the trials of a study, in the folders `folder/trials/NUMBER`.

    trials: how many there are to be, by all processes; sampler: makes one whose stream is its argument's; flags: what stands before the
    overrides of every run; done: called with a trial and its number when it is over, by one process at a time.
    """

    study: Study
    folder: Path
    space: Space
    trials: int
    sampler: Callable[[int], BaseSampler]
    flags: Sequence[str]
    done: Callable[[int, FrozenTrial], None]
    turn: Lock = field(init=False)
    current: int = field(init=False)

    def work(self, timeout: float | None) -> None:
        """Does trials until there are as many as there are to be, those of other processes included, or `timeout` seconds are over."""
        begin = time.monotonic()
        while timeout is None or time.monotonic() - begin < timeout:
            self.turn = Lock(self.folder)  # until the trial is one of the study's: two processes do not both begin the last one
            with self.turn:
                trials = self.study.get_trials(deepcopy=False)
                if len(latest(trials)) < self.trials or any(trial.state == TrialState.WAITING for trial in trials):
                    self.one_trial(stream=len(trials))
                    continue
            if not any(trial.state == TrialState.RUNNING for trial in trials):
                return
            time.sleep(POLL)
            fail_stale_trials(self.study)  # if its process was killed, the trial is put back, and done here

    def one_trial(self, stream: int) -> None:
        """Goes on with a trial that was put back, or draws and does a new one. On Ctrl-C the trial is put back."""
        self.current, self.study.sampler = -1, self.sampler(stream)
        try:
            self.study.optimize(self.objective, n_trials=1, catch=(TrialFailed,), callbacks=[self.after])
        except KeyboardInterrupt:
            for trial in self.study.get_trials(states=[TrialState.FAIL]):
                if trial.number == self.current and "error" not in trial.user_attrs:
                    put_back(self.study, trial)
            raise

    def objective(self, trial: Trial) -> float:
        """The best accuracy on validation, in percent. Raises TrialPruned, or TrialFailed with what went wrong."""
        point, self.current = self.space.suggest(trial), trial.number
        self.turn.release()
        number = first_number(self.study.trials[trial.number])
        folder = self.folder / "trials" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        while held(folder):  # the process behind it was killed, and its training still saves
            time.sleep(POLL)
        values = ", ".join(f"{key}={value}" for key, value in point.items())
        log.info("trial %d %s: %s", number, "goes on" if is_begun(folder) else "begins", values)
        process = None  # it was finished already, and only its process could not say so any more
        if state(folder) != FINISHED:
            overrides = [*self.space.words(point), "test=false"]
            process = child.start([*self.flags, *words(folder, overrides)], folder / "console.log")
        with ended_after(process) if process else nullcontext():
            accuracies = follow(trial, process, folder)
        if process and process.returncode:
            explain(folder, process.returncode)
            reason = read_json(folder / "status.json").get("error") or f"exit code {process.returncode}"
            trial.set_user_attr("error", reason)
            raise TrialFailed(reason)
        return max(accuracies)

    def after(self, study: Study, trial: FrozenTrial) -> None:
        with Lock(self.folder):
            self.done(first_number(trial), trial)


@contextmanager
def ended_after(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Has the process save and end when the context is left, if it has not ended by itself."""
    with process:
        try:
            yield
        finally:
            if process.poll() is None:
                child.stop(process)


def follow(trial: Trial, process: subprocess.Popen[bytes] | None, folder: Path) -> list[float]:
    """Reports the accuracies on validation as they come; returns them when the process has ended. Raises TrialPruned."""
    seen = 0
    while True:
        ended = process is None or process.poll() is not None  # asked first: afterwards nothing more is written
        found = read_run(folder)
        steps, accuracies = found.curve("val", "accuracy") if found else ([], [])
        for step, accuracy in zip(steps[seen:], accuracies[seen:], strict=True):
            trial.report(accuracy, step)
            if found and step < found.config["steps"] and trial.should_prune():
                raise TrialPruned
        seen = max(seen, len(steps))
        if ended:
            return accuracies
        time.sleep(POLL)


def put_back(study: Study, trial: FrozenTrial) -> None:
    """Has an interrupted trial gone on with: Optuna's new one of the same values, which knows the number of the first."""
    RetryHeartbeatStaleTrialCallback()(study, trial)


def first_number(trial: FrozenTrial) -> int:
    """The number that a trial was begun with: put back it has another, but its folder keeps its name."""
    number = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if number is None else number


def latest(trials: Sequence[FrozenTrial]) -> dict[int, FrozenTrial]:
    """What became of every trial, by the number that it was begun with."""
    return {first_number(trial): trial for trial in trials}

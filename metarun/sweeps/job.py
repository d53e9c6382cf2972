"""One job of a sweep, as a launcher runs it: a training in a process of its own, so that however it ends costs only itself."""

import logging
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from metarun.config.compose import parse
from metarun.config.keys import FREE_ON_RESUME, role
from metarun.config.schema import quoted
from metarun.errors import TrainingError
from metarun.runs.files import held
from metarun.runs.status import CUT_OFF, FAILED, FINISHED, RUNNING, best_value, read_json, report, state
from metarun.sweeps import child, slurm
from metarun.training.signals import Signals

log = logging.getLogger("metarun")
SWEEPS_OWN = ("hydra.sweep", "hydra.sweeper", "hydra.launcher", "hydra/sweeper", "hydra/launcher", "hydra.mode", "hydra.run", "sweep")


def run_point(folder: Path, overrides: Sequence[str], flags: Sequence[str], retry: str) -> float:
    """Begins the run in `folder`, or goes on with it, and returns its accuracy. Raises TrainingError, saying why, unless it is finished.

    flags: what stands before the overrides on the command line. retry: whether one that `failed` is tried again.
    """
    found = state(folder)
    if found == RUNNING:
        raise TrainingError(f"another process has it ({folder})")
    if found == CUT_OFF or (found == FAILED and retry == FAILED):
        log.info("%s: %s", folder.name, "goes on" if is_begun(folder) else "begins")
        wait_for(child.start([*flags, *words(folder, overrides)], folder / "console.log"), folder)
    said = read_json(folder / "status.json")
    if state(folder) != FINISHED:
        raise TrainingError(said.get("error") or "cut off")
    best = best_value(said)
    accuracy = float(said["test"]["accuracy"] if said.get("test") else "nan" if best is None else best)
    log.info("%s: finished, %.2f %%", folder.name, accuracy)
    return accuracy


def is_begun(folder: Path) -> bool:
    return (folder / "checkpoints" / "last.pt").exists()


def words(folder: Path, overrides: Sequence[str]) -> list[str]:
    """The command line of the training: a new run, or the same one gone on with."""
    kept = [(override.key_or_group, str(override.input_line)) for override in parse(list(overrides))]
    if is_begun(folder):
        return [f"resume={quoted(str(folder))}", *(line for key, line in kept if goes_on_with(key))]
    own = [line for key, line in kept if not is_sweeps_own(key)]
    return [*own, "hydra.mode=RUN", f"hydra.run.dir={quoted(str(folder))}"]


def goes_on_with(key: str) -> bool:
    """Whether an override of the sweep is handed on to a run that goes on."""
    return role(key) in FREE_ON_RESUME and not is_sweeps_own(key)


def is_sweeps_own(key: str) -> bool:
    """Whether an override belongs to the sweep and not to its jobs."""
    return any(key == name or key.startswith(f"{name}.") for name in SWEEPS_OWN)


def wait_for(process: Any, folder: Path) -> None:
    """Waits for the training to end. What ends this process ends the training too, saved; where it could not say so itself, says why."""
    signals = Signals() if threading.current_thread() is threading.main_thread() else nullcontext(Signals())
    try:
        with signals as noted:
            while process.poll() is None and not noted.received:
                try:
                    process.wait(timeout=0.5)
                except subprocess.TimeoutExpired:
                    continue
    finally:  # also for what is raised out of a signal handler, like SLURM's preemption in submitit's
        child.stop(process)
    if noted.received == signal.SIGINT:
        raise KeyboardInterrupt
    if noted.received:
        slurm.await_the_end()
        raise SystemExit(128 + noted.received)
    if process.returncode and not held(folder):
        explain(folder, process.returncode)


def explain(folder: Path, code: int) -> None:
    """Puts down why a training ended that could not do it: it was refused before it began, or killed."""
    said: Mapping[str, Any] = read_json(folder / "status.json")
    if code < 0:
        name = signal.Signals(-code).name
        report(folder, state=CUT_OFF, error=f"killed ({name}){', out of memory perhaps' * (name == 'SIGKILL')}")
    elif said.get("state") in (None, RUNNING):
        lines = (folder / "console.log").read_text(errors="replace").strip().splitlines()
        report(folder, state=FAILED, error=lines[-1].removeprefix("metarun: ") if lines else f"exit code {code}")

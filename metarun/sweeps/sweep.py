"""A sweep: a folder with a run for every point, which is done once, gone on with where it was cut off, and tried again where it failed.

A run's folder is named by its resolved configuration, so the same point is the same folder whoever asks for it, and as often as it is
asked for. What became of a run stands in its own `status.json`; a sweep keeps no books.
"""

import hashlib
import json
import logging
import os
import platform
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from metarun.config import compose
from metarun.config.aliases import of_before
from metarun.config.changes import SINCE_ADDED
from metarun.config.keys import augments
from metarun.config.refusals import refusal
from metarun.config.schema import flat, refuse_unwritable, shown
from metarun.errors import TrainingError, UserError
from metarun.runs.files import whole
from metarun.runs.status import CUT_OFF, FAILED, FINISHED, RUNNING, read_json, state
from metarun.sweeps import child, slurm
from metarun.sweeps.check import PointCheck

log = logging.getLogger("metarun")
ASIDE = ("resume", "dataset.root", "dataset.residency", "device.name", "device.threads", "device.keep_memory", "tasks_per_chunk")
"""Keys that make no other run: how and where it is done."""
PATIENCE = 60.0
"""Seconds that trainings have to save and end when the process behind them was killed."""


@dataclass(frozen=True)
class Point:
    """One job: the overrides behind it and its folder."""

    words: tuple[str, ...]
    folder: Path

    @property
    def state(self) -> str | None:
        """One of `metarun.runs.status.STATES`, or None if nothing of it is there yet."""
        return state(self.folder) if (self.folder / "status.json").exists() or (self.folder / "checkpoints").exists() else None

    @property
    def is_open(self) -> bool:
        """Whether it was not begun, or ended for nothing of its own."""
        return self.state is None or (self.state == CUT_OFF and not read_json(self.folder / "status.json").get("error"))


class Sweep:
    """The jobs of one `metarun train --multirun`; `config` has Hydra's node and names the folder, the launcher and `sweep.retry`."""

    def __init__(self, config: DictConfig, context: HydraContext, task_function: TaskFunction) -> None:
        self.config, self.context, self.task_function = config, context, task_function
        HydraConfig.instance().set_config(config)  # for `${hydra:...}` in a folder's name
        self.folder = Path(str(config.hydra.sweep.dir))

    def run(self, words: Sequence[Sequence[str]], batch_size: int | None) -> list[Point]:
        """Expands and checks every point, then runs what is still to do. Raises UserError for a bad point, before anything is written;
        TrainingError, which says which and why, if some jobs did not finish.
        """
        if batch_size is not None and batch_size < 1:
            raise UserError(f"hydra.sweeper.max_batch_size: {batch_size} is not allowed; expected an integer of at least 1 or null")
        refuse_unwritable("hydra.sweep.dir", self.folder)
        points = self.points(words)
        before = {point: point.state for point in points}
        due = [point for point, found in before.items() if self.is_due(found)]
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole(self.folder / "multirun.yaml") as file:
            file.write(OmegaConf.to_yaml(self.config).encode())
        log.info("sweep %s: %d jobs, %d of them to do", self.folder, len(points), len(due))
        size = len(due) if batch_size is None else batch_size
        with slurm.telling_what_goes_on(self.folder):
            for first in range(0, len(due), max(1, size)):
                self.launch(due[first : first + size], first)
        self.conclude(points, before)
        return points

    def is_due(self, found: str | None) -> bool:
        """Whether a point in this state is to be run. One that another process has is not; nor, if told so, one that failed."""
        return found in (None, CUT_OFF) or (found == FAILED and self.config.sweep.retry == FAILED)

    def points(self, words: Sequence[Sequence[str]]) -> list[Point]:
        """Every point of the grids, checked; the same point but once."""
        retry = OmegaConf.select(self.config, "sweep.retry")
        if retry not in (FAILED, "none"):
            raise UserError(f"sweep.retry: {shown(retry)} is not allowed; expected one of {FAILED}, none")
        expanded = [point for grid in words for point in self.expanded(grid)]
        if not expanded:
            raise UserError(f"{' '.join(words[0])}: a sweep without a point; a range is empty, or nothing matches a glob")
        check, common = PointCheck(local=self.is_local()), set.intersection(*map(set, expanded))
        found, seen = dict[Path, Point](), dict[Path, dict[str, Any]]()
        for point in expanded:
            try:
                config = self.context.config_loader.load_sweep_config(self.config, point)
                values = compose.run_values(config)
                folder = self.folder / run_name(values, config.hydra.runtime.choices)
                refuse_other_data(folder, check(values))
                refuse_unlike(values, seen.setdefault(folder, values))
            except Exception as error:
                line, own = refusal(error), [word for word in point if word not in common]
                if line is None:
                    raise
                raise UserError(f"{line} (at {' '.join(own)})" if own else line) from error
            found.setdefault(folder, Point(tuple(point), folder))
        return list(found.values())

    def expanded(self, grid: Sequence[str]) -> list[list[str]]:
        """The points of one grid, in Hydra's grammar. Raises UserError for what only a search takes."""
        overrides = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(list(grid))
        for override in overrides:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise UserError(f"{override.input_line}: a sweep takes choices and ranges; metarun tune searches intervals")
        return BasicSweeper.split_arguments(overrides, None)[0]

    def is_local(self) -> bool:
        """Whether the jobs run on this machine, which then has their data."""
        return "core_plugins" in self.config.hydra.launcher._target_ or "joblib" in self.config.hydra.launcher._target_

    def is_slurm(self) -> bool:
        """Whether the jobs outlive this process."""
        return "slurm" in self.config.hydra.launcher._target_.lower()

    def launch(self, points: Sequence[Point], first: int) -> None:
        """Has the launcher run the points. What becomes of them is read from their folders, for a launcher may die with one of its jobs.
        One that then ends the others too is started once more, for those; jobs of SLURM go on by themselves, or were cancelled.
        """
        if self.hand_over(points, first) or self.is_slurm():
            return
        let_end(points)
        if left := [point for point in points if point.is_open]:
            self.hand_over(left, first)

    def hand_over(self, points: Sequence[Point], first: int) -> bool:
        """Runs the launcher; returns whether it lived to the end of its jobs, which have ended in any case."""
        launcher = Plugins.instance().instantiate_launcher(hydra_context=self.context, task_function=self.task_function, config=self.config)
        try:
            with slurm.ending_with_the_jobs(self.folder), saving_first(() if self.is_slurm() else points):
                launcher.launch([[*point.words, f"hydra.sweep.subdir={point.folder.name}"] for point in points], initial_job_idx=first)
            return True
        except Exception as error:
            words = [word for word in str(error).split() if word.strip("-")]
            log.error("the launcher failed: %s", " ".join(words)[:400] or type(error).__name__)
            slurm.wait_for_jobs(self.folder)
            return False

    def conclude(self, points: Sequence[Point], before: Mapping[Point, str | None]) -> None:
        """Says what became of every job. Raises TrainingError unless all finished."""
        now = {point: point.state for point in points}
        done = [point for point in points if now[point] == FINISHED]
        earlier = sum(before[point] == FINISHED for point in done)
        log.info("sweep %s: %d of %d jobs finished%s", self.folder, len(done), len(points), f", {earlier} of them before" * bool(earlier))
        left = [f"\n  {now[point] or 'not begun'}: {point.folder.name}{reason(point, now[point])}" for point in points if point not in done]
        if left:
            raise TrainingError(f"{len(left)} of {len(points)} jobs did not finish; the same line again goes on with them{''.join(left)}")


@contextmanager
def saving_first(points: Sequence[Point]) -> Iterator[None]:
    """Ctrl-C has these save before the launcher hears of it: joblib and Ray kill their workers at once, and all that they began."""

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        said = {point: read_json(point.folder / "status.json") for point in points if point.state == RUNNING}
        mine = [point for point in said if said[point].get("host") == platform.node() and child.is_below(said[point].get("pid", 0))]
        for point in mine:
            with suppress(ProcessLookupError):
                os.kill(said[point]["pid"], signal.SIGTERM)  # its worker may have sent SIGINT already
        let_end(mine)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if points and before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def let_end(points: Sequence[Point]) -> None:
    """Waits a while for trainings that were told to end: they save what they have."""
    until = time.monotonic() + PATIENCE
    while any(point.state == RUNNING for point in points) and time.monotonic() < until:
        time.sleep(0.1)


def reason(point: Point, found: str | None) -> str:
    """Why a job did not finish, as far as it could say."""
    said = read_json(point.folder / "status.json")
    if found == RUNNING:
        return f": process {said.get('pid')} on {said.get('host')} has it"
    at = f" at step {said['step']}" if "step" in said else ""
    why = said.get("error") or (found == CUT_OFF and said.get("slurm_job") and slurm.end_of(said["slurm_job"]))
    return f"{at}: {why}" if why else at


def refuse_unlike(values: Mapping[str, Any], seen: Mapping[str, Any]) -> None:
    """Raises UserError where two points of a sweep are one run, and yet not the same: they differ in how or where it is done."""
    ours, theirs = flat(values), flat(seen)
    for key in ours:
        if ours[key] != theirs[key]:
            raise UserError(
                f"{key}: {shown(theirs[key])} and {shown(ours[key])} make one and the same run; sweep them in folders of their own"
            )


def refuse_other_data(folder: Path, fingerprint: str | None) -> None:
    """Raises UserError if the run that has this folder was begun with other images; None: they cannot be told here."""
    begun = read_json(folder / "config.json").get("data_fingerprint")
    if fingerprint and begun and fingerprint != begun:
        raise UserError(f"dataset: its images are not those that {folder} was begun with; choose another hydra.sweep.dir")


def run_name(values: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """The folder of a run in a sweep: what it is in a few words, and a hash of everything that makes it another run.

    A key that came later and has the value of before is no part of the hash: a new version finds the runs of an old one.
    """
    aside = ASIDE if augments(values) else (*ASIDE, "dataset.augment")
    identity = {
        key: in_one_way(value)
        for key, value in flat(of_before(values)).items()
        if key not in aside and (key, value) not in SINCE_ADDED.items()
    }
    identity["experiment"] = choices.get("experiment")
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    tested = values["protocol"]
    return f"{choices['algorithm']}-{choices['dataset']}-{tested['ways']}w{tested['shots']}s-{values['seed']}-{digest}"


def in_one_way(value: Any) -> Any:
    """The same number in one way: 1 for 1.0."""
    if isinstance(value, list | tuple):
        return [in_one_way(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

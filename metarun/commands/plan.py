"""What a training run would take in memory and time, measured on a few of its own steps and test tasks. Writes nothing."""

import time
from collections.abc import Iterator
from pathlib import Path

from torch.optim.lr_scheduler import ConstantLR

from metarun.algorithms.base import FewShotLearner
from metarun.commands.lines import learned
from metarun.tasks import TaskSource
from metarun.text.units import counted, duration, size
from metarun.training.build import Config, Job, build
from metarun.training.trainer import Trainer

STEPS_LIMIT = 20.0
"""Seconds after which no further point of the run is measured."""
SPAN = 0.3
"""Seconds of steps that are timed together, where a step is shorter: one alone is mostly noise, and the device waits for its start."""
TASKS_LIMIT = 5.0
"""Seconds that the largest number of test tasks may take that is measured."""


def plan(cfg: Config, run_dir: Path) -> Iterator[str]:
    """The lines of `metarun plan`, as they are known. Raises UserError where `train` would, TrainingError if not one task fits."""
    job = build(cfg, run_dir)
    trainer = job.trainer(run=None, validate=None)  # what a step does not need
    tasks, steps = cfg["tasks_per_step"], cfg["steps"]
    weights = f"{learned(job.learner):,} meta-learned parameters"
    yield f"learner      {type(job.learner).__name__}, {weights}, on {job.device.torch}, {job.device.precision}"
    for when, what, images in parts(job.learner, cfg):
        yield f"{when:13}{what}: {images:,} images"
    trainer.source.draw(0, 1)  # brings the data to where they are wanted
    before = job.device.used_memory()
    job.update.scheduler = ConstantLR(job.update.optimizer, factor=1.0)  # a schedule may end with the run, and the rate takes no time
    found = step_seconds(trainer)
    step, peak = sum(found) / len(found), job.device.peak_memory()
    at_once = min(job.update.tasks_per_chunk or tasks, tasks)
    more = f"{size(max(0, peak - before))} more than before the first step"
    yield f"memory       {size(peak)} {job.device.memory_kind} at most, {more}; {counted(at_once, 'task')} at once"
    unit = "batches" if job.learner.supervised_steps is None else "tasks"
    yield f"time         {duration(step)} a step ({duration(min(found))} to {duration(max(found))}), {tasks / step:.3g} {unit}/s"
    yield f"training     {counted(steps, 'step')}: {duration(steps * step)}"
    total = steps * step
    if job.validation is not None:
        times, episodes = -(-steps // cfg["val_every"]), cfg["protocol"]["val_episodes"]
        each = evaluation_seconds(job, job.validation, episodes)
        yield f"validation   {counted(times, 'time')} {counted(episodes, 'episode')}, {duration(each)} each: {duration(times * each)}"
        total += times * each
    episodes = cfg["protocol"]["episodes"]
    members = cfg["protocol"]["ensemble"]
    test = members * evaluation_seconds(job, job.kind.evaluation(cfg["protocol"]["split"]), episodes)
    yield f"test         {counted(episodes, 'episode')}: {duration(test)}"
    yield f"in all       {duration(total + test)}" + ", or less where patience ends it" * (cfg["patience"] is not None)


def parts(learner: FewShotLearner, cfg: Config) -> Iterator[tuple[str, str, int]]:
    """When there is a supervised stage, and when tasks: what a step is made of, and of how many images."""
    task, tasks, stage = cfg["task"], cfg["tasks_per_step"], learner.supervised_steps
    if stage != 0:
        what = f"{counted(tasks, 'mini-batch', 'mini-batches')} of {task['batch']}"
        yield "a step" if stage is None else f"{stage:,} steps", what, tasks * task["batch"]
    if stage is not None:
        what = f"{task['ways']}-way {task['shots']}-shot, {counted(task['queries'], 'query', 'queries')} a class"
        yield "then" if stage else "a step", f"{counted(tasks, 'task')}, {what}", tasks * task["ways"] * (task["shots"] + task["queries"])


def step_seconds(trainer: Trainer) -> list[float]:
    """Seconds a step at up to five points between the first step and the last: a method may change as training goes on."""
    trainer.learner.train()
    begin, found = time.perf_counter(), list[float]()
    seconds(trainer, 0, 1)  # makes the optimizer's state, chooses kernels, finds the chunk that fits
    trainer.device.reset_peak_memory()
    for quarter in (0, 4, 2, 1, 3):  # both ends first, for there may be no time for more
        at = quarter * (trainer.steps - 1) // 4
        once = seconds(trainer, at, 1)
        several = min(20, int(SPAN / once))
        found.append(seconds(trainer, at, several) if several > 1 else once)
        if time.perf_counter() - begin > STEPS_LIMIT:
            break
    return found


def seconds(trainer: Trainer, at: int, count: int) -> float:
    """Seconds a step of the `count` steps from the step `at`."""
    trainer.device.synchronise()
    begin = time.perf_counter()
    for step in range(at, at + count):
        trainer.step = min(step, trainer.steps - 1)
        trainer.advance()
    trainer.device.synchronise()
    return (time.perf_counter() - begin) / count


def evaluation_seconds(job: Job, source: TaskSource, count: int) -> float:
    """Seconds to test `count` tasks of `source`: ever more of them are, until they are all or too slow, and the last two times say."""

    def timed(episodes: int) -> float:
        job.device.synchronise()
        begin = time.perf_counter()
        job.kind.score(job.learner, source, 0, episodes)
        job.device.synchronise()
        return time.perf_counter() - begin

    timed(1)
    done, taken = 1, timed(1)
    each = taken
    while done < count:
        some = min(4 * done, count)
        # One task alone says little of many: a learner may embed the whole split before its first.
        if done > 1 and taken + each * (some - done) > TASKS_LIMIT:
            break
        now = timed(some)
        done, taken, each = some, now, max(0.0, now - taken) / (some - done)
    return taken + each * (count - done)

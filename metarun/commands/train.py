"""A training run: everything is built and checked, then trained, then tested."""

import errno
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from metarun.commands.lines import first_line, last_lines
from metarun.config.schema import word
from metarun.errors import UserError
from metarun.kinds import evaluate
from metarun.runs.folder import Run
from metarun.training.build import Config, Job, build
from metarun.training.learners import load, together, trained
from metarun.training.testing import chosen, test

log = logging.getLogger(__name__)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def train(cfg: Config, run_dir: Path, choices: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Trains, or goes on training, and tests the selected checkpoint. Returns the record of the test, as `evaluate` does, or if the run
    is not to be tested its best validation: `accuracy` in percent is in both. Logs first what the run is, and last where it lies.
    """
    job = build(cfg, run_dir, choices)
    record = _trained_and_tested(cfg, run_dir, job)
    for line in last_lines(run_dir):  # once the folder is free again for what they say
        log.info(line)
    return record


def _trained_and_tested(cfg: Config, run_dir: Path, job: Job) -> dict[str, Any]:
    with stopping(run_dir), Run(run_dir, job.checkpoint, job.facts) as run:
        trainer = job.trainer(validate=partial(_validate, cfg, job, run), run=run)
        if job.checkpoint is None:
            run.describe(cfg)
        else:
            trainer.load(job.checkpoint)
        begun = None if job.checkpoint is None else trainer.step
        log.info(first_line(cfg, job.learner, job.facts["facts"]["classes"], job.device, begun, run_dir, job.facts["choices"]))
        trainer.fit()
        measure = job.kind.measures[0]
        if not cfg["test"]:
            return {measure.name: trainer.best["value"] if trainer.best else float("nan")}
        record = _tested(cfg, run_dir, job)
        value = record[measure.name]
        run.log(trainer.step, record["split"], {measure.name: value})
        run.conclude(cfg, measure.name, value)
        said = ("split", measure.name, "ci95", "episodes", *job.kind.setting, "numbers")
        run.report(test={key: record[key] for key in said})
    return record


def _tested(cfg: Config, run_dir: Path, job: Job) -> dict[str, Any]:
    """Tests what was selected, with the job's own learner and data; several checkpoints have a learner each."""
    checkpoints = chosen(run_dir, job.protocol)
    if len(checkpoints) > 1:
        learner = together(trained(cfg, job.kind, run_dir, list(checkpoints.values())))
    else:
        learner = job.learner
        load([learner], run_dir, checkpoints.values())
    return test(cfg, job.kind, learner, job.protocol, run_dir, checkpoints)


@contextmanager
def stopping(run_dir: Path) -> Iterator[None]:
    """Says how to go on where a run ends early: Ctrl-C outside the loop, or a full disk, which raises UserError."""
    try:
        yield
    except KeyboardInterrupt:
        log.info("stopped; go on with: metarun train %s", word("resume", run_dir))
        raise
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        how = f"free some space and go on with {word('resume', run_dir)}"
        raise UserError(f"{run_dir}: cannot be written ({error.strerror}); {how}") from error


def _validate(cfg: Config, job: Job, run: Run, step: int) -> dict[str, float]:
    assert job.validation is not None
    count = cfg["protocol"]["val_episodes"]
    first, *others = evaluate(job.kind, job.learner, job.validation, count).numbers
    picture = job.kind.picture(job.learner, job.validation, 0)
    if picture is not None:
        run.picture(step, "val/episode", picture)
    if looked_at := min(cfg["protocol"]["diagnostics"], count):
        for name, value in job.kind.diagnose(job.learner, job.validation, looked_at, quick=True).items():
            run.show(step, f"val/{name}", value)
    half = float("nan") if first.half is None else first.half
    return {first.measure.name: first.value, "ci95": half, **{score.measure.name: score.value for score in others}}

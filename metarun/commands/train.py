"""A training run: everything is built and checked, then trained, then tested."""

import errno
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from metarun.algorithms.base import FewShotLearner
from metarun.algorithms.objectives import ACCURACY
from metarun.classification.diagnostics import QUICK_MODES, diagnose, scalars
from metarun.classification.evaluation import evaluate as score
from metarun.classification.picture import episode_figure
from metarun.commands.lines import first_line, last_lines
from metarun.config.keys import PLACES, ROLES, differences
from metarun.config.schema import word
from metarun.errors import UserError
from metarun.nn.device import Device
from metarun.runs.checkpoint import load_checkpoint, newest, versions
from metarun.runs.folder import Run, refuse_taken
from metarun.training.build import Config, Data, Split, make_update, refuse_unfit
from metarun.training.gradient import MetaGradient
from metarun.training.learners import make_learner
from metarun.training.testing import evaluate
from metarun.training.trainer import Trainer

log = logging.getLogger(__name__)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOOP = ("steps", "tasks_per_step", "val_every", "log_every", "checkpoint_every", "keep_best", "patience")


@dataclass(frozen=True)
class Job:
    """Everything a run needs, built and checked; nothing is written yet. `trainer` lacks only the run and its validation."""

    device: Device
    learner: FewShotLearner
    update: MetaGradient
    validation: Split | None
    trainer: partial[Trainer]
    facts: Mapping[str, Any]
    checkpoint: Mapping[str, Any] | None


def prepare(cfg: Config, run_dir: Path, choices: Mapping[str, str] | None = None) -> Job:
    """Builds all that can refuse, and writes nothing into `run_dir`. Raises UserError."""
    refuse_taken(run_dir, resume=bool(cfg["resume"]))
    device = Device(**cfg["device"])
    device.set_up()
    data = Data(cfg, device)
    learner = make_learner(cfg, device, data.facts)
    refuse_unfit(cfg, learner, data.source)
    training = data.training(learner)
    validation = data.protocol("val") if cfg["val_every"] else None
    table = training.batches.table
    update = make_update(cfg, learner, device)
    facts: dict[str, Any] = {
        "config": {**json.loads(json.dumps(cfg)), "resume": None},
        "choices": dict(choices or {}),
        "data": {"fingerprint": table.fingerprint, "image": list(table.images.shape[1:]), "classes": list(table.names)},
        "classes": training.batches.classes,
        "versions": versions(),
    }
    checkpoint = load_checkpoint(run_dir, newest(run_dir)) if cfg["resume"] else None
    if checkpoint and not {"update", "optimizer"} & checkpoint.keys():
        raise UserError(f"resume: {run_dir} holds a model to be tested, without the state of its training")
    if checkpoint and checkpoint["data"] != facts["data"]:
        raise UserError(f"dataset.root: the images or classes are not those of {run_dir}; a run goes on with its own data only")
    facts["changes"] = changes(checkpoint, facts["config"])
    loop = {name: cfg[name] for name in LOOP}
    trainer = partial(Trainer, learner, update, device, training, measure=ACCURACY, facts=facts, **loop)
    return Job(device, learner, update, validation, trainer, facts, checkpoint)


def changes(checkpoint: Mapping[str, Any] | None, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What changed whenever the run went on: at which step, and by key the value before and after. Where things lie is left out."""
    if checkpoint is None:
        return []
    changed = differences(checkpoint["config"], config, ROLES)
    values = {key: list(pair) for key, pair in changed.items() if key.rpartition(".")[2] not in PLACES}
    return [*checkpoint.get("changes", []), *([{"step": checkpoint["step"], "values": values}] if values else [])]


def train(cfg: Config, run_dir: Path, choices: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Trains, or goes on training, and tests the selected checkpoint. Returns the record of the test, as `evaluate` does, or if the run
    is not to be tested its best validation: `accuracy` in percent is in both. Logs first what the run is, and last where it lies.
    """
    job = prepare(cfg, run_dir, choices)
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
        log.info(first_line(cfg, job.learner, job.facts["classes"], job.device, begun, run_dir, job.facts["choices"]))
        trainer.fit()
        if not cfg["test"]:
            return {"accuracy": trainer.best["value"] if trainer.best else float("nan")}
        record = evaluate(cfg, run_dir)
        run.log(trainer.step, record["split"], {"accuracy": record["accuracy"]})
        run.conclude(cfg, record["accuracy"])
        run.report(test={key: record[key] for key in ("split", "accuracy", "ci95", "episodes", "ways", "shots", "numbers")})
    return record


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
    statistics = cfg["protocol"]["batch_norm"] or job.learner.statistics
    count = cfg["protocol"]["val_episodes"]
    views = cfg["protocol"]["views"]
    result = score(job.learner, job.validation.episodes, job.validation.pixels, count, statistics, job.device, "val", views)
    run.picture(step, "val/episode", episode_figure(job.learner, job.validation.draw(0, 1), statistics, job.device))
    if looked_at := min(cfg["protocol"]["diagnostics"], count):
        diagnosis = diagnose(job.learner, job.validation.draw(0, looked_at), statistics, job.device, QUICK_MODES)
        for name, value in scalars(diagnosis).items():
            run.show(step, f"val/{name}", value)
    return {ACCURACY.name: result.accuracy, "ci95": result.ci95, "loss": result.loss}

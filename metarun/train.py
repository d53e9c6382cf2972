"""A training run: everything is built and checked, then trained, then tested."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from metarun.algorithms.base import FewShotLearner
from metarun.assembly import Config, Split, make_learner, make_optimizer, protocol_split, refuse_overlap, training_split
from metarun.checkpoint import load_checkpoint, versions
from metarun.data.source import Source
from metarun.device import Device
from metarun.errors import UserError
from metarun.evaluation import evaluate as score
from metarun.figure import episode_figure
from metarun.results import evaluate
from metarun.run import Run, refuse_taken
from metarun.trainer import Trainer

LOOP = ("steps", "tasks_per_step", "tasks_per_chunk", "val_every", "log_every", "checkpoint_every", "patience", "clip_value", "clip_norm")


@dataclass(frozen=True)
class Job:
    """Everything a run needs, built and checked; nothing is written yet."""

    device: Device
    learner: FewShotLearner
    training: Split
    validation: Split | None
    trainer: partial[Trainer]
    checkpoint: Mapping[str, Any] | None
    facts: Mapping[str, Any]


def prepare(cfg: Config, run_dir: Path, choices: Mapping[str, str] | None = None) -> Job:
    """Builds all that can refuse, and writes nothing into `run_dir`. Raises UserError."""
    refuse_taken(run_dir, resume=bool(cfg["resume"]))
    device = Device(**cfg["device"])
    device.set_up()
    dataset: Source = instantiate(cfg["dataset"])
    learner = make_learner(cfg, device)
    training = training_split(cfg, dataset, device)
    validation = protocol_split(cfg, dataset, device, "val") if cfg["val_every"] else None
    test = protocol_split(cfg, dataset, device, cfg["protocol"]["split"])
    refuse_overlap(cfg, training.episodes.table.names, test.episodes.table)
    optimizer, scheduler = make_optimizer(cfg, learner)
    table = training.episodes.table
    facts = {
        "config": json.loads(json.dumps(cfg)),
        "choices": dict(choices or {}),
        "data": {"fingerprint": table.fingerprint, "image": list(table.images.shape[1:]), "classes": list(table.names)},
        "versions": versions(),
    }
    checkpoint = load_checkpoint(run_dir, "last") if cfg["resume"] else None
    if checkpoint and checkpoint["data"] != facts["data"]:
        raise UserError(f"dataset.root: the images or classes are not those of {run_dir}; a run goes on with its own data only")
    loop = {name: cfg[name] for name in LOOP}
    trainer = partial(Trainer, learner, optimizer, scheduler, device, training.tasks, facts=facts, **loop)
    return Job(device, learner, training, validation, trainer, checkpoint, facts)


def train(cfg: Config, run_dir: Path, choices: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Trains, or goes on training, and tests the selected checkpoint. Returns the record of the test, as `evaluate` does."""
    job = prepare(cfg, run_dir, choices)
    with Run(run_dir, job.checkpoint) as run:
        trainer = job.trainer(validate=partial(_validate, cfg, job, run), run=run)
        if job.checkpoint is None:
            run.describe(cfg)
        else:
            trainer.load(job.checkpoint)
        trainer.fit()
        record = evaluate(cfg, run_dir)
        run.log(trainer.step, "test", {"accuracy": record["accuracy"], "ci95": record["ci95"]})
        run.conclude(cfg, record["accuracy"])
    return record


def _validate(cfg: Config, job: Job, run: Run, step: int) -> dict[str, float]:
    assert job.validation is not None
    statistics = cfg["protocol"]["batch_norm"] or job.learner.statistics
    count = cfg["protocol"]["val_episodes"]
    result = score(job.learner, job.validation.episodes, job.validation.pixels, count, statistics, job.device, "val")
    run.picture(step, "val/episode", episode_figure(job.learner, job.validation.tasks(0, 1), statistics, job.device))
    return {"accuracy": result.accuracy, "ci95": result.ci95, "loss": result.loss}

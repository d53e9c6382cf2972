"""A config made into objects, and the jobs done with them: train, evaluate."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate

from metarun.algorithms.base import FewShotLearner
from metarun.backbones.base import Backbone
from metarun.data.episodes import Episodes, Pixels
from metarun.data.source import Source
from metarun.data.table import ImageTable
from metarun.device import Device
from metarun.errors import UserError
from metarun.evaluation import Result
from metarun.evaluation import evaluate as score
from metarun.figure import episode_figure
from metarun.run import Run, file_sha256, load_checkpoint, refuse_taken, versions
from metarun.tasks import Episode
from metarun.trainer import Trainer

Config = Mapping[str, Any]
LOOP = ("steps", "tasks_per_step", "tasks_per_chunk", "val_every", "log_every", "checkpoint_every", "patience", "clip_value", "clip_norm")
log = logging.getLogger(__name__)


def make_learner(cfg: Config, device: Device) -> FewShotLearner:
    """The learner with its backbone, from the run's seed. Raises UserError for a combination that cannot work."""
    torch.manual_seed(cfg["seed"])
    backbone = instantiate(cfg["backbone"])
    if not isinstance(backbone, Backbone):
        raise UserError(f"backbone._target_: {type(backbone).__name__} is not a Backbone; put it into metarun.backbones.per_task.PerTask")
    learner: FewShotLearner = instantiate(cfg["algorithm"])(backbone=backbone)
    if device.precision == "fp16" and learner.inner_gradients:
        raise UserError(f"device.precision: fp16 is not allowed for {type(learner).__name__}, whose inner gradients would overflow; use bf16 or fp32")
    return learner.to(device.torch, memory_format=torch.channels_last)


@dataclass(frozen=True)
class Split:
    """Numbered episodes of a split and the images to make them of."""

    episodes: Episodes
    pixels: Pixels

    def tasks(self, first: int, count: int) -> Episode:
        return self.pixels.episode(self.episodes.draw(first, count), self.episodes.shots)


def training_split(cfg: Config, dataset: Source, device: Device) -> Split:
    table = dataset.load("train")
    return Split(Episodes(table, **cfg["task"], seed=cfg["seed"], split="train"), Pixels(table, device, dataset.residency))


def protocol_split(cfg: Config, dataset: Source, device: Device, split: str) -> Split:
    """Validation and test have the protocol's seed: their episodes are the same for all runs."""
    p, table = cfg["protocol"], dataset.load(split)
    episodes = Episodes(table, p["ways"], p["shots"], p["queries"], p["seed"], split, key="protocol")
    return Split(episodes, Pixels(table, device, dataset.residency))


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
    optimizer = instantiate(cfg["optimizer"])(learner.parameters())
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
    trainer = partial(Trainer, learner, optimizer, instantiate(cfg["scheduler"])(optimizer), device, training.tasks, facts=facts, **loop)
    return Job(device, learner, training, validation, trainer, checkpoint, facts)


def train(cfg: Config, run_dir: Path, choices: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Trains, or goes on training, and tests the selected checkpoint. Returns the record of the test, as `evaluate` does."""
    job = prepare(cfg, run_dir, choices)
    run = Run(run_dir, resume=job.checkpoint is not None)
    trainer = job.trainer(validate=partial(_validate, cfg, job, run), run=run)
    if job.checkpoint is not None:
        trainer.load(job.checkpoint)
    run.rewind(trainer.step, job.checkpoint["metrics_bytes"] if job.checkpoint else 0)
    if run.board is not None and job.checkpoint is None:
        run.board.add_text("config", "```\n" + json.dumps(cfg, indent=2) + "\n```")
    trainer.fit()
    record = evaluate(cfg, run_dir)
    run.log(trainer.step, "test", {"accuracy": record["accuracy"], "ci95": record["ci95"]})
    if run.board is not None:
        run.board.add_hparams(_flat(cfg), {"hparam/test_accuracy": record["accuracy"]}, run_name=".")
    run.close()
    return record


def _validate(cfg: Config, job: Job, run: Run, step: int) -> dict[str, float]:
    assert job.validation is not None
    statistics = cfg["protocol"]["batch_norm"] or job.learner.statistics
    count = cfg["protocol"]["val_episodes"]
    result = score(job.learner, job.validation.episodes, job.validation.pixels, count, statistics, job.device, "val")
    if run.board is not None:
        run.board.add_image("val/episode", episode_figure(job.learner, job.validation.tasks(0, 1), statistics, job.device), step)
    return {"accuracy": result.accuracy, "ci95": result.ci95, "loss": result.loss}


def evaluate(cfg: Config, run_dir: Path) -> dict[str, Any]:
    """Tests the checkpoint that the protocol selects; writes and returns the record. Raises UserError."""
    device, protocol = Device(**cfg["device"]), cfg["protocol"]
    device.set_up()
    name = "best" if protocol["selection"] == "best_val" and cfg["val_every"] else "last"
    checkpoint = load_checkpoint(run_dir, name)
    dataset: Source = instantiate(cfg["dataset"])
    split = protocol_split(cfg, dataset, device, protocol["split"])
    table = split.episodes.table
    if list(table.images.shape[1:]) != checkpoint["data"]["image"]:
        raise UserError(f"dataset: its images are {table.images.shape[1:]} (height, width, channels), the run's were {checkpoint['data']['image']}")
    refuse_overlap(cfg, checkpoint["data"]["classes"], table)
    learner = make_learner(cfg, device)
    learner.load_state_dict(checkpoint["model"])
    statistics = protocol["batch_norm"] or learner.statistics
    result = score(learner, split.episodes, split.pixels, protocol["episodes"], statistics, device, "test")
    record = _record(cfg, result, split, statistics, run_dir / "checkpoints" / f"{name}.pt", checkpoint)
    _write(run_dir / "evaluations", record)
    log.info(
        "%s accuracy %.2f ± %.2f %% (%d episodes, %d-way %d-shot, %d queries a class, batch statistics: %s, step %d)",
        *(protocol["split"], record["accuracy"], record["ci95"], record["episodes"]),
        *(record["ways"], record["shots"], record["queries"], statistics, checkpoint["step"]),
    )
    return record


def _record(cfg: Config, result: Result, split: Split, statistics: str, path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    episodes = split.episodes
    return {
        "accuracy": result.accuracy,
        "ci95": result.ci95,
        "loss": result.loss,
        "episodes": len(result.accuracies),
        "ways": episodes.ways,
        "shots": episodes.shots,
        "queries": episodes.queries,
        "batch_norm": statistics,
        "split": cfg["protocol"]["split"],
        "seed": cfg["seed"],
        "episodes_sha256": episodes.sha256(len(result.accuracies)),
        "data_fingerprint": episodes.table.fingerprint,
        "checkpoint": path.name,
        "checkpoint_sha256": file_sha256(path),
        "checkpoint_step": checkpoint["step"],
        "selection": cfg["protocol"]["selection"],
        "per_episode": np.round(result.accuracies, 4).tolist(),
        "config": cfg,
        "versions": versions(),
    }


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    """One file per protocol: what identifies a number, apart from the number, names it."""
    identity = [record[key] for key in ("episodes_sha256", "batch_norm", "data_fingerprint", "checkpoint", "selection")]
    identity.append([record["config"]["algorithm"], record["config"]["device"]["precision"]])
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    draft = folder / f".{name}.tmp"
    draft.write_text(json.dumps(record, indent=1))
    draft.replace(folder / f"{name}.json")


def refuse_overlap(cfg: Config, trained: list[str] | tuple[str, ...], table: ImageTable) -> None:
    """Raises UserError if classes to be tested were trained on, unless the protocol allows it."""
    both = set(trained).intersection(table.names)
    if both and not cfg["protocol"]["allow_overlap"]:
        raise UserError(
            f"protocol.split: {cfg['protocol']['split']} has {len(both)} classes that were trained on ({min(both)} among them); "
            "protocol.allow_overlap=true tests them all the same"
        )


def _flat(cfg: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The config as TensorBoard's hparams want it: dotted keys, plain values."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat

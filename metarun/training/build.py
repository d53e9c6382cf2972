"""What a config describes, made once: kind, learner, update, sources. Nothing is written."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metarun.algorithms.base import FewShotLearner
from metarun.config.keys import PLACES, ROLES, differences
from metarun.errors import UserError
from metarun.kinds import Kind
from metarun.nn.device import Device
from metarun.runs.checkpoint import facts_of, load_checkpoint, newest, versions
from metarun.runs.folder import refuse_taken
from metarun.tasks import TaskSource
from metarun.training.gradient import MetaGradient
from metarun.training.learners import make_kind, make_learner
from metarun.training.trainer import Trainer

Config = Mapping[str, Any]
LOOP = ("steps", "tasks_per_step", "val_every", "log_every", "checkpoint_every", "keep_best", "patience")


def make_optimizer(cfg: Config, parameters: Iterable[nn.Parameter]) -> tuple[Optimizer, LRScheduler]:
    """Optimizer and schedule. Raises UserError for a value that torch refuses, also at the first step."""
    node = "optimizer"
    try:
        rehearsal = instantiate(cfg["optimizer"])([nn.Parameter(torch.zeros(1))])
        optimizer = instantiate(cfg["optimizer"])(parameters)
        node = "scheduler"
        later = instantiate(cfg["scheduler"])(rehearsal)
        rehearsal.step()
        later.step()
        return optimizer, instantiate(cfg["scheduler"])(optimizer)
    except (TypeError, ValueError, IndexError, ArithmeticError, InstantiationException) as error:
        if isinstance(error.__cause__, UserError):
            raise
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise UserError(f"{node}: {cfg[node]['_target_']} refuses its values ({reason})") from error


def make_update(cfg: Config, learner: FewShotLearner, device: Device) -> MetaGradient:
    """What a step does. Raises UserError as `make_optimizer` does."""
    optimizer, scheduler = make_optimizer(cfg, learner.parameters())
    return MetaGradient(learner, device, optimizer, scheduler, cfg["tasks_per_chunk"], cfg["clip_value"], cfg["clip_norm"])


@dataclass(frozen=True)
class Job:
    """Everything a run needs, built and checked. `trainer` lacks only the run and its validation; protocol: by which it is tested."""

    kind: Kind
    device: Device
    learner: FewShotLearner
    update: MetaGradient
    protocol: Mapping[str, Any]
    validation: TaskSource | None
    trainer: partial[Trainer]
    facts: Mapping[str, Any]
    checkpoint: Mapping[str, Any] | None


def build(cfg: Config, run_dir: Path, choices: Mapping[str, str] | None = None) -> Job:
    """Builds all that can refuse, and writes nothing into `run_dir`. Raises UserError."""
    refuse_taken(run_dir, resume=bool(cfg["resume"]))
    device = Device(**cfg["device"])
    device.set_up()
    kind = make_kind(cfg, device)
    known = kind.facts(cfg["train_split"])
    learner = make_learner(cfg, kind, known)
    fits = fitted(cfg, kind, learner, known)
    update = make_update(cfg, learner, device)
    facts: dict[str, Any] = {
        "config": {**json.loads(json.dumps(cfg)), "resume": None},
        "choices": dict(choices or {}),
        "facts": known,
        "versions": versions(),
    }
    checkpoint = resumed(run_dir, known) if cfg["resume"] else None
    facts["changes"] = changes(checkpoint, facts["config"])
    loop = {name: cfg[name] for name in LOOP}
    trainer = partial(Trainer, learner, update, device, fits.training, measure=kind.measures[0], facts=facts, **loop)
    return Job(kind, device, learner, update, fits.protocol, fits.validation, trainer, facts, checkpoint)


@dataclass(frozen=True)
class Fitted:
    """What a learner is trained, validated and tested on, and by which protocol."""

    training: TaskSource
    validation: TaskSource | None
    protocol: Mapping[str, Any]


def fitted(cfg: Config, kind: Kind, learner: FewShotLearner, facts: Mapping[str, Any]) -> Fitted:
    """Raises UserError if the learner cannot be trained, validated or tested on the kind's data, or should not be."""
    training = kind.training(learner)
    kind.evaluation(cfg["protocol"]["split"])
    validation = kind.evaluation("val") if cfg["val_every"] else None
    protocol = kind.protocol_for(learner, facts)
    learner.check_training()
    return Fitted(training, validation, protocol)


def resumed(run_dir: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint that a run goes on from. Raises UserError if it cannot, or not with the data of which these are the facts."""
    checkpoint = load_checkpoint(run_dir, newest(run_dir))
    if not {"update", "optimizer"} & checkpoint.keys():
        raise UserError(f"resume: {run_dir} holds a model to be tested, without the state of its training")
    if facts_of(checkpoint) != facts:
        raise UserError(f"dataset.root: the images or classes are not those of {run_dir}; a run goes on with its own data only")
    return checkpoint


def changes(checkpoint: Mapping[str, Any] | None, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What changed whenever the run went on: at which step, and by key the value before and after. Where things lie is left out."""
    if checkpoint is None:
        return []
    changed = differences(checkpoint["config"], config, ROLES)
    values = {key: list(pair) for key, pair in changed.items() if key.rpartition(".")[2] not in PLACES}
    return [*checkpoint.get("changes", []), *([{"step": checkpoint["step"], "values": values}] if values else [])]

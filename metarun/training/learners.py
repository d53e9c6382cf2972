"""The kind of task of a config, and its learners: new ones, and trained ones, from a run's checkpoints."""

from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from metarun.algorithms.base import FewShotLearner
from metarun.algorithms.ensemble import Ensemble
from metarun.backbones.base import Backbone
from metarun.classification.kind import Classification
from metarun.config.changes import completed
from metarun.errors import UserError
from metarun.kinds import Kind, TaskSpec
from metarun.nn.device import Device
from metarun.runs.checkpoint import facts_of, load_checkpoint, newest, selected

Config = Mapping[str, Any]


def make_kind(cfg: Config, device: Device, dataset: Any = None) -> Kind:
    """The kind of task of a config; dataset: its source of data where that is there already."""
    loop = {key: cfg[key] for key in ("seed", "train_split", "tasks_per_step")}
    source = instantiate(cfg["dataset"]) if dataset is None else dataset
    task = {key: cfg["task"][key] for key in ("ways", "shots", "queries", "augment", "batch")}
    return Classification(cfg["protocol"], loop, device, source, **task)


def make_learner(cfg: Config, kind: Kind, facts: Mapping[str, Any]) -> FewShotLearner:
    """The learner with its backbone, from the run's seed. facts: of what it is trained on, or was (see `TaskSpec`).

    Raises UserError for a combination that cannot work.
    """
    torch.manual_seed(cfg["seed"])
    backbone = instantiate(cfg["backbone"])
    if not isinstance(backbone, Backbone):
        raise UserError(f"backbone._target_: {type(backbone).__name__} is not a Backbone; put it into metarun.backbones.per_task.PerTask")
    make = instantiate(cfg["algorithm"])
    if not {"backbone", "spec"} <= signature(make).parameters.keys():
        raise UserError(f"algorithm._target_: {cfg['algorithm']['_target_']} is made without (backbone, spec), a learner's first arguments")
    learner: FewShotLearner = make(backbone=backbone, spec=TaskSpec(kind.objective, facts, open_run))
    return learner.to(kind.device.torch)


def trained(cfg: Config, kind: Kind, run_dir: Path, checkpoints: Sequence[Mapping[str, Any]]) -> list[FewShotLearner]:
    """The learner of each checkpoint. Raises UserError if the configuration is not that of their weights."""
    members = [make_learner(cfg, kind, facts_of(checkpoint)) for checkpoint in checkpoints]
    load(members, run_dir, checkpoints)
    return members


def load(members: Iterable[FewShotLearner], run_dir: Path, checkpoints: Iterable[Mapping[str, Any]]) -> None:
    """Gives each member the weights of its checkpoint. Raises UserError if they are not of its network."""
    try:
        for member, kept in zip(members, checkpoints, strict=True):
            member.load_state_dict(kept["model"])
    except RuntimeError as error:
        raise UserError(f"{run_dir}: its weights do not fit this algorithm and backbone; a test cannot change the network") from error


def together(members: Sequence[FewShotLearner]) -> FewShotLearner:
    """One learner of the mean scores of several; one alone as it is."""
    return members[0] if len(members) == 1 else Ensemble(members)


def open_run(run_dir: Path) -> tuple[FewShotLearner, dict[str, Any]]:
    """The best checkpoint that a run's protocol tests, frozen and on the CPU, and the facts of what it was trained on.

    Random numbers go on as if nobody had made another network. Raises UserError if there is none.
    """
    config = completed(load_checkpoint(run_dir, newest(run_dir))["config"])
    checkpoint = load_checkpoint(run_dir, selected(run_dir, config["protocol"], "let it train up to a validation first")[0])
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        (learner,) = trained(config, make_kind(config, Device("cpu")), run_dir, [checkpoint])
    return learner.eval().requires_grad_(False), facts_of(checkpoint)

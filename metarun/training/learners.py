"""Learners: new ones, from a config and the facts of what they are trained on, and trained ones, from a run's checkpoints."""

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from metarun.algorithms.base import FewShotLearner
from metarun.algorithms.ensemble import Ensemble
from metarun.algorithms.objectives import CrossEntropy
from metarun.backbones.base import Backbone
from metarun.config.changes import completed
from metarun.errors import UserError
from metarun.kinds import TaskSpec
from metarun.nn.device import Device
from metarun.runs.checkpoint import load_checkpoint, newest, selected

Config = Mapping[str, Any]


def make_learner(cfg: Config, device: Device, facts: Mapping[str, Any]) -> FewShotLearner:
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
    learner: FewShotLearner = make(backbone=backbone, spec=TaskSpec(CrossEntropy(cfg["task"]["ways"]), facts, open_run))
    return learner.to(device.torch)


def trained_on(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that a checkpoint has of what was trained on; the oldest runs, which have no use for rotations, do not count them."""
    data = checkpoint["data"]
    return {"classes": checkpoint.get("classes", len(data["classes"])), "names": data["classes"], "shape": data["image"]}


def trained(cfg: Config, run_dir: Path, checkpoints: Sequence[Mapping[str, Any]], device: Device) -> list[FewShotLearner]:
    """The learner of each checkpoint. Raises UserError if the configuration is not that of their weights."""
    members = [make_learner(cfg, device, trained_on(checkpoint)) for checkpoint in checkpoints]
    try:
        for member, kept in zip(members, checkpoints, strict=True):
            member.load_state_dict(kept["model"])
    except RuntimeError as error:
        raise UserError(f"{run_dir}: its weights do not fit this algorithm and backbone; a test cannot change the network") from error
    return members


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
        (learner,) = trained(config, run_dir, [checkpoint], Device("cpu"))
    return learner.eval().requires_grad_(False), trained_on(checkpoint)

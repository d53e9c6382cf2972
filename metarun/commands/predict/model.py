"""A run's tested model with what it takes to show it other images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from metarun.algorithms.base import FewShotLearner
from metarun.commands.predict.images import View
from metarun.config.changes import saved_config
from metarun.config.refusals import in_one_line
from metarun.config.targets import check_targets
from metarun.errors import UserError
from metarun.nn.device import Device
from metarun.runs.checkpoint import facts_of, load_checkpoint, selected
from metarun.training import learners

ASKED: dict[str | None, dict[str, Any]] = {
    None: {},
    "best": {"ensemble": 1, "selection": "best_val"},
    "last": {"ensemble": 1, "selection": "last"},
}
"""What `checkpoint=` changes of the protocol that the run is tested by."""


@dataclass(frozen=True)
class Model:
    """members: learners in the order of their checkpoints, which `names` names; statistics: by which batch norm treats queries."""

    members: list[FewShotLearner]
    names: list[str]
    statistics: str
    device: Device
    view: View

    @property
    def learner(self) -> FewShotLearner:
        return learners.together(self.members)


def trained(values: Mapping[str, str]) -> Model:
    """The model of `run=`, with the settings of the line. Raises UserError for a folder that holds none, and for one that does not load."""
    run_dir = Path(values["run"])
    with in_one_line(lambda without: ()):
        cfg, _ = saved_config(run_dir)
        check_targets(cfg)
        device = _device(cfg["device"], values.get("device", "auto"))
        names = selected(run_dir, {**cfg["protocol"], **ASKED[values.get("checkpoint")]}, "checkpoint=last takes the last one")
        checkpoints = [load_checkpoint(run_dir, name) for name in names]
        view = _view(instantiate(cfg["dataset"]), facts_of(checkpoints[0])["shape"], values)
        members = learners.trained(cfg, learners.make_kind(cfg, device), run_dir, checkpoints)
    for member in members:
        member.eval()
    return Model(members, names, values.get("batch_norm") or cfg["protocol"]["batch_norm"] or members[0].statistics, device, view)


def _device(trained: Mapping[str, Any], name: str) -> Device:
    """The device, in the precision of the training; where it has no such, in fp32."""
    fp32 = Device(**{**trained, "name": name, "precision": "fp32"})
    device = fp32 if fp32.torch.type == "cpu" and trained["precision"] == "fp16" else Device(**{**trained, "name": name})
    device.set_up()
    return device


def _view(source: Any, image: list[int], values: Mapping[str, str]) -> View:
    """How the run's dataset makes images (H, W, C), unless the line says otherwise. A dataset without a key for it does not do it."""
    height, width, channels = image
    if height != width:
        raise UserError(f"run: its images are {height}x{width}; files can only be made into square ones")
    resample: Any = values.get("resample", getattr(source, "resample", "bilinear"))
    invert = values["invert"] == "true" if "invert" in values else getattr(source, "invert", False)
    mean, std = (tuple(getattr(source, key, default)) for key, default in (("mean", (0.0,)), ("std", (1.0,))))
    return View(height, channels, resample, invert, mean, std)

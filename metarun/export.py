"""A run as it is given away: the tested model without what only training needs, and nothing that says where it was made."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metarun.checkpoint import load_checkpoint, save_checkpoint
from metarun.earlier import completed
from metarun.errors import UserError
from metarun.results import selected
from metarun.status import read_json, write_json

KEPT = ("config", "choices", "data", "versions", "step", "best", "ranking", "model")
TOLD = ("state", "step", "steps", "step_seconds", "seconds", "peak_memory", "best", "test")


def export(run_dir: Path, folder: Path) -> Path:
    """Copies the run into `folder`: its tested checkpoints, its configuration, its metrics. `metarun evaluate run=` takes it, with
    `dataset.root=`; the training cannot go on there. Returns `folder`. Raises UserError if there is a run in it, or none in `run_dir`.
    """
    facts = read_json(run_dir / "config.json")
    if "config" not in facts:
        raise UserError(f"{run_dir}: holds no run")
    if (folder / "checkpoints").exists():
        raise UserError(f"{folder}: holds a run already")
    (folder / "checkpoints").mkdir(parents=True)
    for name in selected(run_dir, completed(facts["config"])["protocol"]):
        checkpoint = load_checkpoint(run_dir, name)
        model = {key: value for key, value in checkpoint.items() if key in KEPT}
        save_checkpoint(folder / "checkpoints" / f"{name}.pt", {**model, "config": anywhere(checkpoint["config"])})
    write_json(folder / "config.json", {**facts, "config": anywhere(facts["config"])})
    write_json(folder / "status.json", {key: value for key, value in read_json(run_dir / "status.json").items() if key in TOLD})
    shutil.copyfile(run_dir / "metrics.csv", folder / "metrics.csv")
    words = OmegaConf.to_container(OmegaConf.load(run_dir / ".hydra/overrides.yaml"))
    assert isinstance(words, list)
    (folder / ".hydra").mkdir()
    OmegaConf.save(
        OmegaConf.create([word for word in words if not str(word).startswith("dataset.root=")]), folder / ".hydra/overrides.yaml"
    )
    return folder


def anywhere(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the place of the data."""
    copy: dict[str, Any] = json.loads(json.dumps(config))
    if "root" in copy["dataset"]:
        copy["dataset"]["root"] = None
    return copy

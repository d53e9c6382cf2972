"""A run as it is given away: the tested model without what only training needs, and nothing that says where it was made."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metarun.config.changes import completed
from metarun.config.compose import parse
from metarun.errors import UserError
from metarun.runs.checkpoint import load_checkpoint, save_checkpoint, selected
from metarun.runs.files import whole_folder
from metarun.runs.status import read_json, write_json

KEPT = ("config", "choices", "facts", "data", "classes", "versions", "changes", "step", "best", "ranking", "model")
TOLD = ("state", "step", "steps", "step_seconds", "seconds", "peak_memory", "best", "test")


def export(run_dir: Path, folder: Path) -> Path:
    """Copies the run into `folder`: its tested checkpoints, its configuration, its metrics. `metarun evaluate run=` takes it, with
    `dataset.root=`; the training cannot go on there. Returns `folder`. Raises UserError if that exists, or no run in `run_dir`.
    """
    facts = read_json(run_dir / "config.json")
    if "config" not in facts:
        raise UserError(f"{run_dir}: holds no run")
    if folder.exists():
        raise UserError(f"{folder}: already exists")
    way_out = "let it train up to a validation first"
    names = selected(run_dir, completed(facts["config"])["protocol"], way_out)
    checkpoints = {name: load_checkpoint(run_dir, name) for name in {*names, *(["last"] if len(names) > 1 else [])}}
    overrides = run_dir / ".hydra/overrides.yaml"
    words = [str(word) for word in OmegaConf.load(overrides)] if overrides.exists() else []
    with whole_folder(folder) as draft:
        for part in ("checkpoints", ".hydra"):
            (draft / part).mkdir()
        for name, checkpoint in checkpoints.items():
            model = {key: value for key, value in checkpoint.items() if key in KEPT}
            save_checkpoint(draft / "checkpoints" / f"{name}.pt", {**model, "config": anywhere(checkpoint["config"])})
        write_json(draft / "config.json", {**facts, "config": anywhere(facts["config"])})
        write_json(draft / "status.json", {key: value for key, value in read_json(run_dir / "status.json").items() if key in TOLD})
        shutil.copyfile(run_dir / "metrics.csv", draft / "metrics.csv")
        OmegaConf.save(OmegaConf.create(placeless(words)), draft / ".hydra/overrides.yaml")
    return folder


def placeless(words: Sequence[str]) -> list[str]:
    """The overrides without those that say where data or a teacher lie."""
    places = ("dataset.root", "algorithm.teacher.run")
    return [str(override.input_line) for override in parse(list(words)) if override.key_or_group not in places]


def anywhere(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the place of the data and of a teacher, which keeps its name."""
    copy: dict[str, Any] = json.loads(json.dumps(config))
    if "root" in copy["dataset"]:
        copy["dataset"]["root"] = None
    if teacher := copy["algorithm"].get("teacher"):
        teacher["run"] = teacher["run"] and Path(teacher["run"]).name
    return copy

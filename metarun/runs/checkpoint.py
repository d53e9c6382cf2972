"""Checkpoints: one dict of tensors and plain values, in a file that is whole or absent."""

import hashlib
import io
import logging
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from metarun.errors import UserError
from metarun.runs.catalogue import find_runs
from metarun.runs.files import whole
from metarun.text.units import counted
from metarun.version import __version__

log = logging.getLogger(__name__)
FORMAT = "metarun-checkpoint-1"


def save_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Writes one dict so that `path` is always the old file or the new one. Raises UserError if it cannot be written."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    try:
        with whole(path, durable=True) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        kept = f"the previous checkpoint is kept; free some space and resume={path.parent.parent}" if path.exists() else "there is none yet"
        raise UserError(f"{path}: cannot be written ({error.strerror}); {kept}") from error


def load_checkpoint(folder: Path, name: str) -> dict[str, Any]:
    """The checkpoint `name` (`last` or `best`) of a run, on the CPU.

    Raises UserError if there is none, or if it is damaged or not metarun's.
    """
    path = folder / "checkpoints" / f"{name}.pt"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run directory")
    if not path.is_file():
        raise UserError(f"{path}: not found; {_instead(folder)}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint raise nearly anything
        raise UserError(f"{path}: damaged or not a checkpoint ({str(error).partition(chr(10))[0][:80] or type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of metarun, or of another version; expected {FORMAT}")
    return checkpoint


def _instead(folder: Path) -> str:
    """What there is in a folder that lacks a checkpoint."""
    if there := sorted(path.stem for path in (folder / "checkpoints").glob("*.pt")):
        return f"{folder} has {' and '.join(there)} only"
    runs = [run for run in find_runs(folder) if any((run.folder / "checkpoints").glob("*.pt"))]
    if runs:
        latest = max(runs, key=lambda run: str(run.status.get("updated", "")))
        return f"{folder} is not a run directory; {counted(len(runs), 'run lies', 'runs lie')} below it, last at work {latest.folder}"
    return f"{folder} is not a run directory, or its run saved nothing yet"


def renewed(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The training state of a checkpoint, whoever wrote it: older ones have no `update` around its parts, and an `accuracy` as best."""
    kept = {"ranking": [], "source": {}, **checkpoint}
    if "update" not in kept:
        kept["update"] = {name: kept.pop(name) for name in ("optimizer", "scheduler", "scaler")}
    if (best := kept["best"]) and "accuracy" in best:
        kept["best"] = {"step": best["step"], "value": best["accuracy"], "misses": best["misses"]} if best["step"] else None
    return kept


def facts_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was trained on: the facts that its kind had of it. Older checkpoints have them as `data` and `classes`; the oldest, which
    have no use for rotations, do not count these.
    """
    if "facts" in checkpoint:
        return dict(checkpoint["facts"])
    data = checkpoint["data"]
    count = checkpoint.get("classes", len(data["classes"]))
    return {"fingerprint": data["fingerprint"], "names": data["classes"], "shape": data["image"], "classes": count}


def newest(folder: Path) -> str:
    """The name of a run's last checkpoint; of one that was given away (`metarun.runs.export`) there may be the best alone."""
    return "best" if not (folder / "checkpoints/last.pt").exists() and (folder / "checkpoints/best.pt").exists() else "last"


def load_config(folder: Path, name: str) -> dict[str, Any]:
    """The resolved config of a checkpoint and the group choices behind it: {"config": ..., "choices": ...}."""
    checkpoint = load_checkpoint(folder, name)
    return {"config": checkpoint["config"], "choices": checkpoint["choices"]}


def selected(run_dir: Path, protocol: Mapping[str, Any], way_out: str | None = None) -> list[str]:
    """The names of the checkpoints that the protocol tests, the best first.

    way_out: what a command offers that is asked for the best where there is none, unless the protocol can be changed there. Raises
    UserError with it then, and if the protocol wants more than the run kept.
    """
    if way_out is None:
        way_out = f"protocol.selection=last{' protocol.ensemble=1' * (protocol['ensemble'] > 1)} tests the last one"
    none = UserError(f"{run_dir}: no checkpoint is its best, as no validation of it gave a finite number so far; {way_out}")
    if protocol["ensemble"] == 1:
        name = "best" if protocol["selection"] == "best_val" else "last"
        there = {path.stem for path in (run_dir / "checkpoints").glob("*.pt")}
        if name not in there and "last" in there:
            raise none
        return [name]
    last = load_checkpoint(run_dir, "last")
    kept, keep_best = last.get("ranking", []), last["config"].get("keep_best", 1)
    if protocol["ensemble"] > keep_best:
        raise UserError(f"protocol.ensemble: {protocol['ensemble']} is not allowed; the run was trained with keep_best={keep_best}")
    if not kept:
        raise none
    if len(kept) < protocol["ensemble"]:
        log.warning("there were %d validations only; testing the mean of %d checkpoints", len(kept), len(kept))
    return [f"val-{step}" for _, step in kept[: protocol["ensemble"]]]


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()
        )


def versions() -> dict[str, str]:
    """What a number depends on beside the code it names."""
    packages = {name: version(name) for name in ("torch", "numpy", "hydra-core")}
    return {"python": platform.python_version(), "machine": platform.machine(), "metarun": __version__, **packages}

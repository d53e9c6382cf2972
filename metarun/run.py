"""The run directory: one writer at a time, checkpoints that are whole or absent, metrics that a resumed run continues to the byte."""

import csv
import fcntl
import hashlib
import io
import os
import pickle
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from metarun import __version__
from metarun.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FORMAT = "metarun-checkpoint-1"


class Run:
    """An open run directory, held by this process alone until `close` or the process's end.

    Raises UserError if another process holds it, or if it already has a run and `resume` is false.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        refuse_taken(folder, resume)
        self.folder = folder
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.lock = _lock(folder)
        self.metrics: IO[str] = open(folder / "metrics.csv", "a+", newline="")  # noqa: SIM115 -- open for the run's whole life
        self.board: SummaryWriter | None = None

    def rewind(self, step: int, metrics_bytes: int) -> None:
        """Forgets what was logged after a checkpoint, and starts the log of a new run."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.metrics.truncate(metrics_bytes)
        if metrics_bytes == 0:
            csv.writer(self.metrics).writerow(["step", "split", "name", "value"])
        self.board = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes scalars to metrics.csv, with every digit, and to TensorBoard as `split/name`."""
        for name, value in values.items():
            csv.writer(self.metrics).writerow([step, split, name, repr(float(value))])
            self.show(step, f"{split}/{name}", value)

    def show(self, step: int, tag: str, value: float) -> None:
        """Writes a scalar to TensorBoard only: for what differs from run to run, like rates."""
        if self.board is not None:
            self.board.add_scalar(tag, value, step)

    def flush(self) -> int:
        """Makes the metrics durable; returns their length in bytes, as a checkpoint remembers it."""
        self.metrics.flush()
        if self.board is not None:
            self.board.flush()
        return self.metrics.tell()

    def save(self, name: str, checkpoint: dict[str, Any]) -> None:
        save_checkpoint(self.folder / "checkpoints" / f"{name}.pt", checkpoint)

    def close(self) -> None:
        self.metrics.close()
        if self.board is not None:
            self.board.close()
        os.close(self.lock)


def refuse_taken(folder: Path, resume: bool) -> None:
    """Raises UserError if `folder` cannot be a run's: in use, holding a run that is not to be resumed, or no folder. Writes nothing."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; a run needs a folder")
    if (folder / ".lock").exists():
        os.close(_lock(folder))
    if not resume and (folder / "checkpoints").is_dir():
        raise UserError(f"{folder}: holds a run already; go on with it by resume={folder}, or choose another hydra.run.dir")


def _lock(folder: Path) -> int:
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"{folder}: this run is in use by another process") from None
    return handle


def save_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Writes one dict so that `path` is always the old file or the new one. Raises UserError, the old file kept, if it cannot be written."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    draft = path.with_suffix(".tmp")
    try:
        with open(draft, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        kept = f"the checkpoint of before is kept; free some space and resume={path.parent.parent}" if path.exists() else "there is none yet"
        raise UserError(f"{path}: cannot be written ({error.strerror}); {kept}") from error


def load_checkpoint(folder: Path, name: str) -> dict[str, Any]:
    """The checkpoint `name` (`last` or `best`) of a run, on the CPU. Raises UserError if there is none, or it is damaged or not metarun's."""
    path = folder / "checkpoints" / f"{name}.pt"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run directory")
    if not path.is_file():
        raise UserError(f"{path}: not found; {folder} is not a run directory, or its run saved nothing yet")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: damaged or not a checkpoint ({str(error).splitlines()[0][:80]})") from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of metarun, or of another version; expected {FORMAT}")
    return checkpoint


def load_config(folder: Path, name: str) -> dict[str, Any]:
    """The resolved config of a checkpoint and the group choices behind it: {"config": ..., "choices": ...}."""
    checkpoint = load_checkpoint(folder, name)
    return {"config": checkpoint["config"], "choices": checkpoint["choices"]}


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()


def versions() -> dict[str, str]:
    """What a number depends on beside the code it names."""
    packages = {name: version(name) for name in ("torch", "numpy", "hydra-core")}
    return {"python": platform.python_version(), "machine": platform.machine(), "metarun": __version__, **packages}

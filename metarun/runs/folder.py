"""The run directory: one writer at a time, and metrics that a resumed run continues to the byte."""

import csv
import json
import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from metarun.config.schema import flat, word
from metarun.errors import TrainingError, UserError
from metarun.runs.checkpoint import save_checkpoint
from metarun.runs.files import Lock, remove_drafts
from metarun.runs.status import CUT_OFF, FAILED, FINISHED, RUNNING, read_json, report, whereabouts, write_json

LOCK_PATIENCE = 1.0
"""Seconds to wait for the lock of a run: a process that only checks the lock holds it for less than a millisecond."""


class Run:
    """An open run directory, held by this process alone until it is left (`with Run(...)`) or the process ends.

    With a `checkpoint` it goes back to where that was made: what was logged later is forgotten. `facts` (the config, the choices behind
    it, the versions) are written to `config.json`; what becomes of the run, to `status.json`. Raises UserError if another process holds
    the directory, or if it has a run already and no `checkpoint` to go on from is given.
    """

    def __init__(self, folder: Path, checkpoint: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        refuse_taken(folder, resume=checkpoint is not None)
        step, metrics_bytes = (checkpoint["step"], checkpoint["metrics_bytes"]) if checkpoint else (0, 0)
        self.folder = folder
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.lock = locked(folder)
        remove_drafts(folder / "checkpoints")
        self.metrics: IO[str] = open(folder / "metrics.csv", "a+", newline="")  # noqa: SIM115 -- open for the run's whole life
        self.metrics.truncate(metrics_bytes)
        self.metrics.seek(0, os.SEEK_END)
        if metrics_bytes == 0:
            csv.writer(self.metrics).writerow(["step", "split", "name", "value"])
        self.board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        told = {key: value for key, value in (facts or {}).items() if key != "facts"}
        write_json(folder / "config.json", told | {"data_fingerprint": facts["facts"]["fingerprint"]} if facts else {})
        if checkpoint is None:
            (folder / "status.json").unlink(missing_ok=True)  # of an attempt that left no checkpoint
        self.begin, self.before = time.perf_counter(), read_json(folder / "status.json").get("seconds", 0.0)
        self.report(state=RUNNING, error=None, step=step, **whereabouts())

    def report(self, **values: Any) -> None:
        """Brings `status.json` up to date; `seconds` are those of all the processes that worked on the run."""
        report(self.folder, seconds=round(self.before + time.perf_counter() - self.begin, 3), **values)

    def log(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Writes scalars to metrics.csv, with every digit, and to TensorBoard as `split/name`."""
        for name, value in values.items():
            csv.writer(self.metrics).writerow([step, split, name, repr(float(value))])
            self.show(step, f"{split}/{name}", value)
        self.metrics.flush()

    def show(self, step: int, tag: str, value: float) -> None:
        """Writes a scalar to TensorBoard only: for what differs from run to run, like rates."""
        self.board.add_scalar(tag, value, step)

    def picture(self, step: int, tag: str, image: np.ndarray) -> None:
        """Writes an image (3, height, width) uint8 to TensorBoard."""
        self.board.add_image(tag, image, step)

    def describe(self, cfg: Mapping[str, Any]) -> None:
        """Writes the resolved config to TensorBoard, as text."""
        self.board.add_text("config", "```\n" + json.dumps(cfg, indent=2) + "\n```")

    def conclude(self, cfg: Mapping[str, Any], name: str, value: float) -> None:
        """Writes the config once more beside the number that was tested, for TensorBoard's table of hyperparameters."""
        plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in flat(cfg).items()}
        self.board.add_hparams(plain, {f"hparam/test_{name}": value}, run_name=".")

    def flush(self) -> int:
        """Makes the metrics durable; returns their length in bytes, as a checkpoint remembers it."""
        self.metrics.flush()
        os.fsync(self.metrics.fileno())
        self.board.flush()
        return self.metrics.tell()

    def save(self, name: str, checkpoint: dict[str, Any]) -> None:
        save_checkpoint(self.folder / "checkpoints" / f"{name}.pt", checkpoint)

    def keep(self, names: Collection[str]) -> None:
        """Removes the checkpoints of validations (`val-STEP`) that are not among `names`."""
        for path in (self.folder / "checkpoints").glob("val-*.pt"):
            if path.stem not in names:
                path.unlink()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with suppress(OSError):  # a full disk is the error already
            self.report(state=FINISHED if error is None else FAILED if isinstance(error, Exception) else CUT_OFF, error=_line(error))
        self.metrics.close()
        self.board.close()
        self.lock.release()


def refuse_taken(folder: Path, resume: bool) -> None:
    """Raises UserError if `folder` cannot be a run's: in use, holding a run that is not to be resumed, or no folder. Writes nothing."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; a run needs a folder")
    if (folder / ".lock").exists():
        locked(folder).release()
    if not resume and any((folder / "checkpoints").glob("*.pt")):
        raise UserError(f"{folder}: already holds a run; continue it with {word('resume', folder)}, or choose another hydra.run.dir")


def _line(error: BaseException | None) -> str | None:
    """An error in a line; none for what is no error, a signal among them."""
    if not isinstance(error, Exception):
        return None
    return " ".join(str(error).split()) if isinstance(error, (UserError, TrainingError)) else f"{type(error).__name__}: {error}"


def locked(folder: Path) -> Lock:
    """The lock of a run, taken. Raises UserError if another process has it."""
    try:
        return Lock(folder, LOCK_PATIENCE).__enter__()
    except BlockingIOError:
        raise UserError(f"{folder}: this run is in use by another process") from None

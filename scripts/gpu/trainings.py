"""Trainings of published cells one after another; what time cuts short is saved, and the same command goes on with it."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CELLS = tuple(
    f"experiment={name}"
    for name in (
        *("maml_omniglot_5w1s", "maml_omniglot_5w5s", "fomaml_omniglot_5w1s", "protonet_omniglot_5w1s"),
        *("maml_omniglot_20w1s", "maml_omniglot_20w5s", "maml_plus_plus_omniglot_5w1s"),
    )
)
QUICK = "experiment=protonet_glyphs_5w1s steps=4 val_every=2 protocol.episodes=20 protocol.val_episodes=10"
SAVING = 20.0
"""Seconds before the end at which a training is told to stop, to save what it has."""

STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
"""How `metarun train` ends when it was told to stop: in training it saves first, in the test there is nothing to save."""


def train(cells: Sequence[str], device: str, data: str | None, runs: Path, until: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every cell with how its run stands. cells: overrides; data: the folder of their data set; until: of time.monotonic."""
    for cell in cells:
        if time.monotonic() >= until - SAVING:
            return
        words = cell.split()
        folder = runs / words[0].partition("=")[2]
        if state(folder).get("state") == "finished":
            yield cell, {"ok": True, **state(folder)}
            continue
        if (folder / "checkpoints" / "last.pt").exists():
            words = [f"resume={folder}"]
        else:
            words.append(f"hydra.run.dir={folder}")
        words += [f"device={device}", "device.threads=1", *([f"dataset.root={data}"] if data else [])]
        runs.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        with open(runs / f"{folder.name}.log", "a") as log:
            process = subprocess.Popen([sys.executable, "-m", "metarun", "train", *words], stdout=log, stderr=log)
            try:
                code = process.wait(max(1.0, until - SAVING - time.monotonic()))
            except subprocess.TimeoutExpired:
                code = stopped(process)
        found = {"ok": code in (0, *STOPPED), "code": code, "seconds": round(time.monotonic() - begin, 1)}
        if not found["ok"]:
            found["log"] = (runs / f"{folder.name}.log").read_text()[-300:]
        yield cell, {**found, **state(folder)}


def stopped(process: subprocess.Popen[bytes]) -> int:
    """Tells a training to stop; one that does not within its seconds is killed, and goes on from the checkpoint before."""
    process.terminate()
    try:
        return process.wait(SAVING)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def state(folder: Path) -> dict[str, Any]:
    """What the run's status.json says of it."""
    path = folder / "status.json"
    status = json.loads(path.read_text()) if path.exists() else {}
    return {key: status[key] for key in ("state", "step", "step_seconds", "peak_memory", "best", "test") if key in status}

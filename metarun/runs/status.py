"""What a run says of itself in `status.json`, and what can be told of it from outside. Needs no torch: `metarun runs` reads hundreds."""

import json
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from metarun.runs.files import held, whole

RUNNING, FINISHED, FAILED, CUT_OFF = STATES = ("running", "finished", "failed", "cut off")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes one file that is whole at every moment."""
    with whole(path) as file:
        file.write(json.dumps(values, indent=1).encode())


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing if it is not there or no JSON."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def report(folder: Path, **values: Any) -> None:
    """Brings `status.json` up to date. Only the process that holds the run may: it, or the one that started it after its end."""
    write_json(folder / "status.json", {**read_json(folder / "status.json"), **values, "updated": now()})


def best_value(status: Mapping[str, Any]) -> float | None:
    """The best validation so far, if there is one; runs of before call it `accuracy`."""
    best = status.get("best") or {}
    value: float | None = best.get("value", best.get("accuracy"))
    return value


def whereabouts() -> dict[str, Any]:
    """Where this process is to be found, to look at it or to stop it."""
    return {"host": platform.node(), "pid": os.getpid(), "slurm_job": slurm_job()}


def slurm_job() -> str | None:
    """The SLURM job that this process is part of, as `scancel` takes it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def state(folder: Path) -> str:
    """One of STATES. A run that says it is running, but whose lock no living process holds, was cut off."""
    if held(folder):
        return RUNNING
    said = read_json(folder / "status.json").get("state")
    return said if said in (FINISHED, FAILED) else CUT_OFF

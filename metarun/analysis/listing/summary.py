"""What is to be known of a run at a glance: the raw values, and the text that people read. Needs no torch."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from metarun.runs.catalogue import Found
from metarun.runs.status import FINISHED, RUNNING, best_value
from metarun.text.units import duration, pace

FIELDS = (
    *("run", "algorithm", "dataset", "ways", "shots", "seed", "state", "step", "steps", "steps_per_second", "seconds_left"),
    *("val", "val_step", "test", "ci95", "seconds", "peak_memory", "updated", "error"),
)


def summary(run: Found) -> dict[str, Any]:
    """The values under FIELDS, None where there is nothing: ways and shots of the protocol, accuracies in percent, bytes of memory."""
    protocol, status, running = run.config.get("protocol", {}), run.status, run.state == RUNNING
    step, steps, seconds = status.get("step"), status.get("steps", run.config.get("steps")), status.get("seconds")
    step_seconds = status.get("step_seconds") if running else None
    # By the mean over the run so far, which has its validations in it; the rate is that of its last steps alone.
    left = (steps - step) * seconds / step if running and step and seconds and step < steps else None
    best, score = status.get("best") or {}, run.tested.number() if run.tested else None
    values = (
        *(str(run.folder), group(run, "algorithm"), group(run, "dataset"), protocol.get("ways"), protocol.get("shots")),
        *(run.config.get("seed"), run.state, step, steps, 1 / step_seconds if step_seconds else None, left),
        *(best_value(status), best.get("step"), score and score.value, score and score.half, seconds, status.get("peak_memory")),
        *(status.get("updated"), status.get("error")),
    )
    return dict(zip(FIELDS, values, strict=True))


def group(run: Found, name: str) -> str:
    """The choice of a group; the name of the class where its values were written out instead."""
    target = (run.config.get(name) or {}).get("_target_", "")
    return run.choices.get(name) or str(target).rpartition(".")[2]


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The same as people read it. `step` is of how many where there are more to come; what is not known is left empty."""
    step, steps, rate, left = (values[key] for key in ("step", "steps", "steps_per_second", "seconds_left"))
    unfinished = step is not None and values["state"] != FINISHED
    plain = {key: str(values[key]) for key in ("run", "algorithm", "dataset", "ways", "shots", "seed", "state") if values[key] is not None}
    return plain | {
        "step": f"{step}/{steps}" if unfinished else "" if step is None else str(step),
        "rate": pace(1 / rate) if rate else "",
        "left": duration(left) if left else "",
        "val": "" if values["val"] is None else f"{values['val']:.2f}",
        "test": accuracy(values["test"], values["ci95"]),
        "time": duration(values["seconds"]) if values["seconds"] else "",
        "updated": local(values["updated"]),
        "error": values["error"] or "",
    }


def accuracy(percent: float | None, ci95: float | None) -> str:
    """An accuracy with its interval, if there is one: a single task has none."""
    if percent is None:
        return ""
    return f"{percent:.2f}" if ci95 is None else f"{percent:.2f} ± {ci95:.2f}"


def local(moment: str | None) -> str:
    """A moment in UTC by the clock on the wall."""
    try:
        return datetime.fromisoformat(moment or "").astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return ""

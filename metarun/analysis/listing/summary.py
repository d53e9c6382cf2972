"""What is to be known of a run at a glance: the raw values, and the text that people read. Needs no torch."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from metarun.runs.catalogue import Found
from metarun.runs.records import OF_BEFORE
from metarun.runs.status import FINISHED, RUNNING, best_value
from metarun.text.measure import Measure
from metarun.text.units import duration, pace

FIELDS = (
    *("run", "algorithm", "dataset", "seed", "state", "step", "steps", "steps_per_second", "seconds_left"),
    *("val", "val_step", "test", "ci95", "seconds", "peak_memory", "updated", "error"),
)


def summary(run: Found, number: str | None = None) -> dict[str, Any]:
    """The values under FIELDS and of the run's setting, which follows `dataset`; None where there is nothing. Memory is in bytes.

    number: which of a test's numbers, by default the first.
    """
    status, running = run.status, run.state == RUNNING
    step, steps, seconds = status.get("step"), status.get("steps", run.config.get("steps")), status.get("seconds")
    step_seconds = status.get("step_seconds") if running else None
    # By the mean over the run so far, which has its validations in it; the rate is that of its last steps alone.
    left = (steps - step) * seconds / step if running and step and seconds and step < steps else None
    best, score = status.get("best") or {}, run.tested.number(number) if run.tested else None
    values = (
        *(str(run.folder), group(run, "algorithm"), group(run, "dataset"), run.config.get("seed"), run.state),
        *(step, steps, 1 / step_seconds if step_seconds else None, left),
        *(validated(run, number), best.get("step"), score and score.value, score and score.half, seconds, status.get("peak_memory")),
        *(status.get("updated"), status.get("error")),
    )
    found = dict(zip(FIELDS, values, strict=True))
    return {key: found[key] for key in FIELDS[:3]} | dict(run.setting) | {key: found[key] for key in FIELDS[3:]}


def measure(run: Found, number: str | None = None) -> Measure:
    """By what the run's number is compared and written; a run without a test does not say it."""
    score = run.tested.number(number) if run.tested else None
    return score.measure if score else OF_BEFORE[0]


def validated(run: Found, number: str | None = None) -> float | None:
    """The best validation, or what another number was there."""
    if number in (None, measure(run).name):
        return best_value(run.status)
    step = (run.status.get("best") or {}).get("step", 0)
    return dict(zip(*run.curve("val", number), strict=True)).get(step)


def group(run: Found, name: str) -> str:
    """The choice of a group; the name of the class where its values were written out instead."""
    target = (run.config.get(name) or {}).get("_target_", "")
    return run.choices.get(name) or str(target).rpartition(".")[2]


def texts(values: Mapping[str, Any], measure: Measure) -> dict[str, str]:
    """The same as people read it, numbers by their measure.

    `step` is of how many where there are more to come; what is not known is left empty.
    """
    step, steps, rate, left = (values[key] for key in ("step", "steps", "steps_per_second", "seconds_left"))
    unfinished = step is not None and values["state"] != FINISHED
    told = [key for key in values if key in FIELDS[:5] or key not in FIELDS]
    plain = {key: str(values[key]) for key in told if values[key] is not None}
    return plain | {
        "step": f"{step}/{steps}" if unfinished else "" if step is None else str(step),
        "rate": pace(1 / rate) if rate else "",
        "left": duration(left) if left else "",
        "val": "" if values["val"] is None else measure.number(values["val"]),
        "test": "" if values["test"] is None else measure.number(values["test"], values["ci95"]),
        "time": duration(values["seconds"]) if values["seconds"] else "",
        "updated": local(values["updated"]),
        "error": values["error"] or "",
    }


def local(moment: str | None) -> str:
    """A moment in UTC by the clock on the wall."""
    try:
        return datetime.fromisoformat(moment or "").astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return ""

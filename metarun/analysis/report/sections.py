"""What compares methods: curves over training, accuracy over inner steps, time and memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from metarun.analysis.listing.summary import measure
from metarun.analysis.report.methods import Method, Setting, inner, learning
from metarun.analysis.report.plots import Line, Plot, plot
from metarun.runs.catalogue import Found
from metarun.text.units import duration, size


@dataclass(frozen=True)
class Curves:
    """A setting's plot and the remarks below it."""

    setting: Setting
    plot: Plot | None
    remarks: Sequence[str]


@dataclass(frozen=True)
class Cost:
    """What a method took in a setting, mean over its runs: entries by column, and how long their bars are, in percent of the longest."""

    method: Method
    entries: Mapping[str, str]
    bars: Mapping[str, float]


def learning_curves(setting: Setting, methods: Sequence[Method]) -> Curves:
    """Accuracy on validation against steps; of methods without validation, on their training tasks."""
    found = [(method, *learning(method)) for method in methods]
    lines = [Line(method.label, method.colour, method.dashes, band) for method, _, band in found]
    trained = [method.label for method, split, _ in found if split == "train"]
    empty = [line.label for line in lines if not len(line.band.x)]
    remarks = [f"{', '.join(trained)}: on training tasks, for there was no validation."] * bool(trained)
    drawn = plot(lines, "steps", "accuracy, %", f"Validation accuracy against steps, {setting}")
    remarks += [f"{', '.join(empty)}: nothing recorded yet."] * bool(empty and drawn)
    return Curves(setting, drawn, remarks)


def inner_curves(setting: Setting, methods: Sequence[Method]) -> Curves | None:
    """Accuracy of test tasks against inner steps; None if no method has inner steps. Those that have none are named with their accuracy."""
    found = [(method, *inner(method)) for method in methods]
    stepped = [Line(method.label, method.colour, method.dashes, band) for method, band, _ in found if len(band.x) > 1]
    drawn = plot(stepped, "inner steps", "accuracy, %", f"Test accuracy against inner steps, {setting}")
    if drawn is None:
        return None
    alone = [f"{method.label} {band.mean[0]:.1f} %" for method, band, _ in found if len(band.x) == 1]
    tasks = sorted({tasks for _, band, tasks in found if len(band.x)})
    remarks = [f"On the first {' or '.join(map(str, tasks))} test tasks alone, so these are rough."]
    remarks += [f"No inner steps recorded: {', '.join(alone)}."] * bool(alone)
    return Curves(setting, drawn, remarks)


COSTS: Mapping[str, tuple[Callable[[Found], float | None], Callable[[float], str]]] = {
    "time": (lambda run: run.status.get("seconds"), duration),
    "a step": (lambda run: run.status.get("step_seconds"), duration),
    "memory": (lambda run: run.status.get("peak_memory"), lambda value: size(round(value))),
}


def reached_by(run: Found) -> float | None:
    score = run.tested.number() if run.tested else None
    return score.value if score else None


def costs(methods: Sequence[Method]) -> list[Cost]:
    """Time of the whole run, seconds a step, peak memory and what was reached by it."""
    values = {name: [_mean(read(run) for run in method.runs) for method in methods] for name, (read, _) in COSTS.items()}
    longest = {name: max((value for value in column if value), default=1) for name, column in values.items()}
    found = []
    for number, method in enumerate(methods):
        own = {name: column[number] for name, column in values.items()}
        steps, reached = _mean(run.status.get("step") for run in method.runs), _mean(reached_by(run) for run in method.runs)
        entries = {
            "runs": str(len(method.runs)),
            "steps": "" if steps is None else f"{steps:.0f}",
            **{name: COSTS[name][1](value) if value else "" for name, value in own.items()},
            "test": "" if reached is None else measure(method.runs[0]).number(reached),
        }
        found.append(Cost(method, entries, {name: 100 * (value or 0) / longest[name] for name, value in own.items()}))
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return mean(there) if there else None

"""Which runs belong together: a setting has methods, a method the runs that differ in nothing but their seed."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.analysis.listing.summary import group
from metarun.config.schema import flat, shown
from metarun.runs.catalogue import Found

SAME_METHOD = (
    *("seed", "resume", "tasks_per_chunk", "log_every", "val_every", "checkpoint_every", "keep_best", "test", "sweep", "device"),
    *("dataset.root", "dataset.residency"),
    *("protocol.seed", "protocol.episodes", "protocol.diagnostics"),
)
"""What is no part of a method: its randomness, where it runs, how often it says something, how much it is tested."""
KEYS_IN_LABEL, COLOURS, DASHES = 3, 6, 3


@dataclass(frozen=True)
class Setting:
    """What all methods in a figure have in common, as their protocols say it."""

    dataset: str
    ways: int
    shots: int

    def __str__(self) -> str:
        return f"{self.dataset}, {self.ways}-way {self.shots}-shot"


@dataclass(frozen=True)
class Method:
    """Runs with one configuration but for the seed, and the numbers of the colour and the dashes of their line."""

    label: str
    colour: int
    dashes: int
    runs: tuple[Found, ...]


@dataclass(frozen=True)
class Band:
    """A line over several runs: at `x` (n,) their mean, lowest and highest value, each (n,), of those that have one there."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def settings(runs: Sequence[Found]) -> dict[Setting, list[Method]]:
    """The methods of every setting; both in the order of their names."""
    found: dict[Setting, dict[str, dict[str, list[Found]]]] = {}
    for run in runs:
        protocol = run.config["protocol"]
        setting, algorithm = Setting(group(run, "dataset"), protocol["ways"], protocol["shots"]), group(run, "algorithm")
        found.setdefault(setting, {}).setdefault(algorithm, {}).setdefault(json.dumps(own(run), sort_keys=True), []).append(run)
    colours = {name: number for number, name in enumerate(sorted({name for algorithms in found.values() for name in algorithms}))}
    return {
        setting: list(_styled([(colours[name], *item) for name, runs in sorted(algorithms.items()) for item in labels(name, runs)]))
        for setting, algorithms in sorted(found.items(), key=lambda item: (item[0].dataset, item[0].ways, item[0].shots))
    }


def _styled(entries: Sequence[tuple[int, str, Sequence[Found]]]) -> Iterator[Method]:
    """An algorithm has one colour all over the page, its variants have dashes; with more algorithms than colours they have dashes too."""
    taken: set[tuple[int, int]] = set()
    for number, label, runs in entries:
        turn, colour = divmod(number, COLOURS)
        free = [((colour + more) % COLOURS, (turn + dash) % DASHES) for more in range(COLOURS) for dash in range(DASHES)]
        style = next((style for style in free if style not in taken), free[0])
        taken.add(style)
        yield Method(label, *style, tuple(runs))


def own(run: Found) -> dict[str, Any]:
    """The configuration that makes a method, by dotted keys."""
    return {key: value for key, value in flat(run.config).items() if key not in SAME_METHOD and key.partition(".")[0] not in SAME_METHOD}


def labels(algorithm: str, variants: Mapping[str, Sequence[Found]]) -> Iterator[tuple[str, Sequence[Found]]]:
    """Names for the variants of an algorithm: where there are several, by the few keys that set them apart."""
    configs = [json.loads(variant) for variant in variants]
    keys = sorted(set[str]().union(*configs), key=lambda key: (any(key not in config for config in configs), key.count("."), key))
    chosen: list[str] = []

    def said(keys: Sequence[str]) -> list[str]:
        return [", ".join(f"{key.rpartition('.')[2]}={shown(config.get(key))}" for key in keys) for config in configs]

    while len(set(said(chosen))) < len(configs) and len(chosen) < KEYS_IN_LABEL:
        chosen.append(max(keys, key=lambda key: len(set(said([*chosen, key])))))  # the first of the best
    taken: set[str] = set()
    for text, runs in zip(said(chosen), variants.values(), strict=True):
        label = f"{algorithm} ({text})" if text else algorithm
        if label in taken:
            label += f" {runs[0].folder.name}"
        taken.add(label)
        yield label, runs


def band(curves: Collection[tuple[Sequence[float], Sequence[float]]]) -> Band:
    """Mean, lowest and highest value at every x that a curve has; a curve that ends early takes no part in what comes later."""
    at: dict[float, list[float]] = {}
    for xs, ys in curves:
        for x, y in zip(xs, ys, strict=True):
            at.setdefault(x, []).append(y)
    places = sorted(at)
    values = [at[place] for place in places]
    mean = np.array([sum(each) / len(each) for each in values])
    return Band(np.array(places), mean, np.array([min(each) for each in values]), np.array([max(each) for each in values]))


def learning(method: Method) -> tuple[str, Band]:
    """The split whose accuracy is shown, in percent, against steps: `val`, or `train` of methods that were never validated."""
    for split, factor in (("val", 1.0), ("train", 100.0)):
        curves = [(steps, [factor * value for value in values]) for run in method.runs for steps, values in [run.curve(split, "accuracy")]]
        if any(steps for steps, _ in curves):
            return split, band(curves)
    return "val", band([])


def inner(method: Method) -> tuple[Band, int]:
    """Accuracy in percent on test tasks after 0, 1, ... inner steps, and of how many tasks a run; from the last record of each run's own
    protocol that has it."""
    curves, tasks = list[tuple[Sequence[float], Sequence[float]]](), 0
    for run in method.runs:
        asked = [run.config["protocol"][key] for key in ("ways", "shots", "split")]
        own = [
            r
            for r in (record.values for record in run.records)
            if "diagnostics" in r and [r[key] for key in ("ways", "shots", "split")] == asked
        ]
        if own:
            entries = own[-1]["diagnostics"]["inner_steps"]
            curves.append((range(len(entries)), [entry["accuracy"] for entry in entries]))
            tasks = max(tasks, own[-1]["diagnostics"]["episodes"])
    return band(curves), tasks

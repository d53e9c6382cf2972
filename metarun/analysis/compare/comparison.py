"""What is to be said of records of the same episodes, in plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from string import ascii_uppercase
from typing import Any

import numpy as np

from metarun.analysis.compare.paired import adjusted, paired
from metarun.errors import UserError
from metarun.runs.records import SETTINGS, Record

TESTED_ON = ("episodes", "ways", "shots", "queries", "episodes_sha256", "data_fingerprint")
RUN = ("accuracy", "ci95", *SETTINGS, "checkpoint_step", "seed", "checkpoint_sha256")


def compared(records: Sequence[Record], resamples: int, classes: int) -> dict[str, Any]:
    """Records of the same episodes, called A, B, ... in their order, all against the first: percent and points.

    `classes` says how many to show at most, those first that differ most. Raises UserError for records of one episode, or with accuracies
    that are no numbers.
    """
    labelled, first = dict(zip(ascii_uppercase, records, strict=False)), records[0]
    right = {label: _right(record) for label, record in labelled.items()}
    questions = first.values["ways"] * first.values["queries"]
    comparisons = [{"run": label, **asdict(paired(right["A"], right[label], questions, resamples))} for label in labelled if label != "A"]
    if len(comparisons) > 1:
        for key in ("p_permutation", "p_wilcoxon"):
            for entry, p in zip(comparisons, adjusted([entry[key] for entry in comparisons]), strict=True):
                entry[f"{key}_adjusted"] = p
    per_class = _per_class(labelled)
    return {
        **{key: first.values[key] for key in TESTED_ON},
        "runs": [
            {"run": label, "folder": record.run, **{key: {**record.values, **record.protocol}[key] for key in RUN}}
            for label, record in labelled.items()
        ],
        "comparisons": comparisons,
        "per_class": per_class[:classes],
        "remarks": [*_of_all(len(comparisons), min(classes, len(per_class)), len(per_class)), *_of_records(labelled, classes)],
    }


def _right(record: Record) -> np.ndarray:
    """Right answers (episodes,), the integers that rounded percentages stand for. Raises UserError for less than two or for a NaN."""
    column = record.column()
    percent = np.asarray(column.values if column else (), dtype=np.float64)
    if len(percent) < 2:
        raise UserError(f"{record.run}: tested on {len(percent)} episode; at least 2 are needed to compare")
    if not np.isfinite(percent).all():
        raise UserError(f"{record.run}: {record.file.name} has accuracies that are no numbers; it cannot be compared")
    return np.rint(percent * record.values["ways"] * record.values["queries"] / 100).astype(np.int64)


def _per_class(labelled: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Of every class the questions and each run's accuracy, the largest difference from A first; nothing if a record lacks them."""
    counts = {label: record.values.get("per_class") or {} for label, record in labelled.items()}
    entries = []
    for name in set.intersection(*map(set, counts.values())):
        accuracy = {label: 100 * right / asked for label, (right, asked) in ((label, of[name]) for label, of in counts.items())}
        largest = max(abs(value - accuracy["A"]) for value in accuracy.values())
        entries.append((-largest, name, {"class": name, "questions": counts["A"][name][1], "accuracy": accuracy}))
    return [entry for *_, entry in sorted(entries, key=lambda item: item[:2])]


def _of_all(comparisons: int, shown: int, classes: int) -> list[str]:
    """What holds of every comparison."""
    remarks = [
        "intervals and p-values are over test episodes of these checkpoints; the spread over training seeds is not in them",
        "episodes to tell apart: to find a difference as large as the one seen, two-sided at 5 %, with a power of 80 %",
    ]
    if comparisons > 1:
        remarks.append(f"adjusted p-values are for {comparisons} comparisons at once, by Benjamini and Hochberg")
    if shown:
        remarks.append(f"{shown} of {classes} classes, picked for their difference: on other episodes it will be smaller")
    return remarks


def _of_records(labelled: Mapping[str, Record], classes: int) -> list[str]:
    """What has to be known of these records before their numbers are put side by side."""
    remarks, checkpoints = [], dict[str, str]()
    for key in SETTINGS:
        if len({record.protocol[key] for record in labelled.values()}) > 1:
            remarks.append(f"{key} differs: " + ", ".join(f"{label} {record.protocol[key]}" for label, record in labelled.items()))
    elsewhere = {label: record.values["trained_on"]["dataset"] for label, record in labelled.items() if record.values.get("cross_domain")}
    if elsewhere:
        remarks.append("trained on another dataset: " + ", ".join(f"{label} on {dataset}" for label, dataset in elsewhere.items()))
    for label, record in labelled.items():
        same = checkpoints.setdefault(record.values["checkpoint_sha256"], label)
        if same != label:
            remarks.append(f"{same} and {label} are the same checkpoint ({record.values['checkpoint_sha256'][:8]})")
    old = [label for label, record in labelled.items() if not record.values.get("per_class")]
    if old and classes:
        remarks.append(f"no accuracy per class: that of {', '.join(old)} was not recorded yet; metarun evaluate does it now")
    return remarks

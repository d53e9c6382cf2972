"""What is to be said of records of the same episodes, in plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from string import ascii_uppercase
from typing import Any

import numpy as np

from metarun.analysis.compare.paired import adjusted, paired
from metarun.errors import UserError
from metarun.runs.records import SETTINGS, Record
from metarun.text.measure import Measure

RUN = (*SETTINGS, "checkpoint_step", "seed", "checkpoint_sha256")


def compared(records: Sequence[Record], measure: Measure, resamples: int, classes: int) -> dict[str, Any]:
    """Records of the same episodes, called A, B, ... in their order, all against the first, by `measure` and in its unit.

    `classes` says how many to show at most, those first that differ most. Raises UserError for records of one episode, or with values
    that are no numbers.
    """
    labelled, first = dict(zip(ascii_uppercase, records, strict=False)), records[0]
    columns = {label: _column(record, measure) for label, record in labelled.items()}
    values, unit = {label: column for label, (column, _) in columns.items()}, columns["A"][1]
    comparisons = [{"run": label, **asdict(paired(values["A"], values[label], unit, resamples))} for label in labelled if label != "A"]
    if len(comparisons) > 1:
        for key in ("p_permutation", "p_wilcoxon"):
            for entry, p in zip(comparisons, adjusted([entry[key] for entry in comparisons]), strict=True):
                entry[f"{key}_adjusted"] = p
    per_class = _per_class(labelled, measure)
    return {
        **first.tasks,
        **dict(zip(("episodes_sha256", "data_fingerprint"), first.tested, strict=True)),
        "runs": [_run(label, record, measure) for label, record in labelled.items()],
        "comparisons": comparisons,
        "per_class": per_class[:classes],
        "remarks": [
            *([] if measure.higher_is_better else [f"{measure.name}: the lower, the better"]),
            *_of_all(len(comparisons), min(classes, len(per_class)), len(per_class)),
            *_of_records(labelled, measure, classes),
        ],
    }


def _run(label: str, record: Record, measure: Measure) -> dict[str, Any]:
    score = record.number(measure.name)
    assert score is not None
    values = {**record.values, **record.protocol}
    return {"run": label, "folder": record.run, measure.name: score.value, "ci95": score.half, **{key: values[key] for key in RUN}}


def _column(record: Record, measure: Measure) -> tuple[np.ndarray, float]:
    """The values of all episodes, and the unit in which they count: integers where they are multiples of something.

    Raises UserError for less than two, for a NaN, and where they were not recorded.
    """
    column = record.column(measure.name)
    if column is None:
        raise UserError(f"{record.run}: {record.file.name} has no {measure.name} of every episode; it cannot be compared by that")
    values = np.asarray(column.values, dtype=np.float64)
    if len(values) < 2:
        raise UserError(f"{record.run}: tested on {len(values)} episode; at least 2 are needed to compare")
    if not np.isfinite(values).all():
        raise UserError(f"{record.run}: {record.file.name} has values of {measure.name} that are no numbers; it cannot be compared")
    return (values, 1.0) if column.step is None else (np.rint(values / column.step).astype(np.int64), column.step)


def _per_class(labelled: Mapping[str, Record], measure: Measure) -> list[dict[str, Any]]:
    """Of every class the questions and each run's number, the largest difference from A first; nothing if a record lacks them."""
    counts = {label: record.groups if record.numbers[0].measure == measure else {} for label, record in labelled.items()}
    entries = []
    for name in set.intersection(*map(set, counts.values())):
        values = {label: total / asked for label, (total, asked) in ((label, of[name]) for label, of in counts.items())}
        largest = max(abs(value - values["A"]) for value in values.values())
        entries.append((-largest, name, {"class": name, "questions": counts["A"][name][1], measure.name: values}))
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


def _of_records(labelled: Mapping[str, Record], measure: Measure, classes: int) -> list[str]:
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
    old = [label for label, record in labelled.items() if not record.groups]
    if 0 < len(old) < len(labelled) and classes:
        remarks.append(f"no {measure.name} per class: that of {', '.join(old)} was not recorded yet; metarun evaluate does it now")
    return remarks

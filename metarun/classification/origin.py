"""What a test's images are beside those of the training: of the same dataset, and the same images."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from metarun.config.aliases import renamed
from metarun.data.source import SPLITS, Source
from metarun.errors import UserError
from metarun.runs.checkpoint import facts_of

Checkpoint = Mapping[str, Any]
UNREADABLE = (UserError, LookupError, ValueError, OSError)
"""What a source raises for a split that it does not have, or whose files are elsewhere."""


def compared(config: Mapping[str, Any], checkpoint: Checkpoint, source: Any) -> dict[str, Any]:
    """What a record says of the data tested (`dataset`) and of those trained on (`trained_on`), and whether they are the same."""
    names, trained = class_names(source), checkpoint["config"]
    other = other_dataset(config, checkpoint, names)
    return {
        "trained_on": {
            "dataset": dataset_name(trained),
            "fingerprint": facts_of(checkpoint)["fingerprint"],
            "split": trained.get("train_split", "train"),
        },
        "dataset": identity(config, names),
        "cross_domain": other,
        "other_images": None if other else other_images(checkpoint, source),
    }


def class_names(source: Any) -> set[str]:
    """The names of all classes of a source; of a class of the user's own, those of the splits that load."""
    if isinstance(source, Source):
        return set(source.table.names)
    names: set[str] = set()
    for split in SPLITS:
        try:
            names.update(source.load(split).names)
        except UNREADABLE:
            continue
    return names


def identity(config: Mapping[str, Any], names: Collection[str]) -> dict[str, str]:
    """What a dataset is known by: `_target_`, by its name of today, and the SHA-256 of the sorted `names` of all its classes."""
    digest = hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()
    return {"target": target(config), "classes_sha256": digest}


def target(config: Mapping[str, Any]) -> str:
    """The `_target_` of a configuration's dataset, by its name of today."""
    return str(renamed(config["dataset"])["_target_"])


def dataset_name(config: Mapping[str, Any]) -> str:
    """The module of a configuration's dataset, which is named like its YAML."""
    return target(config).split(".")[-2]


def other_dataset(config: Mapping[str, Any], checkpoint: Checkpoint, names: Collection[str]) -> bool:
    """Whether the test is on another dataset than the training: of another class, or without the classes that were trained on.

    names: of all classes of the dataset that is tested.
    """
    if target(config) != target(checkpoint["config"]):
        return True
    return not set(facts_of(checkpoint)["names"]) <= set(names)


def other_images(checkpoint: Checkpoint, source: Any) -> bool | None:
    """Whether the source's images of the training split are not those that were trained on; None where they cannot be read."""
    try:
        now = source.load(checkpoint["config"].get("train_split", "train"))
    except UNREADABLE:
        return None
    return bool(now.fingerprint != facts_of(checkpoint)["fingerprint"])


def remark(config: Mapping[str, Any], checkpoint: Checkpoint, record: Mapping[str, Any]) -> str:
    """What the line of a test says of a training on something else; empty where there is nothing to say."""
    trained, tested = dataset_name(checkpoint["config"]), dataset_name(config)
    if record["cross_domain"]:
        return f", trained on {trained}, not on {tested}" if trained != tested else f", trained on other classes, of another {tested}"
    return ", on other images of the same classes than in training" if record["other_images"] else ""

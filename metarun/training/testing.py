"""Tested numbers: an accuracy never stands without the protocol, the episodes, the checkpoint and the config behind it."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarun.classification.diagnostics import diagnose
from metarun.classification.evaluation import Result
from metarun.classification.evaluation import evaluate as score
from metarun.config.aliases import of_before
from metarun.data.table import ImageTable
from metarun.errors import UserError
from metarun.nn.device import Device
from metarun.runs.checkpoint import file_sha256, load_checkpoint, selected, versions
from metarun.runs.records import written
from metarun.runs.status import now, write_json
from metarun.training.build import Config, Data, Split, refuse_augmentation, refuse_overlap, refuse_ways
from metarun.training.learners import together, trained
from metarun.training.origin import class_names, dataset_name, identity, other_dataset, other_images, remark

log = logging.getLogger(__name__)


def evaluate(cfg: Config, run_dir: Path) -> dict[str, Any]:
    """Tests the checkpoint that the protocol selects; writes and returns the record. Raises UserError."""
    device, protocol = Device(**cfg["device"]), cfg["protocol"]
    device.set_up()
    names = selected(run_dir, protocol)
    checkpoints = [load_checkpoint(run_dir, name) for name in names]
    checkpoint = checkpoints[0]
    data = Data(cfg, device)
    split = data.protocol(protocol["split"])
    table = split.episodes.table
    refuse_other_images(table, checkpoint["data"]["image"])
    refuse_overlap(cfg, checkpoint["data"]["classes"], table)
    refuse_augmentation("protocol.views", data.source, table, protocol["views"] > 1)
    members = trained(cfg, run_dir, checkpoints, device)
    refuse_ways(members[0], split.episodes, "protocol")
    learner = together(members)
    statistics = protocol["batch_norm"] or members[0].statistics
    result = score(learner, split.episodes, split.pixels, protocol["episodes"], statistics, device, "test", protocol["views"])
    paths = [run_dir / "checkpoints" / f"{name}.pt" for name in names]
    record = _record(cfg, result, split, statistics, paths, checkpoint)
    classes = class_names(data.source)
    record["dataset"] = identity(cfg, classes)
    record["cross_domain"] = other_dataset(cfg, checkpoint, classes)
    record["other_images"] = None if record["cross_domain"] else other_images(checkpoint, data.source)
    if looked_at := min(protocol["diagnostics"], protocol["episodes"]):
        record["diagnostics"] = {"episodes": looked_at, **diagnose(learner, split.draw(0, looked_at), statistics, device)}
    record |= written(record)
    _write(run_dir / "evaluations", record)
    log.info(
        "%s accuracy %.2f ± %.2f %% (%d episodes, %d-way %d-shot, %d queries a class, batch statistics: %s, step %d%s%s%s)",
        *(protocol["split"], result.accuracy, result.ci95, record["episodes"]),
        *(record["ways"], record["shots"], record["queries"], statistics, checkpoint["step"]),
        f", mean of {len(names)} checkpoints" if len(names) > 1 else "",
        f", mean of {protocol['views']} views" if protocol["views"] > 1 else "",
        remark(cfg, checkpoint, record),
    )
    return record


def refuse_other_images(table: ImageTable, trained: Sequence[int]) -> None:
    """Raises UserError, with the overrides that help, if the images are not of the size and channels (H, W, C) that were trained on."""
    height, width, channels = trained
    if table.images.shape[1:] != (height, width, channels):
        hint = f"; dataset.image_size={height} dataset.in_channels={channels} makes them fit" if height == width else ""
        raise UserError(
            f"dataset: its images are {table.images.shape[1:]} (height, width, channels), the run's were {(height, width, channels)}{hint}"
        )


def _record(
    cfg: Config, result: Result, split: Split, statistics: str, paths: Sequence[Path], checkpoint: Mapping[str, Any]
) -> dict[str, Any]:
    episodes = split.episodes
    return {
        "accuracy": result.accuracy,
        "ci95": None if np.isnan(result.ci95) else result.ci95,
        "loss": result.loss,
        "episodes": len(result.accuracies),
        "ways": episodes.ways,
        "shots": episodes.shots,
        "queries": episodes.queries,
        "batch_norm": statistics,
        "split": cfg["protocol"]["split"],
        "seed": checkpoint["config"]["seed"],
        "episodes_sha256": episodes.sha256(len(result.accuracies)),
        "data_fingerprint": episodes.table.fingerprint,
        "trained_on": {
            "dataset": dataset_name(checkpoint["config"]),
            "fingerprint": checkpoint["data"]["fingerprint"],
            "split": checkpoint["config"].get("train_split", "train"),
        },
        "checkpoint": "+".join(path.name for path in paths),
        "checkpoint_sha256": "+".join(file_sha256(path) for path in paths),
        "checkpoint_step": checkpoint["step"],
        "selection": cfg["protocol"]["selection"],
        "ensemble": len(paths),
        "views": cfg["protocol"]["views"],
        "per_episode": np.round(result.accuracies, 4).tolist(),
        "per_class": {name: list(counts) for name, counts in result.per_class.items()},
        "config": cfg,
        "changes": checkpoint.get("changes", []),
        "tested": now(),
        "versions": versions(),
    }


def record_name(record: Mapping[str, Any]) -> str:
    """The name of a record's file, one per protocol: a hash of what identifies a number, apart from the number."""
    named = [record[key] for key in ("episodes_sha256", "batch_norm", "data_fingerprint", "checkpoint", "checkpoint_step")]
    config = of_before(record["config"])
    dataset = {key: value for key, value in config["dataset"].items() if key not in ("root", "residency")}
    named += [dataset, config["algorithm"], config["device"]["precision"]]
    named += [record["views"]] if record["views"] > 1 else []  # not of one view, whose files keep their names of before
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16] + ".json"


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / record_name(record), record)

"""Tested numbers: a number never stands without the protocol, the tasks, the checkpoint and the config behind it."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metarun.config.aliases import of_before
from metarun.kinds import Kind, Table
from metarun.nn.device import Device
from metarun.runs.checkpoint import facts_of, file_sha256, load_checkpoint, selected, versions
from metarun.runs.records import written
from metarun.runs.status import now, write_json
from metarun.tasks import TaskSource
from metarun.text.measure import Scores
from metarun.training.learners import Config, load, make_kind, make_learner, together

log = logging.getLogger(__name__)
NOT_OF_A_TEST = ("seed", "val_episodes", "allow_overlap", "diagnostics", "ensemble")
"""Keys of the protocol that a record has in its config alone; its own `seed` is that of the training."""


def evaluate(cfg: Config, run_dir: Path) -> dict[str, Any]:
    """Tests the checkpoints that the protocol selects; writes and returns the record. Raises UserError."""
    device = Device(**cfg["device"])
    device.set_up()
    kind, checkpoints = make_kind(cfg, device), chosen(run_dir, cfg["protocol"])
    members = [make_learner(cfg, kind, facts_of(checkpoint)) for checkpoint in checkpoints.values()]
    protocol = kind.protocol_for(members[0], facts_of(next(iter(checkpoints.values()))))  # before weights that may not fit
    load(members, run_dir, checkpoints.values())
    return test(cfg, kind, together(members), protocol, run_dir, checkpoints)


def chosen(run_dir: Path, protocol: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The checkpoints that the protocol tests, by name, the best first. Raises UserError where there are none."""
    return {name: load_checkpoint(run_dir, name) for name in selected(run_dir, protocol)}


def test(
    cfg: Config, kind: Kind, learner: Any, protocol: Mapping[str, Any], run_dir: Path, checkpoints: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Scores a learner that has the weights of `checkpoints` by the protocol, all of it resolved; writes and returns the record."""
    source, count = kind.evaluation(protocol["split"]), protocol["episodes"]
    table = kind.score(learner, source, 0, count)
    scores, checkpoint = kind.summary(table), next(iter(checkpoints.values()))
    paths = [run_dir / "checkpoints" / f"{name}.pt" for name in checkpoints]
    record = {**_numbers(kind, scores, table), **_tasks(kind, source, protocol), **_model(cfg, protocol, paths, checkpoint)}
    origin, remark = kind.origin(cfg, checkpoint)
    record |= {**origin, "config": cfg, "tested": now(), "versions": versions()}
    if looked_at := min(protocol["diagnostics"], count):
        record["diagnostics"] = {"episodes": looked_at, **kind.diagnose(learner, source, looked_at)}
    _write(run_dir / "evaluations", record)
    first = scores.numbers[0]
    log.info(
        "%s %s %s (%d episodes, %s, batch statistics: %s, step %d%s%s%s)",
        *(protocol["split"], first.measure.name, first.measure.text(first.value, first.half), count, kind.words),
        *(protocol["batch_norm"], checkpoint["step"]),
        f", mean of {len(paths)} checkpoints" if len(paths) > 1 else "",
        f", mean of {protocol['views']} views" if protocol["views"] > 1 else "",
        remark,
    )
    return record


def _numbers(kind: Kind, scores: Scores, table: Table) -> dict[str, Any]:
    """The numbers by name, the interval of the first over tasks, and its value for every task; and the same as `numbers` say it."""
    first = scores.numbers[0]
    columns = {measure.name: np.round(table[measure.name], 4).tolist() for measure in kind.measures if table[measure.name].ndim == 1}
    found = {score.measure.name: score.value for score in scores.numbers}
    return {**found, "ci95": first.half, "per_episode": columns[first.measure.name], **written(scores, columns)}


def _tasks(kind: Kind, source: TaskSource, protocol: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{key: value for key, value in protocol.items() if key not in NOT_OF_A_TEST},
        **{"setting": dict(kind.setting), "words": kind.words},
        "episodes_sha256": source.sha256(protocol["episodes"]),
        "data_fingerprint": kind.facts(protocol["split"])["fingerprint"],
    }


def _model(cfg: Config, protocol: Mapping[str, Any], paths: Sequence[Path], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seed": checkpoint["config"]["seed"],
        "checkpoint": "+".join(path.name for path in paths),
        "checkpoint_sha256": "+".join(file_sha256(path) for path in paths),
        "checkpoint_step": checkpoint["step"],
        "ensemble": len(paths),
        "changes": checkpoint.get("changes", []),
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

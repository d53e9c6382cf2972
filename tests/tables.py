"""Runs and tests of them that nobody trained, and tables made of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarun.analysis.tables import Table
from metarun.analysis.tables.cells import Order, made
from metarun.analysis.tables.recipe import composed


def fabricate(
    folder: Path,
    words: Sequence[str],
    own: str | None = None,
    *,
    accuracy: float | None = 75.0,
    ci95: float = 1.0,
    test: Sequence[str] = (),
    **status: Any,
) -> None:
    """A run of `metarun train WORDS` that says it finished; unless accuracy is None, with a test that has the overrides `test`."""
    run = composed(tuple(words), own)
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"config": run.values, "choices": run.choices}))
    said = {"state": "finished", "step": run.values["steps"], "updated": "2026-01-01T00:00:00+00:00", **status}
    (folder / "status.json").write_text(json.dumps(said))
    if accuracy is not None:
        record(folder, (*words, *test), own, accuracy, ci95)


def record(folder: Path, words: Sequence[str], own: str | None, accuracy: float, ci95: float = 1.0, **values: Any) -> None:
    config = composed(tuple(words), own).values
    test = {
        "accuracy": accuracy, "ci95": ci95, "episodes": config["protocol"]["episodes"], "batch_norm": config["protocol"]["batch_norm"],
        "per_episode": [accuracy - ci95, accuracy + ci95], "checkpoint_step": config["steps"],
        "episodes_sha256": "e" * 64, "checkpoint_sha256": "c" * 64, "config": config, **values,
    }  # fmt: skip
    (folder / "evaluations" / f"{len(list(folder.glob('evaluations/*')))}.json").write_text(json.dumps(test))


def table_of(name: str, root: Path, own: str | None = None, **order: Any) -> Table:
    return made(Order(name, root, config_dir=own, **order))

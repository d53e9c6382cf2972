"""Folders of runs that nobody trained: what `metarun runs` and `metarun report` read, at no cost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOW = "2026-03-01T12:00:00+00:00"


def fabricate(
    folder: Path,
    algorithm: str = "maml",
    dataset: str = "omniglot",
    seed: int = 0,
    accuracy: float | None = 90.0,
    shots: int = 1,
    config: Mapping[str, Any] | None = None,
    **status: Any,
) -> Path:
    """A run that finished 100 steps unless `status` says otherwise, with a curve on validation and, if it has an accuracy, a record."""
    protocol = {"ways": 5, "shots": shots, "queries": 1, "split": "test", "episodes": 3, "selection": "best_val", "ensemble": 1}
    values = {
        "seed": seed, "steps": 100, "patience": None, "task": {"ways": 5, "shots": shots, "queries": 1}, "protocol": protocol,
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001}, "backbone": {"widths": [64, 64]},
        "algorithm": {"_target_": f"metarun.algorithms.{algorithm}.{algorithm.upper()}"},
        "dataset": {"_target_": f"metarun.data.{dataset}.{dataset.title()}"}, **(config or {}),
    }  # fmt: skip
    test = {"split": "test", "accuracy": accuracy, "ci95": 0.5, "episodes": 3, "ways": 5, "shots": shots}
    status = {
        "state": "finished", "step": 100, "steps": 100, "seconds": 130.0, "step_seconds": 0.5, "peak_memory": 2**30, "updated": NOW,
        "best": {"step": 50, "accuracy": 88.0}, "error": None, **({} if accuracy is None else {"test": test}), **status,
    }  # fmt: skip
    facts = {"config": values, "choices": {"algorithm": algorithm, "dataset": dataset}, "versions": {"torch": "2.14.1"}}
    (folder / "evaluations").mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / ".hydra/overrides.yaml").write_text(f"- algorithm={algorithm}\n- seed={seed}\n")
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics.csv").write_text(
        "step,split,name,value\n"
        + "".join(f"{step},train,accuracy,{0.5 + step / 250}\n{step},val,accuracy,{50 + step / 3 + seed}\n" for step in (25, 50, 75, 100))
    )
    if accuracy is not None:
        steps = [{"accuracy": 20.0 + (accuracy - 20) * done / 3, "loss": 1.0} for done in range(4)]
        record = {
            **test, "loss": 0.3, "queries": 1, "batch_norm": "query", "seed": seed, "checkpoint": "best.pt", "checkpoint_step": 50,
            "episodes_sha256": "0" * 64, "checkpoint_sha256": "1" * 64, "per_episode": [100.0, 60.0, 80.0], "config": values,
            "versions": {"torch": "2.14.1"}, "selection": "best_val", "ensemble": 1,
            "diagnostics": {"episodes": 3, "inner_steps": steps, "batch_norm": {"query": 90.0, "running": 70.0}, "label_spread": 1.5},
        }  # fmt: skip
        (folder / "evaluations/0123456789abcdef.json").write_text(json.dumps(record))
    return folder


def measured(folder: Path, numbers: Mapping[str, float], **run: Any) -> Path:
    """A run of no kind that is known: its test has `return`, the higher the better, or `mse`, the lower the better, and no accuracy."""
    fabricate(folder, **run)
    measures = {"return": ("", True, 1), "mse": ("", False, 4)}
    said = {
        "numbers": [
            {**dict(zip(("unit", "higher_is_better", "digits"), measures[name], strict=True)), "name": name, "value": value,
             "intervals": {"tasks": abs(value) / 4}}
            for name, value in numbers.items()
        ],
        "columns": {name: [value * share for share in (0.5, 1.0, 1.5)] for name, value in numbers.items()},
        "setting": {"horizon": 20}, "words": "20 steps a task",
    }  # fmt: skip
    gone = ("accuracy", "ci95", "loss", "ways", "shots", "queries", "per_episode", "per_class", "diagnostics")
    for file, key in ((folder / "evaluations/0123456789abcdef.json", None), (folder / "status.json", "test")):
        values = json.loads(file.read_text())
        test = {name: value for name, value in (values[key] if key else values).items() if name not in gone} | said
        test.update(data_fingerprint="2" * 64)
        file.write_text(json.dumps({**values, key: test} if key else test))
    return folder

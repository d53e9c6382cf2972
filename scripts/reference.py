"""The runs behind the committed tables: `outputs/reference/` holds their models, and every number of theirs can be had again.

    python scripts/reference.py export FOLDER RUN ... [omniglot=DIR] [miniimagenet=DIR]     adds runs, tested anew from what is kept of them
    python scripts/reference.py verify FOLDER [omniglot=DIR] [miniimagenet=DIR]             tests them all again and compares every digit
    python scripts/reference.py retest FOLDER [omniglot=DIR] [miniimagenet=DIR]             tests them all again, for records anew

`verify` leaves FOLDER as it is, passes over runs whose data are not given, and ends with exit code 1 if a digit differs; of the loss,
which is a mean of means, six digits are compared. `retest` replaces every record that comes out otherwise, and prints both.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from metarun.classification.origin import dataset_name
from metarun.config.changes import completed
from metarun.errors import UserError
from metarun.runs.catalogue import Found, find_runs, read_run
from metarun.runs.export import anywhere, export
from metarun.runs.status import write_json
from metarun.sweeps.sweep import run_name
from metarun.training.testing import evaluate, record_name

DIGITS = ("accuracy", "ci95", "loss", "episodes", "episodes_sha256", "data_fingerprint", "checkpoint_step", "per_episode")


def tested(run_dir: Path, record: Mapping[str, Any], roots: Mapping[str, str]) -> dict[str, Any]:
    """The record that `metarun evaluate` now makes of the model in `run_dir`, by the protocol of an earlier record."""
    config = completed(json.loads(json.dumps(record["config"])))
    if "root" in config["dataset"]:
        config["dataset"]["root"] = roots[dataset_name(record["config"])]
    return evaluate(config, run_dir)


def differing(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    return [key for key in DIGITS if now[key] != before[key] and not (key == "loss" and isclose(now[key], before[key], rel_tol=1e-6))]


def add(folder: Path, run: Found, roots: Mapping[str, str]) -> None:
    """Exports a run, with every test that it had done again."""
    to = export(run.folder, folder / run_name(run.config, run.choices))
    for before in run.records:
        now = tested(to, before.values, roots)
        if changed := differing(now, before.values):
            raise UserError(f"{run.folder}: {', '.join(changed)} came out otherwise from the exported model")
    for path in (to / "evaluations").glob("*.json"):
        record = json.loads(path.read_text())
        write_json(path, {**record, "config": anywhere(record["config"])})


def retested(folder: Path, roots: Mapping[str, str]) -> Iterator[tuple[Found, Path, dict[str, Any], dict[str, Any]]]:
    """Every run, the file of a record, the record, and the one of a test made now; runs without data are passed over, and named."""
    for run in find_runs(folder):
        for path in sorted((run.folder / "evaluations").glob("*.json")):
            before = json.loads(path.read_text())
            dataset = dataset_name(before["config"])
            if "root" in before["config"]["dataset"] and dataset not in roots:
                print(f"not tested  {run.folder.name}: needs {dataset}=DIR")
                continue
            with TemporaryDirectory() as scratch:
                copy = Path(shutil.copytree(run.folder, Path(scratch) / "run"))
                yield run, path, before, tested(copy, before, roots)


def verify(folder: Path, roots: Mapping[str, str]) -> int:
    """Tests every model again; returns how many records came out otherwise."""
    wrong = 0
    for run, _, before, now in retested(folder, roots):
        changed = differing(now, before)
        print(f"{'differs' if changed else 'the same':11} {run.folder.name}: {before['accuracy']:.4f} {', '.join(changed)}", flush=True)
        wrong += bool(changed)
    return wrong


def retest(folder: Path, roots: Mapping[str, str]) -> None:
    """Tests every model again, and puts what came out otherwise in the place of the record and of what the run says of its test."""
    for run, path, before, now in retested(folder, roots):
        if differing(now, before):
            path.unlink()
            write_json(path.with_name(record_name(now)), {**now, "config": anywhere(now["config"])})
            if run.status.get("test", {}).get("accuracy") == before["accuracy"]:
                said = {**run.status["test"], **{key: now[key] for key in ("accuracy", "ci95", "numbers")}}
                write_json(run.folder / "status.json", {**run.status, "test": said})
            figures = " -> ".join(f"{record['accuracy']:.2f} ± {record['ci95']:.2f}" for record in (before, now))
            print(f"{run.folder.name}, {now['episodes']} tasks: {figures}", flush=True)


def main(words: Sequence[str]) -> int:
    roots = dict(word.split("=", 1) for word in words if "=" in word)
    match [word for word in words if "=" not in word]:
        case ["verify", folder]:
            return int(verify(Path(folder), roots) > 0)
        case ["retest", folder]:
            retest(Path(folder), roots)
            return 0
        case ["export", folder, *runs] if runs:
            add_all(Path(folder), runs, roots)
            return 0
    print(__doc__)
    return 2


def add_all(folder: Path, runs: Sequence[str], roots: Mapping[str, str]) -> None:
    for path in runs:
        run = read_run(Path(path))
        if run is None:
            raise UserError(f"{path}: holds no run")
        add(folder, run, roots)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"reference: {error}")

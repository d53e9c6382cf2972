"""Every method learns with its own defaults: `metarun train algorithm=NAME` leaves chance, whatever NAME is."""

import csv
from pathlib import Path

import pytest
from helpers import CONF, Metarun

# Smaller than by default are the network's width, the tasks and the validation, never a key of `algorithm`.
SMALL = (
    "backbone.widths=[32,32,32,32] task.queries=5 protocol.queries=5 protocol.val_episodes=40 tasks_per_step=2 log_every=100 test=false "
    "device=cpu device.threads=1 device.keep_memory=false"
)
STEPS = {"cavia": "100 tasks_per_step=4", "relation_net": "80 tasks_per_step=4"}
CLEARLY = 30.0  # per cent of five ways: by chance 20 ± 1.5 over 40 tasks of 25 queries, twice that where a task's answers go together


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("algorithm/*.yaml")))
def test_a_method_learns_with_its_defaults(name: str, metarun: Metarun, tmp_path: Path) -> None:
    steps = STEPS.get(name, "20")
    outcome = metarun(f"train algorithm={name} {SMALL} steps={steps} val_every={steps.split()[0]} hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    with (tmp_path / "run" / "metrics.csv").open() as file:
        (accuracy,) = (float(row["value"]) for row in csv.DictReader(file) if (row["split"], row["name"]) == ("val", "accuracy"))
    assert accuracy > CLEARLY

"""The committed runs: their table is what they say, their models are what was tested."""

from pathlib import Path

import pytest
from helpers import Metarun

from metarun.runs.catalogue import Found, find_runs
from metarun.runs.checkpoint import file_sha256, load_checkpoint

REFERENCE = Path(__file__).parents[1] / "outputs" / "reference"
RUNS = find_runs(REFERENCE)


def test_there_are_reference_runs() -> None:
    assert len(RUNS) > 10


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.folder.name)
def test_a_reference_run_is_whole_and_says_nothing_of_its_machine(run: Found) -> None:
    assert run.state == "finished" and run.records
    for record in run.records:
        path = run.folder / "checkpoints" / record.values["checkpoint"]
        assert record.values["checkpoint_sha256"] == file_sha256(path) and path.stat().st_size < 2**20
        assert record.values["config"]["dataset"]["root"] is None and record.groups
        assert load_checkpoint(run.folder, path.stem)["config"]["dataset"]["root"] is None
    texts = [path.read_text() for pattern in ("*.json", "*/*.json", ".hydra/*") for path in run.folder.glob(pattern)]
    assert texts and not any("/home/" in text or "/work/" in text or '"host"' in text for text in texts)


@pytest.mark.parametrize(("kind", "name"), [("json", "omniglot_short.json"), ("markdown", "omniglot_short.md")])
def test_the_committed_table_is_that_of_the_committed_runs(metarun: Metarun, monkeypatch: pytest.MonkeyPatch, kind: str, name: str) -> None:
    monkeypatch.chdir(REFERENCE.parents[1])
    outcome = metarun(f"table omniglot_short outputs/reference --format {kind}")
    assert outcome.code == 0, outcome.err
    assert outcome.out == (REFERENCE / name).read_text()

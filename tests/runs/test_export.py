"""A run given away gives the same digits, and says nothing of where it was made."""

import json
import sys
from pathlib import Path

import pytest
from helpers import Metarun

from metarun.errors import UserError
from metarun.runs.checkpoint import load_checkpoint
from metarun.runs.export import export

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import reference  # noqa: E402

DIGITS = ("accuracy", "ci95", "loss", "per_episode", "groups", "episodes_sha256")


def test_an_exported_run_gives_the_same_digits(metarun: Metarun, trained: Path, tmp_path: Path) -> None:
    given = export(trained, tmp_path / "given")
    (before,) = (json.loads(path.read_text()) for path in (trained / "evaluations").glob("*.json"))
    assert metarun("evaluate run=given").code == 0
    (now,) = (json.loads(path.read_text()) for path in (given / "evaluations").glob("*.json"))
    assert all(now[key] == before[key] for key in DIGITS)
    assert metarun("evaluate run=given protocol.episodes=5").code == 0

    (kept,) = (given / "checkpoints").iterdir()
    assert "update" not in load_checkpoint(given, kept.stem)
    assert kept.stat().st_size < (trained / "checkpoints" / kept.name).stat().st_size
    outcome = metarun("train resume=given")
    assert outcome.code == 2 and "holds a model to be tested, without the state of its training" in outcome.err
    with pytest.raises(UserError, match="already exists"):
        export(trained, given)


def test_reference_runs_are_verified_digit_by_digit(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "given"
    assert reference.main(["export", str(given), str(trained)]) == 0
    assert reference.main(["verify", str(given)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("the same")
    (record,) = given.glob("*/evaluations/*.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "accuracy": 12.5}))
    assert reference.main(["verify", str(given)]) == 1
    assert "differs" in capsys.readouterr().out
    assert reference.main(["verify"]) == 2

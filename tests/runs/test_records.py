"""One reader of records: those of before and those of today say the same, and a number that nobody knew is read like any other."""

import json
from pathlib import Path
from typing import Any

import pytest
from fabricated import fabricate, measured

from metarun.errors import UserError
from metarun.runs.catalogue import read_run
from metarun.runs.records import OF_BEFORE, Record, refuse_unknown, written
from metarun.text.measure import Measure, Score, Scores

OLD: dict[str, Any] = {
    "accuracy": 80.0, "ci95": 22.6, "loss": 0.3, "per_episode": [100.0, 66.6667, 73.3333], "ways": 5, "shots": 1, "queries": 3,
    "per_class": {"a": [3, 4]}, "episodes": 3, "episodes_sha256": "0" * 64,
}  # fmt: skip


def test_a_record_of_before_says_what_one_of_today_says() -> None:
    old = Record("run", Path("old.json"), OLD)
    scores = Scores((Score(OF_BEFORE[0], 80.0, {"tasks": 22.6}), Score(OF_BEFORE[1], 0.3)), {"a": (300, 4)})
    said = {**{key: OLD[key] for key in OLD if key != "per_class"}, **written(scores, {"accuracy": OLD["per_episode"]})}
    new = Record("run", Path("new.json"), json.loads(json.dumps(said)))
    for record in (old, new):
        assert record.numbers == (Score(OF_BEFORE[0], 80.0, {"tasks": 22.6}), Score(OF_BEFORE[1], 0.3, {}))
        assert record.numbers[0].number == "80.00 ± 22.60" and record.number("loss") == record.numbers[1]
        column = record.column()
        assert column is not None and column.values == OLD["per_episode"] and column.step == pytest.approx(100 / 15)
        assert record.column("loss") is None and record.number("mse") is None
        assert record.groups == {"a": (300, 4)} and record.setting == {"ways": 5, "shots": 1}
        assert str(record) == "3 episodes of 5-way 1-shot, 3 queries a class (00000000)"


def test_a_number_that_nobody_knew(tmp_path: Path) -> None:
    run = read_run(measured(tmp_path / "a", {"return": -31.5, "mse": 0.012}))
    assert run is not None and run.tested is not None
    for record in (run.tested, *run.records):
        assert [score.measure for score in record.numbers] == [Measure("return", "", True, 1), Measure("mse", digits=4)]
        assert (record.number("mse"), record.setting) == (Score(Measure("mse", digits=4), 0.012, {"tasks": 0.003}), {"horizon": 20})
    (record,) = run.records
    column = record.column("mse")
    assert column is not None and column.step is None and sum(column.values) / 3 == pytest.approx(0.012)
    refuse_unknown("mse", [record])
    refuse_unknown("anything", [])
    with pytest.raises(UserError, match="number: msee is not allowed; did you mean mse. the tests have return, mse"):
        refuse_unknown("msee", [record])


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "a")
    for name, text in (("a", "{"), ("b", "[]"), ("c", "{}")):
        (folder / f"evaluations/{name}.json").write_text(text)
    run = read_run(folder)
    assert run is not None and len(run.all_records) == 1

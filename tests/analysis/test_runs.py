"""`metarun runs`: what it says of runs in every state, what it leaves out, what it refuses, and that it is quick."""

import csv
import fcntl
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fabricated import fabricate, measured
from helpers import Metarun

from metarun.analysis.listing.command import COLUMNS
from metarun.text.grid import Column, grid


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Four runs, one in each state but `running`, beside folders and files that are no runs."""
    root = tmp_path / "outputs"
    fabricate(root / "maml-omniglot-5w1s/a", accuracy=97.0, updated="2026-03-01T12:00:00+00:00")
    fabricate(root / "maml-omniglot-5w5s/b", accuracy=99.0, shots=5, seed=1, config={"optimizer": {"lr": 0.01}})
    fabricate(root / "protonet-miniimagenet-5w1s/c", "protonet", "miniimagenet", accuracy=None, state="failed", step=40, error="no\nmemory")
    fabricate(root / "protonet-omniglot-5w1s/d", "protonet", accuracy=None, state="running", step=20, seconds=40.0)
    (root / "config.json").write_text("{}")
    (root / "notes").mkdir()
    (root / "notes/config.json").write_text("[1")
    return root


def names(out: str) -> list[str]:
    """The last part of the folders in a table, in order."""
    return [line.split()[0].rpartition("/")[2] for line in out.splitlines()[1:-1]]


def test_every_run_is_a_line(metarun: Metarun, outputs: Path) -> None:
    outcome = metarun("runs")
    heading, *lines, count = outcome.out.splitlines()
    assert outcome.code == 0 and count == "4 runs: 2 finished, 1 failed, 1 cut off"
    assert " ".join(heading.split()) == "run algorithm dataset ways shots seed state step val test time updated error"
    assert "97.00 ± 0.50" in lines[0] and "finished" in lines[0] and lines[0].startswith("maml-omniglot-5w1s/a ")
    assert lines[2].endswith("no?memory") and "40/100" in lines[2]
    assert "cut off" in lines[3] and "20/100" in lines[3] and "left" not in heading
    assert len({line.index(" 88.00") for line in lines}) == 1, "columns are aligned"


def test_a_run_at_work_says_how_fast_it_is(metarun: Metarun, outputs: Path) -> None:
    lock = os.open(outputs / "protonet-omniglot-5w1s/d/.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (row,) = json.loads(metarun("runs --state running --format json").out)
    assert (row["state"], row["step"], row["steps_per_second"], row["seconds_left"]) == ("running", 20, 2.0, 160.0)
    assert "2 steps/s  2.67 min" in metarun("runs").out
    os.close(lock)


def test_json_and_csv_have_every_digit(metarun: Metarun, outputs: Path) -> None:
    rows = json.loads(metarun("runs --format json").out)
    assert len(rows) == 4 and Path(rows[0]["run"]).samefile(outputs / "maml-omniglot-5w1s/a")
    assert [rows[0][key] for key in ("ways", "shots", "seed", "val", "test", "ci95", "error")] == [5, 1, 0, 88.0, 97.0, 0.5, None]
    read = list(csv.DictReader(io.StringIO(metarun("runs --format csv").out)))
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows] == read


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("algorithm=maml", "ab"),
        ("algorithm=maml,protonet dataset=omniglot", "abd"),
        ("algorithm=maml task.shots=5", "b"),
        ("optimizer.lr=1e-2", "b"),
        ("'backbone.widths=[64,64]' seed=0", "acd"),
        ("patience=null seed=1", "b"),
        ("--state failed,cut-off", "cd"),
        ("--state finished protocol.shots=1", "a"),
        ("--sort test", "abcd"),
        ("--sort -test", "bacd"),
        ("--sort best", "bacd"),
        ("--sort=-optimizer.lr outputs seed=0,1", "bacd"),
        ("outputs/maml-omniglot-5w1s --sort updated", "a"),
    ],
)
def test_filters_and_order(metarun: Metarun, outputs: Path, words: str, expected: str) -> None:
    outcome = metarun(f"runs {words}")
    assert outcome.code == 0 and "".join(names(outcome.out)) == expected, outcome


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nowhere", "nowhere: no such folder"),
        ("outputs elsewhere", "elsewhere: not understood"),
        ("--state fail", "--state: fail is not allowed; did you mean failed? expected one of running, finished, failed, cut off"),
        ("algoritm=maml", "algoritm: no run has such a key; did you mean algorithm?"),
        ("--sort tset", "tset: no run has such a key; did you mean test?"),
        ("--format yaml", "argument --format: invalid choice"),
        ("--fast", "unrecognized arguments: --fast"),
        ("--sort", "argument --sort: expected one argument"),
    ],
)
def test_refusals_are_one_line(metarun: Metarun, outputs: Path, words: str, said: str) -> None:
    outcome = metarun(f"runs {words}")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1) and said in outcome.err, outcome


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ("outputs/notes", "no runs below outputs/notes\n"),
        ("outputs/notes algoritm=maml --sort nothing", "no runs below outputs/notes\n"),
        ("outputs algorithm=anil", "no such runs below outputs\n"),
        ("outputs/notes --format json", "[]\n"),
    ],
)
def test_nothing_to_show(metarun: Metarun, outputs: Path, words: str, out: str) -> None:
    outcome = metarun(f"runs {words}")
    assert (outcome.code, outcome.out) == (0, out)


def test_a_run_tested_later_has_its_own_protocols_number(metarun: Metarun, tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "outputs/a", test=None)
    record = json.loads((folder / "evaluations/0123456789abcdef.json").read_text())
    other = {**record["config"], "protocol": {**record["config"]["protocol"], "batch_norm": "running"}}
    (folder / "evaluations/other.json").write_text(json.dumps({**record, "config": other, "accuracy": 99.0}))
    assert "90.00 ± 0.50" in metarun("runs").out


def test_a_number_is_ranked_and_written_by_its_measure(metarun: Metarun, tmp_path: Path) -> None:
    for name, (high, low) in {"a": (-31.5, 0.012), "b": (-40.0, 0.002), "c": (-20.0, 0.5)}.items():
        measured(tmp_path / "outputs" / name, {"return": high, "mse": low})
    returns, errors = metarun("runs --sort best").out, metarun("runs number=mse --sort best").out
    assert (names(returns), names(errors)) == (["c", "a", "b"], ["b", "a", "c"])
    assert "-31.5 ± 7.9" in returns and "0.0120 ± 0.0030" in errors and "horizon" in errors and "shots" not in errors
    (row, *_) = json.loads(metarun("runs number=mse --format json").out)
    assert (row["horizon"], row["test"], row["ci95"]) == (20, 0.012, 0.003)
    refused = metarun("runs number=accuracy")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "number: accuracy is not allowed; the tests have return, mse" in refused.err


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"best": null, "seconds": null, "step": 0}'])
def test_a_damaged_status_hides_no_run(metarun: Metarun, tmp_path: Path, damage: str) -> None:
    (fabricate(tmp_path / "outputs/a") / "status.json").write_text(damage)
    outcome = metarun("runs")
    assert outcome.code == 0 and "cut off" in outcome.out


@pytest.mark.parametrize("width", [30, 60, 80, 100, 140, 200])
def test_a_terminal_is_never_too_narrow(metarun: Metarun, outputs: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    *lines, count = metarun("runs").out.splitlines()
    assert max(map(len, lines)) <= width and "state" in lines[0]
    for column in (*COLUMNS, Column("ways"), Column("shots")):
        assert column.name in lines[0].split() + count.partition("not shown: ")[2].split(", ") + ["rate", "left"]


def test_a_grid_keeps_what_matters_and_shortens_the_rest() -> None:
    columns = (Column("run", least=7, middle=True), Column("n", drop=1, right=True), Column("note", least=4))
    rows = [{"run": "protonet/17", "n": "5", "note": "as long as it takes"}, {"run": "maml/3", "n": "10", "note": ""}]
    assert grid(columns, rows) == (["run           n  note", "protonet/17   5  as long as it takes", "maml/3       10"], [])
    assert grid(columns, rows, 21) == (["run           n  note", "protonet/17   5  as …", "maml/3       10"], [])
    assert grid(columns, rows, 13) == (["run      note", "pro…/17  as …", "maml/3"], ["n"])


def test_hundreds_of_runs_in_a_second_and_no_torch(tmp_path: Path) -> None:
    for number in range(300):
        fabricate(tmp_path / f"runs/maml-omniglot-5w1s/{number}", seed=number, accuracy=90 + number / 100)
    code = (
        "import sys; from metarun.cli import main; main(['runs', 'runs', '--sort', '-test']);"
        "print({'torch', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules))"
    )
    begin = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert out.endswith("300 runs: 300 finished\nset()\n") and time.perf_counter() - begin < 5  # 0.3 s on an idle machine

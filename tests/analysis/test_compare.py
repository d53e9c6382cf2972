"""Comparisons: statistics by enumeration, right answers of every class by counting, and what the command makes of records."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fabricated import measured
from helpers import TINY, Metarun, composed, random_table, spec

from metarun.algorithms.protonet import ProtoNet
from metarun.analysis.compare.choosing import chosen
from metarun.analysis.compare.paired import adjusted, paired
from metarun.backbones.conv4 import Conv4
from metarun.classification.evaluation import score
from metarun.classification.kind import Classification
from metarun.classification.sources import EpisodeSource
from metarun.data.episodes import Episodes, Pixels
from metarun.errors import UserError
from metarun.nn.device import Device
from metarun.runs.records import Record
from metarun.training.learners import make_kind


def test_the_statistics_of_a_small_sample_by_enumeration() -> None:
    first, second = np.array([5, 7, 3, 9, 8, 4]), np.array([8, 6, 9, 13, 10, 9])
    ahead = second - first  # 3, -1, 6, 4, 2, 5
    found = paired(first, second, 100 / 20, 9999)
    assert found.episodes == 6 and found.difference == pytest.approx(5 * 19 / 6)
    mean, sd = 19 / 6, np.sqrt(((ahead - 19 / 6) ** 2).sum() / 5)
    half = 2.570582 * sd / np.sqrt(6)  # the 97.5 % point of Student's t with 5 degrees of freedom
    assert found.ci95 == pytest.approx((5 * (mean - half), 5 * (mean + half)), rel=1e-6)
    means = [np.mean(drawn) for drawn in itertools.product(ahead, repeat=6)]
    assert found.bootstrap_ci95 == pytest.approx(5 * np.percentile(means, [2.5, 97.5]), abs=5 / 6)
    signs = np.array(list(itertools.product([-1, 1], repeat=6)))
    sums, ranks = signs @ abs(ahead), (signs > 0) @ np.array([3, 1, 6, 4, 2, 5])
    assert found.p_permutation == pytest.approx(2 * (sums >= 19).mean()) == 2 * 2 / 64
    assert found.p_wilcoxon == pytest.approx(2 * (ranks >= 20).mean())
    assert found.episodes_needed == np.ceil(((1.959964 + 0.841621) * sd / mean) ** 2)
    mirrored = paired(second, first, 100 / 20, 9999)
    assert mirrored.difference == -found.difference and mirrored.p_permutation == found.p_permutation
    assert paired(first, second, 100 / 20, 9999) == found  # resampling is seeded
    assert adjusted([0.04, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])


def test_differences_that_do_not_vary() -> None:
    ones = np.ones(8, dtype=np.int64)
    same, more = paired(ones, ones, 100 / 4, 999), paired(ones, ones + 1, 100 / 4, 999)
    assert same.ci95 == same.bootstrap_ci95 == (0, 0) and same.p_permutation == same.p_wilcoxon == 1 and same.episodes_needed is None
    assert more.ci95 == more.bootstrap_ci95 == (25, 25) and more.p_permutation == 2 / 2**8 and more.episodes_needed == 2


@pytest.mark.parametrize("rotations", ["none", "classes", "per_class"])
@pytest.mark.parametrize("statistics", ["running", "support"])  # by embedding and by task
def test_right_answers_of_every_class_by_counting(rotations: str, statistics: str) -> None:
    torch.manual_seed(0)
    whole, device = random_table([6, 7, 8, 6, 9, 6, 7], size=8, rotations=rotations), Device("cpu")
    part = whole.select(whole.names[2:])
    learner, episodes, pixels = ProtoNet(Conv4(1, 8, (4,)), spec()).eval(), Episodes(part, 3, 2, 3, 0, "test"), Pixels(part, device)
    counts: dict[str, list[int]] = {}
    for number in range(40):
        draws = episodes.draw(number, 1)
        episode = pixels.episode(draws, 2)
        with torch.no_grad():
            answers = learner.adapt(episode.support, statistics)(episode.query.x).argmax(-1)[0].tolist()
        for answer, label in zip(answers, episode.query.y[0].tolist(), strict=True):
            turn = draws.turns[0, label] if rotations == "classes" else 0
            count = counts.setdefault(part.names[draws.classes[0, label]] + f"@{90 * turn}" * bool(turn), [0, 0])
            count[0] += answer == label
            count[1] += 1
    table = score(learner, EpisodeSource(episodes, pixels, "test"), 0, 40, statistics, device)
    found = Classification.summary(make_kind(composed("task.queries=3", "protocol.queries=3"), device), table)  # type: ignore[arg-type]
    assert found.groups == {name: (100 * right, asked) for name, (right, asked) in counts.items()}
    assert sum(right for right, _ in counts.values()) == pytest.approx(found.numbers[0].value / 100 * 40 * 9)


def record(run: str, episodes: int, batch_norm: str, name: str = "") -> Record:
    """As a file has it, as far as the choice between records looks at it."""
    values = {"ways": 5, "shots": 1, "queries": 1, "episodes": episodes, "batch_norm": batch_norm, "split": "test", "selection": "last"}
    return Record(run, Path(name), {**values, "episodes_sha256": f"{episodes}list", "data_fingerprint": "images"})


def test_the_longest_list_and_settings_that_the_runs_share_are_taken() -> None:
    a = [record("a", 600, "running", "new"), record("a", 600, "query", "old"), record("a", 5000, "query"), record("a", 100, "query")]
    b = [record("b", 600, "query"), record("b", 100, "support"), record("b", 9000, "query")]
    records, remarks = chosen([a, b])
    assert records == [a[1], b[0]]
    assert any("100 episodes" in remark and "--record 100list" in remark for remark in remarks)
    assert any("a has 2 records of these episodes; old is taken" in remark for remark in remarks)
    assert chosen([a, b], "100")[0] == [a[3], b[1]]
    with pytest.raises(UserError, match="--record: 9000 begins none of the episodes that all runs have; allowed: 100 episodes .*; 600"):
        chosen([a, b], "9000")


@pytest.fixture
def runs(metarun: Metarun, tmp_path: Path) -> Path:
    """A folder with the runs `a`, `b=2` (another method, tested by other batch statistics) and `c` (other test episodes)."""
    for line in ("maml hydra.run.dir=a", "protonet seed=2 hydra.run.dir=b\\=2", "maml protocol.seed=5 hydra.run.dir=c"):
        outcome = metarun(f"train algorithm={line} {TINY}".replace("\\", "\\\\"))
        assert outcome.code == 0, outcome.err
    return tmp_path


def test_runs_are_compared_on_what_they_were_tested_on(metarun: Metarun, runs: Path) -> None:
    (path_a,), (path_b,) = ((runs / run / "evaluations").glob("*.json") for run in ("a", "b=2"))
    a, b = json.loads(path_a.read_text()), json.loads(path_b.read_text())
    outcome = metarun("compare a b=2 --format json --resamples 200")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    (found,) = result["comparisons"]
    assert [run["accuracy"] for run in result["runs"]] == [a["accuracy"], b["accuracy"]] and result["episodes"] == 3
    assert found["difference"] == pytest.approx(np.mean(b["per_episode"]) - np.mean(a["per_episode"]), abs=1e-3)
    assert sum(entry["questions"] for entry in result["per_class"]) == 3 * 3 * 2
    for entry in result["per_class"]:
        shares = [total / asked for total, asked in (x["groups"][entry["class"]] for x in (a, b))]
        assert [entry["accuracy"][run] for run in "AB"] == shares
    gaps = [abs(entry["accuracy"]["B"] - entry["accuracy"]["A"]) for entry in result["per_class"]]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 0
    table, csv = metarun("compare a b=2 --classes 1"), metarun("compare a b=2 --format csv")
    for told in (*result["remarks"], "batch_norm differs: A query, B running", "training seeds is not in them"):
        assert (told in table.out and told in csv.err) or "classes, picked" in told
    assert f"{a['accuracy']:.2f} ± {a['ci95']:.2f}" in table.out and f"{found['difference']:+.2f}" in table.out
    assert table.out.count("glyphs/") == 1 and "1 of " in table.out
    assert f"A,accuracy,{a['accuracy']}\n" in csv.out and f"B,ci95_low,{found['ci95'][0]}\n" in csv.out
    three = metarun(f"compare a b=2 {path_a} --format json")
    entries = json.loads(three.out)["comparisons"]
    assert [entry["p_wilcoxon_adjusted"] for entry in entries] == pytest.approx(adjusted([entry["p_wilcoxon"] for entry in entries]))
    assert "A and C are the same checkpoint" in three.out and "Benjamini" in three.out
    path_a.write_text(json.dumps({key: value for key, value in a.items() if key not in ("groups", "ensemble")}))
    old = metarun("compare a b=2")
    assert (
        old.code == 0 and "no accuracy per class: that of A" in old.out and "glyphs/" not in old.out and "ensemble differs" not in old.out
    )


def test_runs_without_common_episodes_are_refused_with_the_command_that_helps(metarun: Metarun, runs: Path) -> None:
    refused = metarun("compare a c")
    assert refused.code == 2 and "a has 3 episodes of 3-way 1-shot" in refused.err and refused.err.count("\n") == 1
    remedy = refused.err.partition("metarun evaluate ")[2]
    assert remedy.startswith("run=c ") and metarun(f"evaluate {remedy}").code == 0 and metarun("compare a c").code == 0
    outcome = metarun("compare a c b=2 protocol.episodes=4 protocol.seed=7 --format json")
    assert outcome.code == 0 and json.loads(outcome.out)["episodes"] == 4 and "4 episodes" in outcome.err
    assert "4 episodes, 3-way" in metarun("compare a b=2").out  # the longest list, now that it is there
    sha = json.loads(outcome.out)["episodes_sha256"]
    assert f"({sha[:8]})" in metarun(f"compare c a --record {sha[:5]}").out
    kept = sorted(runs.glob("*/evaluations/*"))
    for words, line in {
        "protocol.episodess=4": "protocol.episodess: no such key; did you mean protocol.episodes?",
        "protocol.episodes=0": "protocol.episodes: 0 is not allowed",
        "optimizer.lr=1": "optimizer.lr: not allowed here",
        "protocol.ways=4": "protocol.seed: 0 in a, 5 in c; expected one value for all, like protocol.seed=0",
        "protocol.seed=0 protocol.episodes=1": "protocol.episodes: 1 is not allowed; expected at least 2 to compare",
    }.items():
        refused = metarun(f"compare a c {words}")
        assert refused.code == 2 and line in refused.err and refused.err.count("\n") == 1
    assert sorted(runs.glob("*/evaluations/*")) == kept
    assert metarun("evaluate run=a protocol.episodes=1 protocol.seed=8").code == 0
    (single,) = (path for path in runs.glob("a/evaluations/*") if path not in kept)
    refused = metarun(f"compare {single} {single}")
    assert refused.code == 2 and ": tested on 1 episode; at least 2 are needed" in refused.err


@pytest.mark.parametrize(
    ("line", "told"),
    {
        "compare": "0 runs given, expected 2 to 26",
        "compare empty": "1 runs given",
        "compare nowhere empty": "nowhere: no such folder",
        "compare empty empty": "empty: no evaluation in it; expected a run folder",
        "compare damaged empty": "not readable as the record of an evaluation",
        "compare other empty": "not the record of an evaluation, or too old to compare; episodes is missing",
        "compare empty other protocol.episodes=3": "not found; empty is not a run directory",
        "compare empty other/evaluations/x.json protocol.episodes=3": "x.json: is no folder",
        "compare a b --resamples 5": "--resamples: 5 is not allowed; expected an integer of at least 100",
        "compare a b --classes -1": "--classes: -1 is not allowed",
        "compare a b --format xml": "--format: invalid choice",
    }.items(),
)
def test_mistakes_are_one_line(metarun: Metarun, tmp_path: Path, line: str, told: str) -> None:
    for run, text in {"empty": None, "damaged": "{", "other": "{}"}.items():
        (tmp_path / run / "evaluations").mkdir(parents=True)
        if text:
            (tmp_path / run / "evaluations" / "x.json").write_text(text)
    outcome = metarun(line)
    assert outcome.code == 2 and told in outcome.err and outcome.err.count("\n") == 1


def test_any_number_of_the_tests_is_compared_by_its_measure(metarun: Metarun, tmp_path: Path) -> None:
    for name, values in {"a": {"return": -31.5, "mse": 0.012}, "b": {"return": -20.0, "mse": 0.002}}.items():
        measured(tmp_path / name, values)
    returns, errors = metarun("compare a b --resamples 200"), metarun("compare a b number=mse --resamples 200")
    assert (returns.code, errors.code) == (0, 0), returns.err + errors.err
    assert "3 episodes, 20 steps a task" in errors.out and "mse: the lower, the better" in errors.out and "lower" not in returns.out
    assert "-31.5 ± 7.9" in returns.out and "+11.5" in returns.out
    assert "0.0120 ± 0.0030" in errors.out and "-0.0100" in errors.out and "difference in mse" in errors.out
    result = json.loads(metarun("compare a b number=mse --format json --resamples 200").out)
    assert result["horizon"] == 20 and [run["mse"] for run in result["runs"]] == [0.012, 0.002]
    assert result["comparisons"][0]["difference"] == pytest.approx(-0.01)
    refused = metarun("compare a b number=accuracy")
    assert (refused.code, refused.err.count("\n")) == (2, 1) and "number: accuracy is not allowed" in refused.err


def test_without_scipy_the_extra_is_named(metarun: Metarun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    for module in ("metarun.analysis.compare.paired", "metarun.analysis.compare.comparison"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert metarun("compare a b").err == "metarun: compare needs SciPy; pip install 'metarun[analysis]'\n"

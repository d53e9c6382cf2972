"""Tables from runs: definitions, published numbers, which runs and tests count, formats, and making what is missing."""

import csv
import io
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, Metarun
from tables import fabricate, record, table_of

from metarun.analysis.tables import Table, reproduce
from metarun.analysis.tables.cells import Order, recipes
from metarun.analysis.tables.command import items
from metarun.analysis.tables.definition import load, names
from metarun.analysis.tables.published import KINDS, numbers
from metarun.analysis.tables.recipe import composed
from metarun.analysis.tables.render import FORMATS
from metarun.config import compose
from metarun.errors import UserError

EXPERIMENT = """# @package _global_
defaults: [override /dataset: glyphs, override /algorithm: {algorithm}, override /protocol: {protocol}]
task: {{ways: 3, shots: 1, queries: 2}}
protocol: {{episodes: 3, val_episodes: 2}}
steps: 2
val_every: 1
"""
TABLE = """
title: A 100 % small_table
source: nobody
columns: [glyphs_3w1s]
rows:
  MAML: {experiment: "maml_{column}", published: Mine}
  nearer: {experiment: "protonet_{column}", published: Mine/short, set: [steps=3]}
"""
PUBLISHED = """algorithm,variant,dataset,ways,shots,accuracy,interval,kind,backbone,source,verified
Mine,,glyphs,3,1,80.10,0.5,std,,nobody,no
Mine,short,glyphs,3,1,70.0,,,,nobody,yes
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A --config-dir with two experiments on generated characters, a table of them, and tables with a mistake each."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in {
        "experiment/maml_glyphs_3w1s.yaml": EXPERIMENT.format(algorithm="maml", protocol="finn2017"),
        "experiment/protonet_glyphs_3w1s.yaml": EXPERIMENT.format(algorithm="protonet", protocol="snell2017"),
        "table/mine.yaml": TABLE,
        "table/published.csv": PUBLISHED,
        "table/mixed.yaml": TABLE.replace("published: Mine/short, set: [steps=3]", "test: [protocol.split=val]"),
        "table/broken.yaml": TABLE.replace("MAML: {experiment", "MAML: {experimnet"),
        "table/nothing.yaml": TABLE.replace("maml_{column}", "mamll_{column}"),
        "table/unpublished.yaml": TABLE.replace("published: Mine}", "published: Mime}"),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


@pytest.mark.parametrize("name", sorted(names()))
def test_every_cell_of_a_table_composes(name: str, tmp_path: Path) -> None:
    table, definition = reproduce(name, tmp_path), load(name)
    with_recipe = [cell for cell in table.cells if cell.experiment]
    assert len(table.cells) == len(table.rows) * len(table.columns) and len(with_recipe) > 5
    assert all(cell.accuracy is None and cell.marks for cell in with_recipe)
    waiting = {place for one in table.missing for place in one.cells}
    assert waiting == {(cell.row, cell.column) for cell in with_recipe}
    for row in table.rows:  # a pattern and a published name that are right in no column are mistakes
        assert any(table.cell(row, column).published is not None for column in table.columns)
    for asked in definition.cells:  # every override says something: the test's decide about the test, the training's about the run
        filling = recipes(asked, Order(name))
        assert not (filling and asked.test) or filling.test.values != filling.training.values
        assert not (filling and asked.train) or filling.training.values != composed(filling.recipe, None).values


def test_the_classics_have_every_algorithm_and_every_recipe_they_could() -> None:
    definition = load("classics")
    there = {cell.experiment: cell for cell in definition.cells}
    algorithms = {path.stem for path in (compose.conf_dir() / "algorithm").glob("*.yaml")}
    shown = {composed((f"experiment={name}",), None).choices["algorithm"] for name in there if name and name in recipes_there()}
    assert algorithms == shown and len(algorithms) >= 9
    settings = {column.name for column in definition.columns}
    left = {name for name in recipes_there() if any(name.endswith(f"_{column}") for column in settings)} - set(there)
    assert {"maml_mlp_omniglot_5w1s", "maml_mlp_omniglot_5w5s"} < left
    assert left <= {cell.experiment for name in names() for cell in load(name).cells}  # other variants are in tables of their own


def recipes_there() -> set[str]:
    found = {path.stem for path in (compose.conf_dir() / "experiment").glob("*.yaml")}
    assert len(found) > 40
    return found


@pytest.mark.parametrize(
    ("key", "printed", "kind", "verified"),
    [
        (("MAML", "", "omniglot", 5, 1), "98.7 ± 0.4", "ci95", True),
        (("FOMAML", "", "omniglot", 20, 1), "89.4 ± 0.5", "ci95", True),
        (("Reptile", "transductive", "miniimagenet", 5, 1), "49.97 ± 0.32", "unstated", True),
        (("ANIL", "", "miniimagenet", 5, 5), "61.5 ± 0.5", "std", True),
        (("BOIL", "", "miniimagenet", 5, 1), "49.61 ± 0.16", "std", True),
        (("CAVIA", "", "miniimagenet", 5, 5), "59.05 ± 0.54", "ci95", True),
        (("MAML++", "", "omniglot", 20, 1), "97.65 ± 0.05", "std", False),
        (("Meta-SGD", "", "omniglot", 5, 5), "99.93 ± 0.09", "ci95", True),
        (("ProtoNet", "", "miniimagenet", 5, 5), "68.20 ± 0.66", "ci95", True),
        (("ProtoNet", "", "omniglot", 20, 5), "98.9", "", True),
        (("MatchingNet", "by Ravi and Larochelle, FCE", "miniimagenet", 5, 5), "55.31 ± 0.73", "ci95", True),
        (("RelationNet", "", "omniglot", 20, 1), "97.6 ± 0.2", "ci95", True),
        (("R2-D2", "64 filters", "omniglot", 5, 1), "98.55 ± 0.05", "ci95", False),
        (("MetaOptNet", "", "miniimagenet", 5, 1), "62.64 ± 0.61", "ci95", True),
        (("Baseline++", "ResNet-18", "miniimagenet", 5, 5), "75.68 ± 0.63", "ci95", True),
        (("SimpleShot", "UN", "miniimagenet", 5, 1), "33.17 ± 0.17", "ci95", True),
    ],
)
def test_published_numbers(key: tuple[str, str, str, int, int], printed: str, kind: str, verified: bool) -> None:
    number = numbers()[key]
    assert (str(number), number.kind, number.verified) == (printed, kind, verified)


def test_published_numbers_are_whole_and_what_the_recipes_say(tmp_path: Path) -> None:
    assert len(numbers()) > 190  # reading them refuses a key that is there twice
    for number in numbers().values():
        assert 0 < float(number.accuracy) < 100 and number.source and bool(number.interval) == bool(number.kind) and number.kind in KINDS
    definition = load("classics")
    stated = 0
    for asked in definition.cells:
        column, path = asked.column, compose.conf_dir() / "experiment" / f"{asked.experiment}.yaml"
        number = numbers().get((*asked.published, column.dataset, column.ways, column.shots)) if asked.published else None
        if number and path.is_file():
            stated += 1
            assert str(number) in " ".join(line.removeprefix("# ") for line in path.read_text().splitlines()), path
    assert stated > 70


def test_a_cell_is_the_mean_over_the_seeds_trained_as_it_asks(own: str, tmp_path: Path) -> None:
    runs, words = tmp_path / "runs", ["experiment=maml_glyphs_3w1s"]
    for seed, accuracy, ci95 in ((0, 80.0, 0.6), (1, 82.0, 0.8), (3, 78.0, 1.2)):
        fabricate(runs / f"{seed}", [*words, f"seed={seed}", "device.threads=2", "log_every=2"], own, accuracy=accuracy, ci95=ci95)
    fabricate(runs / "better", [*words, "seed=4", "steps=200"], own, accuracy=99.0)  # trained otherwise
    fabricate(runs / "twice", [*words, "seed=0"], own, accuracy=None)  # not tested
    fabricate(runs / "failed", [*words, "seed=5"], own, accuracy=99.0, state="failed", error="boom")
    fabricate(runs / "elsewhere", ["experiment=maml_glyphs_3w1s", "backbone=conv4_32", "seed=6"], own, accuracy=99.0)
    fabricate(runs / "ways", ["experiment=maml_glyphs_3w1s", "task.ways=4", "seed=7"], own, accuracy=99.0)
    table = table_of("mine", runs, own)
    cell = table.cell("MAML", "glyphs_3w1s")
    assert (cell.accuracy, cell.seeds, cell.spread) == (pytest.approx(80.0), (0, 1, 3), pytest.approx(2.0))
    assert cell.ci95 == pytest.approx(1.96 * (0.6 + 0.8 + 1.2) / 3)  # two tasks, as far from the mean as that
    assert cell.difference == pytest.approx(-0.1) and cell.inside is True
    assert [run.run for run in cell.runs] == ["0", "1", "3"] and cell.runs[0].episodes_sha256 == "e" * 64
    notes = {note.mark: note.text for note in table.notes}
    assert notes[cell.marks[1]] == "left out: 1 run with steps=200; left out: 1 run with the seed of another"
    assert cell.marks[2:] == ("†", "‡")
    assert [(one.kind, one.what) for one in table.missing if ("MAML", "glyphs_3w1s") in one.cells] == [
        ("training", f"training, seed 5, failed ({runs / 'failed'}): boom")
    ]
    one = table_of("mine", runs, own, seeds=[1, 2])
    assert one.cell("MAML", "glyphs_3w1s").seeds == (1,) and one.cell("MAML", "glyphs_3w1s").spread is None
    assert "seed=2" in one.missing[0].words


def test_without_a_run_as_asked_the_most_seeds_and_then_the_most_tasks_are_taken_never_the_best(own: str, tmp_path: Path) -> None:
    words = ["experiment=protonet_glyphs_3w1s"]  # of which the table asks for three steps
    fabricate(tmp_path / "a", [*words, "steps=900"], own, accuracy=99.0)
    for seed in (0, 1):
        fabricate(tmp_path / f"b{seed}", [*words, "steps=4", "scheduler=step", "scheduler.gamma=0.9", f"seed={seed}"], own, accuracy=60.0)
        fabricate(tmp_path / f"c{seed}", [*words, "steps=1", f"seed={seed}"], own, accuracy=90.0)
    table = table_of("mine", tmp_path, own)
    cell = table.cell("nearer", "glyphs_3w1s")
    assert (cell.accuracy, cell.seeds) == (60.0, (0, 1))
    assert cell.settings == ("scheduler=step (recipe constant)", "scheduler.gamma=0.9 (recipe 0.5)", "steps=4 (recipe 2)")
    text = next(note.text for note in table.notes if note.mark == cell.marks[1])
    asked = "the table asks for scheduler=constant, scheduler.gamma=0.5, steps=3"
    assert text.startswith(f"with {', '.join(cell.settings)}; {asked}; left out: ")
    assert "1 run with steps=900" in text and "2 runs with steps=1" in text
    fabricate(tmp_path / "d", [*words, "steps=3"], own, accuracy=50.0)
    cell = table_of("mine", tmp_path, own).cell("nearer", "glyphs_3w1s")
    assert (cell.accuracy, cell.settings) == (50.0, ("steps=3 (recipe 2)",))


@pytest.mark.parametrize(
    ("test", "values", "counts"),
    [
        ([], {}, True),
        (["device.precision=bf16", "dataset.residency=ram", "protocol.diagnostics=0"], {}, True),
        (["protocol.batch_norm=null"], {"batch_norm": "query"}, True),  # what null came to
        (["protocol.batch_norm=null"], {"batch_norm": "running"}, False),
        (["protocol.batch_norm=support"], {}, False),
        (["protocol.episodes=4"], {}, False),
        (["protocol.queries=2"], {}, False),
        (["protocol.selection=best_val"], {}, False),
        (["dataset.rotations.test=per_class"], {}, False),
        (["algorithm.test_inner_steps=9"], {}, False),
        ([], {"checkpoint_step": 1}, False),  # before the run went on
    ],
)
def test_only_a_test_by_the_cells_protocol_counts(own: str, tmp_path: Path, test: list[str], values: dict[str, Any], counts: bool) -> None:
    words = ["experiment=maml_glyphs_3w1s"]
    fabricate(tmp_path / "run", words, own, accuracy=None)
    record(tmp_path / "run", [*words, *test], own, 75.0, **values)
    table = table_of("mine", tmp_path, own)
    assert (table.cell("MAML", "glyphs_3w1s").accuracy is not None) == counts
    missing = [one for one in table.missing if one.cells == (("MAML", "glyphs_3w1s"),)]
    assert [one.command for one in missing] == ([] if counts else [f"metarun evaluate run={tmp_path / 'run'}"])


def test_a_run_stands_in_two_columns_and_one_test_of_them_is_missing(tmp_path: Path) -> None:
    words = ["experiment=protonet_omniglot_5w1s", "device.precision=bf16", "scheduler=cosine", "steps=12500", "dataset.root=/elsewhere"]
    fabricate(tmp_path / "run", words, accuracy=98.5, ci95=0.2, best={"step": 12500, "accuracy": 97.0})
    order = {"rows": ["ProtoNet"], "columns": ["omniglot_5w1s", "omniglot_20w1s"], "roots": {"omniglot": "/my data"}}
    table = table_of("omniglot_short", tmp_path, **order)
    five, twenty = table.cells
    assert (five.accuracy, five.inside, twenty.accuracy) == (98.5, False, None)
    assert five.settings == ("scheduler=cosine (recipe step)", "device.precision=bf16 (recipe fp32)", "steps=12500 (recipe 20000)")
    (missing,) = table.missing
    run, words_of_test = f"run={tmp_path / 'run'}", ["protocol.ways=20", "protocol.shots=1", "protocol.queries=15"]
    assert shlex.split(missing.command) == ["metarun", "evaluate", run, *words_of_test, "dataset.root='/my data'"]
    record(tmp_path / "run", [*words, "protocol.ways=20"], None, 95.0, 0.2)
    assert table_of("omniglot_short", tmp_path, **order).missing == ()


def test_another_number_of_test_tasks_than_the_recipes_is_said(tmp_path: Path) -> None:
    fabricate(tmp_path / "run", ["experiment=reptile_omniglot_5w1s", "device.precision=bf16", "steps=20000", "protocol.episodes=1000"])
    cell = table_of("omniglot_short", tmp_path, rows=["Reptile"], columns=["omniglot_5w1s"]).cells[0]
    assert cell.settings == ("device.precision=bf16 (recipe fp32)", "steps=20000 (recipe 100000)", "protocol.episodes=1000 (recipe 10000)")


def test_a_run_that_ended_early_says_so(own: str, tmp_path: Path) -> None:
    fabricate(tmp_path / "run", ["experiment=maml_glyphs_3w1s"], own, accuracy=None, step=1)
    record(tmp_path / "run", ["experiment=maml_glyphs_3w1s"], own, 75.0, checkpoint_step=1)
    assert table_of("mine", tmp_path, own).cell("MAML", "glyphs_3w1s").settings == ("seed 0 ended at step 1 of 2",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("mien", "mien: no such table; did you mean mine? allowed: "),
        ("mine nowhere", "nowhere: no such folder; expected a folder of runs"),
        ("mine runs other", "other: not understood"),
        ("mine runs seed=1", "seed: no such key; did you mean seeds? allowed: run, protocols, seeds, set, columns, rows, roots.DATASET"),
        ("mine runs columns=[glyphs_5w1s]", "columns: glyphs_5w1s is not in the table mine; did you mean glyphs_3w1s?"),
        ("mine runs rows=MAM", "rows: MAM is not in the table mine; did you mean MAML?"),
        ("mine runs run=yes", "run: yes is not allowed; expected one of true, test, false"),
        ("mine runs seeds=[a]", "seeds: a is not allowed"),
        ("mine runs seeds=[]", "seeds: [] is not understood"),
        ("mine runs 'set=[a=[1]'", "set: [a=[1] is not understood"),
        ("mine runs set=[stepss=1]", "stepss: no such key; did you mean steps?"),
        ("mine runs set=[protocol.ways=4]", "protocol.ways is 4; the column is for 3"),
        ("mine runs roots.omniglot=x", "roots.omniglot: no such dataset in the table; allowed: glyphs"),
        ("mine runs protocols=same", "mine: nearer, glyphs_3w1s: protocol.queries is 15, but 1 for MAML; a column needs one"),
        ("mine runs --format pdf", "--format"),
        ("mine runs --out nowhere/x.md", "nowhere/x.md cannot be written"),
        ("mine runs -- hydra/launcher=joblib", "-- hydra/launcher=joblib: only with run=true"),
        ("mixed runs", "mixed: nearer, glyphs_3w1s: protocol.split is val, but test for MAML; a column needs one"),
        ("broken runs", "broken: rows.MAML: experimnet: no such key of a row; did you mean experiment?"),
        ("nothing runs", "nothing: rows.MAML.experiment: no such experiment as mamll_glyphs_3w1s, nor in another column"),
        ("unpublished runs", "MAML: published: Mime has no numbers; did you mean Mine?"),
    ],
)
def test_refusals(metarun: Metarun, own: str, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "runs").mkdir()
    outcome = metarun(f"table --config-dir {own} {line}")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and said in outcome.err, outcome.err
    assert outcome.out == "" and [path.name for path in sorted(tmp_path.iterdir())] == ["runs"]


def test_lists_are_split_outside_of_brackets_and_quotes() -> None:
    assert list(items("set", "[a=1,b=[4,4],'c=x,y']")) == ["a=1", "b=[4,4]", "'c=x,y'"]
    assert list(items("seeds", "0")) == ["0"]
    with pytest.raises(UserError, match="not closed"):
        list(items("set", "[a='1]"))


@pytest.fixture
def filled(own: str, tmp_path: Path) -> Table:
    """A table with two seeds in one cell and nothing in the other."""
    for seed in (0, 1):
        fabricate(tmp_path / f"runs/{seed}", ["experiment=maml_glyphs_3w1s", "steps=7", f"seed={seed}"], own, accuracy=79.0 + seed)
    return table_of("mine", tmp_path / "runs", own)


def test_formats_that_are_read(filled: Table) -> None:
    text = FORMATS["terminal"](filled)
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("  metarun"))
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("MAML "))
    at = lines[first].index("79.50")
    below = ["(80.10 ± 0.5†‡)", "-0.60 inside", "2 seeds, sd 0.71", ""]
    assert [line[at:] for line in lines[first : first + 5]] == ["79.50 ± 1.96 a,1", *below]
    assert "1   with steps=7 (recipe 2)" in text and "missing: nearer glyphs_3w1s: training, seed 0" in text
    assert "1 of 2 cells have a number; 2 to train" in text
    lines = FORMATS["markdown"](filled).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({line.count(" | ") for line in rows}) == 1 and len(rows) == 4
    assert rows[2] == "| MAML | 79.50 ± 1.96<sup>a,1</sup> (80.10 ± 0.5†‡) -0.60 inside 2 seeds, sd 0.71 |" and "small\\_table" in lines[0]


def test_csv_and_json_have_everything(filled: Table) -> None:
    assert json.loads(FORMATS["json"](filled)) == json.loads(json.dumps(asdict(filled)))
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](filled))))
    assert [(row["row"], row["column"]) for row in rows] == [("MAML", "glyphs_3w1s"), ("nearer", "glyphs_3w1s")]
    assert float(rows[0]["accuracy"]) == 79.5 and rows[0]["runs"] == "0;1" and rows[0]["seeds"] == "0;1" and rows[1]["accuracy"] == ""
    assert rows[0]["settings"] == "steps=7 (recipe 2)" and "queries=1" in rows[0]["protocol"].split(";")
    assert rows[0]["published"] == "80.1" and rows[0]["verified"] == "False" and rows[0]["published_kind"] == "std"


def test_latex_is_escaped_and_balanced(filled: Table) -> None:
    text = FORMATS["latex"](filled)
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    body = "\n".join(lines)
    assert r"A 100 \% small\_table" in body and r"79.50 $\pm$ 1.96$^{\mathrm{a,1}}$" in body and r"(80.10 $\pm$ 0.5\dag{}\ddag{})" in body
    bare = body.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0 and bare.isascii()
    for environment in ("table", "tabular", "minipage"):
        assert body.count(f"\\begin{{{environment}}}") == body.count(f"\\end{{{environment}}}") == 1
    assert not any(bare[i] in "%#_" and bare[i - 1] != "\\" for i in range(1, len(bare)))
    cells = [line for line in lines if line.endswith(r" \\")]
    assert len(cells) > 6 and all(line.count(" & ") == 1 for line in cells)


def test_there_is_a_list_of_tables(metarun: Metarun) -> None:
    listed = metarun("table")
    assert listed.code == 0 and listed.out == metarun("table list").out
    assert [line.split()[0] for line in listed.out.splitlines()] == sorted(names())


def test_what_is_missing_is_trained_and_tested(metarun: Metarun, own: str, tmp_path: Path) -> None:
    words = [word for word in TINY.split() if not word.startswith(("steps", "task", "protocol"))]
    line = f"table mine runs --config-dir {own} 'set=[{','.join(words)}]' --format json"
    outcome = metarun(f"table mine --config-dir {own} 'set=[{','.join(words)}]'")
    assert outcome.code == 0 and "0 of 2 cells have a number; 2 to train" in outcome.out and not (tmp_path / "outputs").exists()
    outcome = metarun(f"{line} run=true rows=[MAML] seeds=[0,1]")
    assert outcome.code == 0, outcome.err
    (cell,) = json.loads(outcome.out)["cells"]
    assert cell["seeds"] == [0, 1] and 0 <= cell["accuracy"] <= 100 and cell["spread"] is not None
    assert cell["marks"][0] == "a" and cell["settings"][0].startswith("backbone.widths=[4,4] (recipe ")
    folder = tmp_path / "runs" / cell["runs"][0]["run"]
    for path in folder.glob("evaluations/*.json"):
        path.unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoints/*")}
    lacking = json.loads(metarun(line).out)
    assert lacking["missing"][0]["command"].startswith(f"metarun evaluate run=runs/{folder.name}") and lacking["cells"][0]["seeds"] == [1]
    again = metarun(f"{line} run=true rows=[MAML] seeds=[0,1]")
    assert again.code == 0 and json.loads(again.out)["cells"] == [cell]
    assert before and before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoints/*")}  # nothing is trained again


def test_a_failed_job_costs_only_its_own_cell(metarun: Metarun, own: str, tmp_path: Path) -> None:
    fabricate(tmp_path / "runs/maml", ["experiment=maml_glyphs_3w1s"], own, accuracy=None)
    fabricate(tmp_path / "runs/nearer", ["experiment=protonet_glyphs_3w1s", "steps=3"], own)
    outcome = metarun(f"table mine runs --config-dir {own} run=test")
    assert outcome.code == 1 and "75.00 ± 1.00" in outcome.out and "missing: MAML glyphs_3w1s: test of runs/maml" in outcome.out
    assert outcome.err.splitlines()[-1].startswith("metarun: not everything could be made; test of runs/maml: ")

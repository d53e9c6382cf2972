"""The command line: what it refuses and how, what it passes on to Hydra, how a run's own configuration is changed."""

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import TINY, Metarun, Outcome
from omegaconf import OmegaConf

from metarun.cli import COMMANDS
from metarun.config import compose
from metarun.config.schema import check
from metarun.config.targets import check_targets
from metarun.errors import UserError
from metarun.runs.status import write_json


def choices(group: str) -> list[str]:
    """What can be chosen of a group, in order."""
    return sorted(path.stem for path in (compose.conf_dir() / group).glob("*.yaml"))


# A command line and what its one line on stderr has to say.
REFUSED = {
    # words and keys
    "trian": "did you mean train?",
    "data verfy": "expected data verify",
    "train --fast": "unrecognized arguments: --fast",
    "train --cfg job --multirun": "only one of",
    "train --config-dir nowhere": "nowhere' not found",
    "train algorithm=protonte": f"algorithm=protonte: no such choice; did you mean protonet? allowed: {', '.join(choices('algorithm'))}",
    "train device=tpu": "device=tpu: no such choice; did you mean cpu? allowed: auto, cpu, cuda, mps",
    "train device=gpu": "device=gpu: no such choice; did you mean cuda? allowed: auto, cpu, cuda, mps",
    "plan device=0": "device=0: no such choice; did you mean cuda? allowed: auto, cpu, cuda, mps",
    "train --multirun algorithm=maml,5": "algorithm=5: no such choice; allowed: anil",
    "train device.name=gpu": "device.name: gpu is not allowed; did you mean cuda? expected one of auto, cpu, cuda, mps",
    "train algorithm=MAML": "algorithm=MAML: no such choice; did you mean maml?",
    "train +lr=0.1": "lr: no such key; did you mean optimizer.lr?",
    "train +task.way=3": "task.way: no such key; did you mean task.ways?",
    "plan +protocol.episode=3": "protocol.episode: no such key; did you mean protocol.episodes?",
    "train --multirun seed=0,1 +lr=0.1": "lr: no such key",
    "train stepss=5": "stepss: no such key; did you mean steps?",
    "train algoritm=maml": "algoritm: no such key; did you mean algorithm?",
    "train inner_lr=1 algorithm=maml": "inner_lr: no such key; did you mean algorithm.inner_lr?",
    "train algorithm=maml algorithm.inner_lrr=1": "did you mean algorithm.inner_lr?",
    "train +algorithm.distanec=cosine": "did you mean algorithm.distance?",
    "train steps": "steps: not understood",
    "train steps=[1": "steps=[1: not understood",
    "train task.shots=1,5": "add --multirun",
    "train --multirun hydra/launcher=ray": "hydra/launcher=ray: not installed; pip install 'metarun[ray]' adds it",
    # values
    "train seed=-1": "seed: -1 is not allowed; expected an integer of at least 0",
    "train steps=0": "steps: 0 is not allowed",
    "train steps=1.5": "steps: 1.5 is not allowed",
    "train steps=null": "steps: null is not allowed",
    "train steps=???": "steps: a value is needed",
    "train task.ways=1": "task.ways: 1 is not allowed; expected an integer of at least 2",
    "train task.shots=true": "task.shots: true is not allowed",
    "train protocol.batch_norm=batch": "expected one of null, query, running, support, support+one",
    "train protocol.selection=first": "expected one of best_val, last",
    "train seed=9223372036854775808": "seed: 9223372036854775808 is not allowed; expected an integer of at most 9223372036854775807",
    "train protocol.seed=9223372036854775808": "protocol.seed: 9223372036854775808 is not allowed",
    "train device.threads=100000": "device.threads: 100000 is not allowed; expected an integer of at most 1024 or null",
    "train ~steps": "steps: a value is needed",
    "train ~patience": "patience: cannot be left out",
    "train ~optimizer._target_": "optimizer._target_: a value is needed",
    "train patience=2 val_every=0": "patience: 2 is not allowed without validation",
    "train val_every=0": "protocol.selection: best_val is not allowed without validation; set val_every or protocol.selection=last",
    "train train_split=all": "train_split: all is not allowed; expected one of train, trainval",
    "train train_split=trainval": "train_split: trainval is not allowed with validation; set val_every=0 and protocol.selection=last",
    "train device.precision=fp8": "device.precision: fp8 is not allowed; expected one of fp32, bf16, fp16",
    "train clip_norm=0": "clip_norm: 0 is not allowed; expected a number above 0 or null",
    "train steps='${stepz}'": "steps: Interpolation key 'stepz' not found",
    "train steps='${twice:4}'": "Unsupported interpolation type twice",
    "train algorithm=maml algorithm.inner_lr=fast": "algorithm.inner_lr: 'fast' is not a float",
    "train algorithm.distance=manhattan": "algorithm.distance: 'manhattan' is not one of euclidean, cosine",
    "train backbone.widths=64": "backbone.widths: 64 is not a list of integers",
    "train backbone.widths=[64,wide]": "backbone.widths: [64, 'wide'] is not a list of integers",
    "train optimizer.lr=small": "optimizer.lr: 'small' is not a float",
    "train optimizer=null": "optimizer: a choice is needed; allowed: adam, reptile, sgd",
    "train --multirun optimizer=adam,null": "optimizer: a choice is needed",
    "train task=null": "task: a choice is needed; allowed: default",
    "train dataset=null": "dataset: a choice is needed; allowed: folder, glyphs",
    "train device=null": "device: a choice is needed",
    "train ~protocol": "protocol: a choice is needed",
    "train hydra.run.dir=/proc/x": "hydra.run.dir: /proc/x cannot be written",
    "train --multirun seed=0,1 hydra.sweep.dir=/proc/x": "hydra.sweep.dir: /proc/x cannot be written",
    "train optimizer.lr=null": "optimizer.lr: null is not a float",
    "train +optimizer.betas=[0.9]": "optimizer.betas: [0.9] is not a ",
    "train backbone._target_=nowhere.Net": "backbone._target_: nowhere.Net cannot be imported",
    "train backbone._target_=torch.nn.Convv2d": "torch.nn.Convv2d cannot be imported",
    "train backbone._target_=torch.nn.functional": "is neither a class nor a function",
    "train dataset.augment=[{_target_:torchvision.transforms.v2.Flip}]": "dataset.augment.0._target_: torchvision",
    "train dataset.augment=[{_target_:torchvision.transforms.v2.RandomAffine,degrees:10,scal:2}]": "did you mean dataset.augment.0.scale?",
    # what only the data and the machine can refuse
    "train task.ways=100000": "task.ways",
    "train protocol.ways=100000": "protocol.ways",
    "train task.shots=100000": "task.shots",
    "train dataset=omniglot": "dataset.root",
    "train dataset=omniglot dataset.root=nowhere": "dataset.root",
    "train device=cpu device.precision=fp16": "device.precision",
    "plan task.ways=100000": "task.ways: 100000 is not allowed",
    "plan algorithm=maml protocol.ways=7": "protocol.ways: 7 is not allowed",
    "plan hydra.run.dir=/proc/x": "hydra.run.dir: /proc/x cannot be written",
    "plan stepss=5": "stepss: no such key; did you mean steps?",
    # earlier runs
    "plan resume=.": "resume: not allowed here",
    "plan --multirun seed=0,1": "--multirun: plan takes one run at a time",
    "train resume=nowhere": "resume: nowhere is no folder",
    "train resume=.": "checkpoints/last.pt: not found",
    "train --multirun resume=.": "--multirun: train takes one run at a time",
    "evaluate": "run: a run folder is needed; run=RUN_DIR",
    "evaluate run=nowhere": "run: nowhere is no folder",
    "evaluate run=.": "checkpoints/last.pt: not found",
    "evaluate --cfg job": "run: a run folder is needed",
    "evaluate --multirun run=.": "--multirun: evaluate takes one run at a time",
    "data verify dataset=omniglt": "did you mean omniglot?",
    "data verify task.ways=0": "task.ways: 0 is not allowed; expected an integer of at least 2",
    "data verify ~task.shots": "task.shots: a value is needed",
    "data verify dataset=null": "dataset: a choice is needed; allowed: folder, glyphs",
    "data verify dataset=omniglot dataset.root=nowhere": "dataset.root",
}


@pytest.mark.parametrize("line", REFUSED)
def test_bad_input_is_one_line_and_writes_nothing(metarun: Metarun, tmp_path: Path, line: str) -> None:
    outcome = metarun(line)
    assert outcome.code == 2
    assert outcome.err.startswith("metarun: ") and outcome.err.count("\n") == 1 and REFUSED[line] in outcome.err, outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("# @package _global_\nstep: 2\n", "step: no such key; did you mean steps?"),
        ("# @package _global_\ntask: {way: 3}\n", "task.way: no such key; did you mean task.ways?"),
        ("steps: 2\n", "experiment: its values change nothing; a recipe begins with"),
    ],
)
def test_a_recipe_with_a_key_that_nothing_reads_is_refused(metarun: Metarun, tmp_path: Path, recipe: str, said: str) -> None:
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/mine.yaml").write_text(recipe)
    outcome = metarun("train --config-dir own experiment=mine")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and said in outcome.err, outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_evaluate_keeps_the_runs_values_under_its_own_choice_and_says_what_another_sets_aside(
    metarun: Metarun, caplog: pytest.LogCaptureFixture
) -> None:
    assert metarun(f"train algorithm=maml algorithm.inner_lr=0.02 {TINY} device.precision=bf16 hydra.run.dir=run").code == 0
    shown = metarun("evaluate run=run algorithm=maml device=cpu --cfg job")
    assert "inner_lr: 0.02" in shown.out and "precision: bf16" in shown.out and not caplog.messages
    shown = metarun("evaluate run=run algorithm=maml algorithm.inner_lr=0.03 --cfg job")
    assert "inner_lr: 0.03" in shown.out
    shown = metarun("evaluate run=run algorithm=fomaml --cfg job")
    assert "first_order: true" in shown.out
    assert caplog.messages == ["algorithm=fomaml sets aside what the run had: algorithm.inner_lr=0.02, algorithm.first_order=false"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_cuda_is_refused(metarun: Metarun, tmp_path: Path) -> None:
    outcome = metarun("train device=cuda")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "cuda" in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["tarin"]])
def test_the_front_door_imports_nothing_heavy(words: list[str]) -> None:
    code = f"import sys; from metarun.cli import main; main({words}); print({{'torch', 'hydra', 'omegaconf', 'numpy'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("set()\n")


@pytest.mark.parametrize("command", ["train", "plan", "evaluate", "data verify"])
def test_help_lists_the_groups_and_examples(metarun: Metarun, command: str) -> None:
    outcome = metarun(f"{command} --help")
    assert outcome.code == 0 and "omniglot" in outcome.out and f"metarun {command} " in outcome.out and "$$" not in outcome.out


def test_cfg_job_shows_the_configuration_and_writes_nothing(metarun: Metarun, tmp_path: Path) -> None:
    outcome = metarun("train --cfg job task.shots=7 algorithm=maml")
    assert outcome.code == 0 and "shots: 7" in outcome.out and "inner_lr:" in outcome.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("metarun ", " ".join(COMMANDS)),
        ("metarun ta", "table"),
        ("metarun runs out", ""),
        ("metarun ev", "evaluate"),
        ("metarun data v", "verify"),
        ("metarun train algorithm=", " ".join(f"algorithm={choice}" for choice in choices("algorithm"))),
        ("metarun train algorithm=maml algorithm.inner_l", "algorithm.inner_loss= algorithm.inner_lr="),
        ("metarun plan dataset=om", "dataset=omniglot"),
        ("metarun evaluate protocol=sn", "protocol=snell2017"),
        ("metarun data verify dataset=om", "dataset=omniglot"),
    ],
)
def test_completion(metarun: Metarun, monkeypatch: pytest.MonkeyPatch, line: str, words: str) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    outcome = metarun("-sc query=bash")
    assert outcome.code == 0 and outcome.out.split() == words.split()


CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in compose.conf_dir().glob("*/*.yaml") if path.parent.name != "table")


def test_there_are_choices_of_every_group() -> None:
    groups = {"algorithm", "dataset", "backbone", "device", "task", "protocol", "optimizer", "scheduler", "experiment"}
    assert groups == {choice.partition("=")[0] for choice in CHOICES}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_fits_its_constructor(choice: str) -> None:
    cfg = compose.values(compose.compose("train", Namespace(overrides=[choice], config_dir=None)))
    check(cfg)
    check_targets(cfg)


@pytest.mark.parametrize("algorithm", ["maml", "protonet"])
def test_plan_measures_a_run_and_writes_nothing(metarun: Metarun, tmp_path: Path, algorithm: str) -> None:
    outcome = metarun(f"plan algorithm={algorithm} {TINY} steps=1000 tasks_per_step=3 val_every=300 patience=2 scheduler=cosine")
    assert outcome.code == 0, outcome.err
    said = {line[:13].strip(): line[13:] for line in outcome.out.splitlines()}
    assert list(said) == ["learner", "a step", "memory", "time", "training", "validation", "test", "in all"]
    assert said["a step"] == "3 tasks, 3-way 1-shot, 2 queries a class: 27 images"
    assert said["validation"].startswith("4 times 2 episodes, ") and said["test"].startswith("3 episodes: ")
    parts = [seconds(said[name].partition(": ")[2]) for name in ("training", "validation", "test")]
    assert parts[0] == pytest.approx(1000 * seconds(said["time"].partition(" a step")[0]), rel=0.02)
    assert sum(parts) == pytest.approx(seconds(said["in all"].partition(", ")[0]), rel=0.02) and min(parts) > 0
    assert not list(tmp_path.iterdir())


def seconds(duration: str) -> float:
    number, unit = duration.split()
    return float(number) * {"ms": 0.001, "s": 1, "min": 60, "h": 3600}[unit]


def test_completion_script_is_for_the_console_script(metarun: Metarun) -> None:
    assert metarun("-sc install=bash").out.rstrip().endswith("-F hydra_bash_completion metarun")


def test_a_run_leaves_its_folder_and_a_refused_second_one_changes_nothing(metarun: Metarun, trained: Path) -> None:
    assert {".hydra", "checkpoints", "metrics.csv", "evaluations", "train.log"} <= {path.name for path in trained.iterdir()}
    before = tree(trained)
    for line in (f"train {TINY} hydra.run.dir=trained", "train resume=trained steps=1", "evaluate run=trained protocol.ways=100000"):
        outcome = metarun(line)
        assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
        assert tree(trained) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("steps=1", "steps: the run was started with 2, not 1"),
        ("algorithm=protonet", "algorithm: the run was started with maml, not protonet"),
        ("algorithm.inner_lr=0.123", "algorithm.inner_lr: the run was started with"),
        ("task.shots=5", "task.shots: the run was started with 1, not 5"),
        ("hydra.run.dir=elsewhere", "hydra.run.dir=elsewhere: only choices and values"),
        ("+task.colour=red", "+task.colour=red: only choices and values"),
    ],
)
def test_resume_refuses_another_configuration(metarun: Metarun, trained: Path, change: str, said: str) -> None:
    outcome = metarun(f"train resume=trained {change}")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and said in outcome.err, outcome.err


def said(outcome: Outcome) -> list[str]:
    """What a run says first and last."""
    assert outcome.code == 0, outcome.err
    first, *_, folder, reports, evaluates = outcome.out.splitlines()
    return [first, folder, reports, evaluates]


BLOCKS = (9 * 1 + 9 * 4) * 4 + 2 * 4 + 2 * (4 + 4)  # two convolutions with their offsets, two batch norms


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("algorithm=protonet", f"protonet on glyphs, 3-way 1-shot, {BLOCKS} parameters"),
        ("algorithm=matching_net", f"matching_net on glyphs, 3-way 1-shot, {BLOCKS} parameters, 1 frozen"),
        ("algorithm=baseline", f"baseline on glyphs, 300 classes, mini-batches of 64, {BLOCKS + 5 * 300:,} parameters"),
    ],
)
def test_a_run_says_first_what_it_is_and_last_where_it_lies(metarun: Metarun, words: str, first: str) -> None:
    lines = said(metarun(f"train {words} {TINY} backbone.features=mean hydra.run.dir=\"'a & b'\""))
    assert lines[:2] == [f"{first}, cpu fp32, 2 steps -> a & b", "the run is in a & b"]
    assert [shlex.split(line) for line in lines[2:]] == [
        ["metarun", "report", "a & b"],
        ["metarun", "evaluate", "run='a & b'", "protocol.episodes=10000"],
    ]
    for line in lines[2:]:  # as they stand, but for the time it takes
        assert metarun(line.strip().removeprefix("metarun ").replace("10000", "4")).code == 0
    resumed = said(metarun("train resume=\"'a & b'\""))
    assert resumed == [f"{first}, cpu fp32, steps 2 to 2 -> a & b", *lines[1:]]


def test_resume_takes_the_same_command_again_and_keeps_the_folder(metarun: Metarun, trained: Path) -> None:
    hydra = tree(trained / ".hydra")
    outcome = metarun(f"train algorithm=maml {TINY} resume=trained dataset.residency=ram")
    assert outcome.code == 0, outcome.err
    assert tree(trained / ".hydra") == hydra and [path.name for path in trained.parent.iterdir()] == ["trained"]


def test_resume_takes_what_is_only_looked_at_and_more_steps_and_says_so(metarun: Metarun, trained: Path) -> None:
    outcome = metarun("train resume=trained steps=4 log_every=2 tasks_per_chunk=1")
    assert outcome.code == 0, outcome.err
    values = {"log_every": [1, 2], "steps": [2, 4], "tasks_per_chunk": [None, 1]}
    assert json.loads((trained / "config.json").read_text())["changes"] == [{"step": 2, "values": values}]
    assert metarun(f"train scheduler=cosine {TINY} hydra.run.dir=cosine").code == 0
    outcome = metarun("train resume=cosine steps=4")
    assert outcome.code == 2 and "steps: 4 is not allowed; scheduler.T_max follows from it" in outcome.err


def test_a_folder_of_runs_is_no_run_and_says_what_lies_below(metarun: Metarun, trained: Path) -> None:
    folders = [Path("runs/old"), Path("runs/sweep/new")]
    for number, folder in enumerate(folders):
        shutil.copytree(trained, folder)
        write_json(folder / "status.json", {"updated": f"2026-01-0{number + 1}T00:00:00+00:00"})
    both, one = (metarun(f"train resume={place}") for place in ("runs", "runs/sweep"))
    assert both.code == one.code == 2 and both.err.count("\n") == one.err.count("\n") == 1
    assert "runs is not a run directory; 2 runs lie below it, last at work runs/sweep/new" in both.err, both.err
    assert "1 run lies below it" in one.err and "1 run lies below it" in metarun("evaluate run=runs/sweep").err


def test_the_last_checkpoint_serves_where_there_is_no_best(metarun: Metarun, trained: Path) -> None:
    (trained / "checkpoints/best.pt").unlink()
    outcome = metarun("evaluate run=trained")
    assert outcome.code == 2 and outcome.err.endswith("so far; protocol.selection=last tests the last one\n"), outcome.err
    assert metarun("evaluate run=trained protocol.selection=last").code == 0


def test_resume_takes_the_experiment_of_the_run_again_and_no_other(metarun: Metarun) -> None:
    line = f"train experiment=protonet_glyphs_5w1s {TINY}"
    assert metarun(f"{line} hydra.run.dir=run").code == 0
    assert metarun(f"{line} resume=run").code == 0
    assert "only choices and values" in metarun("train experiment=maml_omniglot_5w1s resume=run").err


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ("", {"ways": 3, "shots": 1, "queries": 2, "episodes": 3}),
        ("task.shots=2", {"ways": 3, "shots": 2, "queries": 2, "episodes": 3}),
        ("protocol.shots=2 protocol.episodes=4", {"ways": 3, "shots": 2, "queries": 2, "episodes": 4}),
        ("protocol=finn2017 protocol.episodes=2 task.shots=2", {"ways": 3, "shots": 2, "queries": 2, "episodes": 2}),
        ("algorithm.test_inner_steps=1", {"ways": 3, "shots": 1, "queries": 2, "episodes": 3}),
    ],
)
def test_evaluate_changes_only_what_is_given(metarun: Metarun, trained: Path, overrides: str, changed: dict[str, int]) -> None:
    before = set(trained.glob("evaluations/*.json"))
    outcome = metarun(f"evaluate run=trained {overrides}")
    assert outcome.code == 0 and outcome.out.count("\n") == 1, outcome.err
    written = set(trained.glob("evaluations/*.json")) - before or before
    record = json.loads(written.pop().read_text())
    assert {key: record[key] for key in changed} == changed
    assert record["config"]["algorithm"]["_target_"].endswith("MAML") and record["config"]["backbone"]["widths"] == [4, 4]
    assert [path.name for path in trained.parent.iterdir()] == ["trained"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("steps=999", "steps: not allowed here; evaluate changes protocol, task, dataset, device, algorithm"),
        ("protocol.episodes=2 seed=7", "seed: not allowed here"),
        ("optimizer.lr=9", "optimizer.lr: not allowed here"),
        ("optimizer=sgd", "optimizer: not allowed here"),
        ("backbone.widths=[8,8]", "backbone.widths: not allowed here"),
        ("resume=trained", "resume: not allowed here"),
        ("protocol=null", f"protocol: a choice is needed; allowed: {', '.join(choices('protocol'))}"),
        ("protocol.foo=1", "protocol.foo: no such key"),
        ("+protocol.foo=1", "+protocol.foo=1: only choices and values"),
        ("++protocol.foo=1", "++protocol.foo=1: only choices and values"),
        ("experiment=maml_omniglot_5w1s", "experiment=maml_omniglot_5w1s: only choices and values"),
    ],
)
def test_evaluate_refuses_what_is_no_part_of_a_test(metarun: Metarun, trained: Path, change: str, said: str) -> None:
    before = tree(trained)
    outcome = metarun(f"evaluate run=trained {change}")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and said in outcome.err, outcome.err
    assert tree(trained) == before


def test_cfg_job_of_a_run_is_the_configuration_of_that_run(metarun: Metarun, trained: Path) -> None:
    before = tree(trained)
    tested = metarun("evaluate run=trained task.shots=2 --cfg job")
    resumed = metarun("train resume=trained --cfg job")
    assert (tested.code, resumed.code, tree(trained)) == (0, 0, before)
    for outcome, shots in ((tested, 2), (resumed, 1)):
        cfg = OmegaConf.create(outcome.out)
        assert (cfg.steps, cfg.task.shots, cfg.protocol.shots, cfg.backbone.widths) == (2, shots, shots, [4, 4])
        assert cfg.algorithm._target_.endswith("MAML") and "${" not in outcome.out


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_refused(metarun: Metarun, trained: Path, content: bytes) -> None:
    for checkpoint in trained.glob("checkpoints/*.pt"):
        checkpoint.write_bytes(content)
    for line in ("evaluate run=trained", "train resume=trained"):
        outcome = metarun(line)
        assert outcome.code == 2 and outcome.err.count("\n") == 1 and ".pt" in outcome.err, outcome.err


def test_a_run_folder_in_use_is_refused(metarun: Metarun, trained: Path) -> None:
    lock = os.open(trained / ".lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    outcome = metarun("train resume=trained")
    os.close(lock)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "in use" in outcome.err


def test_a_bug_keeps_its_traceback(metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("metarun.training.build.build", broken)
    outcome = metarun("train")
    assert outcome.code == 1 and "Traceback" in outcome.err and "in broken" in outcome.err
    assert not list(tmp_path.iterdir())


def test_a_refusal_while_training_is_one_line(metarun: Metarun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise UserError("last.pt: cannot be written")

    monkeypatch.setattr("metarun.commands.train.train", full)
    outcome = metarun(f"train {TINY}")
    assert (outcome.code, outcome.err) == (2, "metarun: last.pt: cannot be written\n")


LEARNER = """
from metarun.algorithms.protonet import ProtoNet
from metarun.backbones.conv4 import Conv4


class Mine(ProtoNet):
    def __init__(self, backbone, spec, temperature: float = 1.0) -> None:
        super().__init__(backbone, spec, scale=1 / temperature)


class Net(Conv4):
    pass
"""


@pytest.mark.parametrize("way", ["--config-dir groups", "hydra.searchpath=[file://groups]"])
def test_own_groups_and_classes(metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    (tmp_path / "mine.py").write_text(LEARNER)
    (tmp_path / "groups/algorithm").mkdir(parents=True)
    (tmp_path / "groups/algorithm/mine.yaml").write_text("_target_: mine.Mine\n_partial_: true\ntemperature: 2.0\n")
    (tmp_path / "groups/backbone").mkdir()
    (tmp_path / "groups/backbone/net.yaml").write_text("defaults: [conv4]\n_target_: mine.Net\n")
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    assert "'hot' is not a float" in metarun(f"train {way} algorithm=mine algorithm.temperature=hot").err
    outcome = metarun(f"train {way} algorithm=mine backbone=net {TINY} hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert metarun("evaluate run=run protocol.episodes=2").code == 0  # the group itself is no longer needed
    assert metarun(f"evaluate run=run {way} algorithm.temperature=3").code == 0


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

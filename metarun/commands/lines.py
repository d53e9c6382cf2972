"""What a training run says of itself: first what it is, last where it lies."""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from metarun.algorithms.base import FewShotLearner
from metarun.config.schema import word
from metarun.nn.device import Device
from metarun.nn.layers import Film
from metarun.text.units import counted
from metarun.training.build import Config

MORE_EPISODES = 10_000
"""Of a test that leaves an interval narrow enough to compare methods by."""


def first_line(
    cfg: Config, learner: FewShotLearner, classes: int, device: Device, begun: int | None, run_dir: Path, choices: Mapping[str, str]
) -> str:
    """Names what is trained, on what, where and for how long.

    classes: that are trained on; begun: the step that a resumed run goes on from, None for a new run; choices: of groups, where known.
    """
    task, steps = cfg["task"], cfg["steps"]
    algorithm, dataset = (choices.get(group) or cfg[group]["_target_"].split(".")[-2] for group in ("algorithm", "dataset"))
    tasks = f"{task['ways']}-way {task['shots']}-shot"
    seen = f"{counted(classes, 'class', 'classes')}, mini-batches of {task['batch']}" if learner.supervised_steps is None else tasks
    still = frozen(learner)
    weights = counted(learned(learner), "parameter") + (f", {still:,} frozen" if still else "")
    span = counted(steps, "step") if begun is None else f"steps {begun:,} to {steps:,}"
    return f"{algorithm} on {dataset}, {seen}, {weights}, {device.torch} {device.precision}, {span} -> {short(run_dir)}"


def last_lines(run_dir: Path) -> Iterator[str]:
    """Where the run lies, and two commands that go on from it."""
    folder = short(run_dir)
    yield f"the run is in {folder}"
    yield f"  metarun report {shlex.quote(str(folder))}"
    yield f"  metarun evaluate {word('run', folder)} protocol.episodes={MORE_EPISODES}"


def learned(learner: FewShotLearner) -> int:
    """How many parameters training changes."""
    return sum(parameter.numel() for parameter in learner.parameters() if parameter.requires_grad)


def frozen(learner: FewShotLearner) -> int:
    """How many parameters nothing changes; the context of a FiLM layer is changed by the inner loop, though by no step of training."""
    contexts = {id(module.context) for module in learner.modules() if isinstance(module, Film)}
    return sum(parameter.numel() for parameter in learner.parameters() if not parameter.requires_grad and id(parameter) not in contexts)


def short(folder: Path) -> Path:
    """The folder as seen from where the command was given, if it lies below."""
    here = Path.cwd()
    return folder.relative_to(here) if folder != here and folder.is_relative_to(here) else folder

"""What a study came to: the recipe of its best trial, and a table of the trials."""

import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from metarun.config import compose
from metarun.runs.files import whole
from metarun.sweeps.tune.space import Space
from metarun.sweeps.tune.trials import latest
from metarun.text.grid import Column, grid

SHOWN = 10
"""Trials in the table."""
STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed", TrialState.RUNNING: "running"}


def outcome(trial: FrozenTrial) -> str:
    """What became of a trial, in a few words."""
    if trial.state == TrialState.FAIL:
        return f"failed: {trial.user_attrs.get('error', 'interrupted')}"
    accuracy = f"val accuracy {trial.value:.2f} %"
    return f"stopped at step {trial.last_step}, {accuracy}" if trial.state == TrialState.PRUNED else accuracy


def ranking(trials: Sequence[FrozenTrial]) -> list[tuple[int, FrozenTrial]]:
    """The trials with their numbers, the best of the finished ones first, then those that were pruned, then all others."""
    order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1}
    return sorted(latest(trials).items(), key=lambda item: (order.get(item[1].state, 2), -(item[1].value or 0.0), item[0]))


def table(trials: Sequence[FrozenTrial], space: Space) -> Iterator[str]:
    """The best trials, a line each."""
    numbers = ("trial", "val accuracy")
    names = ("trial", "val accuracy", "state", *space.dimensions)
    rows = []
    for number, trial in ranking(trials)[:SHOWN]:
        accuracy = f"{trial.value:.2f} %" if trial.value is not None else ""
        values = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in trial.params.items()}
        rows.append({"trial": str(number), "val accuracy": accuracy, "state": STATES.get(trial.state, "waiting"), **values})
    lines, _ = grid([Column(name, right=name in numbers) for name in names], rows)
    yield from lines


def command(folder: Path, space: Space, args: Namespace) -> str:
    """The command that trains and tests the best trial's recipe."""
    places = [word for word in space.fixed if word.startswith("hydra.searchpath=")]
    if args.config_dir:  # the study's takes its place
        places = [f'hydra.searchpath=["file://{Path(args.config_dir).resolve()}"]']
    return shlex.join(["metarun", "train", "--config-dir", str(folder), *places, "experiment=best"])


def write_recipe(folder: Path, space: Space, args: Namespace, number: int, best: FrozenTrial) -> None:
    """Writes `folder/experiment/best.yaml`, whole at every moment."""
    lines = [
        "# @package _global_",
        f"# {command(folder, space, args)}",
        f"# Accuracy on validation: {best.value:.2f} %, the best of the finished trials. Trial {number} of the study {folder}.",
    ]
    path = folder / "experiment" / "best.yaml"
    path.parent.mkdir(exist_ok=True)
    with whole(path) as file:
        file.write("\n".join([*lines, recipe(space.words(best.params), args)]).encode())


def recipe(words: Sequence[str], args: Namespace) -> str:
    """The words of `metarun train` as a file in `experiment/` has them: groups in the defaults list, then values."""
    where = compose.with_config_dir(Namespace(overrides=list(words), config_dir=args.config_dir))
    values, added, chosen = OmegaConf.create(), list[object](), list[object]()
    with compose.initialised():
        for override in compose.parse(list(words)):
            key, value = override.key_or_group, override.value()
            if override.is_hydra_override():
                continue
            if isinstance(value, dict) or not compose.options("train", key, where):
                OmegaConf.update(values, key, value, force_add=True)
            elif key == "experiment":
                added += [choice for choice in (value if isinstance(value, list) else [value]) if choice is not None]
            elif override.is_add():
                added.append({f"/{override.get_key_element()[1:]}": value})
            else:
                chosen.append({f"override /{override.get_key_element()}": value})
    defaults = OmegaConf.to_yaml(OmegaConf.create({"defaults": [*added, "_self_", *chosen]}))
    return defaults + (f"\n{OmegaConf.to_yaml(values)}" if values else "")

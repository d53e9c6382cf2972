"""Where a run comes from: the commands behind it, and what sets it apart from its recipe."""

import json
import shlex
from argparse import Namespace
from collections.abc import Mapping
from functools import cache
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.changes import GROUPS_OF_A_TEST
from metarun.config.compose import compose
from metarun.config.schema import flat, path_text, shown
from metarun.errors import UserError
from metarun.runs.catalogue import Found
from metarun.runs.records import Record

NO_PART = ("resume", "_partial_", "_convert_")


def training_command(run: Found) -> str | None:
    """The line that began the run; None if that was not recorded."""
    try:
        words = OmegaConf.to_container(OmegaConf.load(run.folder / ".hydra/overrides.yaml"))
    except (OSError, ValueError, OmegaConfBaseException):
        return None
    return shlex.join(["metarun", "train", *map(str, words)]) if isinstance(words, list) else None


def test_command(run: Found, record: Record) -> str:
    """The line that repeats a test: what its configuration has that the run's own has not."""
    own = flat(run.config)
    other = {key: value for key, value in flat(record.values["config"]).items() if key.partition(".")[0] in GROUPS_OF_A_TEST}
    words, target = [], str(other["dataset._target_"])
    if target != own["dataset._target_"]:  # another dataset: chosen by its file, which is named like the module
        words = [f"dataset={target.split('.')[-2]}"]
        own = {key: value for key, value in own.items() if not key.startswith("dataset.")}
        own |= {key: None for key in other if key.startswith("dataset.") and key.rpartition(".")[2] not in ("_target_", *NO_PART)}
    other = {key: value for key, value in other.items() if key in own}
    words += [f"{key}={written(value)}" for key, value in other.items() if value != own[key]]
    return shlex.join(["metarun", "evaluate", f"run={path_text(run.folder)}", *words])


def recipe(run: Found) -> str:
    """What the run is compared with: its published setting, or the groups that it chose."""
    experiment = run.choices.get("experiment")
    return f"experiment={experiment}" if experiment else " ".join(f"{group}={choice}" for group, choice in chosen(run))


def differences(run: Found) -> list[tuple[str, str, str]] | None:
    """Key, the recipe's value and the run's, where these are not the same; None if the recipe is not among the groups here.

    Keys that the run does not have are left out: another choice of a group has others, and so have other versions.
    """
    experiment = run.choices.get("experiment")
    words = (f"experiment={experiment}",) if experiment else tuple(f"{group}={choice}" for group, choice in chosen(run))
    plain = composed(words)
    if plain is None:
        return None
    own = flat(run.config)
    keys = [key for key in own if key.rpartition(".")[2] not in NO_PART]
    return [(key, text(plain, key), text(own, key)) for key in keys if plain.get(key) != own[key]]


def chosen(run: Found) -> list[tuple[str, str]]:
    return [(group, choice) for group, choice in sorted(run.choices.items()) if choice and group != "experiment"]


@cache
def composed(words: tuple[str, ...]) -> dict[str, Any] | None:
    """The flat values that `metarun train` has by these words alone, `???` for what has to be given; None if they do not compose."""
    try:
        cfg: Any = OmegaConf.to_container(compose("train", Namespace(overrides=list(words), config_dir=None)), resolve=True)
    except (HydraException, OmegaConfBaseException, UserError):
        return None
    return flat(cfg)


def text(values: Mapping[str, Any], key: str) -> str:
    """A value as it is written; a dash where there is none."""
    return "–" if values.get(key, "???") == "???" else written(values[key])


def written(value: Any) -> str:
    """A value as the command line takes it."""
    return json.dumps(value, separators=(",", ":")).replace('"', "") if isinstance(value, list | dict) else shown(value)

"""The configuration of an earlier run, changed by a few overrides: what `evaluate run=` and `train resume=` work with."""

import logging
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.aliases import renamed
from metarun.config.compose import compose, parse, values
from metarun.config.keys import FREE_ON_RESUME, ROLES, differences, same
from metarun.config.schema import flat, shown
from metarun.errors import UserError

log = logging.getLogger("metarun")
RUN_KEY = {"evaluate": "run", "train": "resume"}
GROUPS_OF_A_TEST = ("protocol", "task", "dataset", "device", "algorithm")
SEEN_BY_THE_NETWORK = ("image_size", "in_channels", "mean", "std")  # of images: another dataset's are made like those of the run
SINCE_ADDED: dict[str, Any] = {
    **{"train_split": "train", "keep_best": 1, "test": True, "task.augment": False, "task.batch": 64},
    **{"protocol.ensemble": 1, "protocol.diagnostics": 0, "protocol.views": 1},
    **{"backbone.padding": 1, "backbone.pooled": None, "backbone.dropout": 0.0},
}
"""Keys that the oldest runs do not have, with what they did."""


def evaluated(args: Namespace) -> tuple[dict[str, Any], Path]:
    """The config and the folder of `run=`, changed where the overrides say so."""
    run_dir = folder_of("run", args)
    saved, choices = saved_config(run_dir)
    config, given = changed("evaluate", saved, choices, args)
    for key in given:
        if key.partition(".")[0] not in GROUPS_OF_A_TEST:
            raise UserError(f"{key}: not allowed here; evaluate changes {', '.join(GROUPS_OF_A_TEST)}, all else is as it was trained")
    if "dataset" in given:
        for key in SEEN_BY_THE_NETWORK:
            if f"dataset.{key}" not in given and key in config.dataset and key in saved["dataset"]:
                OmegaConf.update(config, f"dataset.{key}", saved["dataset"][key], merge=False)
    tested = values(config)
    for group in choices.keys() & given.keys():
        if aside := set_aside(group, saved, tested, given):
            log.warning("%s=%s sets aside what the run had: %s", group, given[group], ", ".join(aside))
    return tested, run_dir


def set_aside(group: str, saved: Mapping[str, Any], tested: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """The run's values of a group, as words of the command line, that another choice of the group replaces or drops."""
    before, now = flat({group: saved[group]}), flat({group: tested[group]})
    unlike = {key: value for key, value in before.items() if key not in given and not (key in now and same(value, now[key]))}
    return [f"{key}={shown(value)}" for key, value in unlike.items() if not key.rpartition(".")[2].startswith("_")]


def resumed(args: Namespace) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """The config, the choices and the folder of `resume=`.

    What is only looked at, and how and where it is computed, may change; a run whose schedule does not end with it may be made longer.
    Raises UserError if an override asks for anything else than the run has.
    """
    run_dir = folder_of("resume", args)
    saved, choices = saved_config(run_dir)
    config, given = changed("train", saved, choices, args)
    now = values(config)
    kept = differences(saved, now, ROLES - FREE_ON_RESUME)
    longer = "steps" in kept and now["steps"] > saved["steps"] and kept.pop("steps")
    for key in given:
        if key in choices and any(name.startswith(f"{key}.") for name in kept):
            raise unlike(key, choices[key], given[key])
        if key in kept:
            raise unlike(key, *kept[key])
    for key, (was, value) in kept.items():  # it follows from what was given
        if longer:
            raise UserError(f"steps: {now['steps']} is not allowed; {key} follows from it, so the run keeps its {saved['steps']} steps")
        raise unlike(key, was, value)
    return {**now, "resume": str(run_dir)}, choices, run_dir


def unlike(key: str, was: Any, value: Any) -> UserError:
    return UserError(f"{key}: the run was started with {was}, not {value}; a resumed run keeps its configuration")


def folder_of(name: str, args: Namespace) -> Path:
    """The folder that `run=` or `resume=` names."""
    given = [override.value() for override in parse(args.overrides) if override.key_or_group == name]
    if not given or given[-1] in (None, ""):
        raise UserError(f"{name}: a run folder is needed; {name}=RUN_DIR")
    folder = Path(str(given[-1]))
    if not folder.is_dir():
        raise UserError(f"{name}: {folder} is no folder; expected a run folder")
    return folder


def saved_config(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values and the group choices that the run's checkpoint carries."""
    from metarun.runs.checkpoint import load_config, newest

    saved = load_config(run_dir, newest(run_dir))
    return completed(saved["config"]), saved["choices"]


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the keys that it does not have because it is older than they are."""
    config = renamed(config)
    groups = {group: {**_added(f"{group}."), **config[group]} for group in ("task", "protocol")}
    return {**{key: value for key, value in SINCE_ADDED.items() if "." not in key}, **config, **groups}


def _added(group: str) -> dict[str, Any]:
    return {key.removeprefix(group): value for key, value in SINCE_ADDED.items() if key.startswith(group)}


def changed(command: str, saved: dict[str, Any], choices: dict[str, Any], args: Namespace) -> tuple[DictConfig, dict[str, Any]]:
    """The saved config with the overridden nodes taken from a fresh composition; and what was overridden: group choices and values."""
    fresh = compose(command, args, {group: choice for group, choice in choices.items() if group != "experiment"})
    config = OmegaConf.create(saved)
    follow(config, fresh)
    given: dict[str, Any] = {}
    for override in parse(args.overrides):
        key = override.key_or_group.replace("/", ".")
        if key in (RUN_KEY[command], "hydra.searchpath"):  # say where things are, not what is done
            continue
        if key in choices and override.value() == choices[key]:  # the run's own: its values are saved, and stay
            continue
        if override.is_delete() or override.package or key.startswith("hydra.") or not has(fresh, key) or new(override, config):
            raise UserError(f"{override.input_line}: only choices and values of the run's own configuration can be given here")
        node = OmegaConf.select(fresh, key)
        OmegaConf.update(config, key, OmegaConf.to_container(node) if OmegaConf.is_config(node) else node, merge=False, force_add=True)
        given[key] = override.value() if key in choices else node
    return config, given


def new(override: Override, config: DictConfig) -> bool:
    """Whether an override with + adds a key that the config does not have."""
    return (override.is_add() or override.is_force_add()) and not has(config, override.key_or_group.replace("/", "."))


def has(config: DictConfig, key: str) -> bool:
    """Whether the config has a value under this key, null included."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return OmegaConf.is_dict(node) and name in node


def follow(config: DictConfig, fresh: DictConfig) -> None:
    """Puts an interpolation back where it gives the saved value: a changed `task.shots` then changes `protocol.shots` with it."""
    for key, interpolation in interpolations(fresh):
        before = OmegaConf.select(config, key, default=None)
        if before is None:
            continue
        OmegaConf.update(config, key, interpolation, merge=False)
        try:
            same = OmegaConf.select(config, key) == before
        except OmegaConfBaseException:  # it points at what the saved config does not have
            same = False
        if not same:
            OmegaConf.update(config, key, before, merge=False)


def interpolations(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The full key and the text of every interpolated value."""
    texts: Any = OmegaConf.to_container(node)
    for key in (str(key) for key in node):
        if OmegaConf.is_interpolation(node, key):
            yield prefix + key, texts[key]
        elif not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node[key]):
            yield from interpolations(node[key], f"{prefix}{key}.")

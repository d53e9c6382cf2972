"""Configurations from `conf/`: composing them, and what keys they have."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from omegaconf import DictConfig, OmegaConf

from metarun.config.refusals import no_such_choice, unknown_key
from metarun.config.schema import GROUPS, flat, shown
from metarun.errors import UserError

# Hydra 1.4 deprecates `version_base`; 1.3 needs it to behave like 1.3.
VERSION: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


def conf_dir() -> Path:
    """The folder of the groups: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(folder for folder in (package / "conf", package.parent / "conf") if (folder / "train.yaml").is_file())


def compose(command: str, args: Namespace, choices: dict[str, str | None] | None = None, with_hydra: bool = False) -> DictConfig:
    """Composes a command's config from its overrides; `choices` stand in for the groups that the overrides leave alone.

    with_hydra: Hydra's own node too, which knows the folder of a run.
    """
    overrides = with_config_dir(args)
    given = {override.key_or_group for override in parse(overrides)}
    with initialised():
        # A group of the user's own is not there without their --config-dir; its saved values are, and that is enough.
        kept = [
            f"{group}={choice}"
            for group, choice in (choices or {}).items()
            if group not in given and choice in options(command, group, overrides)
        ]
        return hydra.compose(command, overrides=[*kept, *overrides], return_hydra_config=with_hydra)


def initialised() -> AbstractContextManager[Any]:
    """Hydra with the folder of the groups, as long as the context lasts."""
    return hydra.initialize_config_dir(str(conf_dir()), job_name="metarun", **VERSION)


def with_config_dir(args: Namespace) -> list[str]:
    """The overrides, --config-dir among them: composing by itself does not know the flag."""
    if not args.config_dir:
        return list(args.overrides)
    folder = Path(args.config_dir).resolve()
    if not folder.is_dir():
        raise UserError(f"--config-dir: {folder} is no folder")
    return [f"hydra.searchpath=['file://{folder}']", *args.overrides]


def options(command: str, group: str, overrides: list[str]) -> list[str]:
    """The choices of a group, wherever the overrides say that groups are."""
    where = [word for word in overrides if word.startswith("hydra.searchpath=")]
    found: list[str] = GlobalHydra.instance().config_loader().get_group_options(group, config_name=command, overrides=where)
    return found


def require_choices(command: str, args: Namespace) -> None:
    """Raises UserError for a group that the overrides leave without a choice, or give a number, both of which Hydra takes for a bug."""
    for override in parse(args.overrides):
        group, value = override.key_or_group, override.value()
        tried = value.list if isinstance(value, ChoiceSweep) else [value]
        if group not in GROUPS or not (wrong := [choice for choice in tried if choice is None or isinstance(choice, (int, float))]):
            continue
        with initialised():
            allowed = options(command, group, with_config_dir(args))
        if wrong[0] is None:
            raise UserError(f"{group}: a choice is needed; allowed: {', '.join(allowed)}")
        raise UserError(no_such_choice(group, shown(wrong[0]), allowed))


def parse(overrides: list[str]) -> list[Override]:
    """The overrides as Hydra's own grammar understands them."""
    return list(OverridesParser.create().parse_overrides(overrides))


def values(cfg: DictConfig) -> dict[str, Any]:
    """Plain values, interpolations resolved."""
    result = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(result, dict)
    return {str(key): value for key, value in result.items()}


def run_values(cfg: DictConfig, command: str = "train") -> dict[str, Any]:
    """The values of a training run, and those that `command` has beside them.

    Raises UserError for a key that nothing reads, wherever it came from.
    """
    found = values(of_run(cfg))
    refuse_unknown(found, command)
    return found


def refuse_unknown(found: Mapping[str, Any], command: str) -> None:
    """Raises UserError for the first key of the root, or of a node without a constructor, that `conf/` does not have."""
    if isinstance(found.get("experiment"), Mapping):
        raise UserError("experiment: its values change nothing; a recipe begins with the line '# @package _global_'")
    for node, known in shipped_keys(command).items():
        prefix = f"{node}." if node else ""
        for key in found[node] if node else found:
            if key not in known:
                raise UserError(unknown_key(f"{prefix}{key}", lambda without: [name for name in flat(found) if name != without]))


@cache
def shipped_keys(command: str) -> Mapping[str, frozenset[str]]:
    """The keys of the root (under "") and of the nodes without a constructor, as the files in `conf/` have them."""
    root: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"))
    groups = [str(group) for entry in root["defaults"] if isinstance(entry, Mapping) for group in entry]
    own: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / f"{command}.yaml"))
    found = {"": frozenset({*map(str, root), *map(str, own), *groups} - {"defaults", "experiment"})}
    for node in ("task", "protocol", "device"):
        files = [OmegaConf.load(path) for path in (conf_dir() / node).glob("*.yaml")]
        found[node] = frozenset(str(key) for file in files for key in file if key != "defaults")
    return found | {node: frozenset(own[node]) for node in own.keys() - root.keys()}


def of_run(cfg: DictConfig) -> DictConfig:
    """What is a training run's own of a config: all but Hydra's node and what belongs to the sweep that it may be part of."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in ("hydra", "sweep")])


def unswept(overrides: list[str]) -> list[str]:
    """The overrides that give one value, and not several to try."""
    return [str(override.input_line) for override in parse(overrides) if not override.is_sweep_override()]


def known_keys(command: str, args: Namespace, without: str) -> list[str]:
    """Every key of the config and every group that the command line would compose without the override `without`."""
    rest = [override.input_line for override in parse(unswept(args.overrides)) if override.key_or_group != without]
    cfg = compose(command, Namespace(overrides=rest, config_dir=args.config_dir))
    return list(keys(cfg))


def keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """The full keys of a config, inner nodes included."""
    for key in (str(key) for key in node):
        yield prefix + key
        if not OmegaConf.is_missing(node, key) and not OmegaConf.is_interpolation(node, key) and OmegaConf.is_dict(node[key]):
            yield from keys(node[key], f"{prefix}{key}.")

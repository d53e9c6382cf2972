"""Configurations behind a table, composed once each."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from metarun.config import compose
from metarun.config.refusals import in_one_line
from metarun.config.schema import quoted, shown


@dataclass(frozen=True)
class Recipe:
    """A composed configuration: `values` are resolved, `plain` has its interpolations as text, `choices` are those of its groups."""

    words: tuple[str, ...]
    values: Mapping[str, Any]
    plain: Mapping[str, Any]
    choices: Mapping[str, str]


@cache
def composed(words: tuple[str, ...], config_dir: str | None = None) -> Recipe:
    """What `metarun train WORDS` would do. Raises UserError."""
    args = Namespace(overrides=list(words), config_dir=config_dir)
    with in_one_line(lambda without: compose.known_keys("train", args, without)):
        config = compose.compose("train", args, with_hydra=True)
        choices = {group: choice for group, choice in config.hydra.runtime.choices.items() if not str(group).startswith("hydra/")}
        plain: Any = OmegaConf.to_container(compose.of_run(config))
        return Recipe(words, compose.run_values(config), plain, choices)


@cache
def experiments(config_dir: str | None = None) -> tuple[str, ...]:
    """The experiments there are, the user's own included."""
    with compose.initialised():
        return tuple(compose.options("train", "experiment", compose.with_config_dir(Namespace(overrides=[], config_dir=config_dir))))


def text(value: Any) -> str:
    """A value in Hydra's grammar, as short as can be."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {text(part)}' for key, part in value.items())}}}"
    if isinstance(value, str) and not (value and all(c.isalnum() or c in "_-+./" for c in value)):
        return quoted(value)
    return shown(value)

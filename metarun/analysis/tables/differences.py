"""How a run's configuration differs from what a cell asks for, or from a recipe."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import OmegaConf

from metarun.analysis.tables.recipe import composed, text
from metarun.config.changes import SINCE_ADDED
from metarun.config.keys import augments
from metarun.config.schema import flat
from metarun.errors import UserError

# No part of what is trained: randomness that is counted as such, where and how it is done, what is only looked at. The protocol decides
# about the test, whose record carries it.
ASIDE = (
    *(
        "seed",
        "resume",
        "test",
        "sweep",
        "protocol",
        "tasks_per_chunk",
        "algorithm.recompute",
        "log_every",
        "checkpoint_every",
        "keep_best",
    ),
    *("device._target_", "device.name", "device.threads", "device.keep_memory", "device.deterministic"),
    *("dataset.root", "dataset.residency", "dataset.download"),
)
OF_SELECTION = ("val_every", "protocol.val_episodes")  # nothing depends on them where the last checkpoint is tested
UNSET = "unset"
SWAPPED = ("optimizer", "scheduler")  # groups whose choice may differ from the recipe's; with another algorithm it would be another cell


@dataclass(frozen=True)
class Difference:
    """A key, or a group, whose value is not the recipe's."""

    key: str
    value: str
    recipe: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


def differences(
    values: Mapping[str, Any], choices: Mapping[str, str], words: tuple[str, ...], config_dir: str | None = None
) -> tuple[Difference, ...]:
    """How a run's configuration differs from what the words compose to. What only follows from a difference is none: `protocol.ways`
    follows `task.ways`, and another scheduler has keys of its own.
    """
    reference, found = composed(words, config_dir), []
    for group in SWAPPED:
        chosen, usual = choices.get(group), reference.choices[group]
        if chosen in (None, usual) or not unlike(values, reference.values, f"{group}."):  # the same by another name
            continue
        found.append(Difference(group, chosen, usual))
        try:
            reference = composed((*reference.words, f"{group}={chosen}"), config_dir)
        except UserError:  # a choice of somebody else's: its keys are compared one by one
            continue
    config, theirs = OmegaConf.create(deepcopy(dict(reference.plain))), flat(values)
    following = {key for key, value in flat(reference.plain).items() if isinstance(value, str) and "${" in value}
    for key in set(flat(reference.plain)).intersection(theirs) - following:
        OmegaConf.update(config, key, theirs[key], merge=False, force_add=True)
    resolved: Any = flat(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    expected = unflat({**flat(reference.values), **{key: resolved[key] for key in following}})
    selection = values["protocol"]["selection"]
    if not augments(values) and not augments(expected):  # then its transforms are used nowhere
        expected = {**expected, "dataset": {**expected["dataset"], "augment": values["dataset"].get("augment", ())}}
    found += [Difference(key, *map(text, pair)) for key, pair in sorted(unlike(values, expected).items()) if not is_aside(key, selection)]
    return tuple(found)


def unlike(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The values of two configs where they differ, by their dotted keys. A key that one does not have, because it was begun before there
    was such a key or its file leaves it out, has the value that its constructor takes then, or UNSET.
    """
    sides, found = (flat(ours), flat(theirs)), {}
    for key in {*sides[0], *sides[1]}:
        if key.startswith(prefix):
            pair = tuple(side[key] if key in side else left_out(node, key) for side, node in zip(sides, (ours, theirs), strict=True))
            if pair[0] != pair[1]:
                found[key] = (pair[0], pair[1])
    return found


def left_out(values: Mapping[str, Any], key: str) -> Any:
    """The value of a key that is not there."""
    group, _, name = key.rpartition(".")
    node = values.get(group, {})
    if key in SINCE_ADDED or is_aside(key) or "_target_" not in node:
        return SINCE_ADDED.get(key, UNSET)
    try:
        default = signature(get_object(node["_target_"])).parameters[name].default
    except (HydraException, ImportError, ValueError, KeyError):  # somebody else's class, or one that has no such key
        return UNSET
    return UNSET if default is Parameter.empty else default


def is_aside(key: str, selection: str = "last") -> bool:
    """Whether nothing that is trained depends on a key, where the checkpoint to be tested is selected so."""
    if key in OF_SELECTION:
        return selection == "last"
    return any(key == name or key.startswith(f"{name}.") for name in ASIDE)


def unflat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config whose values these are."""
    config = OmegaConf.create()
    for key, value in values.items():
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    found: Any = OmegaConf.to_container(config)
    return dict(found)

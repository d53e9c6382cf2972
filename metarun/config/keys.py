"""What every key of a config means: one role each. Every question of which keys count is a set of roles, asked of `differences`.

`seed`        randomness that is counted as such
`method`      what is learned, from what tasks, by what steps
`data`        what the tasks are, in training and test: which examples there are and how they are seen
`link`        a path whose content counts
`selection`   which of the models on the way is kept
`evaluation`  how models are evaluated, in validation and test
`test`        what is tested in the end
`logging`     what is only looked at or kept
`compute`     how and where it is computed, for the same numbers but for rounding; where things lie
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from metarun.config.aliases import renamed
from metarun.config.schema import flat

Role = Literal["seed", "method", "data", "link", "selection", "evaluation", "test", "logging", "compute"]
ROLES: frozenset[Role] = frozenset(get_args(Role))

FREE_ON_RESUME: frozenset[Role] = frozenset(("logging", "compute"))
"""What may change when a run goes on. Other threads or another device round differently, so the same bytes hold without a change."""

PLACES = ("root", "download", "residency", "workers")
"""Keys that are `compute` in every node: a source or an environment from outside has the right role for its path by its name."""

PREFIXES: Mapping[str, Role] = {
    "seed": "seed",
    **dict.fromkeys(("algorithm", "backbone", "optimizer", "scheduler", "update", "task", "sampler"), "method"),
    **dict.fromkeys(("steps", "tasks_per_step", "clip_value", "clip_norm", "train_split"), "method"),
    **dict.fromkeys(("device.precision", "dataset.augment", "dataset.rotations.train"), "method"),
    **dict.fromkeys(("dataset", "environment"), "data"),
    **dict.fromkeys(("algorithm.teacher.run", "backbone.module.weights", "init"), "link"),
    **dict.fromkeys(("val_every", "patience", "keep_best", "protocol.val_episodes"), "selection"),
    "protocol": "evaluation",
    **{f"protocol.{key}": "test" for key in ("split", "episodes", "selection", "ensemble", "allow_overlap")},
    **dict.fromkeys(("log_every", "checkpoint_every", "test", "protocol.diagnostics", "sweep", "logger"), "logging"),
    **dict.fromkeys(("device", "tasks_per_chunk", "resume", "run", "hydra"), "compute"),
    **dict.fromkeys(("algorithm.recompute", "optimizer.fused", "task.named_by", "task.label"), "compute"),
}
"""The roles of all keys that begin so; of several prefixes the longest decides."""


def role(key: str) -> Role | None:
    """The role of a dotted key, by the longest prefix of its parts; None for a key of nobody's."""
    parts = key.split(".")
    if len(parts) > 1 and parts[-1] in PLACES:
        return "compute"
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((PREFIXES[prefix] for prefix in prefixes if prefix in PREFIXES), None)


def differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], roles: Collection[Role], missing: Any = None
) -> dict[str, tuple[Any, Any]]:
    """Both values of every key whose role is among `roles` and whose value differs, in the order of the keys.

    A class counts by its name of today, and how Hydra converts its arguments does not. A key that one config lacks has the value
    `missing` there.
    """
    sides = [flat(renamed(config)) for config in (ours, theirs)]
    pairs = {key: (sides[0].get(key, missing), sides[1].get(key, missing)) for key in sorted({*sides[0], *sides[1]})}
    return {key: pair for key, pair in pairs.items() if not same(*pair) and not key.endswith("_convert_") and role(key) in roles}


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values of a key are one: numbers by their size, lists item by item, true and 1 not."""
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs) and isinstance(ours, bool) == isinstance(theirs, bool)


def selects(config: Mapping[str, Any]) -> bool:
    """Whether validation decides which model is tested. Otherwise the role `selection` counts nowhere."""
    protocol = config["protocol"]
    return protocol["selection"] == "best_val" or protocol.get("ensemble", 1) > 1 or config.get("patience") is not None


def augments(config: Mapping[str, Any]) -> bool:
    """Whether anything is made of `dataset.augment`, in training or in the test."""
    task, protocol = config.get("task", {}), config.get("protocol", {})
    return bool(config.get("algorithm", {}).get("augment") or task.get("augment") or protocol.get("views", 1) > 1)


def idle(config: Mapping[str, Any]) -> set[str]:
    """The keys that nothing reads under this config."""
    unread = set() if augments(config) else {"dataset.augment"}
    return unread if config.get("val_every") else {*unread, "protocol.val_episodes"}

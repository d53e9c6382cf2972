"""Names of before: what a saved config calls a class that has moved since, and keys that have gone. An entry stays."""

from collections.abc import Mapping
from typing import Any

MOVED = {
    "metarun.teacher.Teacher": "metarun.algorithms.teacher.Teacher",
    "metarun.algorithms.heads.SGD": "metarun.algorithms.solvers.heads.SGD",
}
BEFORE = {new: old for old, new in MOVED.items()}
WITH_WAYS = {
    "metarun.algorithms.maml.MAML",
    "metarun.algorithms.meta_sgd.MetaSGD",
    "metarun.algorithms.maml_plus_plus.MAMLPlusPlus",
    "metarun.algorithms.reptile.Reptile",
}
"""Algorithms whose node had the number of classes too, as `ways`; it was that of `task`."""


def renamed(node: Any) -> Any:
    """A config, or what holds one, by the names of today; keys that have gone are left out."""
    if isinstance(node, Mapping):
        gone = {"ways"} if node.get("_target_") in WITH_WAYS else set()
        return {k: MOVED.get(v, v) if k == "_target_" else renamed(v) for k, v in node.items() if k not in gone}
    return [renamed(item) for item in node] if isinstance(node, list) else node


def of_before(config: Mapping[str, Any]) -> dict[str, Any]:
    """A whole config by the names and keys of before, for a hash that names a folder or a file."""
    old = _with_names_of_before(config)
    algorithm = old.get("algorithm")
    if isinstance(algorithm, dict) and algorithm.get("_target_") in WITH_WAYS:
        old["algorithm"] = {"ways": old["task"]["ways"], **algorithm}
    return old


def _with_names_of_before(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {k: BEFORE.get(v, v) if k == "_target_" else _with_names_of_before(v) for k, v in node.items()}
    return [_with_names_of_before(item) for item in node] if isinstance(node, list) else node

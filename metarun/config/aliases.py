"""Names of before: what a saved config calls a class that has moved since. An entry stays."""

from collections.abc import Mapping
from typing import Any

MOVED = {
    "metarun.teacher.Teacher": "metarun.algorithms.teacher.Teacher",
    "metarun.algorithms.heads.SGD": "metarun.algorithms.solvers.heads.SGD",
}
BEFORE = {new: old for old, new in MOVED.items()}


def renamed(node: Any, names: Mapping[str, str] = MOVED) -> Any:
    """A config with every `_target_` by its name of today; names=BEFORE: of before, for a hash that names a folder."""
    if isinstance(node, Mapping):
        return {k: names.get(v, v) if k == "_target_" else renamed(v, names) for k, v in node.items()}
    return [renamed(item, names) for item in node] if isinstance(node, list) else node

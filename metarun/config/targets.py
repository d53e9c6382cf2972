"""Checks of every `_target_` node against the constructor it names: the constructor is the schema."""

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from numbers import Number
from os import PathLike
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from metarun.config.schema import is_integer, is_number, near, shown
from metarun.errors import UserError

PLURAL = {int: "integers", float: "numbers", str: "strings"}
HYDRAS_OWN = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_", "_execution_whitelist_")


def check_targets(cfg: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError for the first `_target_` that cannot be imported, does not know one of its node's keys, or wants another type."""
    for key, node in cfg.items():
        if isinstance(node, list | tuple):
            node = dict(zip(map(str, range(len(node))), node, strict=True))
        if isinstance(node, Mapping):
            if "_target_" in node:
                check_node(f"{prefix}{key}", node)
            check_targets(node, f"{prefix}{key}.")


def check_node(key: str, node: Mapping[str, Any]) -> None:
    """The constructor is the schema of a node with `_target_`."""
    target = imported(f"{key}._target_", node["_target_"])
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some built-in callables have none to read
        return
    hints = annotations(target)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, value in node.items():
        if name in HYDRAS_OWN:
            continue
        if name not in parameters and not takes_any:
            hint = near(name, parameters, prefix=f"{key}.")
            raise UserError(f"{key}.{name}: no such key; {hint}{node['_target_']} takes {', '.join(parameters)}")
        if name in hints and not is_node(value) and not fits(value, hints[name]) and not (value is None is parameters[name].default):
            raise UserError(f"{key}.{name}: {repr(value) if isinstance(value, str) else shown(value)} is not {expected(hints[name])}")


def imported(key: str, path: Any) -> Callable[..., Any]:
    """The class or function that a `_target_` names."""
    try:
        found = pkgutil.resolve_name(str(path))
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}: {path} cannot be imported ({' '.join(str(error).split())})") from error
    if not callable(found):
        raise UserError(f"{key}: {path} is neither a class nor a function")
    return found


def annotations(target: Callable[..., Any]) -> dict[str, Any]:
    """The resolved annotations of a constructor; none where they cannot be resolved."""
    try:
        return get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):
        return {}


def is_node(value: Any) -> bool:
    """Whether a value will be built by Hydra, and so is not yet what the constructor gets."""
    return isinstance(value, Mapping) and "_target_" in value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from a YAML file is what an annotation asks for; true where that cannot be told."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in inner)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    if hint is None or hint is type(None):
        return value is None
    kind = origin or hint
    if kind in (Any, object) or not inspect.isclass(kind):
        return True
    if value is None:
        return False
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return is_integer(value)
    if kind in (float, Number):
        return is_number(value)
    if issubclass(kind, Enum) or getattr(kind, "_is_protocol", False):
        return True
    if kind is str or issubclass(kind, PathLike):
        return isinstance(value, str)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and (len(inner) < 2 or all(is_node(item) or fits(item, inner[1]) for item in value.values()))
    if issubclass(kind, Sequence):
        if not isinstance(value, list | tuple):
            return False
        hints = list(elements(kind, inner, len(value)))
        return len(hints) == len(value) and all(is_node(item) or fits(item, hint) for item, hint in zip(value, hints, strict=True))
    return not isinstance(value, str | int | float)  # an object of a class that no YAML value can be


def elements(kind: type, inner: tuple[Any, ...], count: int) -> Iterator[Any]:
    """The annotations of a sequence's items."""
    fixed = kind is tuple and inner[-1:] != (Ellipsis,)
    yield from inner if fixed else [inner[0] if inner else Any] * count


def expected(hint: Any) -> str:
    """An annotation in words."""
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(shown, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(expected(option) for option in get_args(hint))
    if get_origin(hint) is Sequence and get_args(hint)[0] in PLURAL:
        return f"a list of {PLURAL[get_args(hint)[0]]}"
    names = {bool: "true or false", int: "an integer", float: "a float", str: "a string", type(None): "null"}
    return names.get(hint) or "a " + (
        str(hint).replace("collections.abc.", "").replace("typing.", "") if get_origin(hint) else getattr(hint, "__name__", str(hint))
    )

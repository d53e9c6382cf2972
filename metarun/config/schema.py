"""Checks of a configuration before torch is imported: ranges and choices of the keys that every run has."""

import difflib
import shlex
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from metarun.errors import UserError

AT_LEAST = {
    "seed": 0, "steps": 1, "tasks_per_step": 1, "val_every": 0, "log_every": 1, "checkpoint_every": 0, "keep_best": 1,
    "task.ways": 2, "task.shots": 1, "task.queries": 1, "task.batch": 1,
    "protocol.episodes": 1, "protocol.ways": 2, "protocol.shots": 1, "protocol.queries": 1, "protocol.val_episodes": 1, "protocol.seed": 0,
    "protocol.ensemble": 1, "protocol.diagnostics": 0, "protocol.views": 1,
}  # fmt: skip
AT_LEAST_OR_NULL = {"tasks_per_chunk": 1, "patience": 1, "device.threads": 1}
AT_MOST = {"device.threads": 1024, "protocol.diagnostics": 64, "protocol.views": 1024}
ALSO_CALLED = {"gpu": "cuda", "nvidia": "cuda", "0": "cuda"}  # other words for a choice, which none of its letters may suggest
LARGEST = 2**63 - 1  # what torch and numpy take for an integer
POSITIVE_OR_NULL = ("clip_value", "clip_norm")
BUILT = ("dataset", "backbone", "algorithm", "optimizer", "scheduler")
GROUPS = ("task", "protocol", "device", *BUILT)
CHOICES: dict[str, tuple[Any, ...]] = {
    "train_split": ("train", "trainval"),
    "test": (True, False),
    "task.augment": (True, False),
    "protocol.split": ("train", "val", "trainval", "test"),
    "protocol.batch_norm": (None, "query", "running", "support", "support+one"),
    "protocol.selection": ("best_val", "last"),
    "protocol.allow_overlap": (True, False),
    "device.name": ("auto", "cpu", "cuda", "mps"),
    "device.precision": ("fp32", "bf16", "fp16"),
    "device.deterministic": (True, False),
    "device.keep_memory": (True, False),
}


def check(cfg: Mapping[str, Any]) -> None:
    """Raises UserError for the first fixed key whose value makes no sense. Imports nothing, so it answers before torch is there."""
    check_integers(cfg)
    for key in POSITIVE_OR_NULL:
        value = get(cfg, key)
        if value is not None and not (is_number(value) and value > 0):
            raise refused(key, value, "a number above 0 or null")
    for key, allowed in CHOICES.items():
        value = get(cfg, key)
        if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in allowed):
            hint = near(str(value), [choice for choice in allowed if isinstance(choice, str)], cutoff=0.9)
            raise UserError(f"{key}: {shown(value)} is not allowed; {hint}expected one of {', '.join(map(shown, allowed))}")
    for group in BUILT:
        get(cfg, f"{group}._target_")
    check_validation(cfg)


def check_integers(cfg: Mapping[str, Any], group: str = "") -> None:
    """Raises UserError for the first integer, of one group or of all, that is out of its range."""
    for key, low in {**AT_LEAST, **AT_LEAST_OR_NULL}.items():
        if not key.startswith(group):
            continue
        value, null, high = get(cfg, key), key in AT_LEAST_OR_NULL, AT_MOST.get(key, LARGEST)
        if null and value is None:
            continue
        if not (is_integer(value) and value >= low):
            raise refused(key, value, f"an integer of at least {low}" + " or null" * null)
        if value > high:
            raise refused(key, value, f"an integer of at most {high}" + " or null" * null)


def check_validation(cfg: Mapping[str, Any]) -> None:
    """Raises UserError for what needs validation in a run without it, and for the one thing that rules it out."""
    members = cfg["protocol"]["ensemble"]
    if members > 1 and cfg["protocol"]["selection"] != "best_val":
        raise UserError(f"protocol.ensemble: {members} is not allowed without protocol.selection=best_val")
    validations = -(-cfg["steps"] // cfg["val_every"]) if cfg["val_every"] else 0
    most = min(cfg["keep_best"], validations)
    if members > max(most, 1):
        raise UserError(
            f"protocol.ensemble: {members} is not allowed; the run keeps {most} (keep_best {cfg['keep_best']}, {validations} validations)"
        )
    if cfg["val_every"]:
        if cfg["train_split"] == "trainval":
            raise UserError("train_split: trainval is not allowed with validation; set val_every=0 and protocol.selection=last")
        return
    if cfg["patience"] is not None:
        raise UserError(f"patience: {cfg['patience']} is not allowed without validation; set val_every or patience=null")
    if cfg["protocol"]["selection"] == "best_val":
        raise UserError("protocol.selection: best_val is not allowed without validation; set val_every or protocol.selection=last")


def refuse_unwritable(key: str, folder: Path) -> None:
    """Raises UserError if `folder` cannot be made: its nearest existing parent has to take a file. Leaves nothing behind."""
    try:
        with TemporaryFile(dir=next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())):
            pass
    except OSError as error:
        raise UserError(f"{key}: {folder} cannot be written ({error.strerror})") from error


def get(cfg: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key. Raises UserError where there is none."""
    value: Any = cfg
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise UserError(f"{key}: a value is needed; {key}=...")
        value = value[name]
    return value


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by their dotted keys; a list is one value."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def quoted(text: str) -> str:
    """Any text, a path say, as a value in Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def path_text(path: Path | str) -> str:
    """A path as a value in Hydra's grammar, plain where it can be."""
    plain = all(character.isalnum() or character in "/._-+" for character in str(path))
    return str(path) if plain else quoted(str(path))


def word(key: str, path: Path | str) -> str:
    """`key=path` for a command that is to be copied into a shell."""
    return shlex.quote(f"{key}={path_text(path)}")


def refused(key: str, value: Any, expected: str) -> UserError:
    return UserError(f"{key}: {shown(value)} is not allowed; expected {expected}")


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def near(word: str, choices: Iterable[str], cutoff: float = 0.6, prefix: str = "") -> str:
    """`did you mean X? ` when one of the choices looks like the word, in whatever case, or is also called so; else nothing."""
    lower = {choice.lower(): choice for choice in choices}
    meant = ALSO_CALLED.get(word.lower())
    found = [meant] if meant in lower else difflib.get_close_matches(word.lower(), lower, n=1, cutoff=cutoff)
    return f"did you mean {prefix}{lower[found[0]]}? " if found else ""


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)

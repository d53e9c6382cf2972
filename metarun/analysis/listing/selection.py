"""Which runs, and in what order: by their state, by keys of their configuration, by columns."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from metarun.analysis.listing.summary import FIELDS, measure, summary
from metarun.config.schema import near, shown
from metarun.errors import UserError
from metarun.runs.catalogue import Found
from metarun.runs.status import STATES

HEADINGS = {"rate": "steps_per_second", "left": "seconds_left", "time": "seconds"}
"""Fields that stand under another name in the text."""


def wanted_states(given: str | None) -> list[str]:
    """The states in a list with commas, all if there is none. Raises UserError for one that there is not."""
    states = [state.strip().replace("-", " ").replace("_", " ") for state in given.split(",")] if given is not None else list(STATES)
    for state in states:
        if state not in STATES:
            raise UserError(f"--state: {state} is not allowed; {near(state, STATES)}expected one of {', '.join(STATES)}")
    return states


def selected(runs: Sequence[Found], filters: Iterable[str]) -> list[Found]:
    """The runs that have all of the `key=value` words, where commas separate values. Raises UserError for a key that no run has."""
    found = list(runs)
    for word in filters:
        key, _, value = word.partition("=")
        refuse_unknown(key, runs)
        found = [run for run in found if any(same(run.value(key), text) for text in (value, *value.split(",")))]
    return found


def same(value: Any, text: str) -> bool:
    """Whether a value of a configuration is what the text says: 0.001 is 1e-3, and [64, 64] is [64,64]."""
    if shown(value) == text or value is None or isinstance(value, str | bool):
        return shown(value) == text
    try:
        return bool(value == json.loads(text))
    except ValueError:
        return False


def ordered(runs: Sequence[Found], by: str | None, number: str | None = None) -> list[Found]:
    """The runs sorted by a column or by a key of their configuration, `-` first for the largest first; those without a value come last.

    `best` sorts by the number of the test, the best first.

    Raises UserError for a key that no run has.
    """
    if by is None:
        return list(runs)
    key = HEADINGS.get(by.removeprefix("-"), by.removeprefix("-"))
    refuse_unknown(key, runs, columns=(*FIELDS, *HEADINGS, "best", *(key for run in runs for key in run.setting)))
    values = {run.folder: _value(run, "test" if key == "best" else key, number) for run in runs}
    there = [run for run in runs if values[run.folder] is not None]
    upwards = key == "best" and bool(there) and measure(there[0], number).higher_is_better
    there.sort(key=lambda run: _place(values[run.folder]), reverse=by.startswith("-") != upwards)
    return there + [run for run in runs if values[run.folder] is None]


def _value(run: Found, key: str, number: str | None) -> Any:
    found = summary(run, number)
    return found[key] if key in found else run.value(key)


def refuse_unknown(key: str, runs: Sequence[Found], columns: Sequence[str] = ()) -> None:
    """Raises UserError for a key that no run has; where there are no runs, none is wrong."""
    if not runs or key in columns or any(run.value(key) is not None for run in runs):
        return
    known = {known for run in runs for known in (*run.choices, *_keys(run.config))}
    if key not in known:  # else it is null in all of them
        raise UserError(f"{key}: no run has such a key; {near(key, sorted({*known, *columns}))}config.json in a run has all of its keys")


def _place(value: Any) -> tuple[bool, float, str]:
    """Numbers by their size, before everything else by its text."""
    return (False, value, "") if isinstance(value, int | float) else (True, 0, shown(value))


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")

"""What the user can mend, in one line each: Hydra's, OmegaConf's and metarun's own exceptions."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from metarun.config.schema import near
from metarun.errors import TrainingError, UserError

LAUNCHERS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
"""The extras that bring launchers."""


def refusal(error: BaseException, known_keys: Callable[[str], Iterable[str]] = lambda without: ()) -> str | None:
    """One line that names the key and what is allowed; None for a bug. `known_keys(key)`: the config's keys without that override."""
    chain = list(causes(error))
    mine = next((cause for cause in chain if isinstance(cause, (UserError, TrainingError))), None)
    if mine is not None:
        return one_line(str(mine))
    for cause in chain:
        if isinstance(cause, MissingConfigException):
            return missing_choice(cause)
        if isinstance(cause, OverrideParseException):
            return f"{cause.override}: not understood; {one_line(cause.message.split('See https')[0])}"
    unknown = re.search(r"Could not (?:override|append to config\.?|delete.*?) '([^']+)'", str(error))
    if isinstance(error, HydraException) and unknown:
        return unknown_key(unknown[1], known_keys)
    if isinstance(error, InstantiationException):
        return refused_value(error)
    value = next((cause for cause in reversed(chain) if isinstance(cause, OmegaConfBaseException)), None)
    if value is not None:
        return bad_value(value)
    return one_line(str(error)) if isinstance(error, HydraException) else None


@contextmanager
def in_one_line(known_keys: Callable[[str], Iterable[str]]) -> Iterator[None]:
    """Raises what the user can mend as a UserError of one line. `known_keys` as for `refusal`."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, UserError) as error:
        line = refusal(error, known_keys)
        if line is None:
            raise
        raise UserError(line) from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__


def missing_choice(error: MissingConfigException) -> str:
    """A group has no such file."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return one_line(str(error))
    options = list(error.options or ())
    if group == "hydra/launcher" and choice in LAUNCHERS:
        return f"{group}={choice}: not installed; pip install 'metarun[{LAUNCHERS[choice]}]' adds it"
    return no_such_choice(group, choice, options)


def no_such_choice(group: str, choice: str, options: Sequence[str]) -> str:
    allowed = f"allowed: {', '.join(options)}" if options else "the group has no choices"
    return f"{group}={choice}: no such choice; {near(choice, options)}{allowed}"


def unknown_key(key: str, known_keys: Callable[[str], Iterable[str]]) -> str:
    """An override names no key of the config."""
    try:
        keys = list(known_keys(key))
    except (HydraException, OmegaConfBaseException, UserError):  # there is more than one mistake: this one is told first
        keys = []
    if key in keys:
        return f"{key}: cannot be left out; it is null already"
    # The last part decides: `inner_lr` means `algorithm.inner_lr`, and `algorithm.inner_lr` of a learner without one means nothing else.
    ends = difflib.get_close_matches(last(key), {last(known) for known in keys}, n=1, cutoff=0.7)
    hint = near(key, [known for known in keys if last(known) in ends], cutoff=0.0)
    return f"{key}: no such key; {hint}".rstrip("; ")


def last(key: str) -> str:
    return key.rpartition(".")[2]


def refused_value(error: InstantiationException) -> str | None:
    """A constructor refused its arguments. Any other exception in it is a bug."""
    if not isinstance(error.__cause__, (TypeError, ValueError)):
        return None
    where = re.search(r"full_key: (\S+)", str(error))
    return f"{where[1] + ': ' if where else ''}{one_line(str(error.__cause__))}"


def bad_value(error: OmegaConfBaseException) -> str:
    """A value is missing, has the wrong type, or refers to nothing."""
    key = error.full_key or ""
    if isinstance(error, MissingMandatoryValue):
        key = key or str(error).rpartition(" ")[2]
        return f"{key}: a value is needed; {key}=..."
    message = one_line((str(error) or type(error).__name__).split("\n")[0])
    return f"{key}: {message}" if key else message


def one_line(text: str) -> str:
    """The lines of a text, joined."""
    return " ".join(text.split())

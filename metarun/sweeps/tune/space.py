"""What `metarun tune` searches: Hydra's grammar of sweeps, read as Optuna's distributions, and the way back from a point to words."""

import math
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep, Transformer
from omegaconf import OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from metarun.config import compose
from metarun.config.refusals import one_line
from metarun.config.schema import is_integer
from metarun.errors import UserError

NOT_HERE = ("test", "resume", "hydra.run.dir")  # what every trial is given anyway
Value = float | int | str
Point = Mapping[str, Value]


@dataclass(frozen=True)
class Space:
    """fixed: the words that all trials share; tuned: those of the node `tune`; dimensions: by key, how its value is distributed.

    A choice is the text behind `=`, so it may be a list, null, or the choice of a group.
    """

    fixed: tuple[str, ...]
    tuned: tuple[str, ...]
    dimensions: Mapping[str, BaseDistribution]

    def words(self, point: Point) -> list[str]:
        """What `metarun train` is told for a point."""
        return [*self.fixed, *(word(key, value) for key, value in point.items())]

    def points(self) -> Iterator[tuple[str, Point]]:
        """First the point of all lowest values and first choices; then for every dimension, named, its other end or choices."""
        first = {key: ends(distribution)[0] for key, distribution in self.dimensions.items()}
        yield "", first
        for key, distribution in self.dimensions.items():
            for value in ends(distribution)[1:]:
                yield key, {**first, key: value}

    def suggest(self, trial: Trial) -> Point:
        return {key: suggested(trial, key, distribution) for key, distribution in self.dimensions.items()}


def read(args: Namespace) -> Space:
    """The space that a command line describes. Raises UserError for what cannot be searched, or if nothing is."""
    overrides = compose.parse(args.overrides)
    for override in overrides:
        refuse(override, overrides)
    swept = [override for override in overrides if override.is_sweep_override()]
    if not swept:
        example = "'optimizer.lr=tag(log,interval(1e-4,1e-1))'"
        raise UserError(f"tune: nothing to search; give a key an interval, a range or choices, like {example}")
    rest = [override for override in overrides if not override.is_sweep_override()]
    fixed = tuple(str(override.input_line) for override in rest if not of_tune(override))
    tuned = tuple(str(override.input_line) for override in rest if of_tune(override))
    dimensions = {override.get_key_element(): distribution(override, args) for override in swept if not override.is_interval_sweep()}
    _, point = next(Space(fixed, tuned, dimensions).points())
    now = compose.compose("train", Namespace(overrides=Space(fixed, tuned, {}).words(point), config_dir=args.config_dir))
    for override in swept:
        if override.is_interval_sweep():
            present = OmegaConf.select(now, override.key_or_group)
            dimensions[override.get_key_element()] = interval(override, integer=is_integer(present))
    return Space(fixed, tuned, {override.get_key_element(): dimensions[override.get_key_element()] for override in swept})


def of_tune(override: Override) -> bool:
    return override.key_or_group.partition(".")[0] == "tune"


def refuse(override: Override, overrides: list[Override]) -> None:
    """Raises UserError for an override that no trial or no recipe could have."""
    key, swept = override.key_or_group, override.is_sweep_override()
    if key in NOT_HERE:
        raise UserError(f"{key}: not allowed here; trials are validated and not tested, in folders below tune.dir")
    if override.is_delete() or any(part.isdecimal() for part in key.split(".")):
        raise UserError(f"{override.input_line}: not allowed here; only choices and values can be part of a recipe")
    if key == "experiment" and "best" in re.findall(r"[\w-]+", override.get_value_string()):
        raise UserError(f"{override.input_line}: not allowed here; the recipe of the best trial has that name, copy this one to another")
    if swept and (of_tune(override) or override.is_hydra_override()):
        raise UserError(f"{key}: cannot be searched; it is no part of a training run")
    if swept and sum(other.key_or_group == key for other in overrides) > 1:
        raise UserError(f"{key}: is searched, so it can be given only once")


def distribution(override: Override, args: Namespace) -> BaseDistribution:
    """Of a range or of choices. Raises UserError if there are none."""
    value: Any = override.value()
    if isinstance(value, RangeSweep):
        return spread(override, value)
    if isinstance(value, Glob):
        with compose.initialised():
            choices = value.filter(compose.options("train", override.key_or_group, compose.with_config_dir(args)))
    else:
        assert isinstance(value, ChoiceSweep)
        if value.tags:
            raise not_allowed(override, "choices take no tag")
        choices = [str(Transformer.str(choice)) for choice in value.list]
    if not choices:
        raise not_allowed(override, "it has no choices")
    return CategoricalDistribution(list(dict.fromkeys(choices)))


def spread(override: Override, value: RangeSweep) -> BaseDistribution:
    """Numbers with a step between them; as everywhere in Hydra, a range does not include its stop."""
    numbers = value.range()
    ordered = sorted((numbers[0], numbers[-1])) if isinstance(numbers, range) and numbers else sorted(numbers)
    if not ordered:
        raise not_allowed(override, "it has no values")
    return distributed(override, value.tags, ordered[0], ordered[-1], abs(value.step), integer=isinstance(numbers, range))


def interval(override: Override, integer: bool) -> BaseDistribution:
    """Of all numbers between two ends, which are included; integers if the key has one now, or by `int(interval(A,B))`."""
    value = override.value()
    assert isinstance(value, IntervalSweep) and value.start is not None and value.end is not None
    low, high = value.start, value.end
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise not_allowed(override, "expected two numbers, the lower one first")
    if integer and not (float(low).is_integer() and float(high).is_integer()):
        raise not_allowed(override, "expected two integers")
    return distributed(override, value.tags, low, high, None, integer=integer or is_integer(low))


def distributed(override: Override, tags: set[str], low: float, high: float, step: float | None, integer: bool) -> BaseDistribution:
    """Optuna's own distribution, which knows what goes together."""
    if tags - {"log"}:
        raise not_allowed(override, f"{', '.join(sorted(tags))}: no such tag; expected log")
    try:
        if integer:
            return IntDistribution(int(low), int(high), log="log" in tags, step=int(step or 1))
        return FloatDistribution(float(low), float(high), log="log" in tags, step=step)
    except ValueError as error:
        raise not_allowed(override, one_line(str(error))) from error


def not_allowed(override: Override, reason: str) -> UserError:
    return UserError(f"{override.get_key_element()}: {override.get_value_string()} is not allowed; {reason}")


def ends(distribution: BaseDistribution) -> list[Value]:
    """The lowest and the highest value, or all choices."""
    if isinstance(distribution, CategoricalDistribution):
        return [str(choice) for choice in distribution.choices]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return [distribution.low] if distribution.single() else [distribution.low, distribution.high]


def suggested(trial: Trial, key: str, distribution: BaseDistribution) -> Value:
    if isinstance(distribution, CategoricalDistribution):
        return str(trial.suggest_categorical(key, distribution.choices))
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def described(distribution: BaseDistribution) -> str:
    """A distribution in words."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    kind = "integers from " if isinstance(distribution, IntDistribution) else ""
    step = f" by {distribution.step}" if distribution.step not in (None, 1) or not kind and distribution.step else ""
    return f"{kind}{distribution.low} to {distribution.high}{step}{' on a log scale' * distribution.log}"


def word(key: str, value: Value) -> str:
    return f"{key}={value}" if isinstance(value, str) else f"{key}={value!r}"

"""What a number measures. Here alone a number is compared or formatted; no torch, since readers of records need none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite


@dataclass(frozen=True)
class Measure:
    """What is measured, and which way is up. `name` is one word, the key of the value in metrics and records."""

    name: str
    unit: str = ""
    higher_is_better: bool = False
    digits: int = 2

    def better(self, new: float, old: float | None) -> bool:
        """Whether `new` beats `old`. A value that is not finite beats nothing; a finite one beats None."""
        if not isfinite(new) or old is None:
            return isfinite(new)
        return new > old if self.higher_is_better else new < old

    @property
    def heading(self) -> str:
        """What stands above a column of such numbers: `accuracy, %`."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def of_differences(self) -> str:
        """What stands above a column of differences: points, where the numbers are percent."""
        return "points" if self.unit == "%" else f"difference in {self.heading}"

    def signed(self, difference: float) -> str:
        """A difference of two values, with its sign and without a unit."""
        return f"{difference:+.{self.digits}f}"

    def number(self, value: float | None, half: float | None = None) -> str:
        """The value with its half-width and without its unit, for a column under `heading`; a dash for None. A half-width that is not
        finite is left out."""
        if value is None:
            return "-"
        interval = "" if half is None or not isfinite(half) else f" ± {half:.{self.digits}f}"
        return f"{value:.{self.digits}f}{interval}"

    def text(self, value: float | None, half: float | None = None) -> str:
        """As `number`, with the unit: `98.76 ± 0.12 %`."""
        return self.number(value, half) + (f" {self.unit}" if self.unit and value is not None else "")


@dataclass(frozen=True)
class Score:
    """What a test came to by one measure. intervals: half-widths by what they are over, `{"tasks": 0.12}`; the first is shown."""

    measure: Measure
    value: float
    intervals: Mapping[str, float] = field(default_factory=dict)

    @property
    def half(self) -> float | None:
        return next(iter(self.intervals.values()), None)

    @property
    def number(self) -> str:
        return self.measure.number(self.value, self.half)


@dataclass(frozen=True)
class Scores:
    """All numbers of a test, of which the first decides. groups: by name the sum and the count whose quotient is the first number there."""

    numbers: Sequence[Score]
    groups: Mapping[str, tuple[float, int]] = field(default_factory=dict)

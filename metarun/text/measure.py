"""What a number measures. Here alone a number is compared or formatted; no torch, since readers of records need none."""

from dataclasses import dataclass
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

    def text(self, value: float | None, half: float | None = None) -> str:
        """The value with its half-width and unit, `98.76 ± 0.12 %`; a dash for None. A half-width that is not finite is left out."""
        if value is None:
            return "-"
        interval = "" if half is None or not isfinite(half) else f" ± {half:.{self.digits}f}"
        return f"{value:.{self.digits}f}{interval}" + (f" {self.unit}" if self.unit else "")

"""What a measure says of two numbers, and how it writes one."""

from math import inf, nan

import pytest

from metarun.text.measure import Measure

UP, DOWN = Measure("return", "points", higher_is_better=True, digits=1), Measure("mse")


@pytest.mark.parametrize(("new", "old", "up", "down"), [
    (-36.0, None, True, True), (-36.0, -38.0, True, False), (0.4, 0.5, False, True), (0.5, 0.5, False, False),
    (nan, None, False, False), (inf, None, False, False), (inf, 1.0, False, False), (-inf, 1.0, False, False), (nan, 1.0, False, False),
])  # fmt: skip
def test_which_is_better(new: float, old: float | None, up: bool, down: bool) -> None:
    assert (UP.better(new, old), DOWN.better(new, old)) == (up, down)


def test_a_number_as_text() -> None:
    assert UP.text(-36.25, 0.51) == "-36.2 ± 0.5 points" and DOWN.text(0.005) == "0.01"
    assert Measure("accuracy", "%").text(98.765) == "98.77 %"
    assert UP.text(1.0, nan) == UP.text(1.0) == "1.0 points" and UP.text(None) == "-"

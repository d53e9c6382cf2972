"""Numbers as people read them."""

UNITS = (("days", 86400.0), ("h", 3600.0), ("min", 60.0))


def counted(number: int, one: str, more: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def duration(seconds: float) -> str:
    """Three digits in the unit that suits, of which there are two or more."""
    for unit, length in UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def size(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def pace(step_seconds: float) -> str:
    """Steps a second, or seconds a step where a step takes longer than that."""
    return f"{step_seconds:.3g} s/step" if step_seconds > 1 else f"{1 / step_seconds:.3g} steps/s"

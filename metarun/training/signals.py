"""Ctrl-C and SIGTERM, held back until a step is done."""

import signal
from types import FrameType


class Signals:
    """While open, SIGINT and SIGTERM are only noted; a second one acts as usual."""

    received = 0

    def __enter__(self) -> "Signals":
        self.before = {int(number): signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self.before[number])

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

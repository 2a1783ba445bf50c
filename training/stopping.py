"""How a run is stopped: signals, and the exceptions that end its loop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """Training was asked to stop, and has saved its state. `signal` says by which one."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Stop:
    """Which of SIGTERM and SIGINT has come: calling it tells, 0 for none."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> int:
        return self.signal


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Signals that would end the process set the flag first; a second one ends it at once."""
    stop, process = Stop(), os.getpid()

    def handle(number: int, frame: object) -> None:
        if os.getpid() != process:  # a loading process: it ends with this one
            return
        if stop():
            os._exit(128 + number)
        stop.signal = number
        name = signal.Signals(number).name
        # not print: the signal may have come while something prints
        os.write(2, f"\n{name}: finishing the step and saving (again: quit at once)\n".encode())

    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

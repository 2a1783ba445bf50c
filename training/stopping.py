"""Stopping a run by a signal, and the exception that ends its loop."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """Training has saved its state and stops because of the signal number `signal`."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Stop:
    """Remembers SIGTERM or SIGINT. A call returns the number of the signal, or 0 for none."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> int:
        return self.signal


@contextmanager
def stoppable() -> Iterator[Stop]:
    """In the block, a first SIGTERM or SIGINT only sets the flag; a second ends the process."""
    stop, process = Stop(), os.getpid()

    def handle(number: int, frame: object) -> None:
        if os.getpid() != process:  # a loading process, which ends with the main one
            return
        if stop():
            os._exit(128 + number)
        stop.signal = number
        name = signal.Signals(number).name
        # os.write, because print is not safe if the signal interrupts another print
        os.write(2, f"\n{name}: finishing the step and saving (again: quit at once)\n".encode())

    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

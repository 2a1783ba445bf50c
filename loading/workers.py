"""The processes that load views: their start, their errors in one sentence, their end."""

import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import queues

from utils import UserError, log, reason_of

TOO_MANY_FILES = "too many open files: raise the limit (ulimit -n), or use fewer `num_workers`"


def prepare_worker(number: int) -> None:
    """End this loading process if it cannot send a batch.

    Python would print the error and go on, and the main process would wait for the batch for
    ever.
    """
    queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, batch: object) -> None:
    log.error("a loading process cannot send a batch: %s", reason_of(error))
    os._exit(1)


def quiet_about_workers(start: Callable[[], Iterator]) -> Iterator:
    """Call `start`, which creates a DataLoader's iterator, without installing its SIGCHLD handler.

    When a worker dies, the handler would raise an error anywhere in the main process, perhaps
    in the middle of a step. Without it, the loader notices at the next fetch, within seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        return start()
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        return start()
    finally:
        signal.signal(signal.SIGCHLD, handler)


def discard(error: Exception) -> None:
    """Release what the frames of `error` hold: a DataLoader's iterator that is half made.

    Its finaliser fails on the missing half, which would be printed.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook


def too_many_files(error: Exception) -> bool:
    """Whether the system refused to open another file."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def why_loading_failed(name: str, error: Exception) -> str:
    """Return one sentence for an error of a process that loads the views `name`, or its end."""
    text = str(error).strip()
    if text.startswith("Caught "):  # the worker's own error, with its traceback
        sentence = text.splitlines()[-1].strip()
        if isinstance(error, UserError):
            return sentence.removeprefix("utils.UserError: ")
        if "/torch_" in text or "shared memory" in text:
            return (
                f"a process that loads the {name} views has too little shared memory "
                f"(/dev/shm; in Docker `shm-size` sets it; fewer `num_workers` need less): "
                f"{sentence}"
            )
        return (
            f"a process that loads the {name} views failed: {sentence}{_place_of(text)} "
            f"(`num_workers` 0 shows the whole traceback)"
        )
    reason = text.partition("\n")[0] or type(error).__name__
    if too_many_files(error) or "Too many open files" in text or "ancdata" in text:
        return TOO_MANY_FILES
    if "shared memory" in reason or "Bus error" in reason:
        return (
            f"a process that loads the {name} views has too little shared memory "
            f"(/dev/shm; in Docker `shm-size` sets it; fewer `num_workers` need less)"
        )
    return (
        f"a process that loads the {name} views was ended from outside, often for "
        f"lack of memory (fewer `num_workers` need less): {reason}"
    )


def _place_of(text: str) -> str:
    """Return the file and line of the last call in a traceback, in brackets."""
    calls = re.findall(r'File "([^"]+)", line (\d+)', text)
    return f" ({calls[-1][0]}, line {calls[-1][1]})" if calls else ""

"""Helpers shared by all programs: errors, log, job settings, random seeds, choices."""

import difflib
import logging
import os
import random
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent

# Libraries log here instead of printing. `command_line` prints info to standard output, and
# warnings and errors to standard error. Other users configure it through Python's logging.
log = logging.getLogger("xtconsistency")
log.addHandler(logging.NullHandler())  # without it, Python prints warnings to standard error

Item = TypeVar("Item")


# ---- errors -------------------------------------------------------------------------


class UserError(ValueError):
    """An error that the user can fix. The command line prints one line and exits with status 2.

    Messages put parameter names in backticks (`image_size`). The command line prints them as
    flags (--image-size).
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean X?"` for the closest known name, or "" if none is similar."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def check_one_of(parameter: str, value: str | None, known: Sequence[str]) -> str:
    """Return `value`. Raises UserError if it is not one of the `known` values of a parameter."""
    if value is None or value not in known:
        wrong = "" if value is None else f", not {value}{nearest(value, known)}"
        raise UserError(f"`{parameter}` is {' or '.join(known)}{wrong}")
    return value


def check_positive(**values: float | None) -> None:
    """Raise UserError if a parameter is 0 or negative. None (use the default) is accepted."""
    for name, value in values.items():
        if value is not None and value <= 0:
            raise UserError(f"`{name}` has to be more than 0, not {value}")


def check_regular(path: str | Path) -> None:
    """Raise OSError unless `path` is a regular file: opening a pipe, for example, may hang."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise OSError(f"it is {kind}, not a file")


def reason_of(error: BaseException) -> str:
    """Return the cause of an error in one line, without the file name."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0].strip() if text.strip() else type(error).__name__


# ---- the job ------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """The name of the job, with which its Visdom environments begin, and its base folder."""

    name: str
    base_dir: Path

    @property
    def data_dir(self) -> Path:
        return self.base_dir / "data"

    @property
    def rooms_dir(self) -> Path:
        return self.base_dir / "data_rooms"

    @property
    def models_dir(self) -> Path:
        return self.base_dir / "models"

    @property
    def results_dir(self) -> Path:
        return self.base_dir / "results"


def read_job(path: str | Path = ROOT / "config" / "jobinfo.txt") -> Job:
    """Read the job from a file: `name, base_dir`, or `name, 0, base_dir` as published.

    A relative base folder is relative to the project's folder, wherever a program is started
    (published: to the current folder). The middle field is ignored: it is a resume number that
    the published code reads but never uses. Raises UserError if the file cannot be read or has
    another format.
    """
    try:
        fields = [field.strip() for field in Path(path).read_text().strip().split(",")]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise UserError(f"cannot read {path}: {reason}") from None
    if len(fields) not in (2, 3) or not all(fields):
        raise UserError(f"{path} should hold 'name, base_dir', not {','.join(fields)!r}")
    try:
        base = Path(fields[-1]).expanduser()
    except RuntimeError:
        raise UserError(f"{path} names {fields[-1]}, and there is no such user") from None
    return Job(fields[0], base if Path.cwd() == ROOT else ROOT / base)


# ---- seeds, durations, choices -----------------------------------------------------------------


def seed_everything(seed: int) -> None:
    """Seed the random generators of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: 1 view, 2 views."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a duration in words, to two digits or so: 40 s, 7 min, 2 h 10 min, 3 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours / 24:.0f} days"


def evenly_spaced(items: Sequence[Item], count: int | None) -> list[Item]:
    """Return at most `count` evenly spaced items, or all items if `count` is None."""
    count = min(count or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]

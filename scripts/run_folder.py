"""A run's folder: what it was asked for, its states to go on from, how it is stopped."""

import inspect
import json
import os
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from models import NO_CHECKPOINT, save_atomically
from scripts.tables import write_json
from utils import UserError

KEPT = 2  # states
# What a resumed run may be asked for differently: it changes no result.
FREE = {"resume", "results_dir", "visdom_server", "visdom_port", "num_workers", "quiet",
        "save_every"}  # fmt: skip


# ---- which folder -------------------------------------------------------------------


def new_folder(results_dir: Path, name: str) -> Path:
    """A new folder {name}_{time} in `results_dir`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        folder = results_dir / f"{name}_{stamp}{f'-{number}' if number else ''}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from None
        return folder
    raise UserError(f"cannot make a new folder in {results_dir}")


def find_folder(resume: str | bool, results_dir: Path, name: str | None) -> Path:
    """The folder of the run to go on with: the one named, or the last of that name."""
    if isinstance(resume, str):
        if not (Path(resume) / "run.json").is_file():
            raise UserError(f"--resume {resume}: no run's folder (there is no run.json in it)")
        return Path(resume)
    if name is None:
        raise UserError("--resume goes on with the last run of a configuration: which one? Name it,"
                        " or the run's folder: --resume results/…")  # fmt: skip
    runs = [file.parent for file in results_dir.glob("*/run.json")
            if _read(file).get("config") == name]  # fmt: skip
    if not runs:
        raise UserError(f"--resume: no run of {name} in {results_dir}")
    return max(runs, key=lambda folder: (folder / "run.json").stat().st_mtime_ns)


def recorded_flags(folder: Path, asked: Mapping, main: Callable, processes: int) -> dict:
    """What the run was asked for, with what `asked` may change.

    Raises UserError where it asks for something else than the run had.
    """
    recorded = _read(folder / "run.json")
    if "arguments" not in recorded:
        raise UserError(f"{folder} was made by a version that could not go on with a run")
    if (begun_by := recorded["processes"]) != processes:
        raise UserError(
            f"the run in {folder} was begun by {begun_by} process{'es' if begun_by > 1 else ''} "
            f"and goes on with as many, not {processes}: each takes its share of a batch"
        )
    flags = dict(recorded["arguments"])
    # A decay spans the epochs asked for, and a comparison is of as many epochs.
    longer = recorded["schedule"] == "constant" and not flags["compare_direct"]
    free = FREE | ({"max_epochs"} if longer else set())
    for name, parameter in inspect.signature(main).parameters.items():
        value, before = asked[name], flags.get(name, parameter.default)
        if value == parameter.default:
            value = before
        elif value != before and name not in free:
            raise UserError(
                f"--{name.replace('_', '-')} {value}: the run in {folder} was begun with "
                f"{'none' if before is None else before}; leave it out to go on with that run"
            )
        flags[name] = value
    return flags


def write_record(folder: Path, record: Mapping) -> dict:
    """Write run.json and return it; a run that goes on keeps the command it was begun with."""
    file = folder / "run.json"
    begun = {"command": _read(file)["command"]} if file.exists() else {}
    kept = {**record, **begun}
    write_json(file, kept)
    return kept


def _read(file: Path) -> dict:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {file}: {error}") from None


# ---- states -------------------------------------------------------------------------


def save_state(folder: Path, number: int, state: Mapping) -> None:
    """Write a state, called by `number` (rising), and drop all but the last two.

    Raises UserError where it cannot be written; those before it are as they were.
    """
    try:
        save_atomically(folder / f"state_{number:09d}.pt", dict(state))
    except UserError as error:
        kept = ", ".join(file.name for file in _states(folder)) or "none"
        raise UserError(f"{error} (states already saved: {kept}; --resume goes on)") from None
    for old in _states(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def load_state(folder: Path) -> dict | None:
    """The last state that can be read, None where there is none yet; says which.

    Newer ones that cannot be read are renamed, lest they count as states. What a killed
    run left half-written is removed. Raises UserError where no state can be read though
    there are some.
    """
    files, broken = _states(folder), []
    for file in reversed(files):
        try:
            state = _read_state(file)
        except (OSError, *NO_CHECKPOINT) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is empty"
            print(f"warning: passing over {file}, which cannot be read: {reason}", file=sys.stderr)
            broken.append(file)
            continue
        _tidy(folder, broken)
        print(f"going on in {folder} from {file.name}")
        return state
    if files:
        raise UserError(f"none of the {len(files)} states in {folder} can be read")
    _tidy(folder, [])
    print(f"the run in {folder} had saved no state yet: it begins again")
    return None


def _tidy(folder: Path, broken: list[Path]) -> None:
    """Rename what cannot be read; remove what a killed run left half-written."""
    try:
        for file in broken:
            file.rename(file.with_name(f"unreadable_{file.name}"))
        for left in folder.glob(".*.*.*"):  # as write_atomically calls them
            left.unlink()
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None


def _read_state(file: Path) -> dict:
    """A state, all of it as it was written: torch itself does not look at the checksums."""
    with zipfile.ZipFile(file) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} in it is damaged")
    return torch.load(file, map_location="cpu", weights_only=True)


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state_*.pt"))


# ---- being stopped ------------------------------------------------------------------


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

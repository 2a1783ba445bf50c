"""States of a run, from which it goes on: written whole, checked when they are read."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from models import NO_CHECKPOINT, check_memory, save_atomically
from utils import UserError, log, reason_of

KEPT = 2  # states


def save_state(folder: Path, number: int, state: Mapping) -> None:
    """Write a state, called by `number` (rising), and drop all but the last two.

    Raises UserError where it cannot be written; those before it are as they were.
    """
    try:
        save_atomically(folder / f"state_{number:09d}.pt", dict(state))
    except UserError as error:
        kept = ", ".join(file.name for file in _states(folder)) or "none"
        raise UserError(f"{error} (states already saved: {kept}; `resume` goes on)") from None
    for old in _states(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def load_state(folder: Path) -> dict | None:
    """The last state that can be read, None where there is none yet; logs which.

    Newer ones that cannot be read are renamed, lest they count as states. What a killed
    run left half-written is removed. Raises UserError where no state can be read though
    there are some.
    """
    files, broken = _states(folder), []
    for file in reversed(files):
        try:
            state = _read_state(file)
        except (OSError, *NO_CHECKPOINT) as error:
            check_memory(error, file)
            log.warning("passing over %s, which cannot be read: %s", file, reason_of(error))
            broken.append(file)
            continue
        _tidy(folder, broken)
        log.info("going on in %s from %s", folder, file.name)
        return state
    if files:
        raise UserError(f"none of the {len(files)} states in {folder} can be read")
    _tidy(folder, [])
    log.info("the run in %s had saved no state yet: it begins again", folder)
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

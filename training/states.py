"""The saved states from which a run resumes: written atomically, checked on reading."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from models import NO_CHECKPOINT, check_memory, check_sums, save_atomically
from utils import UserError, check_regular, log, reason_of

KEPT = 2  # the number of states kept in a folder
# What `write_atomically` calls a run's files until they are whole; other hidden files are not ours.
TEMPORARY = re.compile(
    r"\.(state_\d{9}\.pt|not_finite(_\d+)?\.pt|(run|evaluation|violations)\.json|(start|latest)(_\d+)?\.png"
    r"|(curves|violations)\.png"
    r"|\w+\.pth)\.[a-z0-9_]{8}"
)


class RunState(TypedDict):
    """What a saved state holds, beside the run's options, which are in run.json.

    Another thing that a run has to remember is added here and in `training.output`; what
    the training itself has to remember, in `training.loop.Trainer.state_dict`.
    """

    columns: dict[str, dict[str, float]]  # of the closing table, of finished phases
    start: dict[str, Tensor]  # the initial weights, if another phase starts from them
    training: dict | None  # `Trainer.state_dict()` of the phase under way
    logger: dict  # `Logger.state_dict()`
    bad: dict[str, dict]  # `BadFiles.state_dict()` of each reality


def save_state(folder: Path, number: int, state: RunState) -> None:
    """Write a state and delete all but the last two. `number` must increase from call to call.

    Raises UserError if the state cannot be written; earlier states then stay.
    """
    try:
        save_atomically(folder / f"state_{number:09d}.pt", dict(state))
    except UserError as error:
        kept = ", ".join(file.name for file in _states(folder)) or "none"
        raise UserError(f"{error} (states already saved: {kept}; `resume` goes on)") from None
    for old in _states(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def load_state(folder: Path) -> RunState | None:
    """Return the last readable state, or None if there is no state yet. Logs its name.

    Renames newer states that cannot be read, so that they no longer count as states. Removes
    half-written files of a killed run. Raises UserError if there are states but none can be
    read, or if there are none although the run has trained.
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
    if _has_trained(folder):
        raise UserError(
            f"the run in {folder} has trained, but its states (state_*.pt) are gone: it cannot go "
            f"on, and nothing there was changed"
        )
    _tidy(folder, [])
    log.info("the run in %s had saved no state yet: it begins again", folder)
    return None


def _has_trained(folder: Path) -> bool:
    """Whether a run has come beyond its first state: it has a network, or curves in its log."""
    try:
        text = (folder / "log.jsonl").read_text(errors="replace")
    except OSError:
        text = ""
    return any(folder.glob("*.pth")) or '"split": ' in text


def _tidy(folder: Path, broken: list[Path]) -> None:
    """Rename the unreadable states in `broken`; remove half-written files of a killed run."""
    try:
        for file in broken:
            file.rename(file.with_name(f"unreadable_{file.name}"))
        for file in folder.glob(".*.*.*"):
            if TEMPORARY.fullmatch(file.name):
                file.unlink()
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None


def _read_state(file: Path) -> RunState:
    """Return a state after verifying its checksums, which torch does not check itself."""
    check_regular(file)
    with zipfile.ZipFile(file) as archive:
        check_sums(archive)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its text advises to run code from the file
        raise ValueError("it holds something else than values and tensors") from None
    if not isinstance(state, dict) or set(state) != set(RunState.__annotations__):
        raise ValueError("it is not what a run saves")
    return RunState(**state)  # type: ignore[typeddict-item]


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state_*.pt"))

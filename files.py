"""Files written whole or not at all; records as JSON."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from utils import UserError, reason_of


def make_folder(folder: Path) -> Path:
    """The folder, made if it is not there. Raises UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from None
    return folder


def check_writable(folder: Path) -> Path:
    """The folder, made if it is not there. Raises UserError where no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None
    return folder


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary name in the folder of `path`, then rename it there.

    A reader sees the old file or the new one, never half of either, also after a power
    cut: the file is on the disk before it gets its name. Raises UserError where that is
    impossible.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        try:
            write(Path(name))
            os.chmod(name, 0o644)
            _flush(Path(name))
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from None


def _flush(path: Path) -> None:
    """Have what was written to the file reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- JSON ---------------------------------------------------------------------------


def write_json(path: Path, values: object, indent: int | None = 1) -> None:
    """Write a record as JSON, atomically; numbers that are not finite become null."""
    text = json.dumps(_finite(values), indent=indent, ensure_ascii=False) + "\n"
    write_atomically(path, lambda name: name.write_text(text, encoding="utf-8"))


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict:
    """A JSON object. Raises UserError where the file cannot be read or holds something else."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON object: {reason_of(error)}") from None

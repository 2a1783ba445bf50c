"""Atomic file writing, and JSON files."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from utils import UserError, reason_of


def make_folder(folder: Path) -> Path:
    """Create the folder if it does not exist, and return it. Raises UserError on failure."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from None
    return folder


def check_writable(folder: Path) -> Path:
    """Create the folder if it does not exist, and return it.

    Raises UserError if no file can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None
    return folder


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the folder of `path`, then rename it to `path`.

    The data are flushed to disk before the rename. So `path` always holds either the old or
    the complete new file, even after a power failure. Raises UserError on failure.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(descriptor)
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
    """Flush the file's data to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- JSON ---------------------------------------------------------------------------


def write_json(path: Path, values: object, indent: int | None = 1) -> None:
    """Write `values` as JSON, atomically. NaN and infinity become null."""
    text = json.dumps(_finite(values), indent=indent, ensure_ascii=False) + "\n"
    write_atomically(path, lambda name: name.write_text(text, encoding="utf-8"))


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises UserError if the file cannot be read or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON object: {reason_of(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object, but a {type(value).__name__}")
    return value

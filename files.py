"""Atomic file writing, and JSON files."""

import fcntl
import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from utils import UserError, check_regular, reason_of


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


@contextmanager
def only_process_in(folder: Path, otherwise: str = "") -> Iterator[int]:
    """Hold a lock on the folder within the block; the system releases it if the process dies.

    Yields the folder's file descriptor. Raises UserError, with the message `otherwise` if it is
    given, if another process holds the lock. On file systems without locks, nothing is locked.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = otherwise or f"another process is writing into {folder}: wait until it ends"
            raise UserError(text) from None
        except OSError:  # e.g. a folder on NFS
            pass
        yield descriptor
    finally:
        os.close(descriptor)


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the folder of `path`, then rename it to `path`.

    The data are flushed to disk before the rename. So `path` always holds either the old or
    the complete new file, even after a power failure. Raises UserError on failure.
    """
    with written_atomically(path) as name:
        write(name)


@contextmanager
def written_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path as `write_atomically` does, for a file that grows in the block.

    At the end of the block, it is renamed to `path`; if the block raises, it is removed. Raises
    UserError if the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        # not by tempfile, whose files only their owner may read, whatever the umask
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield name
            _flush(name)
            os.replace(name, path)
        except BaseException:
            name.unlink(missing_ok=True)
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


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits. Raises UserError if it is unreadable."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason_of(error)}") from None


# ---- JSON ---------------------------------------------------------------------------


def write_json(path: Path, values: object, indent: int | None = 1) -> None:
    """Write `values` as JSON, atomically, with null for NaN and infinity.

    Raises UserError if the file cannot be written.
    """
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
        check_regular(path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON object: {reason_of(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object, but a {type(value).__name__}")
    return value

"""Safe unpacking of untrusted archives: nothing is written outside the target folder."""

import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from utils import UserError, reason_of

# Limit of the unpacked size: archive size × LARGEST_RATIO + ALWAYS_ALLOWED bytes. Images and
# weights hardly compress, so an archive that exceeds it is a decompression bomb.
LARGEST_RATIO, ALWAYS_ALLOWED = 20, 64 * 2**20
# Exceptions that reading a broken archive raises.
BROKEN = (
    OSError, EOFError, ValueError, RuntimeError, LookupError, zlib.error, tarfile.TarError,
    zipfile.BadZipFile, OverflowError,
)  # fmt: skip


class Member(NamedTuple):
    """A file in an archive. `open` returns a stream of its content."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: str | Path, folder: str | Path) -> int:
    """Unpack a .tar (optionally compressed) or .zip archive. Returns the number of files.

    Existing files of the same name are replaced; others are kept. Everything is unpacked to
    a temporary folder first. So if the archive is broken or refused (UserError), `folder` is
    unchanged. An archive is refused if it holds absolute paths, "..", links or devices, or if
    its content is far larger than the archive (see LARGEST_RATIO).
    """
    archive, folder = Path(archive), Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".unpacking.", dir=folder))
    except OSError as error:
        raise UserError(f"cannot unpack into {folder}: {error.strerror}") from None
    try:
        names = _unpack_aside(archive, temporary)
        for name in names:
            _check_place(archive, folder, name)
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / name, target)
        return len(names)
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(f"cannot unpack {archive}: {reason_of(error).removesuffix(':')}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_place(archive: Path, folder: Path, name: Path) -> None:
    """Raise UserError if a folder exists in place of the file, or a file in place of a folder."""
    target = folder / name
    obstacles = [place for place in target.parents if folder in place.parents and place.is_file()]
    if target.is_dir() or obstacles:
        raise UserError(f"cannot unpack {archive}: {(obstacles or [target])[0]} is in the way")


def _unpack_aside(archive: Path, temporary: Path) -> list[Path]:
    """Unpack into `temporary` and return the files' paths relative to it, without duplicates.

    If the archive holds a name twice, the last file is kept.
    """
    remaining = LARGEST_RATIO * archive.stat().st_size + ALWAYS_ALLOWED
    names = []
    for member in _members(archive):
        _check_name(archive, member.name)
        remaining -= member.size
        if remaining < 0:
            raise UserError(f"{archive} is refused: it unpacks to far more than its own size")
        target = temporary / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = member.open()
        assert source is not None  # a file, as _members has seen
        with source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)
        if target.stat().st_size != member.size:
            raise UserError(f"cannot unpack {archive}: {member.name} is cut off")
        names.append(target.relative_to(temporary))
    return list(dict.fromkeys(names))


def _members(archive: Path) -> Iterator[Member]:
    """Yield the files of an archive. Raises UserError for a link or a device."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                if stat.S_ISLNK(entry.external_attr >> 16):
                    _refuse(archive, entry.filename, "it is a link")
                if not entry.is_dir():
                    yield Member(entry.filename, entry.file_size, partial(zipped.open, entry))
        return
    with tarfile.open(archive) as tarred:
        for member in tarred:
            if not member.isreg() and not member.isdir():
                _refuse(archive, member.name, "it is a link or a device")
            if member.isreg():
                yield Member(member.name, member.size, partial(tarred.extractfile, member))


def _check_name(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    parts = path.parts
    if not parts or path.is_absolute() or ".." in parts or ":" in parts[0] or "\0" in name:
        _refuse(archive, name, "its name leads out of the folder")


def _refuse(archive: Path, name: str, why: str) -> None:
    raise UserError(f"{archive} is refused: {name!r} would be unsafe to unpack, {why}")

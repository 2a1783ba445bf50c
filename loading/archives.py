"""Unpacks archives that came from elsewhere: nothing of them lands outside their folder."""

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

from utils import UserError

# An archive of images or weights hardly shrinks: what unpacks to far more is a bomb.
LARGEST_RATIO, ALWAYS_ALLOWED = 20, 64 * 2**20
BROKEN = (
    OSError, EOFError, ValueError, RuntimeError, LookupError, zlib.error, tarfile.TarError,
    zipfile.BadZipFile, OverflowError,
)  # fmt: skip


class Member(NamedTuple):
    """A file in an archive. `open` gives its bytes."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: str | Path, folder: str | Path) -> int:
    """Unpack a .tar (also compressed) or .zip into `folder`; returns the number of files.

    Files of the same name are replaced, others stay. All is unpacked beside its place
    first: where the archive is broken or refused (UserError), the folder is as before.
    Refused are absolute names, "..", links and devices, and more than 20 times the
    archive's own size.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".unpacking.", dir=folder))
    except OSError as error:
        raise UserError(f"cannot unpack into {folder}: {error.strerror}") from None
    try:
        names = _unpack_aside(archive, aside)
        for name in names:
            _check_place(archive, folder, name)
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, target)
        return len(names)
    except BROKEN as error:
        # tarfile says in further lines what each kind of compression lacks
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.partition("\n")[0].removesuffix(":")
        raise UserError(f"cannot unpack {archive}: {reason}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_place(archive: Path, folder: Path, name: Path) -> None:
    """UserError where a folder stands in the file's place, or a file in a folder's."""
    target = folder / name
    taken = [place for place in target.parents if folder in place.parents and place.is_file()]
    if target.is_dir() or taken:
        raise UserError(f"cannot unpack {archive}: {(taken or [target])[0]} is in the way")


def _unpack_aside(archive: Path, aside: Path) -> list[Path]:
    """The files' paths below `aside`, each once: of a name that comes twice the last one counts."""
    left = LARGEST_RATIO * archive.stat().st_size + ALWAYS_ALLOWED
    names = []
    for member in _members(archive):
        _check_name(archive, member.name)
        left -= member.size
        if left < 0:
            raise UserError(f"{archive} is refused: it unpacks to far more than its own size")
        target = aside / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = member.open()
        assert source is not None  # a file, as _members has seen
        with source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)
        if target.stat().st_size != member.size:
            raise UserError(f"cannot unpack {archive}: {member.name} is cut off")
        names.append(target.relative_to(aside))
    return list(dict.fromkeys(names))


def _members(archive: Path) -> Iterator[Member]:
    """The files of an archive; UserError for a member that is neither file nor folder."""
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

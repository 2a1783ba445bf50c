"""Safe unpacking of untrusted archives: nothing is written outside the target folder."""

import bz2
import gzip
import lzma
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
from typing import IO, NamedTuple, cast

from utils import UserError, reason_of

# Limit of the unpacked size: archive size × LARGEST_RATIO + ALWAYS_ALLOWED bytes. Images and
# weights hardly compress, so an archive that exceeds it is a decompression bomb.
LARGEST_RATIO, ALWAYS_ALLOWED = 20, 64 * 2**20
ENTRY = 4096  # bytes that each file, and each folder in its path, counts as at least (as on disk)
LARGEST_HEADER = 2**18  # bytes read to find the next member of a tar file, with extended headers
BLOCK = 2**18  # bytes read at a time
# Exceptions that reading a broken archive raises.
BROKEN = (
    OSError, EOFError, ValueError, RuntimeError, LookupError, zlib.error, lzma.LZMAError,
    tarfile.TarError, zipfile.BadZipFile, OverflowError, MemoryError,
)  # fmt: skip
# How compressed tar files begin, and what opens them.
COMPRESSED: dict[bytes, Callable] = {
    b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open, b"]\0\0": lzma.open,
}  # fmt: skip


class Member(NamedTuple):
    """A file in an archive. `open` returns a stream of its content."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: str | Path, folder: str | Path) -> int:
    """Unpack a .tar (optionally compressed) or .zip archive. Returns the number of files.

    Existing files of the same name are replaced; others are kept. Everything is unpacked to
    a temporary folder first. So if the archive is broken or refused (UserError), `folder` is
    unchanged. An archive is refused if it holds absolute paths, "..", links or devices, if its
    content is far larger than the archive (see LARGEST_RATIO), or if its headers are too long
    (see LARGEST_HEADER). It is broken if a checksum is wrong, or if its end is missing.
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
        raise _broken(archive, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_archive(archive: Path) -> None:
    """Read a whole archive without writing anything. Raises UserError as `unpack` does."""
    try:
        for member in _safe_members(archive):
            _copy(archive, member, lambda block: None)
    except UserError:
        raise
    except BROKEN as error:
        raise _broken(archive, error) from None


def _broken(archive: Path, error: BaseException) -> UserError:
    return UserError(f"cannot unpack {archive}: {reason_of(error).removesuffix(':')}")


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
    names = []
    for member in _safe_members(archive):
        target = temporary / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            _copy(archive, member, file.write)
        names.append(target.relative_to(temporary))
    return list(dict.fromkeys(names))


def _copy(archive: Path, member: Member, write: Callable[[bytes], object]) -> None:
    """Pass the content of a member to `write`, in blocks. Raises UserError if it is cut off."""
    size, source = 0, member.open()
    assert source is not None  # a file, as _members has seen
    with source:
        while block := source.read(BLOCK):
            write(block)
            size += len(block)
    if size != member.size:
        raise UserError(f"cannot unpack {archive}: {member.name} is cut off")


def _safe_members(archive: Path) -> Iterator[Member]:
    """Yield the files of an archive. Raises UserError at a file that is refused."""
    limit = remaining = LARGEST_RATIO * archive.stat().st_size + ALWAYS_ALLOWED
    for member in _members(archive, limit):
        _check_name(archive, member.name)
        remaining -= max(member.size, ENTRY) + ENTRY * member.name.count("/")
        if remaining < 0:
            raise UserError(f"{archive} is refused: it unpacks to far more than its own size")
        yield member


def _members(archive: Path, limit: int) -> Iterator[Member]:
    """Yield the files of an archive. Raises UserError for a link or a device."""
    with open(archive, "rb") as file:
        start = file.read(6)
    if not start.startswith(b"PK"):
        yield from _members_of_tar(archive, start, limit)
        return
    with zipfile.ZipFile(archive) as zipped:
        for entry in zipped.infolist():
            if stat.S_ISLNK(entry.external_attr >> 16):
                _refuse(archive, entry.filename, "it is a link")
            if not entry.is_dir():
                yield Member(entry.filename, entry.file_size, partial(zipped.open, entry))


class _Bounded:
    """A stream for tarfile, with limits on what it reads.

    `limit` is the largest position, in bytes. `budget`, unless it is None, is the number of
    bytes that may still be read. `last` is what was read last.
    """

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self.stream, self.limit = stream, limit
        self.budget: int | None = LARGEST_HEADER
        self.last = b""

    def read(self, size: int) -> bytes:
        if self.budget is not None:
            if size > self.budget:
                raise ValueError(f"its headers are longer than {LARGEST_HEADER} bytes")
            self.budget -= size
        self.last = self.stream.read(size)
        self._check(self.stream.tell())
        return self.last

    def seek(self, position: int) -> int:
        self._check(position)
        return self.stream.seek(position)

    def tell(self) -> int:
        return self.stream.tell()

    def _check(self, position: int) -> None:
        if position > self.limit:
            raise ValueError("it unpacks to far more than its own size")


def _members_of_tar(archive: Path, start: bytes, limit: int) -> Iterator[Member]:
    """Yield the files of a tar file, compressed or not, which begins with `start`.

    tarfile takes a damaged header for the end, and reads nothing after it. So this function
    raises ValueError if the end is not a proper one, and reads the rest of the stream: that
    raises an error if the compression's checksum is wrong or the file is cut off.
    """
    opener = next((how for magic, how in COMPRESSED.items() if start.startswith(magic)), open)
    with opener(archive, "rb") as stream:
        source = _Bounded(stream, limit)
        with tarfile.open(fileobj=cast(IO[bytes], source), mode="r:") as tarred:
            while member := _next_member(tarred, source):
                if not member.isreg() and not member.isdir():
                    _refuse(archive, member.name, "it is a link or a device")
                if member.isreg():
                    yield Member(member.name, member.size, partial(tarred.extractfile, member))
            if source.last != bytes(tarfile.BLOCKSIZE):
                raise ValueError("a header in it is damaged, or its end is missing")
            while source.read(BLOCK):
                pass


def _next_member(tarred: tarfile.TarFile, source: _Bounded) -> tarfile.TarInfo | None:
    source.budget = LARGEST_HEADER
    member = tarred.next()
    source.budget = None
    # tarfile keeps all members, which may be a great many
    tarred.members.clear()  # type: ignore[attr-defined]
    if sum(map(len, tarred.pax_headers.values())) > LARGEST_HEADER:
        raise ValueError(f"its headers are longer than {LARGEST_HEADER} bytes")
    return member


def _check_name(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    parts = path.parts
    if not parts or path.is_absolute() or ".." in parts or ":" in parts[0] or "\0" in name:
        _refuse(archive, name, "its name leads out of the folder")


def _refuse(archive: Path, name: str, why: str) -> None:
    raise UserError(f"{archive} is refused: {name!r} would be unsafe to unpack, {why}")

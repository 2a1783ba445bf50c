"""The index of a large data folder: which views it has, and which files each view has.

Listing millions of files takes minutes, and a Python list of millions of views takes gigabytes
in every process. The index holds the names of the views as bytes, and one byte for each view and
domain. It is kept in a file, which all processes map into memory. Before the index of a building
is used, the times of the building's folders are compared with those recorded when the folders
were listed. So only buildings that have changed are listed again.

Small data folders have no index. An index that cannot be read or written is no error.
"""

import hashlib
import json
import mmap
import os
import struct
import time
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import numpy as np

from files import written_atomically
from utils import UserError, check_regular, counted, log, reason_of

SMALL = 20_000  # data folders with fewer files have no index
MAGIC = b"XTC view index\n\0"
VERSION = 1  # of the file's format, and of what the columns mean
HEADER = struct.Struct("<16sIIQQ")  # magic, version, CRC-32 and size of the rest, size of its JSON
ALIGNED = 8  # bytes to a multiple of which each array's position is rounded up
# A folder that changed less than this before it was listed may change again without a difference
# in its times, as file systems round them. It is listed again the next time.
UNSETTLED = 2_000_000_000  # ns
ABANDONED = 3600  # seconds after which a half-written index is removed

Times = tuple[int, ...] | None  # (mtime, ctime) in ns; None: no folder; (): not to be relied on
Key = tuple[str, str, str]  # layout, part, building
Found = Mapping[str, str]  # {view: ending of its file, "" if it is the one of the layout}


def natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key that puts point_2 before point_10."""
    parts = [(part.isdecimal(), part) for part in name.split("_")]
    return [(number, int(part) if number else 0, part) for number, part in parts], name


# ---- folders' times -------------------------------------------------------------------


def folder_times(folder: str | Path) -> Times:
    """Return when the folder and its entry were last changed, or None if there is no folder."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns


def settled(times: Times) -> Times:
    """Return `times` of a folder that is about to be listed, or () if they are too recent.

    Only ctime counts, because programs can set mtime.
    """
    return () if times and times[1] > time.time_ns() - UNSETTLED else times


# ---- the views of a building ------------------------------------------------------------


class Column(NamedTuple):
    """The files of one domain in one building.

    `codes` (views,) uint8: 0 if the view has no file, 1 if its file is named as in the layout,
    2 + i if it has the ending `endings[i]` instead. `times` are those of the folder.
    """

    times: Times
    endings: tuple[str, ...]
    codes: np.ndarray


class Listing:
    """The views of a building in natural order, and `columns`, the files of each domain.

    `names` (bytes,) uint8 are the names one after another, and `ends` (views,) uint32 where each
    ends. `paths` are the files of views in a list, {column: {view: path}}.
    """

    def __init__(self, names: np.ndarray, ends: np.ndarray, columns: Mapping[str, Column]) -> None:
        self.names, self.ends, self.columns = names, ends, dict(columns)
        self.paths: Mapping[str, Mapping[str, str]] = {}

    @classmethod
    def of(cls, found: Mapping[str, Found], times: Mapping[str, Times] | None = None) -> "Listing":
        """Return the listing of the views in `found`, {column: {view: ending}}."""
        views = sorted(set().union(*found.values()), key=natural)
        encoded = [os.fsencode(name) for name in views]
        ends = np.fromiter(accumulate(map(len, encoded)), np.uint32, len(encoded))
        columns = {}
        for column, files in found.items():
            endings = tuple(sorted(set(files.values()) - {""}))
            if len(files) == len(views) and not endings:
                codes = np.ones(len(views), np.uint8)
            else:
                code = {"": 1} | {ending: 2 + i for i, ending in enumerate(endings)}
                numbers = (code[files[name]] if name in files else 0 for name in views)
                codes = np.fromiter(numbers, np.uint8, len(views))
            columns[column] = Column((times or {}).get(column, ()), endings, codes)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends, columns)

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, row: int) -> str:
        """Return the name of the view in that row."""
        start = self.ends[row - 1] if row else 0
        return os.fsdecode(self.names[start : self.ends[row]].tobytes())

    def all_names(self) -> list[str]:
        """Return the names of all views."""
        text, ends = self.names.tobytes(), [0, *self.ends.tolist()]
        return [
            os.fsdecode(text[start:end]) for start, end in zip(ends, ends[1:], strict=False)
        ]  # fmt: skip

    def row(self, name: str) -> int | None:
        """Return the row of a view, or None if there is no view of that name."""
        rows = range(len(self))
        row = bisect_left(rows, natural(name), key=lambda other: natural(self.name(other)))
        return row if row < len(self) and self.name(row) == name else None

    def has(self, column: str) -> np.ndarray:
        """Return which views have a file of that domain: (views,) bool."""
        if column not in self.columns:
            return np.zeros(len(self), bool)
        return self.columns[column].codes > 0

    def ending(self, column: str, row: int) -> str:
        """Return the ending of a view's file, "" if it is the layout's (or there is no file)."""
        code = int(self.columns[column].codes[row])
        return self.columns[column].endings[code - 2] if code > 1 else ""

    def found(self, column: str) -> dict[str, str]:
        """Return the files of a domain as {view: ending}."""
        _, endings, codes = self.columns[column]
        ending = ("", "", *endings)
        pairs = zip(self.all_names(), codes.tolist(), strict=True)
        return {name: ending[code] for name, code in pairs if code}


def folder_of(column: str) -> str:
    """Return the folder of a column's files, relative to the data folder."""
    return column.rpartition("/")[0]


# ---- sequences of views -----------------------------------------------------------------

Item = TypeVar("Item", covariant=True)


class Block(Protocol[Item]):
    """Some views of a building: what `Views` is made of."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Item: ...
    def __contains__(self, view: object) -> bool: ...
    def part(self, start: int, stop: int) -> "Block[Item]": ...
    def keys(self) -> list[tuple[str, str, str]]: ...


class Views(Sequence[Item]):
    """Views as a sequence, each made when it is asked for.

    It has no Python object for each view. So the memory that it shares with forked processes
    stays shared.
    """

    def __init__(self, blocks: Sequence[Block[Item]]) -> None:
        self._blocks = [block for block in blocks if len(block)]
        self._ends = list(accumulate(map(len, self._blocks)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        """Return a view or, for a slice of step 1, another sequence of this kind."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[i] for i in range(start, stop, step)]
            starts = [0, *self._ends]
            return Views([
                block.part(max(0, start - first), min(len(block), max(0, stop - first)))
                for first, block in zip(starts, self._blocks, strict=False)
                if start < first + len(block) and first < stop
            ])  # fmt: skip
        number = range(len(self))[index]
        place = bisect_right(self._ends, number)
        return self._blocks[place][number - (self._ends[place - 1] if place else 0)]

    def __iter__(self) -> Iterator[Item]:
        for block in self._blocks:
            for number in range(len(block)):
                yield block[number]

    def __contains__(self, view: object) -> bool:
        return any(view in block for block in self._blocks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def firsts(self) -> list[Item]:
        """Return the first view of each block, for what all views of a building have in common."""
        return [block[0] for block in self._blocks]

    def keys(self) -> Iterator[tuple[str, str, str]]:
        """Yield (part, building, name) of each view, faster than the views themselves."""
        for block in self._blocks:
            yield from block.keys()


# ---- the index of a data folder -----------------------------------------------------------


class Search(NamedTuple):
    """How the layout of a folder was found.

    `table` is a digest of the layouts that were tried, and `folders` are the times of the folders
    in which the files of other layouts were looked for.
    """

    table: str
    layout: str
    folders: dict[str, Times]


class ViewIndex:
    """The listings of a data folder's buildings, and how its layout was found.

    `file` is the file in which they are kept, or None if there is no place for one.
    """

    def __init__(self, folder: Path, file: Path | None) -> None:
        self.folder, self.file = folder, file
        self.listings: dict[Key, Listing] = {}
        self.search: Search | None = None
        self._new = False  # whether there is something that the file does not have
        self._stored = False  # whether there is a file that can be used
        self._stale: set[Key] = set()
        if file is not None:
            self._load(file)

    def _load(self, file: Path) -> None:
        try:
            self.listings, self.search = read_index(file, self.folder)
            self._stored = True
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.info(
                "the index of views %s cannot be used (%s): the files are listed anew", file,
                reason_of(error),
            )  # fmt: skip

    def updated(
        self, wanted: Mapping[Key, Sequence[str]], list_files: Callable[[Key, str], Found]
    ) -> dict[Key, Listing]:
        """Return the listings of buildings with the `wanted` columns, as their folders are now.

        Calls `list_files` for those columns that the index lacks, or whose folders have changed,
        and writes what is new to the file. Nothing is kept of small folders. If nothing can be
        written, the listings stay in this process's memory, and a line of the log says so.
        """
        stale = 0
        for key, columns in wanted.items():
            stale += self._update(key, columns, list_files)
        if stale:
            log.info(
                "%s of %s in %s changed since the views were indexed: listed anew", stale,
                counted(len(self.listings), "building"), self.folder,
            )  # fmt: skip
        is_small = not self._stored and self.files < SMALL
        if self._new and not is_small:
            self._save()
        listings = {key: self.listings[key] for key in wanted}
        if is_small:
            self.listings = {}
        return listings

    def _update(
        self, key: Key, columns: Sequence[str], list_files: Callable[[Key, str], Found]
    ) -> bool:
        """Make the listing of a building hold `columns`. Returns whether it had changed."""
        known = self.listings.get(key)
        kept = {c for c in known.columns if self._is_fresh(c, known)} if known else set()
        if kept.issuperset(columns):
            return False
        found: dict[str, Found] = {}
        times: dict[str, Times] = {}
        if known:
            found = {column: known.found(column) for column in known.columns if column in kept}
            times = {column: known.columns[column].times for column in found}
        for column in columns:
            if column not in found:
                times[column] = settled(folder_times(self.folder / folder_of(column)))
                found[column] = list_files(key, column)
                self._new = self._new or times[column] != ()
        self.listings[key] = Listing.of(found, times)
        return known is not None and any(c in known.columns and c not in kept for c in columns)

    def _is_fresh(self, column: str, listing: Listing) -> bool:
        times = listing.columns[column].times
        return times != () and times == folder_times(self.folder / folder_of(column))

    def layout(self, table: str) -> str | None:
        """Return the folder's layout, if the search for it would find the same as before."""
        search = self.search
        if search is None or search.table != table:
            return None
        same = all(folder_times(self.folder / name) == at for name, at in search.folders.items())
        return search.layout if same else None

    def remember_layout(self, search: Search) -> None:
        """Keep how the layout was found, to be written with the next listings."""
        if all(times != () for times in search.folders.values()):
            self.search, self._new = search, True

    def _save(self) -> None:
        """Write the listings to the file, and map it into memory."""
        self._new = False
        if self.file is None:
            return
        try:
            self._write(self.file)
        except (UserError, OSError, ValueError) as error:
            self.file = None  # once is enough
            log.info("no index of the views in %s is kept: %s", self.folder, reason_of(error))

    @property
    def files(self) -> int:
        """The number of files in all listings."""
        columns = (c for listing in self.listings.values() for c in listing.columns.values())
        return sum(int(np.count_nonzero(column.codes)) for column in columns)

    def _write(self, file: Path) -> None:
        if file.exists():  # perhaps by another process, meanwhile
            try:
                others, search = read_index(file, self.folder)
            except (OSError, ValueError):
                others, search = {}, None
            if _covers(others, self.listings) and (search or not self.search):
                self.listings, self.search = others, search
                return
            self.listings = {**others, **self.listings}
            self.search = self.search or search
        self.listings = {key: n for key, n in self.listings.items() if self._is_there(n)}
        _remove_abandoned(file)
        with written_atomically(file) as name:
            write_index(name, self.folder, self)
            # mapped before another process can replace it by an index with fewer listings
            self.listings, self.search = read_index(name, self.folder)
            size = name.stat().st_size
        log.info(
            "index of %s views in %s: %s (%.0f MB)", sum(map(len, self.listings.values())),
            self.folder, file, size / 1e6,
        )  # fmt: skip
        self._stored = True

    def _is_there(self, listing: Listing) -> bool:
        return any((self.folder / folder_of(column)).is_dir() for column in listing.columns)


def _covers(others: Mapping[Key, Listing], ours: Mapping[Key, Listing]) -> bool:
    """Whether `others` have all columns of `ours`, with the same times."""
    return all(
        column.times != ()
        and key in others
        and name in others[key].columns
        and others[key].columns[name].times == column.times
        for key, listing in ours.items()
        for name, column in listing.columns.items()
    )


def _remove_abandoned(file: Path) -> None:
    """Remove temporary files of processes that were killed while they wrote the index."""
    for other in file.parent.glob(f".{file.name}.*"):
        try:
            if time.time() - other.stat().st_mtime > ABANDONED:
                other.unlink()
        except OSError:  # another process has removed it
            pass


# ---- the file ----------------------------------------------------------------------------


def write_index(file: Path, folder: Path, index: ViewIndex) -> None:
    """Write the listings of an index to a file: a header, JSON, and the arrays."""
    arrays: list[np.ndarray] = []
    position = 0

    def placed(array: np.ndarray) -> list[int]:
        nonlocal position
        start, size = position, array.nbytes
        arrays.append(np.ascontiguousarray(array).view(np.uint8))
        position += size + -size % ALIGNED
        return [start, len(array)]

    places = [
        [
            *key, placed(listing.names), placed(listing.ends),
            [[name, c.times, c.endings, placed(c.codes)] for name, c in listing.columns.items()],
        ]
        for key, listing in index.listings.items()
    ]  # fmt: skip
    described = {"folder": str(folder), "search": index.search, "places": places}
    text = json.dumps(described).encode()
    text += b" " * (-(HEADER.size + len(text)) % ALIGNED)
    with open(file, "r+b") as opened:
        opened.seek(HEADER.size)
        checksum, size = 0, 0
        for chunk in (text, *(bytes(a) + b"\0" * (-a.nbytes % ALIGNED) for a in arrays)):
            opened.write(chunk)
            checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
        opened.seek(0)
        opened.write(HEADER.pack(MAGIC, VERSION, checksum, size, len(text)))


def read_index(file: Path, folder: Path) -> tuple[dict[Key, Listing], Search | None]:
    """Map an index into memory. Its checksum is compared first, so damage is always noticed.

    Raises OSError if it cannot be read, and ValueError if it is damaged or of another version.
    """
    check_regular(file)
    with open(file, "rb") as opened:
        header = opened.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise ValueError("it is no index")
        _, version, checksum, size, described = HEADER.unpack(header)
        if version != VERSION:
            raise ValueError(f"it is of version {version}, not {VERSION}")
        if os.fstat(opened.fileno()).st_size != HEADER.size + size:
            raise ValueError("it is cut off")
        found = 0
        while chunk := opened.read(2**22):  # not through the map: its pages are not all needed
            found = zlib.crc32(chunk, found)
        if found != checksum:
            raise ValueError("its checksum is wrong")
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    content = json.loads(mapped[HEADER.size : HEADER.size + described])
    if content["folder"] != str(folder):
        raise ValueError(f"it is of {content['folder']}")
    start = HEADER.size + described

    def array(dtype: type, place: list[int]) -> np.ndarray:
        position, count = place
        return np.frombuffer(mapped, dtype, count, start + position)

    listings = {}
    for layout, part, building, names, ends, columns in content["places"]:
        listings[layout, part, building] = Listing(array(np.uint8, names), array(np.uint32, ends), {
            name: Column(_times(times), tuple(endings), array(np.uint8, codes))
            for name, times, endings, codes in columns
        })  # fmt: skip
    return listings, _search(content["search"])


def _times(recorded: list[int] | None) -> Times:
    return None if recorded is None else tuple(recorded)


def _search(recorded: list[Any] | None) -> Search | None:
    if recorded is None:
        return None
    table, layout, folders = recorded
    return Search(table, layout, {name: _times(times) for name, times in folders.items()})


# ---- where indexes are kept ---------------------------------------------------------------

_chosen: list[Path | None] = []  # what `keep_indexes_in` was called with last
_open: dict[tuple[Path, Path | None], ViewIndex] = {}


def keep_indexes_in(folder: str | Path | None) -> None:
    """Keep the indexes of this process in `folder`; None: nowhere."""
    _chosen[:] = [None if folder is None else Path(folder)]


def index_dir() -> Path | None:
    """Return the folder of the indexes, by default xtconsistency/ in the user's cache folder.

    That is $XDG_CACHE_HOME, or else ~/.cache. None: no index is kept.
    """
    if _chosen:
        return _chosen[0]
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    return cache / "xtconsistency"


def index_of(data_dir: str | Path) -> ViewIndex:
    """Return the index of a data folder, which is empty if there is none yet."""
    folder, place = Path(data_dir).resolve(), index_dir()
    if (folder, place) not in _open:
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
        _open[folder, place] = ViewIndex(folder, place and place / f"views-{name}.index")
    return _open[folder, place]


def forget_indexes() -> None:
    """Forget the indexes that this process has opened; their files stay."""
    _open.clear()

"""The index of a large data folder: which views it has, and which files each view has.

Listing millions of files takes minutes, and a Python list of millions of views takes gigabytes
in every process. The index is kept in a file, which all processes map into memory. Before the
listing of a building is used, the times of the building's folders are compared with those
recorded when the folders were listed. So only buildings that have changed are listed again.

Small data folders have no index. It is not an error if an index cannot be read or written.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from files import written_atomically
from loading.index_files import Search, read_index, write_index
from loading.listings import Found, Key, Listing, Store, Times, folder_of, folder_times, settled
from utils import UserError, counted, log, reason_of

SMALL = 20_000  # data folders with fewer files have no index
ABANDONED = 3600  # seconds after which a half-written index is removed


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
        self._store = Store()  # of the listings that are not in the file
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
        and writes what is new to the file. Nothing is kept of small folders. If the file cannot
        be written, the listings stay in this process's memory, and a line of the log says so.
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
            self.listings, self._store = {}, Store()
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
        self.listings[key] = self._store.moved(Listing.of(found, times))
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
                self._store = Store()
                return
            self.listings = {**others, **self.listings}
            self.search = self.search or search
        self.listings = {key: n for key, n in self.listings.items() if self._is_there(n)}
        _remove_abandoned(file)
        with written_atomically(file) as name:
            write_index(name, self.folder, self.listings, self.search)
            # mapped before another process can replace it by an index with fewer listings
            self.listings, self.search = read_index(name, self.folder)
            self._store = Store()
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


# ---- where indexes are kept ---------------------------------------------------------------

_chosen: list[Path | None] = []  # what `keep_indexes_in` was called with last
_open: dict[tuple[Path, Path | None], ViewIndex] = {}


def keep_indexes_in(folder: str | Path | None) -> None:
    """Keep the indexes of this process in `folder`; None: nowhere."""
    _chosen[:] = [None if folder is None else Path(folder)]


def choose_index_dir(named: str | None) -> None:
    """Keep the indexes where the user wants: None for the usual folder, "none" for nowhere."""
    if named is not None:
        keep_indexes_in(None if named == "none" else named)


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

"""What a folder of views holds: the names of the views, and which files each view has.

The names are bytes, and there is one byte for each view and domain. So no Python object is kept
for each view. The times of the folders show whether a listing is still valid.
"""

import os
import time
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

# A folder that changed less than this before it was listed may change again and keep the same
# times, because file systems round them. So it is listed again the next time.
UNSETTLED = 2_000_000_000  # ns

# Bytes of memory that are requested at once. The C library gives so large a piece back to the
# system as soon as it is freed. Pages of it that are not used take no memory.
BLOCK = 64 * 2**20

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
        encoded, ends = self.names.tobytes(), [0, *self.ends.tolist()]
        bounds = zip(ends, ends[1:], strict=False)
        if encoded.isascii():  # decoded as a whole, which takes less time
            text = encoded.decode("ascii")
            return [text[start:end] for start, end in bounds]
        return [os.fsdecode(encoded[start:end]) for start, end in bounds]

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


class Store:
    """Memory for the arrays of many listings, all of which is freed when they are dropped.

    Separate arrays would leave gaps between other objects, and the process would keep that memory.
    """

    def __init__(self) -> None:
        self._block, self._used = np.empty(0, np.uint8), 0

    def moved(self, listing: Listing) -> Listing:
        """Return the listing with its arrays here."""
        columns = {
            name: column._replace(codes=self._moved(column.codes))
            for name, column in listing.columns.items()
        }
        return Listing(self._moved(listing.names), self._moved(listing.ends), columns)

    def _moved(self, array: np.ndarray) -> np.ndarray:
        if self._used + array.nbytes > len(self._block):
            self._block, self._used = np.empty(max(BLOCK, array.nbytes), np.uint8), 0
        place = self._block[self._used : self._used + array.nbytes].view(array.dtype)
        self._used += array.nbytes + -array.nbytes % 8
        place[:] = array
        return place


def folder_of(column: str) -> str:
    """Return the folder of a column's files, relative to the data folder."""
    return column.rpartition("/")[0]

"""The file of an index of views: a header, a description as JSON, and the listings' arrays.

It is mapped into memory, so that all processes share what they read of it.
"""

import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from loading.listings import Column, Key, Listing, Times
from utils import check_regular

MAGIC = b"XTC view index\n\0"
VERSION = 1  # of the file's format, and of what the columns mean
HEADER = struct.Struct("<16sIIQQ")  # magic, version, CRC-32 and size of the rest, size of its JSON
ALIGNED = 8  # the position of each array is a multiple of this many bytes


class Search(NamedTuple):
    """How the layout of a folder was found.

    `table` is a digest of the layouts that were tried, and `folders` are the times of the folders
    in which the files of other layouts were looked for.
    """

    table: str
    layout: str
    folders: dict[str, Times]


def write_index(
    file: Path, folder: Path, listings: Mapping[Key, Listing], search: Search | None
) -> None:
    """Write the listings of a data folder to a file: a header, JSON, and the arrays."""
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
        for key, listing in listings.items()
    ]  # fmt: skip
    described = {"folder": str(folder), "search": search, "places": places}
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

    Raises OSError if it cannot be read, and ValueError if it is damaged, of another version or of
    another folder.
    """
    check_regular(file)
    with open(file, "rb") as opened:
        header = opened.read(HEADER.size)
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise ValueError("it is not an index")
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

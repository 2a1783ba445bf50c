"""Reading of shards: tar files with the files of many views, in WebDataset's format.

A shard is read from its beginning to its end, so it may be on object storage or a network disk.
`python -m scripts.pack` writes shards. The files of a view follow each other. They are called
`{part}/{building}/{view}.{domain}.png`, where the part and the building may be left out. The names
are percent-encoded, because a dot ends the name of the view.
"""

import glob
import hashlib
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from files import read_json, write_json
from loading.near_misses import RGB_ENDINGS
from loading.view_index import index_dir
from task_configs import ImageTask
from utils import UserError, log, reason_of

PREFIX = "shards:"  # before the pattern of the shards' names
SHARDED = "shards"  # name of the layout of views in shards
REMOTE = re.compile(r"(pipe|[a-z0-9]+(?=://)):")  # addresses that are not local files
VERSION = 1  # of the lists of shards that are kept
Name = tuple[str, str, str]  # part, building, view
Content = Mapping[str, bytes]  # of a view's files: {what follows the view's name: bytes}


class Sample(NamedTuple):
    """A view in a shard: its name, and what its files are called after it ("rgb.png")."""

    name: Name
    files: tuple[str, ...]


def library() -> Any:
    """Return the module webdataset. Raises UserError if it is not installed."""
    try:
        return import_module("webdataset")
    except ImportError as error:
        raise UserError(
            f"shards need the package webdataset, the extra `shards` of this project ({error})"
        ) from None


def runs_commands(place: str) -> bool:
    """Whether reading a place, named as data folders are, runs a command that the user gave."""
    return place.startswith(f"{PREFIX}pipe:")


# ---- names --------------------------------------------------------------------------------


def key_of(part: str, building: str, view: str) -> str:
    """Return what a view's files are called in a shard, up to the first dot."""
    names = [part, building, view] if part else [building, view]
    return "/".join(quote(os.fsencode(name), safe="").replace(".", "%2E") for name in names)


def name_of(key: str, url: str) -> Name:
    """Return part, building and view of a key. Without folders, the shard is the building."""
    *folders, view = (os.fsdecode(unquote_to_bytes(name)) for name in key.split("/") if name)
    building = folders[-1] if folders else re.split(r"[/ ]", url)[-1].partition(".")[0]
    return (folders[-2] if len(folders) > 1 else ""), building, view


# ---- one shard ------------------------------------------------------------------------------


def read_shard(url: str) -> Generator[tuple[Name, Content], None, None]:
    """Yield the views of a shard in their order: (name, {name of a file: its bytes}).

    Raises UserError if the shard cannot be read to its end.
    """
    split = library().tariterators.base_plus_ext
    files = library().tariterators.tar_file_iterator
    current, content = None, dict[str, bytes]()
    try:
        with _Opened(url) as stream:
            for file in files(stream, skip_meta=None):
                key, name = split(file["fname"])
                if key != current:
                    if current:
                        yield name_of(current, url), content
                    current, content = key, {}
                if key:
                    content[name] = file["data"]
            if current:
                yield name_of(current, url), content
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise _unreadable(url, error) from None


def _unreadable(url: str, error: Exception) -> UserError:
    return UserError(f"cannot read the shard {url}: {' '.join(reason_of(error).split())}")


class _Opened:
    """Opens a shard. If its reader stops early, errors of the sender are ignored."""

    def __init__(self, url: str) -> None:
        self.stream: IO[bytes] = (
            library().gopen(url, "rb") if REMOTE.match(url) else open(url, "rb")
        )

    def __enter__(self) -> IO[bytes]:
        return self.stream

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        if kind is None:
            self.stream.close()
        else:
            with suppress(OSError):
                self.stream.close()


def _listed(url: str) -> list[Sample]:
    """Return the views of a shard, from the list that an earlier run has kept if there is one."""
    local = not REMOTE.match(url)
    try:
        status = os.stat(url) if local else None
    except OSError as error:
        raise _unreadable(url, error) from None
    version = [VERSION, url, status and status.st_size, status and status.st_mtime_ns]
    place, kept = index_dir(), None
    if place is not None:
        kept = place / f"shard-{hashlib.sha256(repr(version).encode()).hexdigest()[:24]}.json"
        with suppress(UserError, KeyError, TypeError, ValueError):
            content = read_json(kept)
            if content["shard"] == version:
                return [Sample(tuple(name), tuple(files)) for name, files in content["views"]]
    samples = _headers(url) if local else [Sample(n, tuple(f)) for n, f in read_shard(url)]
    if kept is not None and not (local and len(samples) < 1000):  # a few are listed quickly
        with suppress(UserError):  # it cannot be written
            write_json(kept, {"shard": version, "views": samples}, indent=None)
    return samples


def _headers(path: str) -> list[Sample]:
    """List a local shard by its headers alone."""
    split = library().tariterators.base_plus_ext
    found = defaultdict[str, list[str]](list)
    try:
        with open(path, "rb") as file:
            file.seek(-min(512, os.path.getsize(path)), os.SEEK_END)
            if file.read().strip(b"\0"):
                raise ValueError("it is cut off")
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, name = split(member.name) if member.isreg() else ("", "")
                if key:
                    found[key].append(str(name))
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise _unreadable(path, error) from None
    return [Sample(name_of(key, path), tuple(names)) for key, names in found.items()]


# ---- all shards of a pattern -----------------------------------------------------------------


class Shards:
    """The shards of a pattern, `urls`, with the views of each, `samples`.

    Raises UserError if there are none, if one cannot be read, or if a view is in two of them.
    """

    def __init__(self, spec: str) -> None:
        self.spec, self.urls = spec, expand(spec)
        self.samples = [_listed(url) for url in self.urls]
        self._where: dict[Name, tuple[int, int]] = {}
        for shard, samples in enumerate(self.samples):
            for position, sample in enumerate(samples):
                if sample.name in self._where:
                    other = self.urls[self._where[sample.name][0]]
                    raise UserError(
                        f"the view {sample.name[2]} of {sample.name[1]} is in the shards {other} "
                        f"and {self.urls[shard]}: each view may be in one"
                    )
                self._where[sample.name] = shard, position
        self._open: dict[tuple[int, int], tarfile.TarFile] = {}

    def places(self) -> list[tuple[str, str]]:
        """Return the buildings as (part, building), sorted."""
        return sorted({name[:2] for name in self._where})

    def view_names(self, task: ImageTask, building: str, part: str) -> list[str]:
        """Return the views of a building that have a file for this task."""
        return [
            sample.name[2] for samples in self.samples for sample in samples
            if sample.name[:2] == (part, building) and file_of(task, sample.files)
        ]  # fmt: skip

    def where(self, name: Name) -> tuple[int, int]:
        """Return the number of the shard that holds a view, and of the views before it there."""
        return self._where[name]

    def read(self, shard: int, wanted: Mapping[Name, int]) -> Iterator[tuple[int, Content]]:
        """Read a shard up to the last of the `wanted` views, {name: number}.

        Yields (number, {name of a file: its bytes}). Raises UserError if the shard cannot be
        read, or lacks one of the views.
        """
        left = len(wanted)
        with closing(read_shard(self.urls[shard])) as samples:
            while left:
                name, files = next(samples, (None, {}))
                if name is None:
                    raise UserError(
                        f"the shard {self.urls[shard]} has changed since its views were listed: "
                        f"{left} of them are not there"
                    )
                if name in wanted:
                    left -= 1
                    yield wanted[name], files

    def load(self, name: Name) -> Content:
        """Return the files of one view: {name of a file: its bytes}.

        A local shard is opened once in each process. A remote one is read from its beginning.
        Raises UserError if the shard cannot be read.
        """
        shard, _ = self._where[name]
        url = self.urls[shard]
        if REMOTE.match(url):
            return next(self.read(shard, {name: 0}))[1]
        key = os.getpid(), shard  # the position in an opened file is shared with forked processes
        try:
            if key not in self._open:
                if len(self._open) > 8:
                    self._open.clear()
                self._open[key] = tarfile.open(url, "r:")
            archive = self._open[key]
            files = {}
            for file in self.samples[shard][self._where[name][1]].files:
                stream = archive.extractfile(f"{key_of(*name)}.{file}")
                files[file] = stream.read() if stream else b""
            return files
        except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
            raise _unreadable(url, error) from None


def file_of(task: ImageTask, files: Sequence[str]) -> str | None:
    """Return which of a view's files is a domain's, or None. A PNG is preferred to a JPEG."""
    endings = RGB_ENDINGS if task.folder == "rgb" else r"\.png"
    found = [name for name in files if re.fullmatch(re.escape(task.folder) + endings, name)]
    return min(found, key=lambda name: (not name.endswith(".png"), name), default=None)


def expand(spec: str) -> list[str]:
    """Return the shards that a pattern names: {000000..000007} and, in local names, * and ?.

    Raises UserError if there are none.
    """
    pattern = spec.removeprefix(PREFIX)
    try:
        urls = library().shardlists.expand_urls(pattern)
    except ValueError as error:
        raise UserError(f"{spec} is not a pattern of shards: {reason_of(error)}") from None
    found = []
    for url in (url.removeprefix("file:") for url in urls):
        is_pattern = not REMOTE.match(url) and not os.path.exists(url) and glob.has_magic(url)
        found += sorted(glob.glob(url)) if is_pattern else [url]
    if not found or not pattern:
        raise UserError(f"{spec} names no shards: there is no such file")
    return found


# ---- shards in place of a data folder -----------------------------------------------------------

# A data folder is a `Path`, which writes // as /. What was typed is looked up here.
_typed: dict[str, str] = {}


def is_shards(place: str | Path) -> bool:
    """Whether a data folder's name is a pattern of shards."""
    return str(place).startswith(PREFIX)


def remember(place: str | Path) -> None:
    """Keep a pattern of shards as it was typed."""
    if isinstance(place, str):
        _typed[str(Path(place))] = place


def find_shards(place: str | Path) -> Shards | None:
    """Return the shards of a pattern, or None if it is something else.

    Raises UserError if there are no shards, or if they cannot be read.
    """
    if not is_shards(place):
        return None
    remember(place)
    spec = _typed.get(str(place), str(place))
    stats = [os.stat(u) for u in expand(spec) if not REMOTE.match(u) and os.path.exists(u)]
    return _found(spec, tuple((s.st_mtime_ns, s.st_size) for s in stats))


@lru_cache(maxsize=4)
def _found(spec: str, changed: tuple) -> Shards:
    shards = Shards(spec)
    log.info(
        "shards: %s views in %s", sum(map(len, shards.samples)), f"{len(shards.urls)} ({spec})"
    )
    return shards

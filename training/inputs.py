"""What a run reads: its networks and views, recorded in run.json and compared on resuming."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from backbones import Backbone
from files import sha256
from loading.packs import PACK_INDEX, PACKED
from loading.shards import REMOTE, SHARDED, find_shards
from loading.view_sequence import Views
from training.data import Part
from utils import UserError, evenly_spaced, reason_of

EXAMINED = 100_000  # the most files of a part that are looked at
SMALL = 256 * 2**20  # bytes of files up to which their contents are compared


def inputs_of(
    networks: Mapping[str, Path], parts: Mapping[str, Part], own: Backbone | None = None
) -> dict:
    """Return the record of what a run reads, for run.json.

    `networks` are the checkpoints that were loaded, {transfer: file}. For each network,
    the record holds its file and SHA-256; for each part of the data the number of views and a
    digest of their names and files (see `views_digest`). If the network that trains is the
    user's `own`, "code" holds its function and its file's SHA-256. Raises UserError if a file
    cannot be read.
    """
    return {
        "networks": {n: {"file": str(p), "sha256": sha256(p)} for n, p in networks.items()},
        "views": {
            name: {"count": len(part.views), "digest": views_digest(part)}
            for name, part in parts.items()
        },
        **({"code": {"function": own.function, "sha256": own.sha256}} if own else {}),
    }


def views_digest(part: Part) -> str:
    """Return a digest of the views' names and of their files.

    It covers the files' contents if they have at most 256 MB in all, and otherwise the sizes and
    modification times of at most 100,000 evenly spaced files. It does not depend on where the
    data folder is.
    """
    digest = hashlib.sha256()
    for keys in _keys(part):
        digest.update(keys.encode())
    try:
        small = _is_small(part)
        for name, path in files_of(part):
            if small:
                what = sha256(path)
            else:
                status = os.stat(path)
                what = f"{status.st_size} {status.st_mtime_ns}"
            digest.update(f"{name} {what}".encode())
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {reason_of(error)}") from None
    return digest.hexdigest()


def _keys(part: Part) -> Iterator[str]:
    """Yield (part, building, name) of the views as text, of one or many at a time."""
    if isinstance(part.views, Views):
        return part.views.keys()
    return (repr((view.part, view.building, view.name)) for view in part.views)


def _is_small(part: Part) -> bool:
    """Whether the files that are looked at have at most `SMALL` bytes in all."""
    size = 0
    for _, path in files_of(part):
        size += os.stat(path).st_size
        if size > SMALL:
            return False
    return True


def files_of(part: Part) -> Iterator[tuple[str, Path]]:
    """Yield at most `EXAMINED` files of evenly spaced views: (domain or the like, file).

    They are not collected, as that takes more memory than the index of millions of views.
    """
    some = part.views.firsts() if isinstance(part.views, Views) else part.views
    for folder in {view.data_dir for view in some if view.layout == SHARDED}:
        shards = find_shards(folder)  # of those that are not local, only the views' names count
        for number, url in enumerate(shards.urls if shards else ()):
            if not REMOTE.match(url):
                yield str(number), Path(url)
    of_packs = set[Path]()
    for view in evenly_spaced(part.views, max(1, EXAMINED // max(1, len(part.tasks)))):
        for task in part.tasks:
            if view.layout == PACKED:
                for name in (PACK_INDEX, f"{task}.npy"):
                    path = Path(view.data_dir) / name
                    if path not in of_packs:
                        of_packs.add(path)
                        yield name, path
            elif view.layout != SHARDED:
                yield task.name, view.path(task)


def changed_since(part: Part, moment: float) -> Path | None:
    """Return the first of the part's files that was modified after `moment`, or None."""
    return next((p for _, p in files_of(part) if os.stat(p).st_mtime > moment), None)


def differences(recorded: Mapping, now: Mapping, target: str) -> list[str]:
    """Return what has changed between two records of `inputs_of`, one phrase for each thing.

    The weights that the `target` started from do not count: they are in the run's states.
    """
    found = []
    for name in (n for n in {**recorded["networks"], **now["networks"]} if n != target):
        before, after = (record["networks"].get(name) for record in (recorded, now))
        if before is None or after is None:
            found.append(f"the network {name} is {'gone' if after is None else 'new'}")
        elif before["sha256"] != after["sha256"]:
            found.append(
                f"{after['file']} is not the network that it began with "
                f"({before['sha256'][:8]} then, {after['sha256'][:8]} now)"
            )
    if recorded.get("code") != now.get("code"):
        found.append("`network` names another file or function")
    for name, before in recorded["views"].items():
        after = now["views"].get(name, {"count": 0, "digest": ""})
        if before["count"] != after["count"]:
            found.append(f"{name} has {after['count']} views now and had {before['count']} then")
        elif before["digest"] != after["digest"]:
            found.append(f"views of {name} or their files have changed")
    return found

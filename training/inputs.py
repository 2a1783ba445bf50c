"""What a run reads: its networks and views, recorded in run.json and compared on resuming."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from backbones import Backbone
from loading.packs import PACK_INDEX, PACKED
from training.data import Part
from utils import UserError, evenly_spaced, reason_of

EXAMINED = 100_000  # at most so many files of a part have their size and time recorded


def inputs_of(
    networks: Mapping[str, Path], parts: Mapping[str, Part], own: Backbone | None = None
) -> dict:
    """Return the record of what a run reads, for run.json.

    `networks` are the checkpoints that were loaded, {transfer: file}. For each network,
    the record holds its file and SHA-256; for each part of the data the number of views and a
    digest of their names and of the sizes and modification times of their files (of at most
    100,000 evenly spaced ones). If the network that trains is the user's `own`, "code" holds
    its function and its file's SHA-256. Raises UserError if a file cannot be read.
    """
    return {
        "networks": {n: {"file": str(p), "sha256": sha256(p)} for n, p in networks.items()},
        "views": {
            name: {"count": len(part.views), "digest": views_digest(part)}
            for name, part in parts.items()
        },
        **({"code": {"function": own.function, "sha256": own.sha256}} if own else {}),
    }


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {reason_of(error)}") from None


def views_digest(part: Part) -> str:
    """Return a digest of the views' names and of the sizes and times of their files.

    It does not depend on where the data folder is.
    """
    digest = hashlib.sha256()
    for view in part.views:
        digest.update(repr((view.part, view.building, view.name)).encode())
    files: dict[tuple, Path] = {}
    for view in evenly_spaced(part.views, EXAMINED // max(1, len(part.tasks))):
        for task in part.tasks:
            if view.layout == PACKED:
                for name in (PACK_INDEX, f"{task}.npy"):
                    files[view.data_dir, name] = Path(view.data_dir) / name
            else:
                files[view, task.name] = view.path(task)
    for key, path in files.items():
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason_of(error)}") from None
        digest.update(f"{key[-1]} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


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
        found.append("the file or the function of `network` is another")
    for name, before in recorded["views"].items():
        after = now["views"].get(name, {"count": 0, "digest": ""})
        if before["count"] != after["count"]:
            found.append(f"{name} has {after['count']} views, then {before['count']}")
        elif before["digest"] != after["digest"]:
            found.append(f"views of {name} or their files have changed")
    return found

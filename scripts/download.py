"""Download checkpoints or data from a mirror. Interrupted downloads are resumed.

XTC_MIRROR=https://host/folder python -m scripts.download models
"""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from energy import get_config, paths_for, perceptual_losses
from files import make_folder
from graph import edges_of
from loading.archives import check_archive, unpack
from loading.downloads import SUMS, NotThere, fetch, read_sums
from models import read_weights
from task_configs import get_task
from transfers import TRANSFERS
from utils import UserError, command_line, nearest, read_job

PERCEPTUAL = "multiperceptual_normal", "multiperceptual_depth", "multiperceptual_reshading"
PREDICTIONS = [f"rgb2{task}_consistency.pth" for task in ("normal", "depth", "reshading")]
BUILDINGS = "almena", "albertville"  # buildings of the published sample
DOMAINS = "rgb", "normal"  # domains that the consistency energy needs


def _checkpoints(config_names: tuple[str, ...]) -> list[str]:
    """Return the checkpoints that the perceptual losses of the configurations need."""
    files = []
    for name in config_names:
        config = get_config(name)
        for edge in edges_of(paths_for(config, perceptual_losses(config) or config["losses"])):
            if edge in TRANSFERS and TRANSFERS[edge].trainable:
                files.append(TRANSFERS[edge].checkpoint)
    return list(dict.fromkeys(files))


def _all_checkpoints() -> list[str]:
    rows = [row.checkpoint for row in TRANSFERS.values() if row.trainable]
    return list(dict.fromkeys([*rows, *PREDICTIONS, "rgb2depth_baseline.pth"]))


# What can be downloaded: names of the files on the mirror.
SOURCES: dict[str, Callable[[], list[str]]] = {
    "models": _all_checkpoints,
    "percep_models": lambda: _checkpoints(PERCEPTUAL),
    "energy_graph_edges": lambda: [*PREDICTIONS, *_checkpoints(("energy_calc",))],
    "data": lambda: [f"{b}_{d}.tar" for b in BUILDINGS for d in DOMAINS],
}


def main(
    what: str | None = None,
    folder: str | None = None,
    *,
    buildings: list | None = None,
    domains: list | None = None,
    quiet: bool = False,
) -> None:
    """Fetch checkpoints or data from the mirror that XTC_MIRROR names.

    The mirror is a folder at an address (https://…, http://… or file://…) that holds the
    files under their published names. No address is known that is certain to be alive, so
    there is none by default. What is there already is not fetched again; what was cut off
    goes on where it stopped, or begins anew where the file on the mirror has changed. Where the
    mirror has a file SHA256SUMS, only what is listed there is fetched, and only if it agrees.

    Example: XTC_MIRROR=https://host/models python -m scripts.download models

    Args:
        what: models (all checkpoints), percep_models (those of the perceptual losses),
            energy_graph_edges (those of the consistency energy) or data (archives
            {building}_{domain}.tar, which are unpacked).
        folder: where to (default: models/ or data/ of the job's base folder).
        buildings: of data (default: almena,albertville).
        domains: of data (default: rgb,normal).
        quiet: no progress bar.
    """
    if what not in SOURCES:
        wrong = f", not {what}{nearest(what, SOURCES)}" if what else ""
        raise UserError(f"what to fetch? {', '.join(SOURCES)}{wrong}")
    if what != "data" and (buildings or domains):
        raise UserError("`buildings` and `domains` are for data")
    mirror = _mirror()
    job = read_job()
    data = what == "data"
    target = Path(folder) if folder else job.data_dir if data else job.models_dir
    make_folder(target)
    names = _archives(buildings, domains) if data else SOURCES[what]()
    missing, unlisted = _fetch_all(mirror, names, target, data, quiet)
    lacking = [
        f"{what} {len(lost)} of {len(names)}: {', '.join(lost)}"
        for what, lost in (("lacks", missing), (f"has no entry in its {SUMS} for", unlisted))
        if lost
    ]
    if lacking:
        raise UserError(f"{mirror} {'; it '.join(lacking)}")


def _fetch_all(
    mirror: str, names: Sequence[str], target: Path, data: bool, quiet: bool
) -> tuple[list[str], list[str]]:
    """Fetch the files that are not there yet, and unpack archives of data.

    Returns the names that the mirror lacks, and those that its SHA256SUMS lacks.
    """
    sums = read_sums(mirror)
    missing, unlisted = [], []
    for name in names:
        done = target / (name.removesuffix(".tar") if data else name)
        if done.is_dir() if data else done.is_file() and done.stat().st_size:
            print(f"{name}: there already")
            continue
        if sums is not None and name not in sums:
            print(f"{name}: not in {SUMS}")
            unlisted.append(name)
            continue
        try:
            check = check_archive if data else read_weights
            fetch(f"{mirror}/{name}", target / name, check, (sums or {}).get(name, ""), quiet)
        except NotThere:
            print(f"{name}: not on the mirror")
            missing.append(name)
            continue
        if data:
            _unpack_whole(target / name, done)
        print(f"{name}: fetched")
    return missing, unlisted


def _mirror() -> str:
    mirror = os.environ.get("XTC_MIRROR", "").rstrip("/")
    if not mirror:
        raise UserError(
            "set XTC_MIRROR to the address of a folder with the published files, e.g. "
            "XTC_MIRROR=https://host/models; without one, python -m scripts.train_edges CONFIG "
            "trains the networks on your own data, docs/data.md says where data are to be had, "
            "and the shipped rooms networks are used where nothing else is chosen"
        )
    if not mirror.startswith(("https://", "http://", "file://")):
        raise UserError(f"XTC_MIRROR begins with https://, http:// or file://, not {mirror}")
    return mirror


def _archives(buildings: list[str] | None, domains: list[str] | None) -> list[str]:
    for building in buildings or ():
        if not re.fullmatch(r"\w[\w-]*", building):
            raise UserError(f"{building!r} is no building's name: letters, digits, - and _ only")
    for domain in domains or ():
        get_task(domain)
    return [f"{b}_{d}.tar" for b in buildings or BUILDINGS for d in domains or DOMAINS]


def _unpack_whole(archive: Path, folder: Path) -> None:
    """Unpack the archive to `folder` atomically, and remove the archive."""
    temporary = folder.with_name(f".{folder.name}.unpacked")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        unpack(archive, temporary)
        inner = temporary / folder.name  # some archives contain the folder itself
        os.replace(inner if inner.is_dir() else temporary, folder)
        archive.unlink()
    except OSError as error:
        raise UserError(f"cannot unpack into {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    command_line(main)

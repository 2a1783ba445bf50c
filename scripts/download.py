"""Fetch checkpoints or data from a mirror; what was cut off goes on where it stopped.

XTC_MIRROR=https://host/folder python -m scripts.download models
"""

import hashlib
import http.client
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from energy import get_config, paths_for, perceptual_losses
from graph import edges_of
from models import read_weights
from scripts.archives import unpack
from task_configs import get_task
from transfers import TRANSFERS
from utils import UserError, command_line, nearest, read_job

TIMEOUT = 30  # seconds without an answer
ATTEMPTS = 5  # in a row without a single byte more
PAUSE = 1.0  # seconds after the first failed attempt; doubled each time
BLOCK = 2**20
SUMS = "SHA256SUMS"  # of a mirror that has it; the publisher names neither sizes nor hashes

PERCEPTUAL = "multiperceptual_normal", "multiperceptual_depth", "multiperceptual_reshading"
PREDICTIONS = [f"rgb2{task}_consistency.pth" for task in ("normal", "depth", "reshading")]
BUILDINGS = "almena", "albertville"  # of the published sample
DOMAINS = "rgb", "normal"  # what the consistency energy reads


def _checkpoints(config_names: tuple[str, ...]) -> list[str]:
    """The files of the trained networks behind the perceptual losses of configurations."""
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


# What there is to fetch: the files' names on the mirror.
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
    goes on where it stopped. Where the mirror has a file SHA256SUMS, it is obeyed.

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
        raise UserError("--buildings and --domains are for data")
    mirror = _mirror()
    job = read_job()
    data = what == "data"
    target = Path(folder) if folder else job.data_dir if data else job.models_dir
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {target}: {error.strerror}") from None
    names = _archives(buildings, domains) if data else SOURCES[what]()
    sums = _read_sums(mirror)
    lacking = []
    for name in names:
        done = target / (name.removesuffix(".tar") if data else name)
        if done.is_dir() if data else done.is_file() and done.stat().st_size:
            print(f"{name}: there already")
            continue
        try:
            fetch(f"{mirror}/{name}", target / name, sums.get(name, ""), quiet)
        except NotThere:
            print(f"{name}: not on the mirror")
            lacking.append(name)
            continue
        if data:
            _unpack_whole(target / name, done)
        print(f"{name}: fetched")
    if lacking:
        raise UserError(f"{mirror} lacks {len(lacking)} of {len(names)}: {', '.join(lacking)}")


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


def _read_sums(mirror: str) -> dict[str, str]:
    """{file: SHA-256} of a mirror that says so; UserError where the mirror does not answer."""
    try:
        answer = _opened(f"{mirror}/{SUMS}", 0)
        assert answer is not None  # from byte 0 on there is an answer
        with answer:
            text = answer.read(BLOCK).decode("utf-8", "replace")
    except NotThere:
        return {}
    except (*CUT, Interrupted) as error:
        raise UserError(f"{mirror} does not answer: {error}") from None
    found = re.findall(r"^([0-9a-fA-F]{64}) [ *](\S+)\s*$", text, re.MULTILINE)
    return {name: digest.lower() for digest, name in found}


def _unpack_whole(archive: Path, folder: Path) -> None:
    """Unpack to `folder`, which appears when it is complete, and remove the archive."""
    aside = folder.with_name(f".{folder.name}.unpacked")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        unpack(archive, aside)
        inner = aside / folder.name  # some archives hold the folder itself
        os.replace(inner if inner.is_dir() else aside, folder)
        archive.unlink()
    except OSError as error:
        raise UserError(f"cannot unpack into {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# ---- one file -----------------------------------------------------------------------

CUT = OSError, http.client.HTTPException  # a connection's end; URLError is an OSError


class NotThere(UserError):
    """The host answers, and has no such file."""


class Interrupted(Exception):
    """The transfer ended early, and may go on."""


def fetch(url: str, path: Path, sha256: str = "", quiet: bool = True) -> None:
    """Fetch `url` to `path`, by way of `path`.part, which the next call goes on with.

    `path` appears when it is whole: as long as announced, with that SHA-256 if given, and
    a checkpoint or an archive according to its name. Raises NotThere, or UserError where
    the host does not answer, gives something else, or the transfer ends again and again.
    """
    part = path.with_name(f"{path.name}.part")
    failures, before = 0, -1
    while True:
        try:
            _continue(url, part, quiet)
            break
        except Interrupted as error:
            have = _size(part)
            failures, before = (failures + 1 if have <= before else 1), have
            if failures >= ATTEMPTS:
                text = f"{url} was cut off after {have} bytes ({error}); the same again goes on"
                raise UserError(text) from None
            time.sleep(PAUSE * 2 ** (failures - 1))
    try:
        _check(url, part, path.name, sha256)
    except UserError:
        part.unlink()
        raise
    os.replace(part, path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _continue(url: str, part: Path, quiet: bool) -> None:
    """Fetch what `part` lacks. Raises Interrupted where the transfer ended early."""
    have = _size(part)
    answer = _opened(url, have)
    if answer is None:  # there is no more than what is there
        return
    with answer:
        resumed = (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
        if answer.status == 206 and not resumed:
            raise UserError(f"{url}: the host answers with another part than was asked for")
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else None
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem,
                   disable=quiet or None)  # fmt: skip
        try:
            with bar, open(part, "ab" if resumed else "wb") as file:
                while block := _block(answer):
                    file.write(block)
                    have += len(block)
                    bar.update(len(block))
        except OSError as error:
            raise UserError(f"cannot write {part}: {error.strerror}") from None
    if total is not None and have < total:
        raise Interrupted(f"{have} of {total} bytes came")


def _block(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(BLOCK)
    except CUT as error:
        raise Interrupted(str(error) or type(error).__name__) from None


def _opened(url: str, have: int) -> http.client.HTTPResponse | None:
    """The host's answer, from byte `have` on if it can; None where that is the end."""
    headers = {"User-Agent": "xtconsistency", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers=headers)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        _check_end(url, have, error)
        return None
    except CUT as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, (FileNotFoundError, IsADirectoryError)):  # of file://
            raise NotThere(f"no file {url}") from None
        if isinstance(reason, (TimeoutError, ConnectionResetError, http.client.HTTPException)):
            raise Interrupted(str(reason) or type(reason).__name__) from None
        raise UserError(f"no answer from {url}: {reason}; is XTC_MIRROR right?") from None
    except ValueError as error:
        raise UserError(f"{url} is no address: {error}") from None
    if "html" in (answer.headers.get("Content-Type") or ""):
        answer.close()
        raise UserError(f"{url} gives a web page, not the file: is XTC_MIRROR right?")
    return answer


def _check_end(url: str, have: int, error: urllib.error.HTTPError) -> None:
    """Returns where the file is whole already; UserError, NotThere or Interrupted else."""
    if error.code == 416 and have:
        if (error.headers.get("Content-Range") or "") == f"bytes */{have}":
            return
        raise UserError(f"{url} is shorter than what is here of it: remove its .part file")
    if error.code in (404, 410):
        raise NotThere(f"no file {url}") from None
    if error.code == 429 or error.code >= 500:
        raise Interrupted(f"the host answers {error.code} {error.reason}")
    raise UserError(f"{url}: the host answers {error.code} {error.reason}")


def _check(url: str, part: Path, name: str, sha256: str) -> None:
    """UserError where a whole transfer is not what its name says."""
    if sha256:
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise UserError(f"{url} has SHA-256 {found}, {SUMS} says {sha256}: it is removed")
    if name.endswith(".pth"):
        try:
            read_weights(part)
        except UserError as error:
            raise UserError(f"{url} is no checkpoint and is removed ({error})") from None
    elif not tarfile.is_tarfile(part) and not zipfile.is_zipfile(part):
        raise UserError(f"{url} is no archive and is removed")


if __name__ == "__main__":
    command_line(main)

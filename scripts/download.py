"""Download checkpoints or data: from their publisher or, if that fails, from a mirror.

python -m scripts.download omnidata
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from energy import get_config, paths_for, perceptual_losses
from files import make_folder
from flags import command_line
from graph import edges_of
from loading import addresses
from loading.archives import check_archive, unpack
from loading.downloads import SUMS, NotThere, Unreachable, fetch, read_sums
from models import read_weights
from task_configs import get_task
from transfers import TRANSFERS
from utils import UserError, nearest, read_job

PERCEPTUAL = "multiperceptual_normal", "multiperceptual_depth", "multiperceptual_reshading"
PREDICTIONS = [f"rgb2{task}_consistency.pth" for task in ("normal", "depth", "reshading")]
DOMAINS = "rgb", "normal"  # domains that the consistency energy needs
ATTEMPTS = 2  # at a publisher's address; a mirror comes afterwards
ENDINGS = ".zip", ".tar"  # of archives on a mirror
# The folders that the publisher's sample data consist of.
SAMPLE = [f"{b}_{d}" for b in addresses.SAMPLE_BUILDINGS for d in addresses.SAMPLE_DOMAINS]


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


# What can be downloaded: names of the checkpoints or, for data, of the folders.
SOURCES: dict[str, Callable[[], list[str]]] = {
    "models": _all_checkpoints,
    "percep_models": lambda: _checkpoints(PERCEPTUAL),
    "energy_graph_edges": lambda: [*PREDICTIONS, *_checkpoints(("energy_calc",))],
    "omnidata": lambda: [addresses.OMNIDATA_FILE],
    "taskonomy": lambda: _taskonomy_files(addresses.TASKONOMY),
    "data": lambda: _folders(None, None),
}
# The publisher's archives that hold them, in the order in which they are tried.
ARCHIVES_OF = {
    "models": ("models", "percep_models", "energy_graph_edges"),
    "percep_models": ("percep_models",),
    "energy_graph_edges": ("energy_graph_edges", "models"),
    "data": ("data",),
}


def main(
    what: str | None = None,
    folder: str | None = None,
    *,
    buildings: list | None = None,
    domains: list | None = None,
    quiet: bool = False,
) -> None:
    """Fetch checkpoints or data from their publisher or, if that fails, from a mirror.

    The publisher's addresses are tried first. Some may be dead by now: then XTC_MIRROR, the
    address of a folder (https://…, http:// or file://…), is used. The mirror holds the files
    under their published names or, for models, percep_models, energy_graph_edges and data, one
    archive {what}.zip or {what}.tar of them. If something cannot be fetched, the message says
    what was tried, and what a mirror has to hold. What is there already is not fetched again;
    a download that was cut off continues where it stopped, or begins anew if the file on the host
    has changed. If the mirror has a file SHA256SUMS, only what is listed there is fetched from
    it, and only if its checksum agrees.

    Example: python -m scripts.download omnidata

    Args:
        what: models (all checkpoints), percep_models (those of the perceptual losses),
            energy_graph_edges (those of the consistency energy), omnidata (Omnidata's U-Net for
            normals), taskonomy (Taskonomy's own networks; each file's SHA-256, which its name
            contains, is checked) or data ({building}_{domain}.zip or .tar, which are unpacked).
        folder: the folder for the files (default: models/ or data/ of the job's base folder).
        buildings: of data (default: almena,albertville).
        domains: of data (default: rgb,normal), or of taskonomy (default: all that there are).
        quiet: no progress bar.
    """
    if what not in SOURCES:
        wrong = f", not {what}{nearest(what, SOURCES)}" if what else ""
        raise UserError(f"what to fetch? {', '.join(SOURCES)}{wrong}")
    if what != "data" and (buildings or (domains and what != "taskonomy")):
        raise UserError("`buildings` and `domains` are for data (`domains` also for taskonomy)")
    job, mirror = read_job(), _mirror()
    target = Path(folder) if folder else job.data_dir if what == "data" else job.models_dir
    names = _names(what, buildings, domains)
    is_new = not target.exists()
    download = Download(what, make_folder(target), quiet)
    try:
        download.run(names, mirror)
    finally:
        if is_new and not any(target.iterdir()):
            target.rmdir()


def _names(what: str, buildings: list[str] | None, domains: list[str] | None) -> list[str]:
    if what == "data":
        return _folders(buildings, domains)
    if what != "taskonomy" or not domains:
        return SOURCES[what]()
    for domain in domains:
        get_task(domain)
        if domain not in addresses.TASKONOMY:
            raise UserError(
                f"Taskonomy's own networks predict {', '.join(addresses.TASKONOMY)}, not {domain}"
            )
    return _taskonomy_files(domains)


def _taskonomy_files(domains: Iterable[str]) -> list[str]:
    return [name for domain in domains for name in addresses.TASKONOMY[domain][:2]]


def _folders(buildings: list[str] | None, domains: list[str] | None) -> list[str]:
    for building in buildings or ():
        if not re.fullmatch(r"\w[\w-]*", building):
            raise UserError(
                f"{building!r} is not the name of a building: letters, digits, - and _ only"
            )
    for domain in domains or ():
        get_task(domain)
    return [f"{b}_{d}" for b in buildings or addresses.SAMPLE_BUILDINGS for d in domains or DOMAINS]


def _mirror() -> str:
    """Return the mirror's address, "" if there is none."""
    mirror = os.environ.get("XTC_MIRROR", "").rstrip("/")
    if mirror and not mirror.startswith(("https://", "http://", "file://")):
        raise UserError(f"XTC_MIRROR begins with https://, http:// or file://, not {mirror}")
    return mirror


# ---- one call -----------------------------------------------------------------------


@dataclass
class Download:
    """What is fetched into which folder. `tried` lists the addresses that failed, with reasons."""

    what: str
    target: Path
    quiet: bool
    tried: list[str] = field(default_factory=list)

    @property
    def is_data(self) -> bool:
        return self.what == "data"

    def lacking(self, names: Sequence[str]) -> list[str]:
        """Return those of the names that are not in the folder."""
        return [name for name in names if not self._is_there(name)]

    def _is_there(self, name: str) -> bool:
        path = self.target / name
        return path.is_dir() if self.is_data else path.is_file() and path.stat().st_size > 0

    def run(self, names: Sequence[str], mirror: str) -> None:
        """Fetch what is not there yet. Raises UserError if something cannot be fetched."""
        missing = self.lacking(names)
        for name in names:
            if name not in missing:
                print(f"{name}: there already")
        self._from_publisher(missing)
        unlisted: list[str] = []
        failure = ""
        if mirror and (missing := self.lacking(names)):
            try:
                unlisted = self._from_mirror(mirror, missing)
            except Unreachable as error:
                failure = str(error)
        if missing := self.lacking(names):
            raise UserError(self._explain(mirror, failure, missing, unlisted, len(names)))

    def _explain(
        self, mirror: str, failure: str, missing: list[str], unlisted: list[str], count: int
    ) -> str:
        """Say what is missing, what was tried, and what a mirror has to hold."""
        tried = f"tried {'; '.join(self.tried)}"
        ending = " (each .zip or .tar)" if self.is_data else ""
        whole = f", or all in {self.what}{' or '.join(ENDINGS)}" if self.what in ARCHIVES_OF else ""
        holds = f"{', '.join(missing)}{ending}{whole}"
        if not mirror:
            return (
                f"could not fetch {len(missing)} of {count} files: {tried}; "
                f"set XTC_MIRROR to the address of a folder that holds {holds}"
            )
        if failure:
            return (
                f"{failure}; XTC_MIRROR has to be the address of a folder that holds {holds}; "
                f"before, {tried}"
            )
        lost = [name for name in missing if name not in unlisted]
        lacks = [
            f"{verb} {len(part)} of {count}: {', '.join(part)}"
            for verb, part in (("lacks", lost), (f"has no entry in its {SUMS} for", unlisted))
            if part
        ]
        return f"{mirror} {'; it '.join(lacks)}{ending}{whole}; before, {tried}"

    # ---- the publisher ----

    def _from_publisher(self, missing: Sequence[str]) -> None:
        files = [name for name in missing if name in addresses.FILES]
        for number, name in enumerate(files, 1):
            if not self._is_alive(addresses.FILES[name], name):
                if rest := len(files) - number:
                    self.tried[-1] += f", and not the {rest} others there"
                break
        for archive in ARCHIVES_OF.get(self.what, ()):
            if not (missing := self.lacking(missing)):
                return
            if self.is_data and not set(SAMPLE) & set(missing):
                self.tried.append(f"no publisher, whose sample has only {', '.join(SAMPLE)}")
            else:
                self._try_archive(addresses.ARCHIVES[archive], archive, missing)

    def _is_alive(self, url: str, name: str) -> bool:
        """Fetch one checkpoint from its publisher, or note why that failed.

        Returns False if the host does not respond, as it is not to be asked again then.
        """
        digest = addresses.digest_in(name)
        try:
            fetch(url, self.target / name, read_weights, digest, self.quiet, ATTEMPTS)
        except UserError as error:
            self._failed(url, error)
            return isinstance(error, NotThere) or not isinstance(error, Unreachable)
        print(f"{name}: fetched")
        return True

    def _try_archive(self, url: str, archive: str, missing: Sequence[str]) -> None:
        """Fetch an archive from its publisher and take out what is in it, or note the failure."""
        path = self.target / f".{archive}.archive"
        try:
            fetch(url, path, check_archive, "", self.quiet, ATTEMPTS)
            self._take_out(path, missing)
        except UserError as error:
            self._failed(url, error)
            return
        if lost := self.lacking(missing):
            self.tried.append(f"{url} (its archive lacks {len(lost)} of {len(missing)})")

    def _failed(self, url: str, error: UserError) -> None:
        reason = str(error).replace(f" from {url}", "").replace(url, "it")
        if isinstance(error, NotThere):
            reason = "it is not there"
        self.tried.append(f"{url} ({reason})")
        print(f"{url}: {reason}")

    # ---- the mirror ----

    def _from_mirror(self, mirror: str, missing: Sequence[str]) -> list[str]:
        """Fetch from the mirror. Returns the names that its SHA256SUMS does not list."""
        sums = read_sums(mirror)
        unlisted = []
        for name in missing:
            files = [f"{name}{ending}" for ending in ENDINGS] if self.is_data else [name]
            listed = [f for f in files if sums is None or f in sums or addresses.digest_in(f)]
            if not listed:
                print(f"{name}: not in {SUMS}")
                unlisted.append(name)
            elif not any(self._fetched(mirror, name, file, sums or {}) for file in listed):
                print(f"{name}: not on the mirror")
        for file in (f"{self.what}{ending}" for ending in ENDINGS):
            rest = self.lacking(missing)
            if rest and self.what in ARCHIVES_OF and (sums is None or file in sums):
                self._fetched_whole(mirror, file, rest, sums or {})
        return [name for name in unlisted if name in self.lacking(missing)]

    def _fetched(self, mirror: str, name: str, file: str, sums: Mapping[str, str]) -> bool:
        """Fetch one checkpoint or folder. Returns False if the mirror does not have the file."""
        check = check_archive if self.is_data else read_weights
        digest = addresses.digest_in(file) or sums.get(file, "")
        try:
            fetch(f"{mirror}/{file}", self.target / file, check, digest, self.quiet)
        except NotThere:
            return False
        if self.is_data:
            _unpack_whole(self.target / file, self.target / name)
        print(f"{name}: fetched")
        return True

    def _fetched_whole(
        self, mirror: str, file: str, missing: Sequence[str], sums: Mapping[str, str]
    ) -> None:
        """Fetch an archive of all files, if the mirror has it, and take out what is missing."""
        path = self.target / f".{file}"
        try:
            fetch(f"{mirror}/{file}", path, check_archive, sums.get(file, ""), self.quiet)
        except NotThere:
            return
        self._take_out(path, missing)

    # ---- archives ----

    def _take_out(self, archive: Path, missing: Sequence[str]) -> None:
        """Move what is wanted from an archive into the folder, and remove the archive."""
        aside = Path(tempfile.mkdtemp(prefix=".unpacked.", dir=self.target))
        try:
            unpack(archive, aside)
            (self._take_folders if self.is_data else self._take_checkpoints)(aside, missing)
        except OSError as error:
            raise UserError(f"cannot unpack into {self.target}: {error.strerror}") from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            archive.unlink(missing_ok=True)

    def _take_checkpoints(self, aside: Path, missing: Sequence[str]) -> None:
        """Move the checkpoints that are wanted, in whatever folder of the archive they are.

        A file that holds no weights is reported and left out.
        """
        for file in sorted(aside.rglob("*.pth")):
            if file.name not in missing:
                continue
            try:
                read_weights(file)
            except UserError as error:
                print(f"{file.name}: left out ({str(error).replace(str(file), 'it')})")
                continue
            os.replace(file, self.target / file.name)
            print(f"{file.name}: fetched")

    def _take_folders(self, aside: Path, missing: Sequence[str]) -> None:
        """Unpack the archives {building}_{domain}.zip or .tar, in whatever folder they are."""
        for name in missing:
            files = [path for ending in ENDINGS for path in sorted(aside.rglob(f"{name}{ending}"))]
            folders = [path for path in sorted(aside.rglob(name)) if path.is_dir()]
            if files:
                _unpack_whole(files[0], self.target / name)
            elif folders:
                os.replace(folders[0], self.target / name)
            else:
                continue
            print(f"{name}: fetched")


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

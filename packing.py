"""Writing of packs: data sets at one image size, which load without decoding image files."""

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import scipy
import torch
import torchvision
from tqdm import tqdm

from datasets import Reality, TaskDataset
from files import only_process_in, read_json, write_json
from loading.layouts import Place, find_buildings, find_places, find_views, hints_of, no_views
from loading.packs import PACK_INDEX, PACK_VERSION, Pack, digests, encoding_of, find_pack, packed
from loading.shards import is_shards
from task_configs import TASKS, ImageTask
from utils import UserError, log

BATCH = 16  # views per batch
CHECKPOINT = 16  # batches between two records of the progress
DONE = "done.json"  # records the progress


class Encoded(TaskDataset):
    """A TaskDataset whose samples are results of `ImageTask.encode`."""

    encoded = True


class Packing:
    """Writes the pack of a data set. `index` is its index as far as it is known in advance.

    The arrays are written to the folder `.{name}.partial` beside the pack. The folder is
    renamed when the pack is complete. An interrupted packing of the same data is continued.
    That folder is locked, so that no second process writes into it.
    """

    def __init__(self, data: Encoded, target: Path, index: dict) -> None:
        self.data, self.target, self.index = data, target, index
        self.partial = target.with_name(f".{target.name}.partial")
        self.seen = 0  # number of views processed so far
        self.left_out: list[int] = []  # numbers of those that cannot be loaded
        self.digest = hashlib.sha256()  # hash of their files' names, sizes and times

    def is_done(self) -> bool:
        """Whether the pack already exists.

        Raises UserError if `target` is something else, or if an array in it is damaged.
        """
        if not self.target.exists():
            return False
        index = _read_or_empty(self.target / PACK_INDEX)
        if _is_state(index):
            self._see(len(self.data.views), index["left_out"])
        if {**index, "arrays": None} != {**self._whole_index(), "arrays": None}:
            raise UserError(f"{self.target} is there already: remove it, or name another folder")
        try:
            Pack(self.target).verify()
        except UserError as error:
            raise UserError(f"{error}, after removing {self.target}") from None
        return True

    def run(self, workers: int, max_bad_fraction: float, quiet: bool) -> int | None:
        """Write what is missing. Returns the number of views, or None if the pack is complete.

        Raises UserError if another process is writing the same pack.
        """
        try:
            if self.is_done():
                return None
            with _locked(self.partial, self.target):
                if self.target.exists():  # another process has just completed it
                    self.partial.rmdir()
                    return self.run(workers, max_bad_fraction, quiet)
                self._resume()
                with ExitStack() as stack:
                    self._write(stack, workers, max_bad_fraction, quiet)
                self._complete()
        except OSError as error:
            place = error.filename or self.target
            raise UserError(f"cannot pack to {place}: {error.strerror}") from None
        return self.seen - len(self.left_out)

    def _complete(self) -> None:
        """Finish the arrays and the index, and give the folder its name."""
        paths = {task.name: self.partial / f"{task}.npy" for task in self.data.tasks}
        for path in paths.values():
            _set_length(path, self.seen - len(self.left_out))
        arrays = {name: digests(path) for name, path in paths.items()}
        index = self._whole_index() | {"arrays": arrays}
        write_json(self.partial / PACK_INDEX, index, indent=None)
        (self.partial / DONE).unlink()
        self.partial.rename(self.target)

    def _write(self, stack: ExitStack, workers: int, max_bad_fraction: float, quiet: bool) -> None:
        first, tasks, total = self.seen, self.data.tasks, len(self.data.views)
        remaining = Encoded(tasks, self.data.views[first:], self.data.image_size)
        reality = Reality(
            "packed", remaining, BATCH, num_workers=workers, max_bad_fraction=max_bad_fraction
        )
        left_out, files = self.left_out, list[BinaryIO]()
        bar = stack.enter_context(tqdm(total=total, unit="view", disable=quiet or None))
        for number, batch in enumerate(reality, 1):
            arrays = [packed(batch[task.name]) for task in tasks]
            if not files:
                files = [
                    stack.enter_context(self._open(*item))
                    for item in zip(tasks, arrays, strict=True)
                ]
            for file, array in zip(files, arrays, strict=True):
                file.write(array.tobytes())
            end = first + (batch.views[-1] // BATCH + 1) * BATCH
            self._see(min(end, total), left_out + [first + n for n in reality.bad.views])
            bar.update(self.seen - bar.n)
            if number % CHECKPOINT == 0:
                self._record(files)
        self._see(total, left_out + [first + n for n in reality.bad.views])
        self._record(files)

    def _open(self, task: ImageTask, array: np.ndarray) -> BinaryIO:
        """Open the file of a task's array, positioned after the views that it holds."""
        path, count = self.partial / f"{task}.npy", self.seen - len(self.left_out)
        file = open(path, "r+b" if self.seen else "w+b")
        if self.seen:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            file.truncate(file.tell() + count * array[0].nbytes)
            file.seek(0, os.SEEK_END)
        else:
            header = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_1_0(file, header)
        return file

    def _see(self, upto: int, left_out: Sequence[int]) -> None:
        """Record that the first `upto` views were processed, without those `left_out`."""
        for view in self.data.views[self.seen : upto]:
            for path in map(view.path, self.data.tasks):
                try:
                    stat = path.stat()
                except OSError:  # a link to nothing, or gone: its view is left out
                    text = f"{path.name} is not there\n"
                else:
                    text = f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n"
                self.digest.update(text.encode())
        self.seen, self.left_out = upto, sorted(left_out)

    def _state(self) -> dict:
        return {"seen": self.seen, "left_out": self.left_out, "files": self.digest.hexdigest()}

    def _whole_index(self) -> dict:
        views = [v for n, v in enumerate(self.index["views"]) if n not in set(self.left_out)]
        return self.index | self._state() | {"views": views}

    def _record(self, files: Sequence[BinaryIO]) -> None:
        """Flush the arrays to disk and record the progress."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        write_json(self.partial / DONE, self._state(), indent=None)

    def _resume(self) -> None:
        """Continue an interrupted packing of the same data, or start from scratch."""
        state = _read_or_empty(self.partial / DONE)
        if _is_state(state) and _read_or_empty(self.partial / PACK_INDEX) == self.index:
            self._see(state["seen"], state["left_out"])
            if self._state() == state:
                return
            self._see(0, [])
            self.digest = hashlib.sha256()
        for file in self.partial.iterdir():  # the folder itself is locked
            file.unlink()
        write_json(self.partial / PACK_INDEX, self.index, indent=None)


@contextmanager
def _locked(folder: Path, target: Path) -> Iterator[None]:
    """Make the folder, and lock it against other processes that pack to `target`.

    The lock ends with the process, however that ends. Raises UserError if it is taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with only_process_in(folder, f"another process is packing to {target}") as descriptor:
        if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise UserError(f"another process has just packed to {target}")
        yield


def _is_state(state: Mapping) -> bool:
    """Whether the numbers of a recorded progress have the right types."""
    seen, left_out = state.get("seen"), state.get("left_out")
    return (
        type(seen) is int
        and seen >= 0
        and isinstance(left_out, list)
        and all(type(number) is int for number in left_out)
    )


def _set_length(path: Path, count: int) -> None:
    """Write the number of views into the header of a .npy file, which has room for it."""
    with open(path, "r+b") as file:
        np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
        file.seek(0)
        header = {"shape": (count, *shape[1:]), "fortran_order": fortran_order,
                 "descr": np.lib.format.dtype_to_descr(dtype)}  # fmt: skip
        np.lib.format.write_array_header_1_0(file, header)


def _read_or_empty(path: Path) -> dict:
    """Read a JSON object. Returns {} if the file is missing or damaged."""
    try:
        return read_json(path)
    except UserError:
        return {}


def make_pack(
    source: str | Path,
    target: str | Path,
    image_size: int,
    tasks: Sequence[ImageTask] | None = None,
    allow_missing: bool = False,
    max_bad_fraction: float = 0.0,
    num_workers: int = 0,
    quiet: bool = True,
) -> tuple[int, int] | None:
    """Pack the data set of a folder at one image size.

    Returns the numbers of packed and of omitted views, or None if the pack already exists.
    `tasks` are by default all domains with files. An interrupted packing is continued. Raises
    UserError if `source` cannot be packed or `target` cannot be written.
    """
    source, target = Path(source), Path(target)
    if not target.name or target.name == "..":
        raise UserError(f"`to` is the name of a new folder, not {target}")
    if is_shards(source):
        raise UserError(f"{source}: shards are not packed: name the folder of the files themselves")
    places = find_places(source)
    if not places:
        raise no_views([source], tasks or ())
    if find_pack(source):
        raise UserError(f"{source} is a pack already: name the folder of the files themselves")
    chosen = list(tasks or tasks_with_files(places))
    if not chosen:
        raise no_views([source])
    if not tasks:
        _warn_of_misnamed(source, chosen)
    views = find_views(chosen, [source], find_buildings([source]), allow_missing)
    index = {
        "version": PACK_VERSION,
        "image_size": image_size,
        "tasks": {task.name: encoding_of(task) for task in chosen},
        "source": str(source.resolve()),
        "made_with": {
            "python": platform.python_version(), "pillow": PIL.__version__,
            "numpy": np.__version__, "scipy": scipy.__version__,
            "torch": torch.__version__, "torchvision": torchvision.__version__,
        },
        "views": [[view.part, view.building, view.name] for view in views],
    }  # fmt: skip
    packing = Packing(Encoded(chosen, views, image_size), target, index)
    count = packing.run(num_workers, max_bad_fraction, quiet)
    return None if count is None else (count, len(views) - count)


def _warn_of_misnamed(source: Path, chosen: Sequence[ImageTask]) -> None:
    """Log the domains that are not packed because their files have other names."""
    for task, hint in hints_of(source, [t for t in TASKS.values() if t not in chosen]).items():
        if "did you mean" in hint:
            log.warning("%s is not packed: %s", task, hint)


def tasks_with_files(places: Sequence[Place]) -> list[ImageTask]:
    """Return the domains that have files in at least one of the places, in the order of `TASKS`."""
    return [task for task in TASKS.values() if any(place.view_names(task) for place in places)]

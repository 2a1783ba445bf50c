"""Writes packs: data sets at one image size, which training reads without decoding files."""

import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import scipy
import torch
import torchvision
from tqdm import tqdm

from datasets import Reality, TaskDataset
from files import read_json, write_json
from loading.layouts import Place, find_buildings, find_places, find_views
from loading.packs import PACK_INDEX, PACK_VERSION, encoding_of, find_pack, packed
from task_configs import TASKS, ImageTask
from utils import UserError

BATCH = 16  # views read at a time
CHECKPOINT = 16  # batches between two records of how far the packing came
DONE = "done.json"


class Encoded(TaskDataset):
    """Views as tuples of what `ImageTask.encode` gives."""

    encoded = True


class Packing:
    """Writes the pack of a data set. `index` is what is known of it before.

    The arrays grow beside the pack's folder, in `.{name}.partial`, which takes its name
    when they are complete. What is there of the same packing is not done again.
    """

    def __init__(self, data: Encoded, target: Path, index: dict) -> None:
        self.data, self.target, self.index = data, target, index
        self.partial = target.with_name(f".{target.name}.partial")
        self.seen = 0  # views
        self.left_out: list[int] = []  # of them, those that cannot be loaded
        self.digest = hashlib.sha256()  # of names, sizes and times of their files

    def is_done(self) -> bool:
        """Whether the pack is there; UserError where something else is."""
        if not self.target.exists():
            return False
        found = _read_or_empty(self.target / PACK_INDEX)
        if "left_out" in found:
            self._see(len(self.data.views), found["left_out"])
        if found != self._whole_index():
            raise UserError(f"{self.target} is there already: remove it, or name another folder")
        return True

    def run(self, workers: int, max_bad_fraction: float, quiet: bool) -> int:
        """Write what is missing; how many views are in the pack."""
        try:
            self._resume()
            with ExitStack() as stack:
                self._write(stack, workers, max_bad_fraction, quiet)
            count = self.seen - len(self.left_out)
            for task in self.data.tasks:
                _set_length(self.partial / f"{task}.npy", count)
            write_json(self.partial / PACK_INDEX, self._whole_index(), indent=None)
            (self.partial / DONE).unlink()
            self.partial.rename(self.target)
        except OSError as error:
            where = error.filename or self.target
            raise UserError(f"cannot pack to {where}: {error.strerror}") from None
        return count

    def _write(self, stack: ExitStack, workers: int, max_bad_fraction: float, quiet: bool) -> None:
        first, tasks, total = self.seen, self.data.tasks, len(self.data.views)
        rest = Encoded(tasks, self.data.views[first:], self.data.image_size)
        reality = Reality(
            "packed", rest, BATCH, num_workers=workers, max_bad_fraction=max_bad_fraction
        )
        before, files = self.left_out, list[BinaryIO]()
        bar = stack.enter_context(tqdm(total=total, unit="view", disable=quiet or None))
        for number, batch in enumerate(reality, 1):
            arrays = [packed(batch[task.name]) for task in tasks]
            if not files:
                files = [
                    stack.enter_context(self._open(*of)) for of in zip(tasks, arrays, strict=True)
                ]
            for file, array in zip(files, arrays, strict=True):
                file.write(array.tobytes())
            upto = first + (batch.views[-1] // BATCH + 1) * BATCH
            self._see(min(upto, total), before + [first + n for n in reality.bad.views])
            bar.update(self.seen - bar.n)
            if number % CHECKPOINT == 0:
                self._record(files)
        self._see(total, before + [first + n for n in reality.bad.views])
        self._record(files)

    def _open(self, task: ImageTask, array: np.ndarray) -> BinaryIO:
        """The file of the task's array, to be written behind the views that it has."""
        path, rows = self.partial / f"{task}.npy", self.seen - len(self.left_out)
        file = open(path, "r+b" if self.seen else "w+b")
        if self.seen:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            file.truncate(file.tell() + rows * array[0].nbytes)
            file.seek(0, os.SEEK_END)
        else:
            header = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_1_0(file, header)
        return file

    def _see(self, upto: int, left_out: Sequence[int]) -> None:
        for view in self.data.views[self.seen : upto]:
            for path in map(view.path, self.data.tasks):
                stat = path.stat()
                text = f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n"
                self.digest.update(text.encode())
        self.seen, self.left_out = upto, sorted(left_out)

    def _state(self) -> dict:
        return {"seen": self.seen, "left_out": self.left_out, "files": self.digest.hexdigest()}

    def _whole_index(self) -> dict:
        views = [v for n, v in enumerate(self.index["views"]) if n not in set(self.left_out)]
        return self.index | self._state() | {"views": views}

    def _record(self, files: Sequence[BinaryIO]) -> None:
        """Note that what was seen is on the disk."""
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        write_json(self.partial / DONE, self._state(), indent=None)

    def _resume(self) -> None:
        """Take up an interrupted packing of the same, or begin."""
        state = _read_or_empty(self.partial / DONE)
        if state and _read_or_empty(self.partial / PACK_INDEX) == self.index:
            self._see(state["seen"], state["left_out"])
            if self._state() == state:
                return
            self._see(0, [])
            self.digest = hashlib.sha256()
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        write_json(self.partial / PACK_INDEX, self.index, indent=None)


def _set_length(path: Path, count: int) -> None:
    """Write the number of views into the head of an array's file, which has room for it."""
    with open(path, "r+b") as file:
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        file.seek(0)
        about = {"shape": (count, *shape[1:]), "fortran_order": fortran,
                 "descr": np.lib.format.dtype_to_descr(dtype)}  # fmt: skip
        np.lib.format.write_array_header_1_0(file, about)


def _read_or_empty(path: Path) -> dict:
    """A JSON object; an empty one where the file is missing or damaged."""
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
    """Pack the data set of a folder; returns how many views are packed, and how many left out.

    Returns None where the pack is complete already. `tasks` are by default all that have
    files. An interrupted packing is continued. Raises UserError.
    """
    source, target = Path(source), Path(target)
    places = find_places(source)
    if find_pack(source):
        raise UserError(f"{source} is a pack already: name the folder of the files themselves")
    chosen = list(tasks or _tasks_with_files(places))
    if not chosen:
        raise UserError(f"no files of any domain under {source}")
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
    if packing.is_done():
        return None
    count = packing.run(num_workers, max_bad_fraction, quiet)
    return count, len(views) - count


def _tasks_with_files(places: Sequence[Place]) -> list[ImageTask]:
    return [task for task in TASKS.values() if any(place.view_names(task) for place in places)]

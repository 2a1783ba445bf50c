"""Packs a data set at one image size, so that training reads it without decoding files.

python -m scripts.pack /data/taskonomy --to /data/taskonomy_256 --image-size 256
"""

import hashlib
import json
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
from scripts.packed import PACK_INDEX, PACK_VERSION, encoding_of, find_pack, packed
from scripts.views import Place, find_buildings, find_places, find_views
from task_configs import TASKS, ImageTask, get_task
from utils import UserError, command_line, write_atomically

BATCH = 16  # views read at a time
CHECKPOINT = 16  # batches between two records of how far the packing came
DONE = "done.json"


def main(
    data_dir: str,
    *,
    to: str,
    image_size: int = 256,
    tasks: list | None = None,
    allow_missing: bool = False,
    max_bad_fraction: float = 0.01,
    num_workers: int | None = None,
    quiet: bool = False,
) -> None:
    """Pack a data set at one image size. Training takes the pack as --data-dirs.

    What is loaded from the pack equals, bit for bit, what the files give. A packing that was
    interrupted is continued by the same command; the folder appears when it is complete.

    Example: python -m scripts.pack data_rooms --to /tmp/rooms_64 --image-size 64

    Args:
        data_dir: the folder with the data set.
        to: the pack's folder, a new one.
        image_size: pixels of the images' side, as the networks will take them.
        tasks: the domains to pack, comma-separated (default: all that have files).
        allow_missing: go on where more than a tenth of the views lack a domain.
        max_bad_fraction: stop where more than this share of the views cannot be loaded; up to
            it, they are left out.
        num_workers: processes that read files (default: one a core).
        quiet: no progress bar.
    """
    if image_size < 1:
        raise UserError(f"--image-size has to be more than 0, not {image_size}")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"--num-workers has to be 0 or more, not {num_workers}")
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"--max-bad-fraction is between 0 and 1, not {max_bad_fraction}")
    source, target = Path(data_dir), Path(to)
    places = find_places(source)
    if find_pack(source):
        raise UserError(f"{source} is a pack already: name the folder of the files themselves")
    chosen = [get_task(name) for name in tasks] if tasks else _tasks_with_files(places)
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
    workers = os.cpu_count() or 1 if num_workers is None else num_workers
    packing = Packing(Encoded(chosen, views, image_size), target, index)
    if packing.is_done():
        print(f"pack: {target} is complete")
        return
    count = packing.run(workers, max_bad_fraction, quiet)
    size = sum(file.stat().st_size for file in target.iterdir())
    lacking = f" ({len(views) - count} left out)" if count < len(views) else ""
    print(f"pack: {count} views of {len(chosen)} domains, {size / 1e6:.1f} MB: {target}{lacking}")


def _tasks_with_files(places: Sequence[Place]) -> list[ImageTask]:
    return [task for task in TASKS.values() if any(place.view_names(task) for place in places)]


class Encoded(TaskDataset):
    """Views as tuples of what `ImageTask.encode` gives."""

    read = staticmethod(ImageTask.encode)


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
        found = _read_json(self.target / PACK_INDEX)
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
            _write_json(self.partial / PACK_INDEX, self._whole_index())
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
            self._see(min(upto, total), before + [first + n for n in reality.bad_views])
            bar.update(self.seen - bar.n)
            if number % CHECKPOINT == 0:
                self._record(files)
        self._see(total, before + [first + n for n in reality.bad_views])
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
        _write_json(self.partial / DONE, self._state())

    def _resume(self) -> None:
        """Take up an interrupted packing of the same, or begin."""
        state = _read_json(self.partial / DONE)
        if state and _read_json(self.partial / PACK_INDEX) == self.index:
            self._see(state["seen"], state["left_out"])
            if self._state() == state:
                return
            self._see(0, [])
            self.digest = hashlib.sha256()
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        _write_json(self.partial / PACK_INDEX, self.index)


def _set_length(path: Path, count: int) -> None:
    """Write the number of views into the head of an array's file, which has room for it."""
    with open(path, "r+b") as file:
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        file.seek(0)
        about = {"shape": (count, *shape[1:]), "fortran_order": fortran,
                 "descr": np.lib.format.dtype_to_descr(dtype)}  # fmt: skip
        np.lib.format.write_array_header_1_0(file, about)


def _read_json(path: Path) -> dict:
    """What a JSON file holds; nothing where it is missing or damaged."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _write_json(path: Path, values: dict) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(values)))


if __name__ == "__main__":
    command_line(main)

"""Packs a data set at one image size, so that training reads it without decoding files.

python -m scripts.pack /data/taskonomy --to /data/taskonomy_256 --image-size 256
"""

import hashlib
import io
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
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datasets import (
    PACK_INDEX,
    PACK_VERSION,
    View,
    encoding_of,
    find_buildings,
    find_pack,
    find_views,
    packed,
    read_file,
)
from task_configs import TASKS, ImageTask, get_task
from utils import UserError, command_line, write_atomically

CHECKPOINT = 256  # views between two records of how far the packing came
DONE = "done.json"


def main(
    data_dir: str,
    *,
    to: str,
    image_size: int = 256,
    tasks: list | None = None,
    allow_missing: bool = False,
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
        num_workers: processes that read files (default: one a core).
        quiet: no progress bar.
    """
    if image_size < 1:
        raise UserError(f"--image-size has to be more than 0, not {image_size}")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"--num-workers has to be 0 or more, not {num_workers}")
    source, target = Path(data_dir), Path(to)
    if find_pack(source):
        raise UserError(f"{source} is a pack already: name the folder of the files themselves")
    buildings = find_buildings([source])
    chosen = [get_task(name) for name in tasks] if tasks else _tasks_with_files(source, buildings)
    if not chosen:
        raise UserError(f"no files of any domain under {source}")
    views = find_views(chosen, [source], buildings, allow_missing)
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
        "views": [[view.building, view.name] for view in views],
    }  # fmt: skip
    data = _Encoded(chosen, views, image_size)
    if target.exists():
        if not _holds(target / PACK_INDEX, index | {"files": data.digest(len(views)).hexdigest()}):
            raise UserError(f"{target} is there already: remove it, or name another folder")
        print(f"pack: {target} is complete")
        return
    workers = os.cpu_count() or 1 if num_workers is None else num_workers
    _write(target, index, data, workers, quiet)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"pack: {len(views)} views of {len(chosen)} domains, {size / 1e6:.1f} MB: {target}")


def _tasks_with_files(source: Path, buildings: Sequence[str]) -> list[ImageTask]:
    return [
        task
        for task in TASKS.values()
        if any(task.path(source, building, "").parent.is_dir() for building in buildings)
    ]


def _holds(path: Path, values: dict) -> bool:
    """Whether a JSON file holds just this."""
    try:
        return json.loads(path.read_text()) == values
    except (OSError, ValueError):
        return False


class _Encoded(Dataset):
    """Views as tuples of what `ImageTask.encode` gives; a str, the error, where it fails."""

    def __init__(self, tasks: Sequence[ImageTask], views: Sequence[View], image_size: int) -> None:
        self.tasks, self.views, self.image_size = tasks, views, image_size

    def __getitem__(self, row: int) -> tuple[Tensor, ...] | str:
        try:
            return tuple(
                read_file(task.encode, task.path(*self.views[row]), self.image_size)
                for task in self.tasks
            )
        except UserError as error:
            return str(error)

    def digest(self, count: int) -> "hashlib._Hash":
        """Of names, sizes and times of the files of the first views."""
        digest = hashlib.sha256()
        for row in range(count):
            self.add(digest, row)
        return digest

    def add(self, digest: "hashlib._Hash", row: int) -> None:
        for task in self.tasks:
            path = task.path(*self.views[row])
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())


def _write(target: Path, index: dict, data: _Encoded, workers: int, quiet: bool) -> None:
    """Write the arrays beside `target`, and give them its name when they are complete."""
    first = data[0]
    if isinstance(first, str):
        raise UserError(first)
    partial = target.with_name(f".{target.name}.partial")
    try:
        with ExitStack() as stack:
            done = _begin(partial, index, data)
            digest = data.digest(done)
            files = [
                stack.enter_context(_open(partial / f"{task}.npy", packed(values), done, data))
                for task, values in zip(data.tasks, first, strict=True)
            ]
            rows = range(done, len(data.views))
            loader = DataLoader(data, batch_size=None, sampler=rows, num_workers=workers)
            bar = tqdm(total=len(data.views), initial=done, unit="view", disable=quiet or None)
            for row, views in zip(rows, loader, strict=True):
                if isinstance(views, str):
                    raise UserError(views)
                for file, values in zip(files, views, strict=True):
                    file.write(packed(values).tobytes())
                data.add(digest, row)
                bar.update()
                if (row + 1) % CHECKPOINT == 0 or row == rows[-1]:
                    _record(partial / DONE, files, row + 1, digest.hexdigest())
            bar.close()
        _write_json(partial / PACK_INDEX, index | {"files": digest.hexdigest()})
        (partial / DONE).unlink()
        partial.rename(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None


def _begin(partial: Path, index: dict, data: _Encoded) -> int:
    """How many views an interrupted packing of the same has written; a new folder if none."""
    try:
        done = json.loads((partial / DONE).read_text())["views"]
    except (OSError, ValueError):
        done = 0
    if _holds(partial / PACK_INDEX, index) and _holds(
        partial / DONE, {"views": done, "files": data.digest(done).hexdigest()}
    ):
        return done
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_json(partial / PACK_INDEX, index)
    return 0


def _open(path: Path, first: np.ndarray, done: int, data: _Encoded) -> BinaryIO:
    """The file of an array of views like `first`, to write behind the first `done`."""
    header = io.BytesIO()
    about = np.lib.format.header_data_from_array_1_0(first)
    about["shape"] = (len(data.views), *first.shape)
    np.lib.format.write_array_header_1_0(header, about)
    file = open(path, "ab")
    file.truncate(len(header.getvalue()) + done * first.nbytes if done else 0)
    if not done:
        file.write(header.getvalue())
    return file


def _record(path: Path, files: Sequence[BinaryIO], done: int, digest: str) -> None:
    """Note that the first `done` views, of files with that digest, are on the disk."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    _write_json(path, {"views": done, "files": digest})


def _write_json(path: Path, values: dict) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(values)))


if __name__ == "__main__":
    command_line(main)

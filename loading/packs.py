"""Reading of packs, i.e. packed data sets. `python -m scripts.pack` writes them."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from files import read_json
from task_configs import READ_ERRORS, ImageTask
from utils import UserError

PACK_INDEX = "pack.json"
PACK_VERSION = 1
PACKED = "packed"  # name of the layout of views in packs
REPACK = "make it anew with python -m scripts.pack"
END = 2**16  # bytes at both ends of an array that are compared when a pack is opened


class Digests(TypedDict):
    """What the index records of an array's file: its size in bytes, and SHA-256 sums.

    `ends` is of the first and the last `END` bytes, `whole` of the file.
    """

    size: int
    ends: str
    whole: str


def digests(path: Path) -> Digests:
    """Compute the digests of an array's file. Reads the whole file."""
    with open(path, "rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "ends": _digest_of_ends(path), "whole": whole}


def _digest_of_ends(path: Path) -> str:
    with open(path, "rb") as file:
        content = file.read(END)
        file.seek(max(0, path.stat().st_size - END))
        return hashlib.sha256(content + file.read()).hexdigest()


class Pack:
    """A data set at one image size that loads without decoding image files.

    A pack is a folder with an index, `pack.json`, and an array `{task}.npy` for each task. The
    arrays (views, C, S, S) hold results of `ImageTask.encode`, with 16-bit values as uint16.
    They are memory-mapped. Loaded tensors equal those from the original files bit for bit.
    The index holds version, image_size, tasks (with their encodings), views (part, building,
    name) in the order of the arrays, and `Digests` of the arrays, which old packs lack.

    Raises UserError if the index cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index = read_json(folder / PACK_INDEX)
        except UserError as error:
            raise UserError(f"{error}; {REPACK}") from None
        version = index.get("version")
        if isinstance(version, int) and version != PACK_VERSION:
            raise UserError(
                f"{folder} is a pack of version {version}, not of {PACK_VERSION}; {REPACK}"
            )
        if not _is_index(index):
            raise UserError(f"{folder / PACK_INDEX} is not the index of a pack; {REPACK}")
        self.image_size: int = index["image_size"]
        self.encodings: dict[str, str] = index["tasks"]
        self._rows = {tuple(view): row for row, view in enumerate(index["views"])}
        self.digests: dict[str, Digests] = index.get("arrays", {})
        self._names: dict[tuple[str, str], set[str]] = defaultdict(set)
        for part, building, name in self._rows:
            self._names[part, building].add(name)
        self._arrays: dict[str, np.ndarray] = {}

    def __str__(self) -> str:
        return f"the pack {self.folder}"

    def places(self) -> list[tuple[str, str]]:
        """Return the buildings as (part, building), sorted."""
        return sorted(self._names)

    def has(self, task: ImageTask) -> bool:
        """Whether the pack holds that task, with the task's current transform."""
        return self.encodings.get(task.name) == encoding_of(task)

    def view_names(self, task: ImageTask, building: str, part: str) -> set[str]:
        """Return the views of a building. Raises UserError if the pack lacks the task."""
        self._check_task(task)
        return self._names[part, building]

    def check(self, tasks: Sequence[ImageTask], image_size: int) -> None:
        """Raise UserError if the pack lacks a task, has another image size, or is damaged."""
        if image_size != self.image_size:
            raise UserError(
                f"{self} is of {self.image_size}-pixel images, and this run's have {image_size}: "
                f"use `image_size` {self.image_size}, or {REPACK}"
            )
        for task in tasks:
            self._check_task(task)
            self._array(task)

    def verify(self, whole: bool = False) -> None:
        """Check the size, type and ends of all arrays; if `whole`, also the digests of whole files.

        Raises UserError, which names the first array that is damaged.
        """
        for name in self.encodings:
            self._open(name)
        if not whole:
            return
        if not self.digests:
            raise UserError(
                f"{self} is by an earlier version and has no digests: it cannot be verified; "
                f"{REPACK}"
            )
        for name in self.encodings:
            path = self.folder / f"{name}.npy"
            if digests(path) != self.digests.get(name):
                raise UserError(f"{path} is damaged: its SHA-256 has changed; {REPACK}")

    def load(
        self, tasks: Sequence[ImageTask], part: str, building: str, name: str
    ) -> tuple[Tensor, ...]:
        """Load the tensors of a view, (C, S, S) float32 each."""
        row = self._rows[part, building, name]
        return tuple(task.decode(_unpacked(self._array(task)[row])) for task in tasks)

    def _check_task(self, task: ImageTask) -> None:
        packed = self.encodings.get(task.name)
        if packed is None:
            raise UserError(f"{self} has no {task} (it has: {', '.join(self.encodings)}); {REPACK}")
        if packed != encoding_of(task):
            raise UserError(
                f"{self} has {task} for the transform {packed}, which is now {encoding_of(task)}; "
                f"{REPACK}"
            )

    def _array(self, task: ImageTask) -> np.ndarray:
        if task.name not in self._arrays:
            array = self._open(task.name)
            values = task.decode(_unpacked(array[0])) if len(array) else torch.empty(task.channels)
            if (values.dtype, len(values)) != (torch.float32, task.channels):
                raise UserError(f"{self.folder / task.name}.npy does not hold {task}; {REPACK}")
            self._arrays[task.name] = array
        return self._arrays[task.name]

    def _open(self, name: str) -> np.ndarray:
        """Map an array into memory. Raises UserError if its size, type or ends are wrong."""
        path = self.folder / f"{name}.npy"
        damaged = UserError(f"{path} is missing, damaged or cut off; {REPACK}")
        try:
            array = np.load(path, mmap_mode="r")
            recorded = self.digests.get(name)
            if recorded and path.stat().st_size != recorded["size"]:
                raise damaged
        except (*READ_ERRORS, RecursionError, TokenError):  # the header is parsed as Python
            raise damaged from None
        if not isinstance(array, np.memmap) or array.dtype not in DTYPES or array.ndim != 4:
            raise UserError(f"{path} is not an array of images; {REPACK}")
        size = self.image_size
        if array.shape[:1] + array.shape[2:] != (len(self._rows), size, size):
            raise UserError(f"{path} does not fit {PACK_INDEX} beside it; {REPACK}")
        if recorded and _digest_of_ends(path) != recorded["ends"]:
            raise damaged
        return array


DTYPES = np.uint8, np.uint16, np.float32  # of packed arrays


def _is_index(index: Mapping) -> bool:
    """Whether the entries that a pack is read by have the right types."""
    size, tasks, views = (index.get(key) for key in ("image_size", "tasks", "views"))
    arrays = index.get("arrays", {})
    return (
        index.get("version") == PACK_VERSION
        and type(size) is int
        and size > 0
        and isinstance(tasks, dict)
        and all(isinstance(text, str) for text in tasks.values())
        and isinstance(views, list)
        and all(isinstance(view, list) and len(view) == 3 for view in views)
        and all(isinstance(text, str) for view in views for text in view)
        and isinstance(arrays, dict)
        and all(
            isinstance(d, dict) and set(d) == set(Digests.__annotations__) for d in arrays.values()
        )
    )


def find_pack(folder: str | Path) -> Pack | None:
    """Return the pack in a folder, or None if the folder is not a pack."""
    try:
        changed = (Path(folder) / PACK_INDEX).stat().st_mtime_ns
    except OSError:
        return None
    return _opened(Path(folder), changed)


@lru_cache(maxsize=16)
def _opened(folder: Path, changed: int) -> Pack:
    return Pack(folder)


def encoding_of(task: ImageTask) -> str:
    """Describe the transform of a task, on which its packed values depend."""
    function = getattr(task.transform, "func", task.transform)
    keywords = getattr(task.transform, "keywords", {})
    arguments = ", ".join(f"{name}={value}" for name, value in sorted(keywords.items()))
    return f"{function.__name__}({arguments})" + (
        f", {task.classes} classes" if task.classes else ""
    )


def packed(values: Tensor) -> np.ndarray:
    """Convert a result of `ImageTask.encode` to the array stored in packs (int32 as uint16).

    Raises ValueError for types or ranges that `encode` does not return.
    """
    array = values.numpy()
    if array.dtype == np.int32 and array.min() >= 0 and array.max() < 2**16:
        return array.astype(np.uint16)
    if array.dtype not in DTYPES:
        raise ValueError(f"a pack holds no {array.dtype} from {array.min()} to {array.max()}")
    return array


def _unpacked(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int32 if array.dtype == np.uint16 else array.dtype))

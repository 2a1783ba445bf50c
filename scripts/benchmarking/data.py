"""Benchmark of loading: files as published, files as here, shards of them, and a pack."""

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from datasets import TaskDataset
from energy import get_config
from loading.layouts import View, find_buildings, find_views
from packing import make_pack
from rooms.writing import make_rooms
from scripts.benchmarking.step import Setup, alternating, ratio
from sharding import make_shards
from streams import ShardReality
from tables import Row
from task_configs import FORMATS, TASKS, ImageTask, blur, identity, smooth
from utils import UserError

FILE_SIZE = 512  # side of the files in pixels, as in Taskonomy
SHARD_SIZE = 20  # MB, so that there are several shards
ALLOWED = 1e-6  # tolerance when values are compared: the power in `blur` may round differently


def loader_table(setup: Setup) -> list[Row]:
    """Measure the milliseconds per view in one process, for rooms rendered at `FILE_SIZE`.

    The tensors of all methods are compared first. Shards are left out without the package that
    reads them. Raises UserError if the tensors differ.
    """
    config = get_config(setup.config)
    names = {path[-1] for path in config["paths"].values()} - {"imagenet"}
    tasks = [task for name, task in TASKS.items() if name in names]
    size = setup.scale.image_size
    with tempfile.TemporaryDirectory() as folder:
        files, pack, shards = (Path(folder) / name for name in ("rooms", "pack", "shards"))
        make_rooms(files, views_per_building=1, image_size=FILE_SIZE, quiet=True)
        make_pack(files, pack, size, tasks)
        views = find_views(tasks, [files], find_buildings([files]))
        data = TaskDataset(tasks, views, size)
        packed_data = TaskDataset(tasks, find_views(tasks, [pack], find_buildings([pack])), size)
        stream = _sharded(tasks, files, shards, size) if find_spec("webdataset") else None
        methods = {
            "published": lambda: [_published(tasks, view, size) for view in views],
            "files": lambda: [data[i] for i in range(len(data))],
            **({"shards": lambda: list(stream)} if stream else {}),
            "pack": lambda: [packed_data[i] for i in range(len(packed_data))],
        }
        for i, view in enumerate(views):
            expected = _published(tasks, view, size)
            _check_same(expected, data[i])
            _check_same(expected, packed_data[i])
        for batch in stream or ():
            values = [batch[task.name][0] for task in tasks]
            _check_same(_published(tasks, views[batch.views[0]], size), values)
        seconds = alternating(methods, setup.repeats, torch.device("cpu"))
    rows: list[Row] = [("way", "ms/view", "times faster")]
    for method, values in seconds.items():
        milliseconds = 1000 * statistics.median(values) / len(views)
        title = f"{method}, {len(tasks)} domains, {FILE_SIZE} → {size} pixels"
        rows.append((title, f"{milliseconds:.3g}", ratio(seconds["published"], values)))
    return rows


def _sharded(tasks: list[ImageTask], files: Path, shards: Path, size: int) -> ShardReality:
    """Write the files into shards, and return their views one by one, in the shards' order."""
    count, _, _ = make_shards(files, shards, SHARD_SIZE, tasks)
    spec = f"shards:{shards}/{shards.name}-{{000000..{count - 1:06}}}.tar"
    views = find_views(tasks, [spec], find_buildings([spec]))
    return ShardReality("all", TaskDataset(tasks, views, size), 1)


def _published(tasks: list[ImageTask], view: View, size: int) -> list[Tensor]:
    """Load a view as the published loader does: each domain opens its own file."""
    loaded = []
    for task in tasks:
        deep = task.channels == 1 if task.deep is None else task.deep
        with Image.open(view.path(task), formats=FORMATS) as file:
            image = file.convert("I" if deep else "RGB")
        image = TF.center_crop(TF.resize(image, [size]), [size, size])
        loaded.append(_transformed(task, TF.to_tensor(image)))
    return loaded


def _transformed(task: ImageTask, values: Tensor) -> Tensor:
    """Apply the task's transform. For `blur`, the power is computed for each pixel."""
    transform = task.transform
    if isinstance(transform, partial) and transform.func is blur:
        maximum = transform.keywords["maximum"]
        return (smooth(values).float() ** 0.8 / maximum**0.8).clamp(0, 1)
    return values if transform is identity else transform(values)


def _check_same(expected: Sequence[Tensor], loaded: Sequence[Tensor]) -> None:
    for actual, reference in zip(loaded, expected, strict=True):
        if not torch.allclose(actual, reference, rtol=ALLOWED, atol=ALLOWED):
            raise UserError("what is loaded differs from what the published way gives")

"""The benchmark's part that loads: files the published way, files as here, and a pack."""

import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
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
from tables import Row
from task_configs import TASKS, ImageTask, blur, identity, smooth
from utils import UserError

FILE_SIZE = 512  # pixels of the files' side, as in Taskonomy
ALLOWED = 1e-6  # of a value: a power may round otherwise


def loader_table(setup: Setup) -> list[Row]:
    """Milliseconds a view in one process, from rooms rendered at Taskonomy's size of files.

    The three ways' tensors are compared first: UserError where they differ.
    """
    config = get_config(setup.config)
    names = {path[-1] for path in config["paths"].values()} - {"imagenet"}
    tasks = [task for name, task in TASKS.items() if name in names]
    size = setup.scale.image_size
    with tempfile.TemporaryDirectory() as place:
        files, to = Path(place) / "rooms", Path(place) / "pack"
        make_rooms(files, views_per_building=1, image_size=FILE_SIZE, quiet=True)
        make_pack(files, to, size, tasks)
        views = find_views(tasks, [files], find_buildings([files]))
        data = TaskDataset(tasks, views, size)
        packed = TaskDataset(tasks, find_views(tasks, [to], find_buildings([to])), size)
        ways = {
            "published": lambda: [_published(tasks, view, size) for view in views],
            "files": lambda: [data[i] for i in range(len(data))],
            "pack": lambda: [packed[i] for i in range(len(packed))],
        }
        for i, view in enumerate(views):
            wanted = _published(tasks, view, size)
            _check_same(wanted, data[i])
            _check_same(wanted, packed[i])
        seconds = alternating(ways, setup.repeats, torch.device("cpu"))
    rows: list[Row] = [("way", "ms/view", "times faster")]
    for way, values in seconds.items():
        each = 1000 * statistics.median(values) / len(views)
        title = f"{way}, {len(tasks)} domains, {FILE_SIZE} → {size} pixels"
        rows.append((title, f"{each:.3g}", ratio(seconds["published"], values)))
    return rows


def _published(tasks: list[ImageTask], view: View, size: int) -> list[Tensor]:
    """A view as the published loader makes it: every domain from its own file, every time."""
    loaded = []
    for task in tasks:
        deep = task.channels == 1 if task.deep is None else task.deep
        with Image.open(view.path(task)) as file:
            image = file.convert("I" if deep else "RGB")
        image = TF.center_crop(TF.resize(image, [size]), [size, size])
        loaded.append(_transformed(task, TF.to_tensor(image)))
    return loaded


def _transformed(task: ImageTask, values: Tensor) -> Tensor:
    """The task's transform; of blurred domains the power is computed for each pixel."""
    transform = task.transform
    if isinstance(transform, partial) and transform.func is blur:
        maximum = transform.keywords["maximum"]
        return (smooth(values).float() ** 0.8 / maximum**0.8).clamp(0, 1)
    return values if transform is identity else transform(values)


def _check_same(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        if not torch.allclose(ours, theirs, rtol=ALLOWED, atol=ALLOWED):
            raise UserError("what is loaded differs from what the published way gives")

"""Files → tuples of tensors, one tensor a task, one tuple a view.

Views are found in Taskonomy's layout, `{building}_{domain}/{domain}/{view}_domain_{domain}.png`,
by intersection over the tasks, once, at start.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from task_configs import TASKS, ColourJitter, ImageTask
from utils import ROOT, UserError

CROP_SHARE = (358 / 512, 1.0)  # of a file's side; the published crop is 358 … 512 of 512
JITTER = 0.4, 0.4, 0.4, 0.1  # brightness, contrast, saturation, hue


class View(NamedTuple):
    """One camera pose in one building, all of whose domains are files."""

    data_dir: Path
    building: str
    name: str  # "point_3_view_1"


# ---- which views there are ----------------------------------------------------------


def find_buildings(data_dirs: Sequence[str | Path]) -> list[str]:
    """The buildings of which some domain's folder is there, sorted by name."""
    folders = {f"_{task.folder or task.name}" for task in TASKS.values()}
    found = set()
    for data_dir in map(Path, data_dirs):
        if not data_dir.is_dir():
            raise UserError(f"no data folder {data_dir}")
        for child in data_dir.iterdir():
            for suffix in folders:
                if child.name.endswith(suffix) and child.is_dir():
                    found.add(child.name.removesuffix(suffix))
    return sorted(found)


def find_views(
    tasks: Sequence[ImageTask],
    data_dirs: Sequence[str | Path],
    buildings: Sequence[str],
    allow_missing: bool = False,
) -> list[View]:
    """The views of `buildings` that have a file for every one of `tasks`, sorted.

    Prints what is missing where. Raises UserError where no view is complete, and,
    unless `allow_missing`, where more than a tenth of the views lack a domain.
    """
    views, seen, missing = [], 0, Counter[str]()
    for data_dir in map(Path, data_dirs):
        for building in buildings:
            names = {task: _view_names(task, data_dir, building) for task in tasks}
            union = set().union(*names.values())
            common = union.intersection(*names.values())
            seen += len(union)
            for task in tasks:
                if lacking := len(union - names[task]):
                    missing[f"{task} in {building}"] += lacking
            views += [View(data_dir, building, name) for name in sorted(common, key=_natural)]
    place = ", ".join(map(str, data_dirs))
    if not seen:
        example = tasks[0].path(Path(data_dirs[0]), "BUILDING", "point_0_view_0")
        raise UserError(f"no views under {place} (looked for files like {example})")
    lacking = seen - len(views)
    if lacking:
        where = ", ".join(f"{name}: {count}" for name, count in missing.most_common(4))
        where += f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        text = f"{lacking} of {seen} views under {place} lack a domain ({where})"
        if not views or (lacking > 0.1 * seen and not allow_missing):
            hint = f"; --allow-missing goes on with the other {len(views)}" if views else ""
            raise UserError(text + hint)
        print(f"warning: {text}; going on with the other {len(views)}")
    return views


def _view_names(task: ImageTask, data_dir: Path, building: str) -> set[str]:
    example = task.path(data_dir, building, "")
    if not example.parent.is_dir():
        return set()
    ending = example.name
    return {
        entry.name.removesuffix(ending)
        for entry in example.parent.iterdir()
        if entry.name.endswith(ending)
    }


def _natural(name: str) -> list:
    """A key that sorts point_2 before point_10."""
    return [int(part) if part.isdigit() else part for part in name.split("_")]


def split_buildings(
    data_dirs: Sequence[str | Path], split: str | Path | None = None
) -> dict[str, list[str]]:
    """The buildings at hand as {"train": …, "val": …, "test": …}.

    A split file is JSON with the keys train_buildings, val_buildings and, if wanted,
    test_buildings. Without `split`, the first of `config/split*.txt` that puts one of
    the buildings at hand into each of train and val; where none does, the last tenth
    of the buildings (by name) is val. A split without test buildings tests on val.
    """
    found = find_buildings(data_dirs)
    if not found:
        raise UserError(f"no building under {', '.join(map(str, data_dirs))}")
    files = [Path(split)] if split else sorted((ROOT / "config").glob("split*.txt"))
    for file in files:
        named = _read_split(file)
        parts = {part: [b for b in named.get(part, []) if b in found] for part in named}
        if parts["train"] and parts["val"]:
            return {**parts, "test": parts.get("test") or parts["val"]}
        if split:
            raise UserError(f"{split} names no train or no val building of those at hand: {found}")
    if len(found) == 1:
        print(f"warning: one building only ({found[0]}): training and validation share it")
        return {"train": found, "val": found, "test": found}
    count = max(1, len(found) // 10)
    return {"train": found[:-count], "val": found[-count:], "test": found[-count:]}


def _read_split(path: Path) -> dict[str, list[str]]:
    try:
        read = json.loads(path.read_text())
        parts = {name.removesuffix("_buildings"): list(read[name]) for name in read}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError):
        parts = {}
    if not {"train", "val"} <= set(parts):
        raise UserError(f"{path} should be JSON with train_buildings and val_buildings")
    return parts


# ---- data sets ----------------------------------------------------------------------


class TaskDataset(Dataset):
    """Views as tuples of tensors, one (C, S, S) float32 tensor a task.

    `keep` holds what was loaded in memory: for sets of few bytes, loaded by one process.
    """

    def __init__(
        self,
        tasks: Sequence[ImageTask],
        views: Sequence[View],
        image_size: int = 256,
        keep: bool = False,
    ) -> None:
        self.tasks = tuple(tasks)
        self.views = list(views)
        self.image_size = image_size
        self._kept: dict[View, tuple[Tensor, ...]] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.views)

    @property
    def bytes(self) -> int:
        """What all its tensors take."""
        return len(self) * sum(task.channels for task in self.tasks) * self.image_size**2 * 4

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.load(self.views[index])

    def load(self, view: View) -> tuple[Tensor, ...]:
        """The tensors of a view, not augmented."""
        if self._kept is None:
            return self._read(view)
        if view not in self._kept:
            self._kept[view] = self._read(view)
        return self._kept[view]

    def _read(self, view: View, **how) -> tuple[Tensor, ...]:
        return tuple(
            _load_file(task, task.path(*view), self.image_size, **how) for task in self.tasks
        )


class TrainTaskDataset(TaskDataset):
    """A TaskDataset with the published augmentation, indexed by (draw, view).

    With probability ½ a centre crop of 70 … 100 % of the file's side, the same for all
    domains of the view (an invalid pixel stays one: nothing is interpolated twice);
    with probability ½ colour jitter, of rgb alone. Both follow from (seed, draw) alone,
    so neither the number of workers nor their order matters.
    """

    def __init__(
        self,
        tasks: Sequence[ImageTask],
        views: Sequence[View],
        image_size: int = 256,
        augment: bool = False,
        seed: int = 0,
        keep: bool = False,
    ) -> None:
        super().__init__(tasks, views, image_size, keep)
        self.augment = augment
        self.seed = seed

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, ...]:  # type: ignore[override]
        draw, number = index
        view = self.views[number]
        if not self.augment:
            return self.load(view)
        rng = random.Random(f"{self.seed}/{draw}")
        share = rng.uniform(*CROP_SHARE) if rng.random() < 0.5 else 1.0
        with Image.open(self.tasks[0].path(*view)) as file:
            crop = round(share * min(file.size))
        jitter = draw_jitter(rng) if rng.random() < 0.5 else None
        return self._read(view, crop=crop, jitter=jitter)


def draw_jitter(rng: random.Random) -> ColourJitter:
    """One draw of the published colour jitter."""
    order = rng.sample(range(4), 4)
    *factors, hue = JITTER
    brightness, contrast, saturation = (rng.uniform(1 - f, 1 + f) for f in factors)
    return ColourJitter(tuple(order), brightness, contrast, saturation, rng.uniform(-hue, hue))


class ImageDataset(Dataset):
    """The images of a folder (or the one given), by name, as one-tuples of rgb tensors.

    `paths` holds their files in that order. Files whose ending no image format has are
    passed over; UserError where none is left.
    """

    def __init__(self, path: str | Path, image_size: int = 256) -> None:
        path = Path(path)
        if not path.exists():
            raise UserError(f"no file or folder {path}")
        endings = Image.registered_extensions()
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        self.paths = [f for f in files if f.suffix.lower() in endings and f.is_file()]
        if not self.paths:
            raise UserError(f"no images in {path}")
        self.tasks = (TASKS["rgb"],)
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (_load_file(TASKS["rgb"], self.paths[index], self.image_size),)


def _load_file(task: ImageTask, path: Path, image_size: int, **how) -> Tensor:
    try:
        return task.load(path, image_size, **how)
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image") from None
    except (OSError, ValueError) as error:
        text = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise UserError(f"cannot load {text}") from None


# ---- batches ------------------------------------------------------------------------


class EndlessSampler(Sampler):
    """(draw, index) for ever: every index once, in a new order each time round.

    The order follows from `seed` alone.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed)
        draw = 0
        while True:
            for index in torch.randperm(self.size, generator=generator).tolist():
                yield draw, index
                draw += 1


class Reality:
    """A named source of batches: {task name: (B, C, S, S)} on a device.

    Iterating gives every view once in order (`endless` false, the last batch may be
    short) or batches without end in random order.
    """

    def __init__(
        self,
        name: str,
        dataset: TaskDataset,
        batch_size: int,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        endless: bool = False,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.loader = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=EndlessSampler(len(dataset), seed) if endless else None,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=num_workers > 0,
        )

    def __len__(self) -> int:
        """Batches in one pass over the views."""
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        names = [task.name for task in self.dataset.tasks]
        try:
            for tensors in self.loader:
                moved = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
                yield dict(zip(names, moved, strict=True))
        except UserError as error:
            # A worker's error arrives with its traceback in front of the sentence.
            sentence = str(error).strip().splitlines()[-1]
            raise UserError(sentence.removeprefix("utils.UserError: ")) from None

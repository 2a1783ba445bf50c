"""Data sets of views (one tensor per task), and batches of them on a device.

`loading.layouts` finds the views of a data folder.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from loading.bad_files import Bad, BadFiles, BadView, first_good, reason_of_file
from loading.layouts import View
from loading.packs import PACKED, Pack, find_pack
from loading.shards import SHARDED, Content, Shards, file_of, find_shards, key_of
from loading.view_sequence import Views
from loading.workers import (
    TOO_MANY_FILES,
    discard,
    prepare_worker,
    quiet_about_workers,
    too_many_files,
    why_loading_failed,
)
from photometric import changed
from task_configs import READ_ERRORS, ColourJitter, ImageTask, open_file
from utils import UserError, reason_of

CROP_SHARE = (358 / 512, 1.0)  # range of crop side / image side; published: 358 … 512 of 512
JITTER = 0.4, 0.4, 0.4, 0.1  # strength for brightness, contrast, saturation, hue


def check_loading(num_workers: int | None, max_bad_fraction: float = 0.0) -> None:
    """Raise UserError if the number of workers or the share of bad views is out of range."""
    if num_workers is not None and num_workers < 0:
        raise UserError(f"`num_workers` has to be 0 or more, not {num_workers}")
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"`max_bad_fraction` is between 0 and 1, not {max_bad_fraction}")


# ---- data sets ----------------------------------------------------------------------


class TaskDataset(Dataset):
    """A data set of views. A sample is a tuple with one (C, S, S) float32 tensor per task.

    `keep` caches loaded views in memory, for small data sets without worker processes.
    Raises UserError if the views are in a pack that lacks a task or has another image size.
    """

    encoded = False  # True: samples are results of `ImageTask.encode`, not decoded values

    def __init__(
        self,
        tasks: Sequence[ImageTask],
        views: Sequence[View],
        image_size: int = 256,
        keep: bool = False,
    ) -> None:
        self.tasks = tuple(tasks)
        self.views: Sequence[View] = views if isinstance(views, Views) else list(views)
        self.image_size = image_size
        self._kept: dict[View, tuple[Tensor, ...]] | None = {} if keep else None
        some = self.views.firsts() if isinstance(self.views, Views) else self.views
        folders = {view.data_dir for view in some if view.layout == PACKED}
        self._found: dict[Path, Shards] = {}
        packs = {folder: find_pack(folder) for folder in sorted(folders)}
        self.packs: dict[Path, Pack] = {f: pack for f, pack in packs.items() if pack}
        for pack in self.packs.values():
            pack.check(self.tasks, image_size)

    def __len__(self) -> int:
        return len(self.views)

    @property
    def keeps(self) -> bool:
        """Whether loaded views are cached in memory."""
        return self._kept is not None

    @property
    def bytes(self) -> int:
        """The size of all tensors of the data set as float32."""
        return len(self) * sum(task.channels for task in self.tasks) * self.image_size**2 * 4

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return self.load(self.views[index])

    def load(self, view: View) -> tuple[Tensor, ...]:
        """Load the tensors of a view, without augmentation. Raises BadView if that fails."""
        if self._kept is None:
            return self._read(view)
        if view not in self._kept:
            self._kept[view] = self._read(view)
        return self._kept[view]

    def load_near(self, number: int) -> tuple[Tensor, ...]:
        """Load the view of that number or, if it cannot be loaded, the next one that can."""
        return first_good(lambda n: self.load(self.views[n]), number, len(self))[0]

    def _read(
        self, view: View, share: float | None = None, jitter: ColourJitter | None = None
    ) -> tuple[Tensor, ...]:
        """Load the tensors of a view.

        If `share` is given, the image is first centre-cropped to that share of its shorter
        side. Raises BadView, which lists all files that cannot be read, have the wrong
        encoding, or differ in size from most files of the view.
        """
        if view.data_dir in self.packs:
            pack = self.packs[view.data_dir]
            return pack.load(self.tasks, view.part, view.building, view.name)
        if view.layout == SHARDED:
            return self.decoded(
                view, self.shards_of(view).load((view.part, *view[1:3])), share, jitter
            )
        return self.decoded(view, None, share, jitter)

    def decoded(
        self,
        view: View,
        content: Content | None,
        share: float | None = None,
        jitter: ColourJitter | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the tensors of a view, from its files or from their `content` in a shard.

        Cropping and errors are those of `_read`.
        """
        tensors: dict[ImageTask, Tensor] = {}
        sizes: dict[str, tuple[int, int]] = {}
        reasons: dict[str, str] = {}
        with ExitStack() as stack:
            files: dict[str, Image.Image] = {}  # tasks may share a file: open it only once
            for task in self.tasks:
                path, source = self._file(view, task, content)
                if path in reasons:
                    continue
                try:
                    if path not in files:
                        files[path] = stack.enter_context(open_file(source, self.image_size))
                        sizes[path] = files[path].size
                    crop = None if share is None else round(share * min(sizes[path]))
                    values = task.encode(files[path], self.image_size, crop, jitter)
                    tensors[task] = values if self.encoded else task.decode(values)
                except READ_ERRORS as error:
                    if too_many_files(error):  # not the file's fault
                        raise UserError(TOO_MANY_FILES) from None
                    reasons[path] = reason_of_file(error, path)
        most_common = Counter(sizes.values()).most_common(1)
        for path, size in sizes.items():
            if size != most_common[0][0]:
                text = (
                    "it is {} × {} pixels, other files of its view are {} × {}: they must be equal"
                )
                reasons.setdefault(path, text.format(*size, *most_common[0][0]))
        if reasons:
            raise BadView(reasons)
        return tuple(tensors[task] for task in self.tasks)

    def _file(
        self, view: View, task: ImageTask, content: Content | None
    ) -> tuple[str, str | BytesIO]:
        """Return the name of a view's file for messages, and the file."""
        if content is None:
            path = str(view.path(task))
            return path, path
        name = file_of(task, list(content))
        shards, key = self.shards_of(view), (view.part, view.building, view.name)
        return (
            f"{shards.urls[shards.where(key)[0]]}: {key_of(*key)}.{name or task.folder}",
            BytesIO(content[name] if name else b""),
        )

    def shards_of(self, view: View) -> Shards:
        """Return the shards that hold a view, as they were when they were first asked for."""
        if view.data_dir not in self._found:  # once: it looks at the shards
            shards = find_shards(view.data_dir)
            assert shards is not None
            self._found[view.data_dir] = shards
        return self._found[view.data_dir]


class TrainTaskDataset(TaskDataset):
    """A TaskDataset with the published augmentation, indexed by (draw, view).

    With probability ½, all domains of the view are centre-cropped to 70 … 100 % of the
    image's side. The crop happens before the only resize, so invalid pixels are not
    interpolated a second time. With probability ½, colour jitter is applied to rgb. Both
    depend only on (seed, draw), so the workers' number and order do not matter.

    `strong_rgb` changes the look of rgb, after everything else, by `photometric.changed`; it
    depends on (seed, draw) too. Views kept in memory are kept without it. Raises UserError as
    TaskDataset does, and if `augment` is set for views in a pack, which are already resized.
    """

    def __init__(
        self,
        tasks: Sequence[ImageTask],
        views: Sequence[View],
        image_size: int = 256,
        augment: bool = False,
        seed: int = 0,
        keep: bool = False,
        strong_rgb: bool = False,
    ) -> None:
        super().__init__(tasks, views, image_size, keep)
        if augment and self.packs:
            raise UserError(
                f"`dataaug` crops the files before they are resized, and "
                f"{next(iter(self.packs.values()))} holds them resized: name the folder of the "
                f"files themselves, or leave `dataaug` out"
            )
        self.augment, self.strong_rgb = augment, strong_rgb
        self.seed = seed

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, ...]:  # type: ignore[override]
        draw, number = index
        view = self.views[number]
        read = self._read(view, *self.augmentation(draw)) if self.augment else self.load(view)
        return self.with_look(draw, read)

    def with_look(self, draw: int, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the tensors of a view, rgb with the look of a draw if `strong_rgb`."""
        if not self.strong_rgb:
            return tensors
        return tuple(
            changed(values, random.Random(f"{self.seed}/{draw}/look"))
            if task.name == "rgb" else values
            for task, values in zip(self.tasks, tensors, strict=True)
        )  # fmt: skip

    def augmentation(self, draw: int) -> tuple[float | None, ColourJitter | None]:
        """Return the share of the image to crop to and the colour jitter of a draw, if any."""
        if not self.augment:
            return None, None
        rng = random.Random(f"{self.seed}/{draw}")
        share = rng.uniform(*CROP_SHARE) if rng.random() < 0.5 else 1.0
        return share, draw_jitter(rng) if rng.random() < 0.5 else None


def draw_jitter(rng: random.Random) -> ColourJitter:
    """Sample the published colour jitter."""
    order = rng.sample(range(4), 4)
    *factors, hue = JITTER
    brightness, contrast, saturation = (rng.uniform(1 - f, 1 + f) for f in factors)
    return ColourJitter(tuple(order), brightness, contrast, saturation, rng.uniform(-hue, hue))


# ---- batches ------------------------------------------------------------------------


class _Tolerant(Dataset):
    """Wraps a data set to handle bad views, i.e. views that cannot be loaded.

    Samples are (tensors, view number, bad views); each bad view is (view number, files).
    Indexed by (draw, view number), a bad view is replaced by the next good one. Indexed by
    view number only, a bad view is left out: its tensors are None.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset: Any = dataset

    def __getitem__(self, index: int | tuple[int, int]):
        if isinstance(index, int):
            try:
                return self.dataset[index], index, []
            except BadView as error:
                return None, index, [(index, error.files)]
        (draw, number), count = index, len(self.dataset)
        tensors, bad = first_good(lambda n: self.dataset[draw, n], number, count)
        return tensors, (number + len(bad)) % count, bad


def collate(samples: list[tuple]) -> tuple[list[Tensor] | None, list[int], list[Bad], int]:
    """Collate samples of `_Tolerant` to (batch of the good ones or None, their views,
    bad views, number of samples)."""
    good = [(tensors, number) for tensors, number, _ in samples if tensors is not None]
    bad = [number for _, _, bad_views in samples for number in bad_views]
    batch = default_collate([tensors for tensors, _ in good]) if good else None
    return batch, [number for _, number in good], bad, len(samples)


class Batch(dict):
    """{task name: (B, C, S, S)}. `views` are the numbers of its views in their data set."""

    def __init__(self, values: Mapping[str, Tensor], views: Sequence[int] = ()) -> None:
        super().__init__(values)
        self.views = list(views)


class EndlessSampler(Sampler):
    """Yields batches of (draw, index) without end, in a new random order in every pass.

    The order depends only on `seed`. The first `start` batches are skipped. In distributed
    training, the process `rank` of `count` gets its part of each global batch of `count` ×
    `batch_size`. So all processes together see the same batches as a single process would
    with the global batch size.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.start, self.rank, self.count = start, rank, count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        draws = self._draws(self.start * self.batch_size * self.count)
        while True:
            global_batch = list(islice(draws, self.batch_size * self.count))
            start = self.rank * self.batch_size
            yield global_batch[start : start + self.batch_size]

    def _draws(self, first: int) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(first // self.size):
            self._order(generator)
        draw = first // self.size * self.size
        while True:
            order = self._order(generator)
            order, draw = order[max(0, first - draw) :], max(draw, first)
            for part in order.split(1024):  # a list of all would take 40 bytes per view
                for index in part.tolist():
                    yield draw, index
                    draw += 1

    def _order(self, generator: torch.Generator) -> Tensor:
        """Return a random permutation. The type does not change it, but halves its memory."""
        dtype = torch.int32 if self.size < 2**31 else torch.int64
        return torch.randperm(self.size, generator=generator, dtype=dtype)


class BatchesInOrder(Sequence[list[int]]):
    """The numbers of all views in order, in batches; the process `rank` of `count` gets a share."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, count: int = 1) -> None:
        self.size, self.batch_size = size, batch_size
        self._starts = range(0, size, batch_size)[rank::count]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start = self._starts[index]
        return list(range(start, min(start + self.batch_size, self.size)))


class Reality:
    """A named source of batches on a device (the name is a data split, e.g. "train").

    If `endless`, iterating yields batches in random order without end. Otherwise it yields
    every view once, in order; the last batch may be smaller. With several processes, each of
    the `count` gets its share of the batches.

    If `endless`, a view that cannot be loaded is replaced by the next good one, which depends
    only on (seed, draw). Otherwise it is left out. `bad` counts such views, and raises
    UserError if they exceed `max_bad_fraction` of the views seen so far.

    `degrade`, if it is set, maps each batch's rgb images (B, 3, S, S), and their numbers in the
    data set, to the images that are used instead.
    """

    degrade: Callable[[Tensor, Sequence[int]], Tensor] | None = None

    def __init__(
        self,
        name: str,
        dataset: TaskDataset,
        batch_size: int,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        endless: bool = False,
        seed: int = 0,
        max_bad_fraction: float = 0.0,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.endless = endless
        self.bad = BadFiles(name, len(dataset), max_bad_fraction, replaced=endless)
        self.batches = self._batches(seed, rank, count)
        self.loader = self._loader(num_workers, count)

    def _batches(self, seed: int, rank: int, count: int) -> Any:
        """Return what decides which views come when; `begin` sets its `start`."""
        if self.endless:
            return EndlessSampler(len(self.dataset), self.batch_size, seed, 0, rank, count)
        return BatchesInOrder(len(self.dataset), self.batch_size, rank, count)

    def _loader(self, num_workers: int, count: int) -> DataLoader:
        """Return the loader of the batches, for one of `count` processes."""
        return DataLoader(
            _Tolerant(self.dataset),
            batch_sampler=self.batches,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            persistent_workers=num_workers > 0,
            worker_init_fn=prepare_worker,
        )

    def __len__(self) -> int:
        """The number of batches in one pass over the views, summed over all processes."""
        return -(-len(self.dataset) // self.batch_size)

    def begin(self, batch: int) -> None:
        """Skip that many batches in the next iteration."""
        self.batches.start = batch

    def sample(self, rows: int) -> Batch:
        """Return a batch of at most `rows` evenly spaced views, without augmentation."""
        data, count = self.dataset, min(rows, len(self.dataset))
        numbers = [i * len(data) // count for i in range(count)]
        batch = self._batch(default_collate([data.load_near(n) for n in numbers]), numbers)
        batch.views = []  # a bad view's place was taken by another
        return batch

    def _batch(self, tensors: Sequence[Tensor], views: Sequence[int] = ()) -> Batch:
        values = dict(zip((task.name for task in self.dataset.tasks), tensors, strict=True))
        if self.degrade and "rgb" in values:
            values["rgb"] = self.degrade(values["rgb"], views)
        moved = {name: v.to(self.device, non_blocking=True) for name, v in values.items()}
        return Batch(moved, views)

    def __iter__(self) -> Iterator[Batch]:
        for tensors, views, bad, count in self._fetched():
            self.bad.note(bad, count)
            if tensors is not None:
                yield self._batch(tensors, views)

    def _fetched(self) -> Iterator[tuple[list[Tensor] | None, list[int], list, int]]:
        """Iterate over the loader. Its errors are shortened to one sentence."""
        try:
            iterator = quiet_about_workers(lambda: iter(self.loader))
        except (OSError, RuntimeError) as error:
            if not self.loader.num_workers:
                raise
            discard(error)
            raise UserError(
                f"cannot start the processes that load the {self.name} views: {reason_of(error)} "
                f"(fewer `num_workers` need less)"
            ) from None
        while True:
            try:
                fetched = next(iterator, None)
            except Exception as error:
                if not self.loader.num_workers:
                    raise
                raise UserError(why_loading_failed(self.name, error)) from error
            if fetched is None:
                return
            yield fetched

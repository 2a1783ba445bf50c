"""Files → tuples of tensors, one tensor a task, one tuple a view; tuples → batches.

Which views a folder has, `scripts.views` finds.
"""

import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from tqdm import tqdm

from scripts.packed import PACKED, find_pack
from scripts.views import View
from task_configs import FORMATS, READ_ERRORS, TASKS, ColourJitter, ImageTask
from utils import UserError

CROP_SHARE = (358 / 512, 1.0)  # of a file's side; the published crop is 358 … 512 of 512
JITTER = 0.4, 0.4, 0.4, 0.1  # brightness, contrast, saturation, hue


# ---- data sets ----------------------------------------------------------------------


class TaskDataset(Dataset):
    """Views as tuples of tensors, one (C, S, S) float32 tensor a task.

    `keep` holds what was loaded in memory: for sets of few bytes, loaded by one process.
    UserError where the views are in a pack that cannot serve the tasks at that size.
    """

    read = staticmethod(ImageTask.load)  # of a file

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
        folders = {view.data_dir for view in views if view.layout == PACKED}
        self.packs = [pack for folder in sorted(folders) if (pack := find_pack(folder))]
        for pack in self.packs:
            pack.check(self.tasks, image_size)

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

    def load_near(self, number: int) -> tuple[Tensor, ...]:
        """The tensors of that view or, where it is bad, of the next good one."""
        return first_good(lambda n: self.load(self.views[n]), number, len(self))[0]

    def _read(
        self, view: View, share: float | None = None, jitter: ColourJitter | None = None
    ) -> tuple[Tensor, ...]:
        """The tensors of a view, of the centre square of `share` of its side if given.

        Raises BadView naming all of its files that cannot be read, are in the wrong
        encoding or of another size than most of the view's.
        """
        if pack := find_pack(view.data_dir):
            return pack.load(self.tasks, view.part, view.building, view.name)
        tensors, sizes, bad = [], {}, {}
        for task in self.tasks:
            path = view.path(task)
            try:
                with Image.open(path, formats=FORMATS) as file:
                    sizes[path] = file.size
                crop = None if share is None else round(share * min(sizes[path]))
                tensors.append(self.read(task, path, self.image_size, crop, jitter))
            except READ_ERRORS as error:
                bad[str(path)] = _reason(error, path)
        usual = Counter(sizes.values()).most_common(1)
        for path, size in sizes.items():
            if size != usual[0][0]:
                text = "it is {} × {} pixels, most of its view are {} × {}"
                bad.setdefault(str(path), text.format(*size, *usual[0][0]))
        if bad:
            raise BadView(bad)
        return tuple(tensors)


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
        if augment and self.packs:
            raise UserError(
                f"--dataaug crops the files before they are resized, and {self.packs[0]} holds "
                f"them resized: name the folder of the files themselves, or leave --dataaug out"
            )
        self.augment = augment
        self.seed = seed

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, ...]:  # type: ignore[override]
        draw, number = index
        view = self.views[number]
        if not self.augment:
            return self.load(view)
        rng = random.Random(f"{self.seed}/{draw}")
        share = rng.uniform(*CROP_SHARE) if rng.random() < 0.5 else 1.0
        jitter = draw_jitter(rng) if rng.random() < 0.5 else None
        return self._read(view, share, jitter)


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
        path = self.paths[index]
        try:
            return (TASKS["rgb"].load(path, self.image_size),)
        except READ_ERRORS as error:
            raise BadView({str(path): _reason(error, path)}) from None


# ---- bad files ----------------------------------------------------------------------

TRIES = 100  # bad views in a row, after which something else is wrong than a few files
SEEN_AT_LEAST = 1000  # views: the share of bad ones among fewer says little


class BadView(UserError):
    """A view that cannot be loaded. `files` says why, {path: reason}."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__(files)
        self.files = dict(files)

    def __str__(self) -> str:
        (path, reason), *others = self.files.items()
        more = f" ({len(others)} more of its view too)" if others else ""
        return f"cannot load {path}: {reason}{more}"


def _reason(error: Exception, path: Path) -> str:
    """What is wrong with a file, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image that is read here"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.removeprefix(f"{path}: ").split())


def first_good(
    load: Callable[[int], tuple[Tensor, ...]], number: int, count: int
) -> tuple[tuple[Tensor, ...], list[tuple[int, dict[str, str]]]]:
    """What `load` gives for the first of number, number + 1, … (modulo `count`) that is good.

    Beside it the numbers of the bad ones before it, each with its files. Raises UserError
    where a hundred in a row are bad.
    """
    bad: list[tuple[int, dict[str, str]]] = []
    for step in range(min(count, TRIES)):
        tried = (number + step) % count
        try:
            return load(tried), bad
        except BadView as error:
            bad.append((tried, error.files))
    raise UserError(f"{len(bad)} views in a row cannot be loaded; {BadView(bad[0][1])}")


class _Tolerant(Dataset):
    """A data set whose samples say what they are: (tensors, view, bad views met).

    Indexed by (draw, view), a bad view is replaced by the next good one, whatever process
    asks; indexed by view alone it is left out: its tensors are None. Bad views are
    (view, files), and views numbers.
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


def _batch_up(samples: list[tuple]) -> tuple[list[Tensor] | None, list[int], list, int]:
    """The good samples as a batch (None where there are none), their views, the bad, the count."""
    good = [(tensors, view) for tensors, view, _ in samples if tensors is not None]
    bad = [view for _, _, views in samples for view in views]
    batch = default_collate([tensors for tensors, _ in good]) if good else None
    return batch, [view for _, view in good], bad, len(samples)


# ---- batches ------------------------------------------------------------------------


class Batch(dict):
    """{task name: (B, C, S, S)}, and in `views` the numbers of its views in their data set."""

    def __init__(self, values: Mapping[str, Tensor], views: Sequence[int] = ()) -> None:
        super().__init__(values)
        self.views = list(views)


class EndlessSampler(Sampler):
    """Batches of (draw, index) for ever: every index once, in a new order each time round.

    The order follows from `seed` alone. Begins after the first `start` batches. Of
    `count` processes that train as one, the one numbered `rank` gets its part of each
    batch of `count` × `batch_size`: together they see what one would with that batch.
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
            together = list(islice(draws, self.batch_size * self.count))
            mine = self.rank * self.batch_size
            yield together[mine : mine + self.batch_size]

    def _draws(self, first: int) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(first // self.size):
            torch.randperm(self.size, generator=generator)
        draw = first // self.size * self.size
        while True:
            for index in torch.randperm(self.size, generator=generator).tolist():
                if draw >= first:
                    yield draw, index
                draw += 1


class Reality:
    """A named source of batches on a device.

    Iterating gives every view once in order (`endless` false, the last batch may be
    short) or batches without end in random order. Of `count` processes that work
    together, each gets its share of the batches. A view that cannot be loaded is left
    out of the former and replaced by the next good one in the latter, which follows from
    (seed, draw) alone. `bad_files` says why, {path: reason}; each is printed once, and
    given to `record` if that is set. UserError where more than `max_bad_fraction` of the
    views seen so far are bad; views seen count as 1000 at least, or as all of them.
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
        max_bad_fraction: float = 0.0,
        rank: int = 0,
        count: int = 1,
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.endless = endless
        self.max_bad_fraction = max_bad_fraction
        self.bad_files: dict[str, str] = {}
        self.bad_views: set[int] = set()
        self.record: Callable[[dict], object] | None = None
        self._seen = 0
        if endless:
            self.batches: Any = EndlessSampler(len(dataset), batch_size, seed, 0, rank, count)
        else:
            numbers = range(len(dataset))
            batches = [list(numbers[i : i + batch_size]) for i in numbers[::batch_size]]
            self.batches = batches[rank::count]
        self.loader = DataLoader(
            _Tolerant(dataset),
            batch_sampler=self.batches,
            num_workers=num_workers,
            collate_fn=_batch_up,
            pin_memory=self.device.type == "cuda",
            persistent_workers=num_workers > 0,
        )

    def __len__(self) -> int:
        """Batches in one pass over the views, those of the other processes included."""
        return -(-len(self.dataset) // self.batch_size)

    def begin(self, batch: int) -> None:
        """Have the next iteration begin after that many batches."""
        self.batches.start = batch

    def __iter__(self) -> Iterator[Batch]:
        names = [task.name for task in self.dataset.tasks]
        for tensors, views, bad, count in self._fetched():
            self._seen += count
            self._note(bad)
            if tensors is not None:
                moved = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
                yield Batch(dict(zip(names, moved, strict=True)), views)

    def _fetched(self) -> Iterator[tuple[list[Tensor] | None, list[int], list, int]]:
        """What the loader gives, its errors in one sentence each."""
        fetcher = _quiet_about_workers(lambda: iter(self.loader))
        while True:
            try:
                fetched = next(fetcher, None)
            except UserError as error:
                # A worker's error arrives with its traceback in front of the sentence.
                sentence = str(error).strip().splitlines()[-1]
                raise UserError(sentence.removeprefix("utils.UserError: ")) from None
            except (RuntimeError, EOFError, ConnectionError) as error:
                # The end of a worker shows as the last two while it hands a batch over.
                if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                    raise
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise UserError(
                    f"a process that loads the {self.name} views was ended from outside, often for "
                    f"lack of memory (fewer --num-workers need less): {reason}"
                ) from None
            if fetched is None:
                return
            yield fetched

    def _note(self, bad: list[tuple[int, dict[str, str]]]) -> None:
        """Take in the bad views of a batch; UserError where there are too many by now."""
        fate = "the next view replaces its own" if self.endless else "its view is left out"
        for number, files in bad:
            self.bad_views.add(number)
            for path, reason in files.items():
                if path in self.bad_files:
                    continue
                self.bad_files[path] = reason
                if self.max_bad_fraction:
                    tqdm.write(f"warning: cannot load {path}: {reason}; {fate}", file=sys.stderr)
                if self.record:
                    self.record({"bad file": path, "reason": reason, "reality": self.name})
        seen = min(max(self._seen, SEEN_AT_LEAST), len(self.dataset))
        if len(self.bad_views) > self.max_bad_fraction * seen:
            if not self.max_bad_fraction:
                raise UserError(str(BadView(self.bad_files)))
            raise UserError(f"{self.bad_summary()}: more than --max-bad-fraction allows")

    def bad_summary(self) -> str:
        """How many views are bad, and their files by name."""
        files = "; ".join(f"{path}: {reason}" for path, reason in self.bad_files.items())
        of = f"{len(self.bad_views)} of {len(self.dataset)} {self.name} views"
        return f"{of} cannot be loaded ({files})"


def _quiet_about_workers(start: Callable[[], Iterator]) -> Iterator:
    """What `start` gives, a loader's iterator, without its handler for a worker's end.

    That raises an error wherever the main process stands, in the middle of a step maybe;
    without it, the loader itself finds out at the next fetch, within seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        return start()
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return start()
    finally:
        signal.signal(signal.SIGCHLD, before)

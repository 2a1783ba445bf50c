"""Files → tuples of tensors, one tensor a task, one tuple a view.

`LAYOUTS` is the table of the folders' layouts. A data folder's layout is found by looking;
its views by intersection over the tasks, once, at start.
"""

import json
import os
import random
import re
import signal
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from tqdm import tqdm

from task_configs import FORMATS, READ_ERRORS, TASKS, ColourJitter, ImageTask
from utils import ROOT, UserError

CROP_SHARE = (358 / 512, 1.0)  # of a file's side; the published crop is 358 … 512 of 512
JITTER = 0.4, 0.4, 0.4, 0.1  # brightness, contrast, saturation, hue


PARTS = "train", "val", "test"

# ---- layouts ------------------------------------------------------------------------

# (task, building, view, part) → the file below the data folder. A part is what a layout has
# above its buildings or beside them: a data set's component, or train, val, test. Names go
# into the path as they are: a layout is called with marks too, to find what is there.
Layout = Callable[[ImageTask, str, str, str], str]


def _domain_file(task: ImageTask, view: str) -> str:
    return f"{view}_domain_{task.tag}.png"


# A folder has the first layout of which it holds a file.
LAYOUTS: dict[str, Layout] = {
    "taskonomy": lambda t, b, v, p: t.path(Path(), b, v).as_posix(),
    "omnidata": lambda t, b, v, p: f"{t.folder}/{p}/{b}/{_domain_file(t, v)}",
    "multimae": lambda t, b, v, p: f"{t.folder}/{b}/{_domain_file(t, v)}",
    "multimae split": lambda t, b, v, p: f"{p}/{t.folder}/{b}/{_domain_file(t, v)}",
    "buildings": lambda t, b, v, p: f"{b}/{t.folder}/{_domain_file(t, v)}",
    "one building": lambda t, b, v, p: f"{t.folder}/{_domain_file(t, v)}",
    "raid": lambda t, b, v, p: f"{t.folder}/{b}/{v}.png",
    "raid split": lambda t, b, v, p: f"{p}/{t.folder}/{b}/{v}.png",
}

# Stand for the building, the view and the part where a layout is asked what there may be.
MARKS = {"building": "\ue000", "view": "\ue001", "part": "\ue002"}


class View(NamedTuple):
    """One camera pose in one building, all of whose domains are files."""

    data_dir: Path
    building: str
    name: str  # "point_3_view_1"
    layout: str = "taskonomy"
    part: str = ""

    def path(self, task: ImageTask) -> Path:
        """The view's file of a domain. Raises UserError for a view in a pack."""
        if self.layout == PACKED:
            raise UserError(f"{self.data_dir} is a pack: name the folder of the files themselves")
        file = LAYOUTS[self.layout](task, self.building, self.name, self.part)
        return Path(self.data_dir) / file


class Place(NamedTuple):
    """A building in a data folder, and what finds its files there."""

    data_dir: Path
    layout: str
    part: str
    building: str

    def view(self, name: str) -> View:
        return View(self.data_dir, self.building, name, self.layout, self.part)

    def view_names(self, task: ImageTask) -> set[str]:
        """The views of which that domain's file is there."""
        if pack := find_pack(self.data_dir):
            return pack.view_names(task, self.building, self.part)
        template = LAYOUTS[self.layout](task, self.building, MARKS["view"], self.part)
        return {names["view"] for names in _matches(self.data_dir, template)}


def find_places(data_dir: str | Path) -> list[Place]:
    """The buildings in a data folder, in whichever layout it has, sorted by part and name.

    Raises UserError where there is no such folder.
    """
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise UserError(f"no data folder {data_dir}")
    if pack := find_pack(data_dir):
        return pack.places()
    layout = find_layout(data_dir)
    if layout is None:
        return []
    own = data_dir.resolve().name  # where the layout has no building, the folder is one
    found = {
        (names.get("part", ""), names.get("building", own))
        for task in TASKS.values()
        for names in _matches(data_dir, _template(layout, task).rpartition("/")[0], folders=True)
    }
    return [Place(data_dir, layout, part, building) for part, building in sorted(found)]


def find_layout(data_dir: str | Path) -> str | None:
    """The first layout of which there is a file; else, of which there are the folders."""
    for folders in (False, True):
        for layout in LAYOUTS:
            for task in TASKS.values():
                template = _template(layout, task)
                template = template.rpartition("/")[0] if folders else template
                if next(_matches(Path(data_dir), template, folders), None) is not None:
                    return layout
    return None


def _template(layout: str, task: ImageTask) -> str:
    return LAYOUTS[layout](task, *MARKS.values())


def _matches(folder: Path, template: str, folders: bool = False) -> Iterator[dict[str, str]]:
    """What the marks stand for, in each path below `folder` that has the template's form."""
    head, _, rest = template.partition("/")
    for child, names in _children(folder, head, folders or bool(rest)):
        below = rest
        for name in names:
            below = below.replace(MARKS[name], names[name])
        for more in _matches(child, below, folders) if rest else ({},):
            yield names | more


def _children(folder: Path, head: str, folders: bool) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder's entries (folders or files) of the form `head`, without hidden ones."""
    pattern = r"(?!\.)" + re.escape(head)
    for name, mark in MARKS.items():
        pattern = pattern.replace(mark, f"(?P<{name}>.+)", 1).replace(mark, f"(?P={name})")
    form = re.compile(pattern, re.DOTALL)
    try:
        entries = os.listdir(folder) if form.groups else [head]
        for name in entries:
            match, path = form.fullmatch(name), folder / name
            # files are not looked at one by one: there may be millions
            if match and (path.is_dir() if folders else form.groups or path.is_file()):
                yield path, match.groupdict()
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None


# ---- which views there are ----------------------------------------------------------


def find_buildings(data_dirs: Sequence[str | Path]) -> list[str]:
    """The buildings of which some domain's folder is there, sorted by name."""
    return sorted({place.building for folder in data_dirs for place in find_places(folder)})


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
    for place in _places_of(data_dirs, buildings):
        names = {task: place.view_names(task) for task in tasks}
        union = set().union(*names.values())
        common = union.intersection(*names.values())
        seen += len(union)
        for task in tasks:
            if lacking := len(union - names[task]):
                missing[f"{task} in {place.building}"] += lacking
        views += [place.view(name) for name in sorted(common, key=_natural)]
    where = ", ".join(map(str, data_dirs))
    if not seen:
        example = tasks[0].path(Path(data_dirs[0]), "BUILDING", "point_0_view_0")
        raise UserError(f"no views under {where} (looked for files like {example})")
    lacking = seen - len(views)
    if lacking:
        kinds = ", ".join(f"{name}: {count}" for name, count in missing.most_common(4))
        kinds += f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        text = f"{lacking} of {seen} views under {where} lack a domain ({kinds})"
        if not views or (lacking > 0.1 * seen and not allow_missing):
            hint = f"; --allow-missing goes on with the other {len(views)}" if views else ""
            raise UserError(text + hint)
        print(f"warning: {text}; going on with the other {len(views)}")
    return views


def _places_of(data_dirs: Sequence[str | Path], buildings: Sequence[str]) -> list[Place]:
    """Where those buildings are, folder by folder, in the order of `buildings`."""
    order = {building: number for number, building in enumerate(buildings)}
    return [
        place
        for folder in data_dirs
        for place in sorted(
            (place for place in find_places(folder) if place.building in order),
            key=lambda place: order[place.building],
        )
    ]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts point_2 before point_10."""
    parts = [(part.isdecimal(), part) for part in name.split("_")]
    return [(number, int(part) if number else 0, part) for number, part in parts]


def split_buildings(
    data_dirs: Sequence[str | Path], split: str | Path | None = None
) -> dict[str, list[str]]:
    """The buildings at hand as {"train": …, "val": …, "test": …}.

    A split file is JSON with the keys train_buildings, val_buildings and, if wanted,
    test_buildings. Without `split`, the folders train and val (and test) that the data are
    in; else the first of `config/split*.txt` that puts one of the buildings at hand into
    each of train and val; where none does, the last tenth of the buildings (by name) is
    val. A split without test buildings tests on val.
    """
    places = [place for folder in data_dirs for place in find_places(folder)]
    if not places:
        known = ", ".join(LAYOUTS)
        where = ", ".join(map(str, data_dirs))
        raise UserError(f"no building under {where} in a layout known here ({known})")
    found = sorted({place.building for place in places})
    files = [Path(split)] if split else sorted((ROOT / "config").glob("split*.txt"))
    splits = [] if split else [_folders_split(places)]
    for named in [*splits, *map(_read_split, files)]:
        parts = {part: [b for b in names if b in found] for part, names in named.items()}
        if parts["train"] and parts["val"]:
            return {**parts, "test": parts.get("test") or parts["val"]}
    if split:
        raise UserError(f"{split} names no train or no val building of those at hand: {found}")
    if len(found) == 1:
        print(f"warning: one building only ({found[0]}): training and validation share it")
        return {"train": found, "val": found, "test": found}
    count = max(1, len(found) // 10)
    return {"train": found[:-count], "val": found[-count:], "test": found[-count:]}


def _folders_split(places: Sequence[Place]) -> dict[str, list[str]]:
    """The buildings in folders train, val, test; none where one building is in two of them."""
    parts = {part: {p.building for p in places if p.part == part} for part in PARTS}
    if sum(map(len, parts.values())) > len(set().union(*parts.values())):
        return dict.fromkeys(PARTS, [])
    return {part: sorted(names) for part, names in parts.items()}


def _read_split(path: Path) -> dict[str, list[str]]:
    try:
        read = json.loads(path.read_text())
        parts = {name.removesuffix("_buildings"): list(read[name]) for name in read}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError):
        parts = {}
    if not {"train", "val"} <= set(parts):
        raise UserError(f"{path} should be JSON with train_buildings and val_buildings")
    return parts


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
            return pack.load(self.tasks, view)
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

    def bad(self) -> dict:
        """What it has met of bad views, for `set_bad` of a resumed run, which then says no more."""
        return {"files": self.bad_files, "views": sorted(self.bad_views), "seen": self._seen}

    def set_bad(self, bad: Mapping) -> None:
        """Go on from what `bad` gave."""
        self.bad_files, self.bad_views = dict(bad["files"]), set(bad["views"])
        self._seen = bad["seen"]

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


# ---- packs --------------------------------------------------------------------------

PACK_INDEX = "pack.json"
PACK_VERSION = 1
PACKED = "packed"  # the layout of views in packs


class Pack:
    """A data set at one image size, read without decoding: what `python -m scripts.pack` makes.

    A folder with `pack.json` and, for each task, `{task}.npy`: an array (views, C, S, S) of
    what `ImageTask.encode` gives, 16-bit values as uint16. The arrays are mapped into
    memory; what is loaded equals, bit for bit, what the files would give. The index names
    version, image_size, tasks (how each is encoded) and views (part, building, name), in order.

    Raises UserError for an index that cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index = json.loads((folder / PACK_INDEX).read_text())
            version = index["version"]
            if version == PACK_VERSION:
                self.image_size: int = index["image_size"]
                self.encodings: dict[str, str] = index["tasks"]
                self._rows = {tuple(view): row for row, view in enumerate(index["views"])}
        except OSError as error:
            raise UserError(f"cannot read {folder / PACK_INDEX}: {error.strerror}") from None
        except (ValueError, TypeError, LookupError):
            raise UserError(f"{folder / PACK_INDEX} is no index of a pack; {REPACK}") from None
        if version != PACK_VERSION:
            raise UserError(
                f"{folder} is a pack of version {version}, not of {PACK_VERSION}; {REPACK}"
            )
        self._names: dict[tuple[str, str], set[str]] = defaultdict(set)
        for part, building, name in self._rows:
            self._names[part, building].add(name)
        self._arrays: dict[str, np.ndarray] = {}

    def __str__(self) -> str:
        return f"the pack {self.folder}"

    def places(self) -> list[Place]:
        """Its buildings, sorted by part and name."""
        return [Place(self.folder, PACKED, *where) for where in sorted(self._names)]

    def view_names(self, task: ImageTask, building: str, part: str) -> set[str]:
        """The views of a building; UserError where the pack lacks the task."""
        self._check_task(task)
        return self._names[part, building]

    def check(self, tasks: Sequence[ImageTask], image_size: int) -> None:
        """UserError where the pack cannot serve these tasks at this size, or is damaged."""
        if image_size != self.image_size:
            raise UserError(
                f"{self} is of {self.image_size}-pixel images, and this run's have {image_size}: "
                f"use --image-size {self.image_size}, or {REPACK}"
            )
        for task in tasks:
            self._check_task(task)
            self._array(task)

    def load(self, tasks: Sequence[ImageTask], view: View) -> tuple[Tensor, ...]:
        """The tensors of a view, (C, S, S) float32 each."""
        row = self._rows[view.part, view.building, view.name]
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
            path = self.folder / f"{task}.npy"
            try:
                array = np.load(path, mmap_mode="r")
            except (OSError, ValueError, EOFError):
                raise UserError(f"{path} is missing, damaged or cut off; {REPACK}") from None
            size = self.image_size
            if array.shape[:1] + array.shape[2:] != (len(self._rows), size, size):
                raise UserError(f"{path} does not fit {PACK_INDEX} beside it; {REPACK}")
            self._arrays[task.name] = array
        return self._arrays[task.name]


REPACK = "make it anew with python -m scripts.pack"


def find_pack(folder: str | Path) -> Pack | None:
    """The pack that a folder is; None where it is none."""
    try:
        changed = (Path(folder) / PACK_INDEX).stat().st_mtime_ns
    except OSError:
        return None
    return _opened(Path(folder), changed)


@lru_cache(maxsize=16)
def _opened(folder: Path, changed: int) -> Pack:
    return Pack(folder)


def encoding_of(task: ImageTask) -> str:
    """What a task's packed values depend on besides the files, in words."""
    function = getattr(task.transform, "func", task.transform)
    keywords = getattr(task.transform, "keywords", {})
    how = ", ".join(f"{name}={value}" for name, value in sorted(keywords.items()))
    return f"{function.__name__}({how})" + (f", {task.classes} classes" if task.classes else "")


def packed(values: Tensor) -> np.ndarray:
    """What `ImageTask.encode` gave, as a pack stores it: int32 as uint16.

    Raises ValueError for other numbers than encode promises.
    """
    array = values.numpy()
    if array.dtype == np.int32 and array.min() >= 0 and array.max() < 2**16:
        return array.astype(np.uint16)
    if array.dtype not in (np.uint8, np.float32):
        raise ValueError(f"a pack holds no {array.dtype} from {array.min()} to {array.max()}")
    return array


def _unpacked(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int32 if array.dtype == np.uint16 else array.dtype))

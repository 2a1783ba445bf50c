"""Finding the views of a data folder, and their files.

`LAYOUTS` is the table of folder layouts. The layout of a data folder is detected from its
files. Its views are those that have files for all tasks. They are listed once, at start; for
large folders, `loading.view_index` keeps what was listed.
"""

import hashlib
import os
import re
import runpy
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loading.near_misses import RGB_ENDINGS, what_is_there
from loading.packs import PACKED, find_pack
from loading.shards import SHARDED, find_shards, is_shards
from loading.view_index import (
    SMALL,
    Key,
    Listing,
    Search,
    Times,
    Views,
    folder_times,
    index_of,
    settled,
)
from loading.view_lists import LISTED, find_list
from task_configs import TASKS, ImageTask
from utils import UserError, log

TOLERATED = 0.1  # maximum share of views that may lack a domain

# ---- layouts ------------------------------------------------------------------------

# (task, building, view, part) → the file's path relative to the data folder. A part is a
# further level of folders in some layouts: a component of the data set, or train, val, test.
# A layout must put the names into the path unchanged. To list files, it is called with MARKS
# instead of names, and the result is used as a pattern.
Layout = Callable[[ImageTask, str, str, str], str]


def _domain_file(task: ImageTask, view: str) -> str:
    return f"{view}_domain_{task.tag}.png"


# A data folder has the first layout for which it contains a file.
LAYOUTS: dict[str, Layout] = {
    "taskonomy": lambda t, b, v, p: f"{b}_{t.folder}/{t.folder}/{_domain_file(t, v)}",
    "omnidata": lambda t, b, v, p: f"{t.folder}/{p}/{b}/{_domain_file(t, v)}",
    "multimae": lambda t, b, v, p: f"{t.folder}/{b}/{_domain_file(t, v)}",
    "multimae split": lambda t, b, v, p: f"{p}/{t.folder}/{b}/{_domain_file(t, v)}",
    "buildings": lambda t, b, v, p: f"{b}/{t.folder}/{_domain_file(t, v)}",
    "one building": lambda t, b, v, p: f"{t.folder}/{_domain_file(t, v)}",
    "raid": lambda t, b, v, p: f"{t.folder}/{b}/{v}.png",
    "raid split": lambda t, b, v, p: f"{p}/{t.folder}/{b}/{v}.png",
    "plain": lambda t, b, v, p: f"{b}/{t.folder}/{v}.png",
}

# Placeholders (private-use characters) for the building, the view and the part in patterns.
MARKS = {"building": "\ue000", "view": "\ue001", "part": "\ue002"}
ENDING = "\ue003"  # placeholder for the ending of an rgb file, which may be a JPEG


def add_layouts(files: Sequence[str | Path] | None) -> None:
    """Run Python files that add rows to `LAYOUTS`. Their layouts are tried before the others.

    Raises UserError if a file cannot be run or adds no layout.
    """
    for file in files or ():
        before = dict(LAYOUTS)
        if not Path(file).is_file():
            raise UserError(f"`layouts`: no file {file}")
        try:
            runpy.run_path(str(file), run_name="layouts")
        except UserError:
            raise
        except Exception as error:
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                     if f.filename == str(file)]  # fmt: skip
            line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
            reason = " ".join(str(error).split())
            raise UserError(
                f"`layouts`: {file}, line {line}: {type(error).__name__}: {reason}"
            ) from error
        added = {n: row for n, row in LAYOUTS.items() if before.get(n) is not row}
        if not added:
            raise UserError(f"`layouts`: {file} adds no layout to LAYOUTS (see docs/extending.md)")
        others = {name: row for name, row in LAYOUTS.items() if name not in added}
        LAYOUTS.clear()
        LAYOUTS.update(added | others)


class View(NamedTuple):
    """One camera pose in one building, with one file per domain."""

    data_dir: Path
    building: str
    name: str  # "point_3_view_1"
    layout: str = "taskonomy"
    part: str = ""
    files: tuple[tuple[str, str], ...] = ()  # (folder of a domain, file) if not as in the layout

    def path(self, task: ImageTask) -> Path:
        """Return the view's file of a domain. Raises UserError for a view in a pack."""
        for folder, path in self.files:
            if folder == task.folder:
                return Path(path)
        if self.layout == LISTED:
            raise UserError(f"{self.data_dir} names no file of {task} for the view {self.name}")
        if self.layout == PACKED:
            raise UserError(f"{self.data_dir} is a pack: name the folder of the files themselves")
        if self.layout == SHARDED:
            raise UserError(
                f"{self.data_dir}: shards are read by training only; for other programs name the "
                f"folder of the files themselves (tar unpacks shards)"
            )
        file = LAYOUTS[self.layout](task, self.building, self.name, self.part)
        return Path(self.data_dir) / file


class Place(NamedTuple):
    """A building in a data folder, with the folder's layout."""

    data_dir: Path
    layout: str
    part: str
    building: str

    def view(self, name: str, found: Mapping[ImageTask, Mapping[str, str]] | None = None) -> View:
        """Return the view of that name. `found` holds `view_files` of each task it is read for."""
        files = {task.folder: names.get(name, "") for task, names in (found or {}).items()}
        others = tuple((folder, file) for folder, file in files.items() if file)
        return View(self.data_dir, self.building, name, self.layout, self.part, others)

    def has(self, task: ImageTask) -> bool:
        """Whether `view_names` accepts that domain. Only a pack may lack it."""
        pack = find_pack(self.data_dir)
        return pack is None or pack.has(task)

    def view_names(self, task: ImageTask) -> set[str]:
        """Return the names of the views that have a file for this task."""
        return set(self.view_files(task))

    def view_files(self, task: ImageTask) -> dict[str, str]:
        """Return the views that have a file for this task: {name: path}.

        The path is "" if it is the one of the layout. It differs for JPEGs and in lists.
        """
        if listed := find_list(self.data_dir):
            return listed.view_files(task, self.building, self.part)
        if pack := find_pack(self.data_dir):
            return dict.fromkeys(pack.view_names(task, self.building, self.part), "")
        if shards := find_shards(self.data_dir):
            return dict.fromkeys(shards.view_names(task, self.building, self.part), "")
        endings = self.endings(task)
        return {
            name: str(self.view(name).path(task).with_suffix(ending)) if ending else ""
            for name, ending in endings.items()
        }

    def endings(self, task: ImageTask) -> dict[str, str]:
        """Return the ending of each view's file, {name: ending}; "" if it is the layout's."""
        template, usual = self.column(task), self.view("VIEW").path(task).suffix
        folder, _, file = template.rpartition("/")
        found: Iterable[dict[str, str]] = _matches(self.data_dir, template)
        if self.indexable([task]):  # all files are in one folder, which takes less time to list
            there = not folder or any(True for _ in _matches(self.data_dir, folder, folders=True))
            found = (names for _, names in _children(self.data_dir / folder, file)) if there else ()
        endings: dict[str, str] = {}
        for names in found:
            name, ending = names["view"], names.get("ending", usual)
            # the layout's own goes before a JPEG of the same view
            endings[name] = "" if ending == usual else min(ending, endings.get(name, ending))
        return endings

    @property
    def key(self) -> Key:
        """What the place is called in the index of its data folder."""
        return self.layout, self.part, self.building

    def column(self, task: ImageTask) -> str:
        """Return what a domain's files are called in listings: the layout's path of them.

        The views' names in it are a mark.
        """
        if self.layout in (LISTED, PACKED, SHARDED):
            return task.name
        return _template(self.layout, task, self.building, MARKS["view"], self.part)

    def indexable(self, tasks: Sequence[ImageTask]) -> bool:
        """Whether a folder's times tell if its views have changed: if no folder is a view."""
        if self.layout in (LISTED, PACKED, SHARDED):
            return False
        paths = (self.column(task).rpartition("/") for task in tasks)
        return all(
            MARKS["view"] in name and MARKS["view"] not in folder for folder, _, name in paths
        )

    def listing(self, tasks: Sequence[ImageTask]) -> Listing:
        """Return the views that have files of any of these tasks."""
        if self.layout not in (LISTED, PACKED, SHARDED):
            return Listing.of({self.column(task): self.endings(task) for task in tasks})
        files = {self.column(task): self.view_files(task) for task in tasks}
        listing = Listing.of({column: dict.fromkeys(found, "") for column, found in files.items()})
        listing.paths = files if self.layout == LISTED else {}
        return listing


class Block:
    """Some views of a place, each made when it is asked for.

    `rows` are their rows in the place's listing, ascending. The views are read for `tasks`.
    """

    def __init__(
        self,
        place: Place,
        listing: Listing,
        rows: range | np.ndarray,
        tasks: Sequence[ImageTask],
    ) -> None:
        self.place, self._listing, self._rows, self._tasks = place, listing, rows, tasks
        self._columns = {task: place.column(task) for task in tasks}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> View:
        return self._view(int(self._rows[number]))

    def _view(self, row: int) -> View:
        name = self._listing.name(row)
        view = self.place.view(name)
        found = {}
        for task, column in self._columns.items():
            if paths := self._listing.paths:
                found[task] = {name: paths[column].get(name, "")}
            elif ending := self._listing.ending(column, row):
                found[task] = {name: str(view.path(task).with_suffix(ending))}
        return self.place.view(name, found) if found else view

    def __contains__(self, view: object) -> bool:
        if not isinstance(view, View) or view[:1] + view[3:5] + view[1:2] != self.place:
            return False
        row = self._listing.row(view.name)
        return row is not None and row in self._rows and self._view(row) == view

    def part(self, start: int, stop: int) -> "Block":
        """Return the views from number `start` to before `stop`."""
        return Block(self.place, self._listing, self._rows[start:stop], self._tasks)

    def keys(self) -> list[tuple[str, str, str]]:
        """Return (part, building, name) of each view."""
        names = self._listing.all_names()
        return [(self.place.part, self.place.building, names[row]) for row in self._rows]


def check_data_dirs(data_dirs: Sequence[str | Path]) -> None:
    """Raise UserError if a data folder or list does not exist, or is named twice."""
    seen: dict[Path, str | Path] = {}
    for folder in data_dirs:
        if is_shards(folder):
            find_shards(folder)
        elif not str(folder) or not (Path(folder).is_dir() or find_list(folder)):
            raise UserError(f"no data folder {str(folder) or repr('')} (or list of views)")
        place = Path(folder).resolve()
        if place in seen:
            spelling = "" if str(seen[place]) == str(folder) else f", once as {seen[place]}"
            raise UserError(f"`data_dirs` names the same data twice: {folder}{spelling}")
        seen[place] = folder


def find_places(data_dir: str | Path) -> list[Place]:
    """Return the buildings in a data folder of any layout or a list, sorted by part and name.

    Raises UserError if the folder does not exist, or if the list cannot be used.
    """
    shards, data_dir = find_shards(data_dir), Path(data_dir)
    if shards:
        return [Place(data_dir, SHARDED, *key) for key in shards.places()]
    if listed := find_list(data_dir):
        return [Place(data_dir, LISTED, *key) for key in listed.places()]
    if not data_dir.is_dir():
        raise UserError(f"no data folder {data_dir} (or list of views)")
    if pack := find_pack(data_dir):
        return [Place(data_dir, PACKED, *key) for key in pack.places()]
    layout = find_layout(data_dir)
    if layout is None:
        return []
    default = data_dir.resolve().name  # name of the building if the layout has no building folders
    keys = {
        (names.get("part", ""), names.get("building", default))
        for task in TASKS.values()
        for names in _matches(data_dir, _template(layout, task).rpartition("/")[0], folders=True)
    }
    return [Place(data_dir, layout, part, building) for part, building in sorted(keys)]


def find_layout(data_dir: str | Path) -> str | None:
    """Return the first layout for which the folder contains a file, or else its folders."""
    index, table = index_of(data_dir), _digest_of_layouts()
    known = index.layout(table)
    if known is not None and _has_file(data_dir, known):
        return known
    looked_in: LookedIn = {}
    for layout in LAYOUTS:
        before = dict(looked_in)
        if _has_file(data_dir, layout, looked_in):
            if sum(count for _, count in before.values()) >= SMALL:
                times = {
                    str(Path(folder).relative_to(data_dir)): at
                    for folder, (at, _) in before.items()
                }
                index.remember_layout(Search(table, layout, times))
            return layout
    for layout in LAYOUTS:
        for task in TASKS.values():
            folder = _template(layout, task).rpartition("/")[0]
            if next(_matches(Path(data_dir), folder, folders=True), None) is not None:
                return layout
    return None


def _has_file(data_dir: str | Path, layout: str, looked_in: "LookedIn | None" = None) -> bool:
    """Whether the folder contains a file of that layout.

    Adds the folders that it lists to `looked_in`.
    """
    templates = dict.fromkeys(_template(layout, task) for task in TASKS.values())
    return any(
        next(_matches(Path(data_dir), template, looked_in=looked_in), None) is not None
        for template in templates
    )


def _digest_of_layouts() -> str:
    """Return a digest of the paths of all domains in all layouts."""
    paths = [[name, *(_template(name, task) for task in TASKS.values())] for name in LAYOUTS]
    return hashlib.sha256(repr(paths).encode()).hexdigest()


def _template(layout: str, task: ImageTask, *names: str) -> str:
    """Return the layout's path for (building, view, part), by default marks for all three.

    The ending of rgb files is a mark as well.
    """
    path = LAYOUTS[layout](task, *(names or MARKS.values()))
    stem, dot, ending = path.rpartition(".")
    is_rgb = task.folder == "rgb" and re.fullmatch(RGB_ENDINGS, dot + ending)
    return stem + ENDING if is_rgb else path


# Folders in which a layout's files were looked for: {path: (times, number of entries)}.
LookedIn = dict[str, tuple[Times, int]]


def _matches(
    folder: Path, template: str, folders: bool = False, looked_in: LookedIn | None = None
) -> Iterator[dict[str, str]]:
    """Yield the names that stand for the marks, for each path below `folder` that matches.

    Adds the folders that it lists to `looked_in`.
    """
    head, _, rest = template.partition("/")
    for child, names in _children(folder, head, folders or bool(rest), looked_in):
        if not rest:
            yield names
            continue
        below = rest
        for name in names.keys() & MARKS.keys():
            below = below.replace(MARKS[name], names[name])
        for names_below in _matches(folder / child, below, folders, looked_in):
            yield names | names_below


def _children(
    folder: Path, head: str, folders: bool = False, looked_in: LookedIn | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the entries of a folder that match the pattern `head`, except hidden ones."""
    pattern = r"(?!\.)" + re.escape(head)
    for name, mark in MARKS.items():
        pattern = pattern.replace(mark, f"(?P<{name}>.+)", 1).replace(mark, f"(?P={name})")
    regex = re.compile(pattern.replace(ENDING, f"(?P<ending>{RGB_ENDINGS})"), re.DOTALL)
    times, count = settled(folder_times(folder)) if looked_in is not None else None, 0
    try:
        if not regex.groups:
            path = folder / head
            if regex.fullmatch(head) and (path.is_dir() if folders else path.is_file()):
                yield head, {}
        elif folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    count += 1
                    if (match := regex.fullmatch(entry.name)) and entry.is_dir():
                        yield entry.name, match.groupdict()
        else:
            for name in os.listdir(folder):  # without is_file(): there may be millions
                count += 1
                if match := regex.fullmatch(name):
                    yield name, match.groupdict()
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    finally:
        if looked_in is not None:
            first, before = looked_in.get(str(folder), (times, 0))
            looked_in[str(folder)] = first, before + count


# ---- listing views ------------------------------------------------------------------


def find_buildings(data_dirs: Sequence[str | Path]) -> list[str]:
    """Return the names of the buildings that have a folder for any domain, sorted."""
    return sorted({place.building for folder in data_dirs for place in find_places(folder)})


def find_views(
    tasks: Sequence[ImageTask],
    data_dirs: Sequence[str | Path],
    buildings: Sequence[str],
    allow_missing: bool = False,
) -> Sequence[View]:
    """Return the views of `buildings` that have files for all `tasks`, sorted.

    Logs which files are missing. Raises UserError if no view is complete or, unless
    `allow_missing`, if more than a tenth of the views lack a domain.
    """
    return find_views_and_tasks(tasks, (), data_dirs, buildings, allow_missing)[0]


def find_views_and_tasks(
    needed: Sequence[ImageTask],
    wanted: Sequence[ImageTask],
    data_dirs: Sequence[str | Path],
    buildings: Sequence[str],
    allow_missing: bool = False,
) -> tuple[Sequence[View], tuple[ImageTask, ...]]:
    """Like `find_views`, for the `needed` tasks and those `wanted` tasks that are available.

    A wanted task is available if at most a tenth of the views lack it. Returns the views and
    their tasks, in the order of `TASKS`. Few views are a list, and many are `Views`.
    """
    listings = _listings(_places_of(data_dirs, buildings), needed, wanted)
    available = [task for task in wanted if _share_lacking(task, needed, listings) <= TOLERATED]
    tasks = (*needed, *available)
    blocks, seen, missing = [], 0, Counter[tuple[ImageTask, Place]]()
    for place, listing in listings.items():
        have = [listing.has(place.column(task)) for task in tasks]
        union = np.logical_or.reduce(have)
        count = int(union.sum())
        seen += count
        for task, has in zip(tasks, have, strict=True):
            if incomplete := count - int(has.sum()):
                missing[task, place] += incomplete
        rows = np.flatnonzero(np.logical_and.reduce(have)).astype(np.uint32)
        whole = len(rows) == len(listing)
        blocks.append(Block(place, listing, range(len(rows)) if whole else rows, tasks))
    views = Views(blocks)
    folders = ", ".join(map(str, data_dirs))
    if not seen:
        raise no_views(data_dirs, tasks)
    incomplete = seen - len(views)
    if incomplete:
        most = missing.most_common(4)
        kinds = ", ".join(f"{task} in {place.building}: {count}" for (task, place), count in most)
        kinds += f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        task, place = most[0][0]
        hint = what_lies_there([place.data_dir], [task])
        if hint and (not views or "did you mean" in hint or place.layout == LISTED):
            kinds += f"; {hint}"
        text = f"{incomplete} of {seen} views under {folders} lack a domain ({kinds})"
        if not views or (incomplete > TOLERATED * seen and not allow_missing):
            hint = f"; `allow_missing` goes on with the other {len(views)}" if views else ""
            raise UserError(text + hint)
        log.warning("%s; going on with the other %s", text, len(views))
    order = {name: number for number, name in enumerate(TASKS)}
    in_order = tuple(sorted(tasks, key=lambda task: order.get(task.name, len(order))))
    return views if len(views) * len(tasks) >= SMALL else list(views), in_order


def _listings(
    places: Sequence[Place], needed: Sequence[ImageTask], wanted: Sequence[ImageTask]
) -> dict[Place, Listing]:
    """Return the listing of each place, from the index of its data folder if it has one."""
    tasks_of = {
        place: [t for t in dict.fromkeys((*needed, *wanted)) if t in needed or place.has(t)]
        for place in places
    }
    indexed = defaultdict[Path, dict[Key, Place]](dict)
    for place, tasks in tasks_of.items():
        if place.indexable(tasks):
            indexed[place.data_dir][place.key] = place
    found: dict[Place, Listing] = {}
    for data_dir, keys in indexed.items():
        found |= _from_index(data_dir, keys, tasks_of)
    return {
        place: found[place] if place in found else place.listing(tasks)
        for place, tasks in tasks_of.items()
    }


def _from_index(
    data_dir: Path, keys: Mapping[Key, Place], tasks_of: Mapping[Place, Sequence[ImageTask]]
) -> dict[Place, Listing]:
    """Return the listings of places in one data folder, from its index."""
    tasks = {key: {p.column(task): task for task in tasks_of[p]} for key, p in keys.items()}
    listings = index_of(data_dir).updated(
        {key: list(columns) for key, columns in tasks.items()},
        lambda key, column: keys[key].endings(tasks[key][column]),
    )
    return {keys[key]: listing for key, listing in listings.items()}


def no_views(data_dirs: Sequence[str | Path], tasks: Sequence[ImageTask] = ()) -> UserError:
    """Return the error for data folders in which nothing is found, with what lies there.

    `tasks` are the domains that are needed; by default those that most programs read.
    """
    folders = ", ".join(map(str, data_dirs))
    text = f"no views under {folders} in a layout known here (docs/data.md; lists are read too)"
    hint = what_lies_there(data_dirs, tasks or [TASKS["rgb"], TASKS["normal"]])
    return UserError(f"{text}: {hint}" if hint else text)


def what_lies_there(data_dirs: Sequence[str | Path], tasks: Sequence[ImageTask]) -> str:
    """Return "found …, expected …; did you mean …?" for domains without files in a data folder.

    For a list of views it is the line without a file. It is "" for packs. The first data
    folder with a near miss is described, or else the first of all.
    """
    texts = [text for folder in data_dirs for text in hints_of(folder, tasks).values() if text]
    return next((text for text in texts if "did you mean" in text), next(iter(texts), ""))


def hints_of(data_dir: str | Path, tasks: Sequence[ImageTask]) -> dict[ImageTask, str]:
    """Return the sentence of `what_lies_there` for each domain that the folder lacks."""
    if listed := find_list(data_dir):
        return {task: listed.why_missing(task) for task in tasks}
    if not tasks or find_pack(data_dir) or is_shards(data_dir):
        return dict.fromkeys(tasks, "")
    layout = find_layout(data_dir)
    first = {layout: LAYOUTS[layout]} if layout else {}
    return what_is_there(Path(data_dir), tasks, first | LAYOUTS)


def _share_lacking(
    task: ImageTask, needed: Sequence[ImageTask], listings: Mapping[Place, Listing]
) -> float:
    """Return the share of views that lack this task, among those with all needed tasks."""
    total = missing = 0
    for place, listing in listings.items():
        common = np.logical_and.reduce([listing.has(place.column(other)) for other in needed])
        total += int(common.sum())
        missing += int((common & ~listing.has(place.column(task))).sum())
    return missing / total if total else 0.0


def _places_of(data_dirs: Sequence[str | Path], buildings: Sequence[str]) -> list[Place]:
    """Return the places of the buildings, by folder and then in the order of `buildings`."""
    order = {building: number for number, building in enumerate(buildings)}
    return [
        place
        for folder in data_dirs
        for place in sorted(
            (place for place in find_places(folder) if place.building in order),
            key=lambda place: order[place.building],
        )
    ]

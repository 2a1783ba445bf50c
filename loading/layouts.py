"""Which views a data folder has, and where their files lie.

`LAYOUTS` is the table of the folders' layouts. A data folder's layout is found by looking;
its views by intersection over the tasks, once, at start.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from loading.packs import PACKED, find_pack
from task_configs import TASKS, ImageTask
from utils import UserError, log

TOLERATED = 0.1  # share of the views that may lack a domain

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

    def has(self, task: ImageTask) -> bool:
        """Whether `view_names` can be asked for that domain: a pack may lack it."""
        pack = find_pack(self.data_dir)
        return pack is None or pack.has(task)

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
        return [Place(data_dir, PACKED, *where) for where in pack.places()]
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

    Logs what is missing where. Raises UserError where no view is complete, and,
    unless `allow_missing`, where more than a tenth of the views lack a domain.
    """
    return find_views_and_tasks(tasks, (), data_dirs, buildings, allow_missing)[0]


def find_views_and_tasks(
    needed: Sequence[ImageTask],
    wanted: Sequence[ImageTask],
    data_dirs: Sequence[str | Path],
    buildings: Sequence[str],
    allow_missing: bool = False,
) -> tuple[list[View], tuple[ImageTask, ...]]:
    """`find_views` of the needed tasks, and of those wanted ones that are there.

    A wanted task counts as there where no more than a tenth of the views lack it. Beside
    the views: their tasks, in the order of the table of tasks.
    """
    names = {
        place: {
            task: place.view_names(task) for task in (*needed, *wanted)
            if task in needed or place.has(task)
        }
        for place in _places_of(data_dirs, buildings)
    }  # fmt: skip
    there = [task for task in wanted if _share_lacking(task, needed, names) <= TOLERATED]
    tasks = (*needed, *there)
    views, seen, missing = [], 0, Counter[str]()
    for place, found in names.items():
        union = set().union(*(found[task] for task in tasks if task in found))
        common = union.intersection(*(found.get(task, set()) for task in tasks))
        seen += len(union)
        for task in tasks:
            if lacking := len(union - found.get(task, set())):
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
        if not views or (lacking > TOLERATED * seen and not allow_missing):
            hint = f"; `allow_missing` goes on with the other {len(views)}" if views else ""
            raise UserError(text + hint)
        log.warning("%s; going on with the other %s", text, len(views))
    order = {name: number for number, name in enumerate(TASKS)}
    return views, tuple(sorted(tasks, key=lambda task: order.get(task.name, len(order))))


def _share_lacking(
    task: ImageTask,
    needed: Sequence[ImageTask],
    names: Mapping[Place, Mapping[ImageTask, set[str]]],
) -> float:
    """The share of the views with all needed domains that lack this one."""
    total = lacking = 0
    for found in names.values():
        common = set.intersection(*(found[other] for other in needed))
        total += len(common)
        lacking += len(common - found.get(task, set()))
    return lacking / total if total else 0.0


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

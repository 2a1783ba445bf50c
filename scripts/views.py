"""Which views a data folder has, and where their files lie.

`LAYOUTS` is the table of the folders' layouts. A data folder's layout is found by looking;
its views by intersection over the tasks, once, at start.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.packed import PACKED, find_pack
from task_configs import TASKS, ImageTask
from utils import ROOT, UserError

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

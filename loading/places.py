"""Views, and places. A place is a building in a data folder, and has views."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loading.layout_table import LAYOUTS, MARKS, children, matches, pattern_of
from loading.listings import Key, Listing
from loading.packs import PACKED, find_pack
from loading.shards import SHARDED, find_shards
from loading.view_lists import LISTED, find_list
from task_configs import ImageTask
from utils import UserError


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
        found: Iterable[dict[str, str]] = matches(self.data_dir, template)
        if self.indexable([task]):  # all files are in one folder, which takes less time to list
            there = not folder or any(True for _ in matches(self.data_dir, folder, folders=True))
            found = (names for _, names in children(self.data_dir / folder, file)) if there else ()
        endings: dict[str, str] = {}
        for names in found:
            name, ending = names["view"], names.get("ending", usual)
            # the layout's own file is preferred to a JPEG of the same view
            endings[name] = "" if ending == usual else min(ending, endings.get(name, ending))
        return endings

    @property
    def key(self) -> Key:
        """The name of the place in the index of its data folder."""
        return self.layout, self.part, self.building

    def column(self, task: ImageTask) -> str:
        """Return the name of a domain's column in listings: the path of its files in the layout.

        A mark takes the place of the view's name. In lists, packs and shards, it is the domain's
        name instead.
        """
        if self.layout in (LISTED, PACKED, SHARDED):
            return task.name
        return pattern_of(self.layout, task, self.building, MARKS["view"], self.part)

    def indexable(self, tasks: Sequence[ImageTask]) -> bool:
        """Whether a folder's times show if its views have changed: if no view is a folder."""
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
    """Some views of a place, each of which is created on access.

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

    def keys(self) -> str:
        """Return (part, building, name) of each view, as text."""
        names = self._listing.all_names()
        head = f"({self.place.part!r}, {self.place.building!r}, "
        return "".join([f"{head}{names[row]!r})" for row in self._rows])

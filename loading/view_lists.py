"""Lists of views: tables that name the files of each view, for data without a known layout."""

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from task_configs import TASKS, ImageTask
from utils import UserError, log, nearest, reason_of

LISTED = "list of views"  # name of the layout of views in lists
EXTRA = "building", "view", "split"  # columns that are not domains
SPLITS = "train", "val", "test"
DELIMITERS = "\t", ";", ","  # the first that occurs in the header separates the columns


class ViewList:
    """A list file: a header of domains, then a line for each view with the paths of its files.

    Paths are relative to the list file. The columns `building`, `view` and `split` (train, val
    or test) may be left out. The building is then the split or, without splits, the name of
    the list file; a view's name is its first path without the ending. An empty cell means that
    the view lacks that domain. Blank lines and lines that start with # are ignored.

    Raises UserError, which names the file and the line, if the list cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] = []
        # {(split, building): {view: (line, {folder of the domain: path})}}
        self._views: dict[tuple[str, str], dict[str, tuple[int, dict[str, str]]]]
        self._views = defaultdict(dict)
        for line, cells in self._lines():
            if self._columns:
                self._add(line, cells)
            else:
                self._columns = self._header(line, cells)
        if not self._views:
            raise UserError(
                f"{path} lists no views: it needs a header of domains, then a line for each view"
            )
        self._keep_splits_apart()

    def _error(self, line: int, text: str) -> UserError:
        return UserError(f"{self.path}, line {line}: {text}")

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the number and the cells of each line that is not blank or a comment."""
        try:
            text = self.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            reason = "it is not a text file" if isinstance(error, UnicodeError) else None
            raise UserError(
                f"cannot read the list of views {self.path}: {reason or reason_of(error)}"
            ) from None
        lines = text.splitlines()
        first = next((x for x in lines if x.strip() and not x.lstrip().startswith("#")), "")
        delimiter = next((d for d in DELIMITERS if d in first), ",")
        for number, content in enumerate(lines, 1):
            if not content.strip(f" {delimiter}") or content.lstrip().startswith("#"):
                continue
            try:
                (cells,) = csv.reader([content], delimiter=delimiter, strict=True)
            except (csv.Error, ValueError) as error:
                raise self._error(number, f"it is not a line of a table: {error}") from None
            if "\0" in content:
                raise self._error(number, "it is not text")
            yield number, [cell.strip() for cell in cells]

    def _header(self, line: int, cells: Sequence[str]) -> list[str]:
        known = [*domain_columns(), *EXTRA]
        for number, cell in enumerate(cells):
            if cell not in known:
                raise self._error(
                    line, f"{cell[:80]!r} is not a column{nearest(cell, known)} (the first line "
                    f"names the columns: {', '.join(known)})",
                )  # fmt: skip
            if cell in cells[:number]:
                raise self._error(line, f"the column {cell} is there twice")
        if set(cells) <= set(EXTRA):
            raise self._error(line, "there is no column with a domain's files, such as rgb")
        return list(cells)

    def _add(self, line: int, cells: Sequence[str]) -> None:
        """Add the view of a line."""
        if len(cells) != len(self._columns):
            raise self._error(
                line, f"{len(cells)} columns, where the header has {len(self._columns)}"
            )
        values = dict(zip(self._columns, cells, strict=True))
        for column in set(EXTRA) & set(values):
            if not values[column]:
                raise self._error(line, f"the column {column} is empty")
        split = values.get("split", "")
        if split and split not in SPLITS:
            raise self._error(
                line, f"the split is train, val or test, not {split!r}{nearest(split, SPLITS)}"
            )
        files = {TASKS[n].folder: values[n] for n in self._columns if n not in EXTRA and values[n]}
        if not files:
            raise self._error(line, "it names no file")
        building = values.get("building") or split or self.path.stem
        name = values.get("view") or Path(next(iter(files.values()))).with_suffix("").as_posix()
        views = self._views[split, building]
        if name in views:
            raise self._error(
                line, f"the view {name} of {building} is in line {views[name][0]} already"
            )
        folder = self.path.parent
        views[name] = line, {domain: str(folder / file) for domain, file in files.items()}

    def _keep_splits_apart(self) -> None:
        """Name a building after its split as well if it is in several splits."""
        splits = defaultdict(list)
        for split, building in self._views:
            splits[building].append(split)
        shared = {building for building, names in splits.items() if len(names) > 1}
        if shared:
            log.warning(
                "%s: some buildings are in more than one split, so views of one room may be in "
                "training and validation: %s", self.path, ", ".join(sorted(shared)),
            )  # fmt: skip
        for split, building in [key for key in self._views if key[1] in shared]:
            self._views[split, f"{building} ({split})"] = self._views.pop((split, building))

    @property
    def domains(self) -> list[str]:
        """The columns that are domains."""
        return [column for column in self._columns if column not in EXTRA]

    def places(self) -> list[tuple[str, str]]:
        """Return the buildings as (split, building), sorted."""
        return sorted(self._views)

    def view_files(self, task: ImageTask, building: str, split: str) -> dict[str, str]:
        """Return the files of a domain that exist, by view: {name: path}."""
        found = self._views[split, building].items()
        paths = {name: files.get(task.folder, "") for name, (_, files) in found}
        return {name: path for name, path in paths.items() if path and os.path.isfile(path)}

    def why_missing(self, task: ImageTask) -> str:
        """Return why views lack a domain: no such column, or the first line without a file."""
        columns = self.domains
        if all(TASKS[column].folder != task.folder for column in columns):
            return f"{self.path} has no column {task.folder} (it has: {', '.join(columns)})"
        for line, files in sorted(v for views in self._views.values() for v in views.values()):
            path = files.get(task.folder)
            if path is None:
                return f"{self.path}, line {line}: no file of {task.folder} is named"
            if not os.path.isfile(path):
                return f"{self.path}, line {line}: there is no file {path}"
        return ""


def domain_columns() -> list[str]:
    """Return the domains that have files of their own, and so may be columns of a list."""
    return [
        task.name for task in TASKS.values()
        if task.name != "imagenet" and (task.folder == task.name or task.folder not in TASKS)
    ]  # fmt: skip


def find_list(path: str | Path) -> ViewList | None:
    """Return the list of views in a file, or None if `path` is not a file.

    Raises UserError if the file is not a list of views.
    """
    path = Path(path)
    if not path.is_file():
        return None
    stat = path.stat()
    return _opened(path, stat.st_mtime_ns, stat.st_size, tuple(domain_columns()))


@lru_cache(maxsize=16)
def _opened(path: Path, changed: int, size: int, domains: tuple[str, ...]) -> ViewList:
    return ViewList(path)

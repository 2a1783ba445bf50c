"""Finding the views of a data folder, and their files.

The layout of a data folder is detected from its files. Its views are those that have files for all
tasks. They are listed once, at start; for large folders, `loading.view_index` keeps what was
listed.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from loading.index_files import Search
from loading.layout_table import LAYOUTS, LookedIn, add_layouts, matches, pattern_of
from loading.listings import Key, Listing
from loading.near_misses import what_is_there
from loading.packs import PACKED, find_pack
from loading.places import Block, Place, View
from loading.shards import SHARDED, find_shards, is_shards
from loading.view_index import SMALL, index_of
from loading.view_lists import LISTED, find_list
from loading.view_sequence import Views
from task_configs import TASKS, ImageTask
from utils import UserError, log

__all__ = [
    "LAYOUTS", "Place", "View", "add_layouts", "check_data_dirs", "find_buildings", "find_layout",
    "find_places", "find_views", "find_views_and_tasks", "hints_of", "no_views", "what_lies_there",
]  # fmt: skip

TOLERATED = 0.1  # maximum share of views that may lack a domain


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
        for names in matches(data_dir, pattern_of(layout, task).rpartition("/")[0], folders=True)
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
            folder = pattern_of(layout, task).rpartition("/")[0]
            if next(matches(Path(data_dir), folder, folders=True), None) is not None:
                return layout
    return None


def _has_file(data_dir: str | Path, layout: str, looked_in: "LookedIn | None" = None) -> bool:
    """Whether the folder contains a file of that layout.

    Adds the folders that it lists to `looked_in`.
    """
    templates = dict.fromkeys(pattern_of(layout, task) for task in TASKS.values())
    return any(
        next(matches(Path(data_dir), template, looked_in=looked_in), None) is not None
        for template in templates
    )


def _digest_of_layouts() -> str:
    """Return a digest of the paths of all domains in all layouts."""
    paths = [[name, *(pattern_of(name, task) for task in TASKS.values())] for name in LAYOUTS]
    return hashlib.sha256(repr(paths).encode()).hexdigest()


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

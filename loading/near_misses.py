"""Data folders that are almost in a layout: what lies there, and what was probably meant."""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from task_configs import TASKS, ImageTask

# Other names of the domains that occur in data sets.
ALIASES = {
    "rgb": ("image", "images", "img", "color", "colour", "rgbs", "photo", "photos"),
    "normal": ("normals", "surface_normal", "surface_normals", "norm"),
    "principal_curvature": ("curvature", "curvatures", "principal_curvatures"),
    "depth_zbuffer": ("depth", "depths", "zdepth", "zbuffer", "depth_z", "z_depth"),
    "reshading": ("shading", "reshade", "shade"),
    "edge_occlusion": ("occlusion", "occlusion_edges", "edges_occlusion", "edge_occlusions"),
    "keypoints3d": ("keypoint3d", "keypoints_3d"),
    "keypoints2d": ("keypoint2d", "keypoints_2d"),
    "segment_semantic": ("semantic", "semantics", "segmentation", "segmentsemantic"),
}
# Taskonomy's other domains: similar names, but other values.
OTHERS = {
    "depth_euclidean", "edge_texture", "segment_unsup2d", "segment_unsup25d", "mask_valid",
    "class_object", "class_scene", "point_info", "nonfixated_matches", "fragments", "points",
}  # fmt: skip
IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".exr", ".npy", ".ppm"}
RGB_ENDINGS = r"\.(?i:png|jpe?g)"  # rgb may be compressed with losses; labels may not
# How much of a data folder is looked at: the most entries and files of each folder, entries of all
# folders together, example files, and levels of folders.
ENTRIES, FILES, ALL, FOLDERS, DEPTH = 5000, 500, 200_000, 2000, 6

Layout = Callable[[ImageTask, str, str, str], str]
# Private-use characters that stand for names in a layout's path: see `layout_table.MARKS`.
BUILDING, VIEW, PART, DOMAIN, TAG = "\ue000", "\ue001", "\ue002", "\ue004", "\ue005"


def what_is_there(
    folder: Path, tasks: Sequence[ImageTask], layouts: Mapping[str, Layout]
) -> dict[ImageTask, str]:
    """Return "found …, expected …; did you mean …?" for each task whose files a folder lacks.

    `layouts` are tried in their order. Without a near miss, the sentence names one file that
    is there and ends before "did you mean".
    """
    examples = list(islice(_examples(folder), FOLDERS))
    found = min(examples, key=lambda e: Path(e).suffix.lower() not in IMAGES, default="no files")
    first = next(iter(layouts.values()))
    sentences = {}
    for task in tasks:
        near = (
            look(folder, examples, task, layout)
            for look in (_wrong_name, _wrong_folder, _missing_level)
            for layout in layouts.values()
        )
        expected = first(task, "BUILDING", "VIEW", "train")
        sentences[task] = next(filter(None, near), f"found {found}, expected {expected}")
    return sentences


def _examples(folder: Path) -> Iterator[str]:
    """Yield a file of each kind in each folder below, relative to `folder`, sorted.

    A large data folder is not read as a whole: that would take as long as listing its views.
    """
    left = ALL
    waiting = [Path()]
    while waiting and left > 0:
        relative = waiting.pop()
        names, files = _some_entries(folder / relative)
        left -= len(names) + len(files)
        if len(relative.parts) < DEPTH:
            waiting += [relative / name for name in sorted(names, reverse=True)]
        images = [file for file in files if Path(file).suffix.lower() in IMAGES]
        # one of each kind, because files of several domains may lie in one folder
        kinds = {_kind(file): file for file in sorted(images or files[:1], reverse=True)}
        for file in sorted(kinds.values()):
            yield (relative / file).as_posix()


def _some_entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return names of folders and, sorted, of files in a folder, without hidden ones."""
    names: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, ENTRIES):
                if entry.name[0] != ".":
                    (names if entry.is_dir() else files).append(entry.name)
                if len(files) == FILES:
                    break
    except OSError:  # a folder that may not be read
        pass
    return names, sorted(files)


def _kind(file: str) -> str:
    return file.rpartition("_domain_")[2] if "_domain_" in file else Path(file).suffix


# ---- kinds of near misses: each returns the sentence, or "" ---------------------------


def _wrong_name(folder: Path, examples: Sequence[str], task: ImageTask, layout: Layout) -> str:
    """A domain with another name ("depth"), or files with another ending."""
    words = _spellings(task, examples)
    regex = _regex(_template(task, layout), words, r"\.\w+")
    for found in examples:
        match = regex.fullmatch(found)
        if not match:
            continue
        expected = _filled(layout, task, match)
        pairs = [(match[name], task.tag if name[0] == "t" else task.folder)
                 for name in sorted(regex.groupindex) if re.match(r"[dt]\d", name)]  # fmt: skip
        wrong = next((pair for pair in pairs if pair[0] != pair[1]), None)
        if wrong is None:
            if re.fullmatch(_ending(task), match["ending"]):
                continue  # the file is as it should be
            wrong = match["ending"], ".png"
        return _sentence(found, expected, f"'{wrong[1]}' instead of '{wrong[0]}'")
    return ""


def _wrong_folder(folder: Path, examples: Sequence[str], task: ImageTask, layout: Layout) -> str:
    """A data folder that is a level or two above, or below, the one that was named."""
    regex = _regex(_template(task, layout), [task.folder, task.tag], _ending(task))
    expected = layout(task, "BUILDING", "VIEW", "train")
    for found in examples:
        parts = found.split("/")
        for levels in (1, 2):
            if regex.fullmatch("/".join(parts[levels:])):
                there = folder.joinpath(*parts[:levels])
                return _sentence(found, expected, f"the folder {there}")
    above = folder.resolve()
    for levels in (1, 2):
        place = above.parents[levels - 1] if len(above.parts) > levels + 1 else None
        if place is None:
            break
        prefix = above.relative_to(place).as_posix()
        for other in TASKS.values():
            regex = _regex(_template(other, layout), [other.folder, other.tag], _ending(other))
            for found in examples[:1]:
                match = regex.fullmatch(f"{prefix}/{found}")
                if match and _has_other(place, layout, match, task, other):
                    return _sentence(found, expected, f"the folder {place}")
    return ""


def _has_other(
    place: Path, layout: Layout, match: re.Match, task: ImageTask, other: ImageTask
) -> bool:
    """Whether `place` has a folder of `task`, or of any further domain, for that building."""
    tasks = [task] if task.folder != other.folder else list(TASKS.values())
    files = [place / _filled(layout, t, match) for t in tasks if t.folder != other.folder]
    return any(file.parent.is_dir() for file in files)


def _missing_level(folder: Path, examples: Sequence[str], task: ImageTask, layout: Layout) -> str:
    """Files that lie one folder higher than the layout has them."""
    parts = _template(task, layout).split("/")
    for number, missing in enumerate(parts[:-1]):
        rest = "/".join(parts[:number] + parts[number + 1 :])
        if DOMAIN not in rest and TAG not in rest:
            continue  # it would match any file
        regex = _regex(rest, [task.folder, task.tag], _ending(task))
        for found in examples:
            if match := regex.fullmatch(found):
                expected = _filled(layout, task, match)
                name = expected.split("/")[number]
                more = ", named after the building" if missing == BUILDING else ""
                return _sentence(found, expected, f"to put it into a folder '{name}'{more}")
    return ""


# ---- helpers --------------------------------------------------------------------------


def _sentence(found: str, expected: str, meant: str) -> str:
    return f"found {found}, expected {expected}; did you mean {meant}?"


def _ending(task: ImageTask) -> str:
    return RGB_ENDINGS if task.folder == "rgb" else r"\.png"


def _spellings(task: ImageTask, examples: Sequence[str]) -> list[str]:
    """Return the names by which files of the task may be called: right, usual, misspelt."""
    known = {n for t in TASKS.values() for n in (t.name, t.folder, t.tag)}
    known |= OTHERS | {alias for names in ALIASES.values() for alias in names}
    own = {task.folder, task.tag, *ALIASES.get(task.name, ())}
    pieces = {piece for file in examples for piece in re.split(r"/|_domain_|\.\w+$", file)}
    close = {
        piece for piece in pieces - known
        if difflib.get_close_matches(piece.lower(), sorted(known), n=1, cutoff=0.8)[:1]
        in ([task.folder], [task.tag])
    }  # fmt: skip
    return sorted(own | close, key=lambda name: (-len(name), name))


def _template(task: ImageTask, layout: Layout) -> str:
    """Return the layout's path with marks for all names."""
    return layout(replace(task, name=DOMAIN, folder=DOMAIN, tag=TAG), BUILDING, VIEW, PART)


def _regex(template: str, words: Sequence[str], ending: str) -> re.Pattern:
    """Compile a template. Groups: building, view, part, ending; d0, t1, … for the domain."""
    stem, _, _ = template.rpartition(".")
    pattern, seen = "", set()
    names = {BUILDING: "building", VIEW: "view", PART: "part"}
    domain = "|".join(map(re.escape, words))
    for number, character in enumerate(stem):
        if character in (DOMAIN, TAG):
            letter = "d" if character == DOMAIN else "t"
            pattern += f"(?P<{letter}{number}>(?i:{domain}))"
        elif name := names.get(character):
            pattern += f"(?P={name})" if name in seen else f"(?P<{name}>[^/]+?)"
            seen.add(name)
        else:
            pattern += re.escape(character)
    return re.compile(f"{pattern}(?P<ending>{ending})", re.DOTALL)


def _filled(layout: Layout, task: ImageTask, match: re.Match) -> str:
    """Return the layout's path with the names that matched, and capitals for the others."""
    names = {"building": "BUILDING", "view": "VIEW", "part": "train"} | match.groupdict()
    return layout(task, names["building"], names["view"], names["part"])

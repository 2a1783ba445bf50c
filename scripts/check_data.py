"""Look through a data folder: what is missing, broken or oddly encoded, by building and domain.

python -m scripts.check_data /data/taskonomy --max-views 50
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from scripts.views import Place, View, find_places
from task_configs import FORMATS, READ_ERRORS, TASKS, ImageTask, check_size, get_task
from utils import UserError, command_line

DEEP = "depth_zbuffer", "edge_occlusion", "keypoints2d", "keypoints3d"  # 16-bit grey
HOLE = 65535  # of depth; 0 is not a depth
LENGTH_TOLERANCE = 0.1  # of a normal, from 1
ODD_SHARE = 0.1  # of the pixels: below, it is the edges of things
AXES_AGREE = 0.5  # of normals with the slopes of depth: 0.93 and more in rooms and Taskonomy


class Finding(NamedTuple):
    """One thing wrong with a file, or with a building's domain; kind: broken or odd."""

    kind: str
    path: str
    text: str


class Checked(NamedTuple):
    """A view's findings, its 16-bit domains' shares of 0 and 65535, and its axes.

    `axes` is (2, 2): how far red and green (rows) agree in sign with the slope of depth to
    the right and down (columns); None without both domains.
    """

    findings: dict[str, list[Finding]]
    shares: dict[str, tuple[float, float]]
    axes: np.ndarray | None


def main(
    data_dir: str | None = None,
    *,
    max_views: int | None = None,
    buildings: list | None = None,
    domains: list | None = None,
    workers: int | None = None,
    show: int = 20,
    quiet: bool = False,
) -> None:
    """Check a data folder: what is missing, broken or oddly encoded. Exit status 1 if anything.

    Example: python -m scripts.check_data /data/taskonomy --max-views 50

    Args:
        data_dir: the folder, in any layout that training reads (docs/data.md).
        max_views: views of each building to open, evenly spaced (default: all). Missing
            files are counted over all views.
        buildings: only these.
        domains: only these (default: all that are there).
        workers: processes (default: one a core).
        show: how many files to name at the end; all are counted.
        quiet: no progress bar.
    """
    if data_dir is None:
        raise UserError("which data? python -m scripts.check_data FOLDER")
    for flag, value in (("--max-views", max_views), ("--workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{flag} has to be more than 0, not {value}")
    places = _places(data_dir, buildings)
    tasks = _tasks(domains)
    names = {place: {task: place.view_names(task) for task in tasks} for place in places}
    absent = [t for t in tasks if not any(found[t] for found in names.values())]
    tasks = [task for task in tasks if task not in absent]
    if not tasks:
        raise UserError(f"no files of {', '.join(map(str, absent))} under {data_dir}")
    print(f"{data_dir}: {len(places)} buildings, layout {places[0].layout!r}")
    if absent:
        print(f"not there at all: {', '.join(map(str, absent))}")

    jobs = [
        (place.view(view), [task.name for task in tasks if view in names[place][task]])
        for place in places
        for view in _spaced(sorted(set().union(*names[place].values())), max_views)
    ]
    bar = tqdm(total=len(jobs), unit="view", desc="checking", disable=quiet or None)
    results: dict[Place, list[Checked]] = {place: [] for place in places}
    of = {(place.part, place.building): place for place in places}
    with bar:
        for (view, _), checked in zip(jobs, _in_processes(jobs, workers), strict=True):
            results[of[view.part, view.building]].append(checked)
            bar.update()
    wrong = _report(tasks, names, results, show)
    if wrong:
        sys.exit(1)


def _places(data_dir: str, buildings: list[str] | None) -> list[Place]:
    places = find_places(data_dir)
    if not places:
        raise UserError(f"no building under {data_dir} in a layout known here (docs/data.md)")
    known = {place.building for place in places}
    if missing := [building for building in buildings or () if building not in known]:
        raise UserError(f"no building {', '.join(missing)} (there are: {', '.join(sorted(known))})")
    return [place for place in places if not buildings or place.building in buildings]


def _tasks(domains: list[str] | None) -> list[ImageTask]:
    """The domains that have files of their own."""
    if domains:
        return [get_task(name) for name in domains]
    return [t for t in TASKS.values() if t.name not in ("imagenet", "sobel_edges")]


def _spaced(items: Sequence[str], count: int | None) -> list[str]:
    count = min(count or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _in_processes(jobs: list[tuple[View, list[str]]], workers: int | None) -> Iterator[Checked]:
    """`check_view` of each job, in order."""
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        yield from map(check_view, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        try:
            yield from pool.map(check_view, jobs, chunksize=4)
        except BrokenProcessPool:
            text = "a checking process was ended from outside, often for lack of memory"
            raise UserError(f"{text} (fewer --workers need less)") from None


# ---- one view -----------------------------------------------------------------------


def check_view(job: tuple[View, Sequence[str]]) -> Checked:
    """What is wrong with a view's files of the named domains."""
    view, names = job
    findings: dict[str, list[Finding]] = {name: [] for name in names}
    pixels, shares = {}, {}
    for name in names:
        path = str(view.path(TASKS[name]))
        try:
            values, mode = _read(path)
        except READ_ERRORS as error:
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            findings[name].append(Finding("broken", path, " ".join(text.split())))
            continue
        pixels[name] = values
        odd = list(_oddities(TASKS[name], values, mode))
        findings[name] += [Finding("odd", path, text) for text in odd]
        if name in DEEP and not odd:
            shares[name] = float((values == 0).mean()), float((values == HOLE).mean())
    sizes = {name: values.shape[1::-1] for name, values in pixels.items()}
    usual = Counter(sizes.values()).most_common(1)
    for name, size in sizes.items():
        if size != usual[0][0]:
            text = "{} × {} pixels, most of its view {} × {}".format(*size, *usual[0][0])
            findings[name].append(Finding("odd", str(view.path(TASKS[name])), text))
    sound = {name: values for name, values in pixels.items() if not findings[name]}
    return Checked(findings, shares, _axes(sound))


def _read(path: str) -> tuple[np.ndarray, str]:
    """The file's pixels as they are, and its mode. Raises one of READ_ERRORS."""
    with Image.open(path, formats=FORMATS) as file:
        check_size(file.size, 1)
        file.verify()  # the checksums, which reading the pixels alone passes over
    with Image.open(path, formats=FORMATS) as file:
        return np.array(file), file.mode


def _oddities(task: ImageTask, values: np.ndarray, mode: str) -> Iterator[str]:
    """What is odd about a file's encoding, against docs/encodings.md."""
    if task.name in DEEP:
        wanted, right = "16-bit grey", mode.startswith("I")
    elif task.classes:
        wanted, right = "8-bit labels", mode in ("L", "P")
    else:
        wanted, right = "8-bit colour", mode in ("RGB", "RGBA")
    if not right:
        yield f"mode {mode}, not {wanted}"
    elif task.name == "depth_zbuffer":
        yield from _depth_oddities(values)
    elif task.name == "normal":
        yield from _normal_oddities(values)
    elif task.name == "rgb" and (values == values[:1, :1]).all():
        yield "one colour all over"


def _depth_oddities(values: np.ndarray) -> Iterator[str]:
    valid = values[values != HOLE]
    if not valid.size:
        yield "nothing but holes (65535)"
    elif valid.max() <= 255:
        yield f"no depth above {valid.max()}/512 m: 8-bit values in a 16-bit file?"
    elif (share := float((values == 0).mean())) > ODD_SHARE:
        yield f"{share:.0%} of the pixels are 0, where holes are 65535"


def _vectors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals (H, W, 3) of a file's pixels, and where they are valid."""
    return values[..., :3] / 127.5 - 1, (values[..., :3] != 128).any(axis=-1)


def _normal_oddities(values: np.ndarray) -> Iterator[str]:
    vectors, valid = _vectors(values)
    if not valid.any():
        yield "nothing but holes (128, 128, 128)"
        return
    lengths = np.linalg.norm(vectors[valid], axis=-1)
    wrong = float((abs(lengths - 1) > LENGTH_TOLERANCE).mean())
    if wrong > ODD_SHARE:
        yield f"{wrong:.0%} of the normals are not of length 1 (mean {lengths.mean():.2f})"
    # a wide view of a floor has some by rights: the camera looks down on it
    away = float((vectors[valid][:, 2] > 0.2).mean())
    if away > 0.5:
        yield f"{away:.0%} of the normals point away from the camera: blue is another axis?"


def _axes(pixels: dict[str, np.ndarray]) -> np.ndarray | None:
    """How far red and green agree in sign with the slopes of depth: (2, 2) in [-1, 1].

    Where a surface faces right, its depth grows to the right; where it faces down,
    downwards.
    """
    depth, normal = pixels.get("depth_zbuffer"), pixels.get("normal")
    if depth is None or normal is None or depth.ndim != 2 or normal.ndim != 3:
        return None
    if depth.shape != normal.shape[:2] or min(depth.shape) < 3 or depth.dtype == np.uint8:
        return None
    vectors, valid = _vectors(normal)
    depth = depth.astype(np.float64)
    down, right = np.gradient(depth)
    # steps between things say nothing of the surface
    smooth = valid & (depth != HOLE) & (np.hypot(down, right) < 0.1 * depth)
    slopes = [np.sign(slope[smooth]) for slope in (right, down)]
    sides = [vectors[..., i][smooth] for i in range(2)]
    sizes = [np.abs(side).sum() + 1e-9 for side in sides]
    return np.array([[(side * slope).sum() / size for slope in slopes]
                     for side, size in zip(sides, sizes, strict=True)])  # fmt: skip


def _axes_finding(place: Place, checked: Iterable[Checked]) -> list[Finding]:
    """What the building's normals and depth say of the axes, taken together."""
    found = [view.axes for view in checked if view.axes is not None]
    if not found:
        return []
    axes = np.mean(found, axis=0)
    if abs(axes[0, 1]) + abs(axes[1, 0]) > abs(axes[0, 0]) + abs(axes[1, 1]):
        said = ["red and green are swapped"]
    else:
        ways = ("red", "right", "left"), ("green", "down", "up")
        said = [
            f"{colour} points {wrong} instead of {right}"
            if agreement < -AXES_AGREE
            else f"{colour} is not the axis that points {right}"
            for (colour, right, wrong), agreement in zip(ways, axes.diagonal(), strict=True)
            if agreement < AXES_AGREE
        ]
    where = str(place.view("").path(TASKS["normal"]).parent)
    return [Finding("odd", where, f"{text}, by the slopes of depth") for text in said]


# ---- the report ---------------------------------------------------------------------


def _report(
    tasks: list[ImageTask],
    names: dict[Place, dict[ImageTask, set[str]]],
    results: dict[Place, list[Checked]],
    show: int,
) -> int:
    """Print the table and the first findings; returns how many things are wrong."""
    head = ["building", "domain", "there", "missing", "opened", "broken", "odd", "0", "65535"]
    rows, listed, missing = [], [], 0
    for place, checked in results.items():
        union = set().union(*names[place].values())
        axes = _axes_finding(place, checked)
        for task in tasks:
            findings = [f for view in checked for f in view.findings.get(task.name, ())]
            findings += axes if task.name == "normal" else []
            kinds = Counter(finding.kind for finding in findings)
            lacking = len(union - names[place][task])
            missing += lacking
            listed += findings
            opened = sum(task.name in view.findings for view in checked)
            shares = [view.shares[task.name] for view in checked if task.name in view.shares]
            means = [f"{mean:.1%}" for mean in np.mean(shares, axis=0)] if shares else ["", ""]
            building = "/".join(filter(None, (place.part, place.building)))
            counts = len(names[place][task]), lacking, opened, kinds["broken"], kinds["odd"]
            rows.append([building, task.name, *map(str, counts), *means])
    print("\n" + aligned(head, rows) + "\n")
    for finding in listed[:show]:
        print(f"{finding.kind}: {finding.path}: {finding.text}")
    if len(listed) > show:
        print(f"and {len(listed) - show} more (--show {len(listed)} names them all)")
    wrong = len(listed) + missing
    print(f"{missing} files missing, {len(listed)} broken or odd" if wrong else "nothing is wrong")
    return wrong


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text: the first two columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if number < 2 else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    command_line(main)

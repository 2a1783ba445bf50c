"""Check a data folder for missing, broken and oddly encoded files, by building and domain.

python -m scripts.check_data /data/taskonomy --max-views 50
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from tqdm import tqdm

from loading.file_checks import Checked, axes_findings, check_view
from loading.layouts import Place, View, find_places
from tables import text_table
from task_configs import TASKS, ImageTask, get_task
from utils import UserError, check_positive, command_line, evenly_spaced


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
    check_positive(max_views=max_views, workers=workers)
    places = _places(data_dir, buildings)
    tasks = _tasks(domains)
    names = {place: {task: place.view_names(task) for task in tasks} for place in places}
    absent = [t for t in tasks if not any(views_by_task[t] for views_by_task in names.values())]
    tasks = [task for task in tasks if task not in absent]
    if not tasks:
        raise UserError(f"no files of {', '.join(map(str, absent))} under {data_dir}")
    print(f"{data_dir}: {len(places)} buildings, layout {places[0].layout!r}")
    if absent:
        print(f"not there at all: {', '.join(map(str, absent))}")

    jobs = [
        (place.view(view), [task.name for task in tasks if view in names[place][task]])
        for place in places
        for view in evenly_spaced(sorted(set().union(*names[place].values())), max_views)
    ]
    bar = tqdm(total=len(jobs), unit="view", desc="checking", disable=quiet or None)
    results: dict[Place, list[Checked]] = {place: [] for place in places}
    place_of = {(place.part, place.building): place for place in places}
    with bar:
        for (view, _), checked in zip(jobs, _in_processes(jobs, workers), strict=True):
            results[place_of[view.part, view.building]].append(checked)
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
    """Return the named domains or, by default, all that have their own files."""
    if domains:
        return [get_task(name) for name in domains]
    return [t for t in TASKS.values() if t.name not in ("imagenet", "sobel_edges")]


def _in_processes(jobs: list[tuple[View, list[str]]], workers: int | None) -> Iterator[Checked]:
    """Run `check_view` on each job in worker processes, and yield the results in order."""
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        yield from map(check_view, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        try:
            yield from pool.map(check_view, jobs, chunksize=4)
        except BrokenProcessPool:
            text = "a checking process was ended from outside, often for lack of memory"
            raise UserError(f"{text} (fewer `workers` need less)") from None


# ---- the report ---------------------------------------------------------------------


def _report(
    tasks: list[ImageTask],
    names: dict[Place, dict[ImageTask, set[str]]],
    results: dict[Place, list[Checked]],
    show: int,
) -> int:
    """Print the table and the first findings. Returns the number of problems."""
    head = ["building", "domain", "there", "missing", "opened", "broken", "odd", "0", "65535"]
    rows, listed, missing = [], [], 0
    for place, checked in results.items():
        union = set().union(*names[place].values())
        axes = axes_findings(place, checked)
        for task in tasks:
            findings = [f for view in checked for f in view.findings.get(task.name, ())]
            findings += axes if task.name == "normal" else []
            kinds = Counter(finding.kind for finding in findings)
            missing_here = len(union - names[place][task])
            missing += missing_here
            listed += findings
            opened = sum(task.name in view.findings for view in checked)
            shares = [view.shares[task.name] for view in checked if task.name in view.shares]
            means = [f"{mean:.1%}" for mean in np.mean(shares, axis=0)] if shares else ["", ""]
            building = "/".join(filter(None, (place.part, place.building)))
            counts = len(names[place][task]), missing_here, opened, kinds["broken"], kinds["odd"]
            rows.append([building, task.name, *map(str, counts), *means])
    print("\n" + text_table(head, rows, left=2) + "\n")
    for finding in listed[:show]:
        print(f"{finding.kind}: {finding.path}: {finding.text}")
    if len(listed) > show:
        print(f"and {len(listed) - show} more (--show {len(listed)} names them all)")
    wrong = len(listed) + missing
    print(f"{missing} files missing, {len(listed)} broken or odd" if wrong else "nothing is wrong")
    return wrong


if __name__ == "__main__":
    command_line(main)

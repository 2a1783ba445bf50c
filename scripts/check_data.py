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

from flags import also_called, command_line
from loading.file_checks import Checked, Finding, axes_findings, check_view, direction_findings
from loading.layouts import Place, View, add_layouts, find_places, hints_of, no_views
from loading.view_lists import LISTED, find_list
from tables import text_table
from task_configs import TASKS, ImageTask, get_task
from utils import UserError, check_positive, counted, evenly_spaced


@also_called(workers="num_workers")
def main(
    data_dir: str | None = None,
    *,
    max_views: int | None = None,
    buildings: list | None = None,
    domains: list | None = None,
    layouts: list | None = None,
    num_workers: int | None = None,
    table: bool = False,
    show: int = 20,
    quiet: bool = False,
) -> None:
    """Check a data folder: what is missing, broken or oddly encoded.

    Prints what is wrong, and a summary. The exit status is 1 if anything is wrong.

    Example: python -m scripts.check_data /data/taskonomy --max-views 50

    Args:
        data_dir: the folder, in any layout that training reads, or a list (docs/data.md).
        max_views: views of each building to open, evenly spaced (default: all). Missing
            files are counted over all views.
        buildings: only these.
        domains: only these (default: all that are there).
        layouts: Python files of your own that add layouts of folders (docs/extending.md).
        num_workers: processes (default: one per core).
        table: print the counts of each domain in each building, and in 16-bit files the
            shares of the values 0 and 65535.
        show: how many files to name; all are counted.
        quiet: no progress bar.
    """
    if data_dir is None:
        raise UserError("which data? python -m scripts.check_data FOLDER")
    check_positive(max_views=max_views, num_workers=num_workers)
    add_layouts(layouts)
    places = _places(data_dir, buildings)
    tasks = _tasks(domains)
    names = {place: {task: place.view_files(task) for task in tasks} for place in places}
    absent = [t for t in tasks if not any(views_by_task[t] for views_by_task in names.values())]
    tasks = [task for task in tasks if task not in absent]
    if not tasks:
        raise no_views([data_dir], absent if domains else ())
    print(f"{data_dir}: {counted(len(places), 'building')}, layout {places[0].layout!r}")
    misnamed = _print_absent(data_dir, absent, bool(domains))

    jobs = [
        (place.view(view, names[place]), [t.name for t in tasks if view in names[place][t]])
        for place in places
        for view in evenly_spaced(sorted(set().union(*names[place].values())), max_views)
    ]
    bar = tqdm(total=len(jobs), unit="view", desc="checking", disable=quiet or None)
    results: dict[Place, list[Checked]] = {place: [] for place in places}
    place_of = {(place.part, place.building): place for place in places}
    with bar:
        for (view, _), checked in zip(jobs, _in_processes(jobs, num_workers), strict=True):
            results[place_of[view.part, view.building]].append(checked)
            bar.update()
    if _report(tasks, names, results, show, table, misnamed):
        sys.exit(1)


def _places(data_dir: str, buildings: list[str] | None) -> list[Place]:
    places = find_places(data_dir)
    if not places:
        raise no_views([data_dir])
    known = {place.building for place in places}
    if missing := [building for building in buildings or () if building not in known]:
        raise UserError(f"no building {', '.join(missing)} (there are: {', '.join(sorted(known))})")
    return [place for place in places if not buildings or place.building in buildings]


def _tasks(domains: list[str] | None) -> list[ImageTask]:
    """Return the named domains or, by default, all that have their own files."""
    if domains:
        return [get_task(name) for name in domains]
    return [t for t in TASKS.values() if t.name not in ("imagenet", "sobel_edges")]


def _print_absent(data_dir: str, absent: list[ImageTask], asked_for: bool) -> int:
    """Print the domains without files, and what lies there instead. Returns how many are missing.

    A domain counts as missing if it was `asked_for`, if files of it lie there under another name,
    if a list has a column of it, or if it is rgb, which all training reads.
    """
    hints = hints_of(data_dir, absent)
    listed = find_list(data_dir)
    columns = listed.domains if listed else ()
    wrong = {
        t: hint
        for t, hint in hints.items()
        if asked_for or "did you mean" in hint or t.folder in columns or t.name == "rgb"
    }
    for task, hint in wrong.items():
        print(f"missing: {task}{hint and ': '}{hint}")
    if others := [str(task) for task in absent if task not in wrong]:
        print(f"not there at all: {', '.join(others)}")
    return len(wrong)


def _in_processes(jobs: list[tuple[View, list[str]]], num_workers: int | None) -> Iterator[Checked]:
    """Run `check_view` on each job in worker processes, and yield the results in order."""
    workers = min(num_workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        yield from map(check_view, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        try:
            yield from pool.map(check_view, jobs, chunksize=4)
        except BrokenProcessPool:
            text = "a checking process was ended from outside, often for lack of memory"
            raise UserError(f"{text} (fewer `num_workers` need less)") from None


# ---- the report ---------------------------------------------------------------------


def _report(
    tasks: list[ImageTask],
    names: dict[Place, dict[ImageTask, dict[str, str]]],
    results: dict[Place, list[Checked]],
    show: int,
    table: bool,
    absent: int,
) -> int:
    """Print what is wrong, the table if wanted, and a summary. Returns the number of problems.

    `absent` is the number of domains that lack all of their files, which are printed already.
    """
    rows, listed, missing = [], [], []
    for place, checked in results.items():
        union = sorted(set().union(*names[place].values()))
        axes = axes_findings(place, checked) or direction_findings(place, checked)
        building = "/".join(filter(None, (place.part, place.building)))
        for task in tasks:
            findings = [f for view in checked for f in view.findings.get(task.name, ())]
            findings += axes if task.name == "normal" else []
            listed += findings
            lacking = [name for name in union if name not in names[place][task]]
            if lacking:
                missing.append((task, place, lacking, len(union)))
            counts = len(names[place][task]), len(lacking)
            rows.append([building, task.name, *map(str, counts), *_counts(task, checked, findings)])
    if table:
        head = ["building", "domain", "there", "missing", "opened", "broken", "odd", "0", "65535"]
        print("\n" + text_table(head, rows, left=2) + "\n")
    for task, place, lacking, count in missing:
        print(f"missing: {task} of {len(lacking)} of {count} views in {place.building}, "
              f"for example {_expected(place, task, lacking[0])}")  # fmt: skip
    for finding in listed[:show]:
        print(f"{finding.kind}: {finding.path}: {finding.text}")
    if len(listed) > show:
        print(f"and {len(listed) - show} more (--show {len(listed)} names them all)")
    gone, opened = sum(len(lacking) for _, _, lacking, _ in missing), sum(int(r[4]) for r in rows)
    views = sum(len(set().union(*by_task.values())) for by_task in names.values())
    print(f"{counted(views, 'view')} of {counted(len(tasks), 'domain')} "
          f"({', '.join(map(str, tasks))}): {counted(sum(int(row[2]) for row in rows), 'file')} "
          f"there, {opened} opened")  # fmt: skip
    wrong = len(listed) + gone + absent
    if wrong:
        parts = [f"{counted(absent, 'domain')} missing"] if absent else []
        parts += [f"{counted(gone, 'file')} missing", f"{len(listed)} broken or odd"]
        print(", ".join(parts))
    else:
        print("nothing is wrong")
    return wrong


def _counts(task: ImageTask, checked: list[Checked], findings: list[Finding]) -> list[str]:
    """Return the table's cells for the opened files: numbers, and mean shares of 0 and 65535."""
    kinds = Counter(finding.kind for finding in findings)
    opened = sum(task.name in view.findings for view in checked)
    shares = [view.shares[task.name] for view in checked if task.name in view.shares]
    means = [f"{mean:.1%}" for mean in np.mean(shares, axis=0)] if shares else ["", ""]
    return [str(opened), str(kinds["broken"]), str(kinds["odd"]), *means]


def _expected(place: Place, task: ImageTask, name: str) -> str:
    """Return the file that is missing; in a list, the line that names none."""
    if place.layout == LISTED:
        return hints_of(place.data_dir, [task])[task]
    return str(place.view(name).path(task))


if __name__ == "__main__":
    command_line(main)

"""Measure how long a run takes to find its views, and how much memory they take.

python -m scripts.benchmark_views --views 10000,100000
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tqdm import tqdm

from tables import text_table
from task_configs import TASKS, get_task
from utils import ROOT, UserError, check_positive, command_line

HEAD = ("views", "files", "index", "find, s", "start, s", "main, MB", "all, MB")
EACH = 9000  # views of a building, as in Taskonomy
BYTES = 100_000  # of each file, none of which are on the disk: a run treats small data otherwise
DOMAINS = (
    "rgb", "normal", "principal_curvature", "depth_zbuffer", "reshading", "edge_occlusion",
    "keypoints3d", "keypoints2d",
)  # fmt: skip
# Runs in the checkout that is measured: finds the views as a run does, then reads them in forked
# processes as loading processes do. It uses only functions that older versions have as well.
MEASURED = """
import json, os, random, sys, time
from pathlib import Path
from datasets import EndlessSampler, TaskDataset
from training.data import find_parts, reads_of
from training.inputs import views_digest
from training.options import DataOptions, Options, objective_of

folder, workers, reads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def memory(*pids):
    lines = [line.split() for pid in pids for line in open(f"/proc/{pid}/smaps_rollup")]
    return sum(int(line[1]) for line in lines if line[0] == "Pss:") / 1e3

def resident():
    lines = [line.split() for line in open("/proc/self/status")]
    return sum(int(line[1]) for line in lines if line[0] == "VmRSS:") / 1e3

before, alone = memory("self"), resident()
start = time.perf_counter()
sources = type("Found", (), {"data_dirs": [Path(folder)]})
reads_by_part = reads_of(objective_of(Options("multiperceptual_normal")))
parts = find_parts(reads_by_part, sources, DataOptions())
found = time.perf_counter()
digests = [views_digest(part) for part in parts.values()]
data = TaskDataset(parts["train"].tasks, parts["train"].views)
next(iter(EndlessSampler(len(data), 64)))
done = time.perf_counter()
peak = resident()
pids = []
for number in range(workers):
    ready, told = os.pipe()
    if pid := os.fork():
        os.close(told)
        pids.append((pid, ready))
        continue
    rng = random.Random(number)
    for _ in range(reads):
        data.views[rng.randrange(len(data))]
    os.write(told, b"1")
    time.sleep(1000)
for _, ready in pids:
    os.read(ready, 1)
together = memory("self", *(pid for pid, _ in pids))
for pid, _ in pids:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
print(json.dumps({"views": sum(len(part.views) for part in parts.values()), "digests": digests,
    "find": found - start, "start": done - start, "main": peak - alone, "all": together - before}))
"""


def main(
    *,
    views: list | None = None,
    domains: list | None = None,
    folder: str | None = None,
    checkout: str | None = None,
    num_workers: int = 4,
    reads: int = 200_000,
) -> None:
    """Make files without content for so many views, and measure the start of a run on them.

    Prints a table: seconds to find the views of all parts, seconds until the first batch could be
    loaded, and the memory that this takes, in the main process and in all processes together
    (proportional set size, after the loading processes have read views). Once without an index,
    and once with the index that the first start has written. The files are removed in the end.

    Example: python -m scripts.benchmark_views --views 10000,100000

    Args:
        views: numbers of views, comma-separated (default: 10000).
        domains: the domains of each view (default: the eight of multiperceptual_normal).
        folder: where the files are made (default: the folder of temporary files).
        checkout: another version of this project to measure (default: this one).
        num_workers: loading processes.
        reads: views that each of them asks for, at random.
    """
    check_positive(num_workers=num_workers, reads=reads)
    code = Path(checkout) if checkout else ROOT
    if not (code / "training" / "data.py").is_file():
        raise UserError(f"`checkout` {code} is no folder of this project")
    tasks = [get_task(name).name for name in domains or DOMAINS]
    numbers = [_number(text) for text in views or ["10000"]]
    rows = []
    for number in numbers:
        with tempfile.TemporaryDirectory(dir=folder, prefix="views-") as place:
            data, cache = Path(place) / "data", Path(place) / "cache"
            make_views(data, number, tasks)
            results = []
            for kind in tqdm(("none", "written before"), unit="start", disable=None):
                found = measure(code, data, cache, num_workers, reads)
                results.append(found["digests"])
                times = [f"{found[key]:.2f}" for key in ("find", "start")]
                sizes = [f"{found[key]:.0f}" for key in ("main", "all")]
                rows.append((str(number), str(number * len(tasks)), kind, *times, *sizes))
                tqdm.write("  ".join(rows[-1]))
            if results[0] != results[1]:
                raise UserError("the views found with and without an index differ")
            shutil.rmtree(data)
    print(text_table(HEAD, rows))


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 20:
        raise UserError(f"`views` are whole numbers from 20 on, not {text!r}")
    return int(text)


def make_views(folder: Path, number: int, tasks: list[str]) -> None:
    """Make the files of so many views in Taskonomy's layout, in at least ten buildings.

    The files of a building and domain are hard links to one empty file, so that they take no
    inodes.
    """
    each = min(EACH, -(-number // 10))
    counts = [min(each, number - first) for first in range(0, number, each)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_make_building, folder, tasks), range(len(counts)), counts))


def _make_building(folder: Path, tasks: list[str], building: int, count: int) -> None:
    for name in tasks:
        paths = (
            TASKS[name].path(folder, f"building{building:04}", f"point_{n // 4}_view_{n % 4}")
            for n in range(count)
        )
        first = next(paths)
        first.parent.mkdir(parents=True, exist_ok=True)
        first.touch()
        os.truncate(first, BYTES)
        handle = os.open(first.parent, os.O_RDONLY)
        for path in paths:
            os.link(first.name, path.name, src_dir_fd=handle, dst_dir_fd=handle)
        os.close(handle)


def measure(code: Path, data: Path, cache: Path, workers: int, reads: int) -> dict:
    """Start the version in `code` on the data in a process of its own: {what: value}."""
    variables = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(code)}
    command = [sys.executable, "-c", MEASURED, str(data), str(workers), str(reads)]
    done = subprocess.run(command, cwd=code, env=variables, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"the start on {data} failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    command_line(main)

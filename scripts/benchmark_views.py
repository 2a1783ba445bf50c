"""Measure how long a run takes to find its views, and how much memory they take.

python -m scripts.benchmark_views --views 10000,100000
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from files import make_folder
from flags import command_line
from tables import text_table
from task_configs import TASKS, get_task
from utils import ROOT, UserError, check_positive

HEAD = (
    "views", "files", "index", "load", "find, s", "cpu, s", "start, s", "cpu, s", "peak, MB",
    "main, MB", "all, MB",
)  # fmt: skip
EACH = 9000  # views of a building, as in Taskonomy
CUT_OFF = "cut off"
SETTLED = 2.5  # seconds after which the times of a folder are relied on
VIEW = "VIEW"  # stands for the name of a view
BYTES = 100_000  # size of each file, which has no content: a run treats small data differently
DOMAINS = (
    "rgb", "normal", "principal_curvature", "depth_zbuffer", "reshading", "edge_occlusion",
    "keypoints3d", "keypoints2d",
)  # fmt: skip
# Runs in the checkout that is measured: finds the views as a run does, then reads them in forked
# processes as loading processes do. It uses only functions that older versions have as well.
MEASURED = """
import json, os, random, resource, sys, time
from pathlib import Path
from datasets import EndlessSampler, TaskDataset
from training.data import find_parts, reads_of
from training.inputs import views_digest
from training.objective import objective_of
from training.options import DataOptions, Options

clocks = time.perf_counter, time.process_time
folder, workers, reads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def memory(*pids):
    lines = [line.split() for pid in pids for line in open(f"/proc/{pid}/smaps_rollup")]
    return sum(int(line[1]) for line in lines if line[0] == "Pss:") * 1.024e-3

def resident():
    lines = [line.split() for line in open("/proc/self/status")]
    return sum(int(line[1]) for line in lines if line[0] == "VmRSS:") * 1.024e-3

before, alone = memory("self"), resident()
start = [clock() for clock in clocks]
sources = type("Found", (), {"data_dirs": [Path(folder)]})
reads_by_part = reads_of(objective_of(Options("multiperceptual_normal")))
parts = find_parts(reads_by_part, sources, DataOptions())
found = [clock() - at for clock, at in zip(clocks, start)]
digests = [views_digest(part) for part in parts.values()]
data = TaskDataset(parts["train"].tasks, parts["train"].views)
next(iter(EndlessSampler(len(data), 64)))
done = [clock() - at for clock, at in zip(clocks, start)]
main = resident()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024e-3
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
    "find": found, "start": done, "peak": peak - alone, "main": main - alone,
    "all": together - before}))
"""


def main(
    *,
    views: list | None = None,
    domains: list | None = None,
    folder: str | None = None,
    keep: bool = False,
    repeats: int = 1,
    faults: bool = False,
    checkout: str | None = None,
    num_workers: int = 4,
    reads: int = 200_000,
) -> None:
    """Make files without content for many views, and measure the start of a run on them.

    Prints a table. "find" is the time to find the views of all parts, and "start" the time until
    the first batch could be loaded, in seconds on the clock and of the processor. "peak" is the
    most memory of the main process until then, "main" what it has then, and "all" that of all
    processes together (proportional set size, after the loading processes have read views); what
    was in use before the start is subtracted. Starts without an index come first, and then starts
    with the index that they have written. "load" is the load of the machine when a start began.

    Example: python -m scripts.benchmark_views --views 10000,100000

    Args:
        views: numbers of views, comma-separated (default: 10000).
        domains: the domains of each view (default: the eight of multiperceptual_normal).
        folder: where the files are made (default: the folder of temporary files).
        keep: leave the files in `folder`, and use those that are there; without it they are
            removed in the end.
        repeats: starts of each kind.
        faults: start also after a folder of views has changed, and with an index that is cut
            off, and compare what they find with what is found without an index.
        checkout: another version of this project to measure (default: this one).
        num_workers: loading processes.
        reads: views that each of them asks for, at random.
    """
    check_positive(num_workers=num_workers, reads=reads, repeats=repeats)
    code = Path(checkout) if checkout else ROOT
    if not (code / "training" / "data.py").is_file():
        raise UserError(f"`checkout` {code} is not a folder of this project")
    if keep and folder is None:
        raise UserError("`keep` leaves the files in a `folder`, which has to be named")
    tasks = [get_task(name).name for name in domains or DOMAINS]
    starts = Starts(code, num_workers, reads)
    for number in [_number(text) for text in views or ["10000"]]:
        measure_views(starts, number, tasks, folder, keep, repeats, faults)
    print(text_table(HEAD, starts.rows))


def measure_views(
    starts: "Starts",
    number: int,
    tasks: list[str],
    folder: str | None,
    keep: bool,
    repeats: int,
    faults: bool,
) -> None:
    """Make `number` views, and measure starts on them. The options are those of `main`."""
    if folder:
        make_folder(Path(folder))
    with tempfile.TemporaryDirectory(dir=folder, prefix="views-") as place:
        made = Path(folder if keep and folder else place)
        data = made / f"{len(tasks)}-domains-{views_of_a_building(number)}-a-building"
        seconds = time.perf_counter()
        make_views(data, number, tasks)
        tqdm.write(f"{number} views made in {time.perf_counter() - seconds:.0f} s")
        named, cache = (str(number), str(number * len(tasks))), Path(place) / "cache"
        before = starts.measure(data, cache, named, ["none"] * repeats + ["there"] * repeats)
        if faults:
            with one_file_less(data, tasks):
                kinds = ["a folder changed", CUT_OFF, "none"]
                if starts.measure(data, cache, named, kinds) == before:
                    raise UserError("the change of a folder was not noticed")


@dataclass
class Starts:
    """Starts of the version in `code`, and the `rows` of the table, one for each."""

    code: Path
    num_workers: int
    reads: int
    rows: list[Sequence[str]] = field(default_factory=list)

    def measure(
        self, data: Path, cache: Path, named: Sequence[str], kinds: Sequence[str]
    ) -> list[str]:
        """Start once for each of the `kinds` of indexes.

        The rows begin with what the data are `named`. Returns the digests of the views. Raises
        UserError if not all starts find the same.
        """
        all_digests = []
        for kind in tqdm(kinds, unit="start", disable=None):
            if kind == "none":
                shutil.rmtree(cache, ignore_errors=True)
            elif kind == CUT_OFF:
                for file in cache.glob("xtconsistency/views-*.index"):  # small data have none
                    os.truncate(file, file.stat().st_size // 2)
            load = os.getloadavg()[0]
            found = start(self.code, data, cache, self.num_workers, self.reads)
            times = [f"{seconds:.2f}" for key in ("find", "start") for seconds in found[key]]
            sizes = [f"{found[key]:.0f}" for key in ("peak", "main", "all")]
            self.rows.append((*named, kind, f"{load:.1f}", *times, *sizes))
            tqdm.write("  ".join(self.rows[-1]))
            all_digests.append(found["digests"])
            if all_digests[-1] != all_digests[0]:
                raise UserError(f"the views found with the index {kind!r} are not those without it")
        return all_digests[0]


@contextmanager
def one_file_less(data: Path, tasks: Sequence[str]) -> Iterator[None]:
    """Within the block, a file of one view is missing, so that there is one view less."""
    folder = TASKS[tasks[0]].path(data, "building0000", VIEW).parent
    file, other = sorted(folder.iterdir())[:2]
    file.unlink()
    time.sleep(SETTLED)
    try:
        yield
    finally:
        os.link(other, file)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 20:
        raise UserError(f"`views` are whole numbers from 20 on, not {text!r}")
    return int(text)


def make_views(folder: Path, number: int, tasks: list[str]) -> None:
    """Make the files of `number` views in Taskonomy's layout, except those that are there.

    The files of a building and domain are hard links to one empty file, so that they take no
    inodes. A file can have 65,000 links in some file systems. Raises UserError if the folder has
    files of more views.
    """
    each = views_of_a_building(number)
    counts = [min(each, number - first) for first in range(0, number, each)]
    if TASKS[tasks[0]].path(folder, f"building{len(counts):04}", VIEW).parent.exists():
        raise UserError(f"{folder} has files of more views: name another `folder`")
    with tqdm(total=number * len(tasks), unit="file", unit_scale=True, disable=None) as bar:
        for building, count in enumerate(counts):
            for name in tasks:
                _make_files(TASKS[name].path(folder, f"building{building:04}", VIEW), count)
                bar.update(count)


def views_of_a_building(number: int) -> int:
    """Return how many views each building has if there are `number` views in all."""
    return min(EACH, -(-number // 10))


def _make_files(pattern: Path, count: int) -> None:
    """Make the files of `count` views in a folder; `pattern` is the file of the view VIEW."""
    before, after = pattern.name.split(VIEW)
    pattern.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(pattern.parent, os.O_RDONLY)  # names relative to it take less time
    try:
        there = set(os.listdir(handle))
        if len(there) > count:
            raise UserError(f"{pattern.parent} has files of more views: name another `folder`")
        if not there:
            first = f"{before}point_0_view_0{after}"
            file = os.open(first, os.O_CREAT | os.O_WRONLY, dir_fd=handle)
            os.truncate(file, BYTES)
            os.close(file)
            there.add(first)
        source = next(iter(there))
        for n in range(count if len(there) < count else 0):
            name = f"{before}point_{n // 4}_view_{n % 4}{after}"
            if name not in there:
                os.link(source, name, src_dir_fd=handle, dst_dir_fd=handle)
    finally:
        os.close(handle)


def start(code: Path, data: Path, cache: Path, workers: int, reads: int) -> dict:
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

"""Running the stages of a plan: their commands as processes, and the records of what is done."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from devices import processor_name
from files import read_json, write_atomically, write_json
from flags import as_arguments
from measuring.reproduction.steps import Made, Places, Stage, Step
from training.run_folder import recorded_taken
from utils import ROOT, UserError, duration, log

TAIL = 12  # lines of a failed command's log to show
PAUSE = 0.1  # seconds between two checks of the commands in progress


class Process(Protocol):
    """A command in progress: a subprocess.Popen."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int) -> None: ...


# Yields the commands in progress, one after the other, and continues once each has ended
Steps = Generator[Process, None, None]


def do_stages(
    stages: Sequence[Stage], folder: Path, jobs: int, after: Callable[[], object]
) -> None:
    """Do the stages that are not done yet, up to `jobs` of them at once, in order.

    A stage begins once all stages that it needs are done. `after` is called after each stage.
    Raises UserError if a stage needs one that is neither done nor among them, or if a command
    fails; the others in progress are then ended, and save their state. SIGTERM and Ctrl-C end all
    of them, and this program with the status of one.
    """
    places = Places(folder)
    waiting = _not_done(stages, places)
    running: dict[Stage, tuple[Steps, Process]] = {}

    told: list[Process] = []  # a second signal would end a training before it saves its state

    def end_all() -> None:
        for _, process in running.values():
            if process not in told:
                told.append(process)
                process.send_signal(signal.SIGTERM)

    with _signals_to(end_all) as received:
        try:
            while waiting or running:
                for stage in _ready(waiting, places)[: jobs - len(running)]:
                    waiting.remove(stage)
                    steps = _steps(stage, places, _progress(stages, stage), jobs)
                    _go_on(running, stage, steps, after)
                if all(process.poll() is None for _, process in running.values()):
                    time.sleep(PAUSE)
                if received:
                    break
                for stage, (steps, process) in list(running.items()):
                    if process.poll() is not None:
                        _go_on(running, stage, steps, after)
        except BaseException:
            end_all()
            raise
        finally:
            if signal.SIGTERM in received:  # a command may have begun just then
                end_all()
            statuses = [_ended(steps, process) for steps, process in running.values()]
    if received:
        log.info("stopped; the same command goes on")
        status = next((s for s in statuses if s), 130)
        sys.exit(status if status > 0 else 128 - status)


def _not_done(stages: Sequence[Stage], places: Places) -> list[Stage]:
    """The stages that are not done. Raises UserError if one needs others that are not there."""
    waiting = []
    for stage in stages:
        if places.stage_mark(stage.name).is_file():
            log.info(f"{_progress(stages, stage)} {stage.name}: done before")
            continue
        names = {s.name for s in stages}
        absent = [name for name in (*stage.needs, *stage.after)
                  if name not in names and not places.stage_mark(name).is_file()]  # fmt: skip
        if absent:
            raise UserError(f"the stage {stage.name} needs {', '.join(absent)}, not done yet: "
                            f"leave `only` out, or name these first")  # fmt: skip
        waiting.append(stage)
    return waiting


def _progress(stages: Sequence[Stage], stage: Stage) -> str:
    return f"[{stages.index(stage) + 1}/{len(stages)}]"


def _ready(waiting: Iterable[Stage], places: Places) -> list[Stage]:
    """The waiting stages that need no stage that is not done."""

    def is_done(name: str) -> bool:
        return places.stage_mark(name).is_file()

    return [stage for stage in waiting if all(map(is_done, (*stage.needs, *stage.after)))]


def _go_on(running: dict, stage: Stage, steps: Steps, after: Callable) -> None:
    """Continue a stage to its next command, which is added to `running`, or to its end."""
    running.pop(stage, None)
    try:
        running[stage] = steps, next(steps)
    except StopIteration:
        after()


def _ended(steps: Steps, process: Process) -> int | None:
    """Wait for the end of a command that was told to end, and record the time that it took."""
    while process.poll() is None:
        time.sleep(PAUSE)
    steps.close()
    return process.poll()


@contextmanager
def _signals_to(end_all: Callable[[], None]) -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM within the block in the list that is yielded, and pass them on."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        if number == signal.SIGTERM:  # a terminal sends Ctrl-C to the commands as well
            end_all()

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- a stage, a step ------------------------------------------------------------------


def _steps(stage: Stage, places: Places, progress: str, jobs: int) -> Steps:
    """Do the steps of a stage that are not done yet; yield each command's process, to wait for.

    Raises UserError if one fails.
    """
    log.info(f"{progress} {stage.name}")
    count = len(stage.steps)
    for number, step in enumerate(stage.steps, start=1):
        if not places.step_mark(step.key).is_file():
            yield from do_step(step, places.folder, jobs)
            record = read_json(places.step_mark(step.key))
            seconds = duration(_seconds(record["intervals"]))
            log.info(f"{progress} {stage.name} {number}/{count} {step.key}: {seconds}")
    records = [read_json(places.step_mark(step.key)) for step in stage.steps]
    intervals = [interval for record in records for interval in record["intervals"]]
    write_json(places.stage_mark(stage.name), {
        "stage": stage.name, "seconds": _seconds(intervals), "intervals": intervals,
        "finished": time.strftime("%Y-%m-%d %H:%M"), "hardware": {**hardware(), "jobs": jobs},
        "commands": [record["command"] for record in records],
    })  # fmt: skip


def do_step(step: Step, folder: Path, jobs: int = 1) -> Steps:
    """Run a step and write its mark. Yields the process of its command, to wait for its end.

    Raises UserError if the command failed. If the step is interrupted, its time so far is recorded
    and counts when it is done.
    """
    command, part = command_of(step, folder), folder / "steps" / f"{step.key}.part"
    record: dict = {"command": _relative(shlex.join(command), folder), "intervals": []}
    if part.is_file():
        record = read_json(part)
    begun = time.time()
    try:
        if step.program == "copy":
            source, target = command[1:]
            write_atomically(target, partial(shutil.copyfile, source))
        else:
            output = folder / "logs" / f"{step.key}.log"
            process = start([sys.executable, *command[1:]], output, jobs)
            yield process
            if status := process.poll():
                text = output.read_text(errors="replace").splitlines()[-TAIL:]
                raise UserError(f"{step.key} failed with status {status} ({output}): "
                                f"{' | '.join(text)}")  # fmt: skip
    finally:
        record["intervals"].append([begun, time.time()])
        write_json(part, record)
    os.replace(part, Places(folder).step_mark(step.key))


def _seconds(intervals: Iterable[Sequence[float]]) -> float:
    """The sum of intervals' lengths."""
    return sum(end - begun for begun, end in intervals)


def _relative(command: str, folder: Path) -> str:
    """Return a command with paths relative to the folder."""
    return command.replace(f"{folder}{os.sep}", "").replace(str(folder), ".")


def command_of(step: Step, folder: Path, shown: bool = False) -> list[str]:
    """Return the command line of a step, to run or (with names of networks to come) to show.

    A training that was begun is resumed.
    """

    def filled(value: object) -> object:
        if isinstance(value, list | tuple):
            return [filled(part) for part in value]
        return str(value if shown or not isinstance(value, Made) else value.file(folder))

    plain = (bool, int, float, type(None))
    words = [str(filled(word)) for word in step.words]
    if step.program == "copy":
        return ["cp", *words]
    flags = {name: value if isinstance(value, plain) else filled(value)
             for name, value in step.flags.items()}  # fmt: skip
    begun = sorted((folder / "runs" / step.key).glob("*/run.json"))
    if step.program == "train" and begun and not shown:
        return ["python", "-m", "train", "--resume", str(begun[-1].parent), "--quiet"]
    if step.as_long_as and not shown:
        whole, each = (_seconds_of_steps(folder / "runs" / key) for key in step.as_long_as)
        flags["steps_per_epoch"] = round(float(str(flags["steps_per_epoch"])) * whole / each)
    return ["python", "-m", step.program, *words, *as_arguments(flags)]


def _seconds_of_steps(runs: Path) -> float:
    """Return the time that the steps of a training took, without its start and its validation.

    Raises UserError if its folder does not say.
    """
    for file in runs.glob("*/run.json"):
        if taken := recorded_taken(read_json(file)).get("trained"):
            return float(taken["seconds"])
    raise UserError(f"{runs} does not tell how long its steps took: remove it and its file in "
                    f"{runs.parents[1] / 'steps'}, to train again")  # fmt: skip


def start(command: Sequence[str], log_file: Path, jobs: int) -> Process:
    """Start a command in the project's folder, its output in a log file, with its share of cores.

    OMP_NUM_THREADS, if it is set, is left as it is.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, _cores() // jobs))}
    with open(log_file, "ab") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                                stdin=subprocess.DEVNULL, env=threads | os.environ)  # fmt: skip


# ---- this machine ---------------------------------------------------------------------


def default_jobs() -> int:
    """One per core, at most four; with a GPU, at most one for each 16 GiB of its memory."""
    jobs = min(4, _cores())
    if torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        jobs = min(jobs, max(1, int(gib / 16)))
    return jobs


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware() -> Mapping[str, object]:
    """Describe this machine."""
    cuda = torch.cuda.is_available()
    return {
        "processor": processor_name(), "cores": _cores(),
        "gpu": torch.cuda.get_device_name() if cuda else None, "torch": torch.__version__,
    }  # fmt: skip

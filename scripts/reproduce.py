"""The paper's claims, tested from nothing: renders, trains, measures and writes a report.

python -m scripts.reproduce --scale quick
"""

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from files import check_writable, only_process_in, read_json, write_atomically, write_json
from measuring.reproduction.carrying import keep as keep_copies
from measuring.reproduction.carrying import restore
from measuring.reproduction.plan import chosen, plan
from measuring.reproduction.report import write_page
from measuring.reproduction.scales import SCALES, Size, numbers
from measuring.reproduction.steps import Made, Places, Stage, Step, splits
from training.options import find_config
from utils import (
    ROOT,
    UserError,
    as_arguments,
    check_one_of,
    check_positive,
    command_line,
    duration,
    read_job,
)

REPORT = "report"
TAIL = 12  # lines of a failed command's log to show


def main(
    *,
    scale: str = "quick",
    seeds: int | None = None,
    only: str | None = None,
    output_dir: str | None = None,
    report: str | None = None,
    keep: str | None = None,
    dry: bool = False,
) -> None:
    """Test the paper's claims from nothing: render, train, measure, and write a report.

    Prints the plan, does it stage by stage with the project's other programs, and writes
    docs/results.md with its figures. What is done is never done again: after an interruption,
    the same command goes on, trainings from their last state. Validation chooses; test views
    are rendered and read after all training only.

    Example: python -m scripts.reproduce --scale quick

    Args:
        scale: quick, cpu (three targets, for two cores), gpu (256 pixels), or tiny, which tests
            the command itself.
        seeds: trainings of each method, from seed 0 on (default: the scale's).
        only: do this stage, or these (rooms, baselines, edges, …), or the report alone.
        output_dir: where everything is kept (default: results/reproduce_ and the scale).
        report: the report's file; figures go into the folder results beside it (default:
            docs/results.md).
        keep: a folder for small copies of what is done, from which the same command goes on, or
            writes the report, on another machine (docs/evaluation.md).
        dry: print the plan and its commands, and stop.
    """
    size = SCALES[check_one_of("scale", scale, tuple(SCALES))]
    check_positive(seeds=seeds)
    count = seeds or size.seeds
    folder = Path(output_dir) if output_dir else read_job().results_dir / f"reproduce_{scale}"
    folder = folder.resolve()
    if "," in str(folder):
        raise UserError(f"`output_dir` {folder} has a comma, which separates folders in flags")
    page = Path(report).resolve() if report else ROOT / "docs" / "results.md"
    stages = plan(size, folder, count, is_trainable)
    selected = [] if only == REPORT else chosen(stages, only)
    print_plan(stages, selected, size, folder, dry)
    if dry:
        return
    check_writable(folder)
    with only_process_in(folder):
        claim(folder, scale, count, size)
        kept = Path(keep).resolve() if keep else None
        if kept:
            check_copies(kept, folder, scale, size)
            if restored := restore(kept, folder):
                print(f"{restored} files restored from {kept}", flush=True)
        for number, stage in enumerate(selected, start=1):
            do_stage(stage, folder, f"[{number}/{len(selected)}]")
            if kept:
                keep_copies(folder, kept, stages)
        write_page(page, folder, scale, count, stages)
    print(f"report: {page}")


def is_trainable(name: str) -> bool:
    """Whether the trainer knows a configuration of that name."""
    try:
        find_config(name)
    except UserError:
        return False
    return True


# ---- the plan -----------------------------------------------------------------------


def print_plan(
    stages: Sequence[Stage], selected: Sequence[Stage], size: Size, folder: Path, commands: bool
) -> None:
    """Print the stages with their expected times, and with all commands if asked."""
    left, total = 0.0, 0.0
    print(f"plan, in {folder} (expected times are estimates, not measured):")
    for stage in stages:
        done, minutes = Places(folder).stage_mark(stage.name).is_file(), stage.minutes(size)
        state = "done" if done else f"{minutes:.0f} min" if stage in selected else "–"
        left += 0 if done or stage not in selected else minutes
        total += minutes
        print(f"  {stage.name:<32} {len(stage.steps):>3} commands  {state:>8}")
        for step in stage.steps if commands else ():
            print(f"      {shlex.join(command_of(step, folder, shown=True))}")
    print(f"all stages: {duration(60 * total)}; left: {duration(60 * left)}", flush=True)


def claim(folder: Path, scale: str, seeds: int, size: Size) -> None:
    """Write what the folder is for. Raises UserError if it holds a reproduction of other numbers.

    More seeds may be asked for than before: theirs are stages of their own.
    """
    if not claimed(folder, scale, size, "output_dir"):
        return
    for name, split in splits(size).items():
        write_json(Places(folder).split(name), split)
    Places(folder).models.mkdir(exist_ok=True)


def claimed(folder: Path, scale: str, size: Size, flag: str) -> bool:
    """Write plan.json of a folder; whether it was not there. Raises UserError if it is another."""
    record, file = {"scale": scale, "numbers": numbers(size)}, folder / "plan.json"
    if file.exists():
        before = read_json(file)
        if any(before.get(name) != value for name, value in record.items()):
            raise UserError(
                f"{file} is of scale {before.get('scale')}, or of another version of this one: "
                f"name another folder with `{flag}`"
            )
        return False
    write_json(file, record | {"begun": time.strftime("%Y-%m-%d")})
    return True


def check_copies(kept: Path, folder: Path, scale: str, size: Size) -> None:
    """Make the folder of copies. Raises UserError if it holds those of another reproduction."""
    if kept == folder:
        raise UserError(f"`keep` {kept} is `output_dir` itself: name another folder")
    claimed(check_writable(kept), scale, size, "keep")


def do_stage(stage: Stage, folder: Path, progress: str) -> None:
    """Do the steps of a stage that are not done yet. Raises UserError if one fails."""
    places = Places(folder)
    mark = places.stage_mark(stage.name)
    if mark.is_file():
        print(f"{progress} {stage.name}: done before", flush=True)
        return
    if absent := [name for name in stage.needs if not places.stage_mark(name).is_file()]:
        raise UserError(f"the stage {stage.name} needs {', '.join(absent)}, not done yet: leave "
                        f"`only` out, or name these first")  # fmt: skip
    print(f"{progress} {stage.name}", flush=True)
    for number, step in enumerate(stage.steps, start=1):
        if not places.step_mark(step.key).is_file():
            print(f"    {number}/{len(stage.steps)} {step.key}", end="", flush=True)
            seconds = do_step(step, folder)
            print(f": {duration(seconds)}", flush=True)
    records = [read_json(places.step_mark(step.key)) for step in stage.steps]
    write_json(mark, {
        "stage": stage.name, "seconds": sum(r["seconds"] for r in records),
        "finished": time.strftime("%Y-%m-%d %H:%M"), "hardware": hardware(),
        "commands": [relative(r["command"], folder) for r in records],
    })  # fmt: skip


def relative(command: str, folder: Path) -> str:
    """Return a command with paths relative to the folder."""
    return command.replace(f"{folder}{os.sep}", "").replace(str(folder), ".")


# ---- a step -------------------------------------------------------------------------


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
        whole, each = (read_json(Places(folder).step_mark(k))["seconds"]
                       for k in step.as_long_as)  # fmt: skip
        flags["max_epochs"] = max(1, round(float(str(flags["max_epochs"])) * whole / each))
    return ["python", "-m", step.program, *words, *as_arguments(flags)]


def do_step(step: Step, folder: Path) -> float:
    """Run a step and write its mark. Returns its seconds.

    Raises UserError if the command fails. SIGTERM and Ctrl-C reach the command, which saves its
    state; this program then ends with the command's status.
    """
    command, part = command_of(step, folder), folder / "steps" / f"{step.key}.part"
    record: dict = {"command": shlex.join(command), "seconds": 0.0}
    if part.is_file():
        record = read_json(part)
    start = time.monotonic()
    try:
        if step.program == "copy":
            source, target = command[1:]
            write_atomically(target, partial(shutil.copyfile, source))
        else:
            run([sys.executable, *command[1:]], folder / "logs" / f"{step.key}.log", step.key)
    finally:  # the time of all parts of an interrupted training counts
        record["seconds"] += time.monotonic() - start
        write_json(part, record)
    os.replace(part, Places(folder).step_mark(step.key))
    return record["seconds"]


def run(command: Sequence[str], log_file: Path, name: str) -> None:
    """Run a command in the project's folder, its output in a log file.

    Raises UserError with the end of the output if it fails, and exits if it was stopped.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with open(log_file, "ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL)  # fmt: skip
        stopped = False

        def forward(number: int, frame: object) -> None:
            nonlocal stopped
            stopped = True
            if number == signal.SIGTERM:  # a terminal sends Ctrl-C to the child as well
                process.send_signal(number)

        before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            status = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if stopped:
        print("\nstopped; the same command goes on")
        sys.exit(status if status > 0 else 128 - status if status else 130)
    if status:
        text = log_file.read_text(errors="replace").splitlines()[-TAIL:]
        raise UserError(f"{name} failed with status {status} ({log_file}): {' | '.join(text)}")


def hardware() -> Mapping[str, object]:
    """Describe this machine."""
    cuda = torch.cuda.is_available()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else
        os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "torch": torch.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    command_line(main)

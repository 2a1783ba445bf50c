"""The paper's claims, tested from nothing: renders, trains, measures and writes a report.

python -m scripts.reproduce --scale quick
"""

import shlex
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from files import check_writable, only_process_in, read_json, write_json
from flags import command_line
from measuring.reproduction.carrying import keep as keep_copies
from measuring.reproduction.carrying import restore
from measuring.reproduction.plan import chosen, plan
from measuring.reproduction.renewing import renew
from measuring.reproduction.report import write_page
from measuring.reproduction.scales import SCALES, Size, numbers
from measuring.reproduction.steps import Places, Stage, splits
from scripts.reproducing.running import command_of, default_jobs, do_stages
from training.objective import find_config
from utils import ROOT, UserError, check_one_of, check_positive, duration, read_job

REPORT = "report"


def main(
    *,
    scale: str = "quick",
    seeds: int | None = None,
    targets: list[str] | None = None,
    questions: list[str] | None = None,
    only: str | None = None,
    output_dir: str | None = None,
    report: str | None = None,
    keep: str | None = None,
    jobs: int | None = None,
    dry: bool = False,
) -> None:
    """Test the paper's claims from nothing: render, train, measure, and write a report.

    Prints the plan, does it stage by stage, and writes docs/results.md with its figures. After an
    interruption, the same command continues, trainings from their last state. All choices are made
    on validation views; test views are rendered and read only after all training.

    Example: python -m scripts.reproduce --scale quick

    Args:
        scale: quick, cpu (three targets, for two cores), gpu (256 pixels), or tiny, which tests
            the command itself.
        seeds: trainings of each method, from seed 0 on (default: the scale's).
        targets: some of the scale's targets, comma-separated (default: all).
        questions: only what answers some of errors, start, views, losses, methods and energy,
            comma-separated (default: all; docs/evaluation.md).
        only: do only this stage, these stages (rooms, baselines, edges, …) or the report.
        output_dir: where everything is kept (default: results/reproduce_ and the scale).
        report: the report's file; figures go into the folder results beside it (default:
            docs/results.md).
        keep: a folder for small copies, to continue on another machine (docs/evaluation.md).
        jobs: stages to do at once, each with its share of the cores (default: one for each core,
            at most 4, and with a graphics card at most one for each 16 GiB of its memory).
        dry: print the plan and its commands, and stop.
    """
    size = SCALES[check_one_of("scale", scale, tuple(SCALES))]
    check_positive(seeds=seeds, jobs=jobs)
    count = seeds or size.seeds
    folder = folder_of(scale, output_dir)
    page = Path(report).resolve() if report else ROOT / "docs" / "results.md"
    every = plan(size, folder, count, is_trainable)
    stages = plan(size, folder, count, is_trainable, targets, questions)
    selected = [] if only == REPORT else chosen(stages, only)
    print_plan(stages, selected, size, folder, dry)
    if dry:
        return
    check_writable(folder)
    with only_process_in(folder):
        claim(folder, scale, size)
        kept = bring(keep, folder, scale, size)
        renew(stages, selected, Places(folder))
        # the report alone does not change the copies
        after = partial(keep_copies, folder, kept if selected else None, every, stages)
        do_stages(selected, folder, jobs or default_jobs(), after)
        after()
        write_page(page, folder, scale, count, every)
    print(f"report: {page}")


def folder_of(scale: str, output_dir: str | None) -> Path:
    """Return where everything is kept. Raises UserError if commands cannot name it."""
    folder = Path(output_dir) if output_dir else read_job().results_dir / f"reproduce_{scale}"
    if "," in str(folder.resolve()):
        raise UserError(f"`output_dir` {folder} has a comma, which separates folders in flags")
    return folder.resolve()


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
    print(f"plan, in {folder} (estimated shares of the whole time, on idle cores):")
    for stage in stages:
        done, minutes = Places(folder).stage_mark(stage.name).is_file(), stage.minutes(size)
        state = "done" if done else f"{minutes:.0f} min" if stage in selected else "–"
        left += 0 if done or stage not in selected else minutes
        total += minutes
        print(f"  {stage.name:<32} {len(stage.steps):>3} commands  {state:>8}")
        for step in stage.steps if commands else ():
            print(f"      {shlex.join(command_of(step, folder, shown=True))}")
    print(f"all stages: {duration(60 * total)}; left: {duration(60 * left)}", flush=True)


def claim(folder: Path, scale: str, size: Size) -> None:
    """Write what the folder is for. Raises UserError if it holds a reproduction of other numbers.

    More seeds may be asked for than before: they add stages of their own.
    """
    if not claimed(folder, scale, size, "output_dir"):
        return
    for name, split in splits(size).items():
        write_json(Places(folder).split(name), split)
    Places(folder).models.mkdir(exist_ok=True)


def claimed(folder: Path, scale: str, size: Size, flag: str) -> bool:
    """Write a folder's plan.json. Returns whether it was not there yet.

    Raises UserError if the folder has another plan.
    """
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


def bring(keep: str | None, folder: Path, scale: str, size: Size) -> Path | None:
    """Write what a folder of copies has and `folder` lacks; make it, if it is not there.

    Returns the folder of copies. Raises UserError if it holds those of another reproduction.
    """
    if not keep:
        return None
    kept = Path(keep).resolve()
    if kept == folder:
        raise UserError(f"`keep` {kept} is `output_dir` itself: name another folder")
    claimed(check_writable(kept), scale, size, "keep")
    if restored := restore(kept, folder):
        print(f"{restored} files restored from {kept}", flush=True)
    return kept


if __name__ == "__main__":
    command_line(main)

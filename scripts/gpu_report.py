"""Everything that ought to be known on a GPU, measured in 25 minutes.

python -m scripts.gpu_report
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from devices import choose_device
from files import check_writable, only_process_in
from flags import command_line
from scripts.benchmarking.gpu_data import data_cells, forward_cells
from scripts.benchmarking.gpu_document import write_document
from scripts.benchmarking.gpu_runs import cells as run_cells
from scripts.benchmarking.gpu_settings import (
    Cell,
    Settings,
    about,
    measure,
    read_results,
    results_file,
)
from scripts.benchmarking.gpu_step import (
    captured_cells,
    compiled_cells,
    curve_cells,
    limit_cells,
    step_cells,
)
from utils import ROOT, UserError, check_positive, duration, read_job


class Part(NamedTuple):
    """A part of the report: its cells in order, and its share of the minutes."""

    cells: Callable[[Settings], Iterator[Cell]]
    minutes: float
    title: str


PARTS = {
    "runs": Part(run_cells, 5, "does it run?"),
    "step": Part(step_cells, 5, "the training step"),
    "limits": Part(limit_cells, 2, "shares of the card's rates"),
    "graphs": Part(captured_cells, 1, "the step as a CUDA graph"),
    "data": Part(data_cells, 3, "loading, and waiting for data"),
    "forward": Part(forward_cells, 1, "demo and energy"),
    "curves": Part(curve_cells, 2, "the first losses in every mode"),
    "compiled": Part(compiled_cells, 6, "the step, compiled"),
}


def main(
    *,
    parts: list | None = None,
    minutes: float = 25.0,
    output_dir: str | None = None,
    report: str | None = None,
    again: bool = False,
    tiny: bool = False,
    report_only: bool = False,
) -> None:
    """Measure on a GPU: what runs, how fast a step is, what limits it, and whether data keep up.

    The most important measurements come first. Each result is stored as soon as it exists, in a
    JSON file of its part; the report is then written again from all stored results. Started again,
    the command measures what is missing. It needs no network connection.

    Example: python -m scripts.gpu_report --minutes 10

    Args:
        parts: some of runs, step, limits, graphs, data, forward, curves, compiled,
            comma-separated (default: all, in this order).
        minutes: for all parts together. What does not fit is reported as not measured.
        output_dir: where the results are stored (default: results/gpu).
        report: the document to write (default: docs/gpu.md).
        again: measure again what has a result already.
        tiny: tiny networks and one repeat, also without a GPU: a check that the command works.
        report_only: measure nothing; write the report from the results that are there.
    """
    check_positive(minutes=minutes)
    if unknown := set(parts or ()) - set(PARTS):
        raise UserError(f"`parts` are {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    if report_only and (again or parts):
        raise UserError("`report_only` measures nothing: no `again`, no `parts`")
    folder = Path(output_dir).absolute() if output_dir else read_job().results_dir / "gpu"
    target = Path(report) if report else ROOT / "docs" / "gpu.md"
    if not report_only:
        device = choose_device()
        if device.type != "cuda" and not tiny:
            raise UserError("there is no GPU here: `tiny` checks without one that this works")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        settings = Settings(folder, device, tiny, torch.cuda.device_count(), visible)
        chosen = [name for name in PARTS if name in (parts or PARTS)]
        check_writable(folder)
        with only_process_in(folder):
            clear(settings, chosen if again else [])
            check_same(settings)
            measure_all(chosen, settings, 60 * minutes, target)
    write_report(folder, target)
    print(f"written: {target}")


def write_report(folder: Path, target: Path) -> None:
    """Write the report from the results that are there."""
    write_document({name: read_results(folder, name) for name in PARTS}, target)


def clear(settings: Settings, parts: Sequence[str]) -> None:
    """Remove the results of these parts."""
    for name in parts:
        results_file(settings.folder, name).unlink(missing_ok=True)


def check_same(settings: Settings) -> None:
    """Raise UserError if the folder holds results of another card, torch or size."""
    now = about(settings)
    for name in PARTS:
        before = read_results(settings.folder, name)["about"]
        for key in ("device", "torch", "tiny") if before else ():
            if before.get(key) != now[key]:
                raise UserError(
                    f"{settings.folder} holds results of another report ({key}: "
                    f"{before.get(key)}, now {now[key]}): name another `output_dir`"
                )


# ---- measuring ----------------------------------------------------------------------


def measure_all(chosen: Sequence[str], settings: Settings, seconds: float, target: Path) -> None:
    """Measure the parts one after another, and write the report after each.

    A part may take its share of the time, and what earlier parts have left over.
    """
    end, share = time.monotonic() + seconds, seconds / sum(PARTS[n].minutes for n in chosen)
    for position, name in enumerate(chosen):
        later = sum(PARTS[n].minutes for n in chosen[position + 1 :]) * share
        limit = end - time.monotonic() - later
        print(f"{name}: {PARTS[name].title} (at most {duration(limit)})", flush=True)
        in_process(name, settings, limit)
        write_report(settings.folder, target)


def in_process(name: str, settings: Settings, seconds: float) -> None:
    """Measure a part in a process of its own, which is ended after `seconds`.

    So neither an error of the GPU nor endless compiling affects the other parts.
    """
    visible = settings.visible
    if settings.device.type == "cuda":  # one card, except for the runs on all of them
        os.environ["CUDA_VISIBLE_DEVICES"] = (visible or "0").split(",")[0]
    process = multiprocessing.get_context("spawn").Process(
        target=measure_part, args=(name, settings, seconds)
    )
    try:
        process.start()
        process.join(timeout=seconds)
        if process.is_alive():
            print("  out of time", flush=True)
        elif process.exitcode:
            print(f"  ended with status {process.exitcode}", flush=True)
    finally:
        _end(process)
        if visible is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible


def measure_part(name: str, settings: Settings, seconds: float) -> None:
    """Measure a part in this process, which becomes a process group, to be ended as a whole."""
    os.setpgrp()
    measure(name, PARTS[name].cells(settings), settings, seconds)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a process and all that it has started, first by a request."""
    if process.pid is None:
        return
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        if process.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            process.join(timeout=patience)


if __name__ == "__main__":
    command_line(main)

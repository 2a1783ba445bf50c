"""Benchmark of this project against the published implementation.

python -m scripts.benchmark
"""

import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from devices import choose_device, processor_name
from energy import get_config
from files import write_atomically
from flags import command_line
from precision import TRAINING_PRECISIONS, check_precision
from scripts.benchmarking.data import loader_table
from scripts.benchmarking.floor import floor_table
from scripts.benchmarking.modes import modes_table
from scripts.benchmarking.step import (
    Setup,
    cost_table,
    forward_table,
    memory_table,
    speed_table,
    step_table,
)
from tables import Row, markdown_table, text_table
from transfers import Scale
from utils import UserError, check_positive, read_job

# Parts of the benchmark: the title of the table, and the function that measures it.
PARTS = {
    "step": ("The training step, beside the published schedule", step_table),
    "floor": ("The training step, beside the floor of its operations", floor_table),
    "memory": ("Peak memory of a step with all losses", memory_table),
    "cost": ("Cost over k and over the batch", cost_table),
    "speed": ("Share of the device's speed", speed_table),
    "modes": ("Training on rooms in every mode, from the shipped networks", modes_table),
    "loader": ("Loading a view, one process", loader_table),
    "forward": ("Forward only", forward_table),
}


def main(
    *,
    config: str = "multiperceptual_normal",
    parts: list | None = None,
    image_size: int | None = None,
    width: int | None = None,
    levels: int | None = None,
    batch_size: int | None = None,
    repeats: int = 3,
    precision: str = "fp32",
    compile: bool = False,
    channels_last: bool = False,
    threads: int = 2,
    output: str | None = None,
) -> None:
    """Measure the training step, loading, and forward-only work, each beside the published way.

    Both ways alternate in one run, so that other load on the machine affects both; the
    table shows medians, and the smallest and largest ratio. The two steps' gradients are
    asserted equal first. The result goes into a Markdown file, into the section of its device and
    setup; other sections stay.

    Example: python -m scripts.benchmark --parts step,memory --repeats 5

    Args:
        config: the energy configuration.
        parts: some of step, floor, memory, cost, speed, modes, loader, forward, comma-separated
            (default: all).
        image_size: pixels of the images' side (default: on a GPU 256, as published, else 64, as
            in training on the embedded rooms).
        width: channels of the networks' first level (default: likewise 16 or 8).
        levels: halvings in the deepest networks (default: likewise 6 or 4).
        batch_size: views per step (default: likewise 64 or 16).
        repeats: how often each way is timed.
        precision: fp32, tf32 or bf16, of this project's step; the published one has fp32.
        compile: compile the networks, for this project's step.
        channels_last: images channels last in memory, for this project's step.
        threads: threads of the CPU that are used.
        output: the file to write (default: results/benchmarks.md).
    """
    check_precision(precision, TRAINING_PRECISIONS)
    parts = parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"`parts` are {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    check_positive(repeats=repeats, threads=threads, batch_size=batch_size)
    get_config(config)
    torch.set_num_threads(threads)
    device = choose_device()
    default, batch = (Scale(), 64) if device.type == "cuda" else (Scale(64, 8, 4), 16)
    scale = default.with_overrides(image_size, width, levels)
    batch = batch_size or batch
    setup = Setup(config, scale, batch, device, repeats, precision, compile, channels_last)
    tables = {}
    for title, measure in (PARTS[part] for part in PARTS if part in parts):
        tables[title] = measure(setup)
        head, *rows = tables[title]
        print(f"\n{title}\n{text_table(head, rows, left=0)}", flush=True)
    target = Path(output) if output else read_job().results_dir / "benchmarks.md"
    write_report(target, report(setup, tables, threads), setup)
    print(f"\nwritten: {target}")


# ---- the report ---------------------------------------------------------------------


def report(setup: Setup, tables: Mapping[str, Sequence[Row]], threads: int) -> str:
    """Format the measurements as Markdown: the setup, then one table per part."""
    cuda = setup.device.type == "cuda"
    cores = f"{processor_name()} × {os.cpu_count()}, {threads} threads"
    machine = torch.cuda.get_device_name() if cuda else cores
    lines = [
        f"`{setup.config}`, {setup.scale}, batch {setup.batch_size}, ours in {setup.how}; "
        f"{machine}; torch {torch.__version__}, Python {platform.python_version()}; "
        f"{time.strftime('%Y-%m-%d')}. Medians of {setup.repeats} rounds that alternate; in "
        f"brackets the smallest and largest ratio of a round."
    ]
    for title, rows in tables.items():
        lines += ["", f"**{title}**", "", markdown_table(rows[0], rows[1:])]
    return "\n".join(lines) + "\n"


def write_report(target: Path, text: str, setup: Setup) -> None:
    """Replace the section of this setup in the file by the report. Keep the other sections."""
    heading = f"## {setup.device.type}, {setup.how}: {setup.scale}, batch {setup.batch_size}\n"
    previous = target.read_text() if target.exists() else "# Benchmarks\n"
    sections = [s for s in re.split(r"(?m)^(?=## )", previous) if not s.startswith(heading)]
    others = [section.rstrip() + "\n\n" for section in sections]
    write_atomically(target, lambda path: path.write_text("".join([*others, heading, "\n", text])))


if __name__ == "__main__":
    command_line(main)

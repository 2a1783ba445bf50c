"""The report on a GPU: its settings, what it stores, and the data and networks that it makes."""

import gc
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from energy import get_config, paths_for, perceptual_losses
from files import read_json, write_json
from graph import edges_of
from loading.splits import read_split
from models import save_network
from packing import make_pack
from rooms.writing import SPLIT_FILE, make_rooms
from task_configs import TASKS, ImageTask
from transfers import TRANSFERS, Scale
from utils import UserError, reason_of

FAILED, SKIPPED = "failed", "not measured"  # keys of a cell without figures: the reason

# A cell is one measurement: its name, and the function that returns its figures.
Cell = tuple[str, Callable[[], dict]]


@dataclass(frozen=True)
class Sizes:
    """How large everything is: networks, batches, files, repeats."""

    config: str = "multiperceptual_normal"
    scale: Scale = field(default_factory=Scale)
    counts: tuple[int, ...] = (2, 8)  # perceptual losses in use
    batches: tuple[int, ...] = (64, 16)  # views per step; the goals are for the first one
    repeats: int = 5
    epochs: int = 2  # of the training runs
    steps: int = 10  # of an epoch
    small_batch: int = 16  # of the training runs that only have to run, and of the curves
    curve: int = 50  # steps
    forward: int = 16  # images per batch
    matrix: int = 8192  # rows of the matrices that are multiplied
    copied: int = 2**30  # bytes
    file_size: int = 512  # pixels, as Taskonomy's files
    buildings: int = 12  # for training
    views: int = 8  # per building


FULL = Sizes()
TINY = Sizes(
    "example_normal", Scale(32, 8, 2), counts=(1, 2), batches=(2,), repeats=1, steps=2,
    small_batch=2, curve=3, forward=2, matrix=64, copied=2**16, file_size=64, buildings=1, views=2,
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """A report's settings. `cards` are the GPUs, `visible` is CUDA_VISIBLE_DEVICES for them all."""

    folder: Path
    device: torch.device
    tiny: bool = False
    cards: int = 0
    visible: str | None = None

    @property
    def sizes(self) -> Sizes:
        return TINY if self.tiny else FULL

    @property
    def losses(self) -> list[str]:
        return perceptual_losses(get_config(self.sizes.config))

    @property
    def workers(self) -> int:
        """Loading processes."""
        return 0 if self.tiny else min(8, os.cpu_count() or 1)


# ---- results ------------------------------------------------------------------------


def results_file(folder: Path, part: str) -> Path:
    """Return the file in which the results of a part are kept."""
    return folder / f"{part}.json"


def read_results(folder: Path, part: str) -> dict:
    """Return a part's results, {"about": …, "cells": {name: figures}}; without any, both are empty.

    Raises UserError if the file is damaged.
    """
    file = results_file(folder, part)
    if not file.exists():
        return {"about": {}, "cells": {}}
    results = read_json(file)
    if not all(isinstance(results.get(key), dict) for key in ("about", "cells")):
        raise UserError(f"{file} holds no results of this program: remove it")
    return results


def measure(part: str, cells: Iterator[Cell], settings: Settings, seconds: float) -> None:
    """Measure the cells that have no result yet, and write the part's file after each.

    Begins no cell once the `seconds` are over.
    """
    end, now = time.monotonic() + seconds, about(settings)
    results = read_results(settings.folder, part)
    for name, function in cells:
        if name in results["cells"]:
            continue
        if time.monotonic() > end:
            return
        results["about"] = now
        results["cells"][name] = attempt(function)
        write_json(results_file(settings.folder, part), results)
        print(f"  {name}: {_in_short(results['cells'][name])}", flush=True)


def attempt(function: Callable[[], dict]) -> dict:
    """Return the figures of a cell or, whatever goes wrong in it, the reason in one line."""
    try:
        return function()
    except (torch.OutOfMemoryError, MemoryError):
        return {FAILED: "out of memory"}
    except Exception as error:  # the cells after it are to be measured nevertheless
        lacks_memory = "can't allocate memory" in str(error)  # from the allocator of the CPU
        return {FAILED: "out of memory" if lacks_memory else reason_of(error)}
    finally:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _in_short(figures: Mapping) -> str:
    short = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
        if isinstance(value, str | float | int)
    ]
    return ", ".join(short) or "done"


def about(settings: Settings) -> dict:
    """Return what was measured on and how: device, versions, date, command."""
    return {
        "device": device_name(settings.device),
        "cards": settings.cards,
        "driver": _driver() if settings.device.type == "cuda" else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m scripts.gpu_report {shlex.join(sys.argv[1:])}".strip(),
        "tiny": settings.tiny,
    }


def device_name(device: torch.device) -> str:
    """Return the card's name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.split("\n")[0].strip() or "unknown"


# ---- data and networks --------------------------------------------------------------


def tasks(settings: Settings) -> list[ImageTask]:
    """Return the domains that training reads from files."""
    config = get_config(settings.sizes.config)
    names = {p[0] for p in paths_for(config, ["mae", *perceptual_losses(config)]).values()}
    return [task for name, task in TASKS.items() if name in names]


def rooms(settings: Settings) -> Path:
    """Return the folder of rendered rooms, which are made if they are not there."""
    sizes, folder = settings.sizes, settings.folder / "made" / "rooms"
    split = read_split(SPLIT_FILE)
    held_out = max(1, sizes.buildings // 4)
    buildings = [*split["train"][: sizes.buildings], *split["val"][:held_out],
                 *split["test"][:held_out]]  # fmt: skip
    make_rooms(folder, sizes.views, sizes.file_size, buildings=buildings, quiet=True)
    return folder


def pack(settings: Settings) -> Path:
    """Return the pack of the rooms at the networks' image size, made if it is not there."""
    folder = settings.folder / "made" / "pack"
    if not folder.exists():
        make_pack(rooms(settings), folder, settings.sizes.scale.image_size)
    return folder


def networks(settings: Settings) -> Path:
    """Return a models folder with random weights for every network that training needs.

    ImageNet's is among them, so that nothing is downloaded.
    """
    folder, scale = settings.folder / "made" / "networks", settings.sizes.scale
    paths = paths_for(get_config(settings.sizes.config), ["mae", *settings.losses])
    for row in (TRANSFERS[edge] for edge in edges_of(paths)):
        if row.checkpoint and not (folder / row.checkpoint).exists():
            torch.manual_seed(0)
            save_network(folder / row.checkpoint, row.build(scale), scale, half=True)
    return folder

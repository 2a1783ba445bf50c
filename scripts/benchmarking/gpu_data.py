"""The report on a GPU: whether data arrive in time, and the rates of demo and energy."""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from datasets import Reality, TrainTaskDataset
from loading.layouts import find_buildings, find_views
from scripts.benchmarking.gpu_settings import (
    Cell,
    Settings,
    networks,
    pack,
    rooms,
    tasks,
)
from scripts.benchmarking.modes import trained
from scripts.benchmarking.step import FORWARD, Setup, finish, forward_seconds

SOURCES: dict[str, Callable[[Settings], Path]] = {"files": rooms, "pack": pack}
PRECISIONS = ("fp32", "bf16")


def data_cells(settings: Settings) -> Iterator[Cell]:
    """Loading on its own, and the waiting of a training run."""
    for source in SOURCES:
        yield f"loading from {source}", partial(loading, settings, source)
    for source in SOURCES:
        yield f"training from {source}", partial(waiting, settings, source)


def forward_cells(settings: Settings) -> Iterator[Cell]:
    """Images per second of the demo and of the consistency energy."""
    for name in FORWARD:
        for precision in PRECISIONS:
            yield f"{name}, {precision}", partial(forward, settings, name, precision)


def loading(settings: Settings, source: str) -> dict:
    """Load batches to the device and do nothing with them: images per second."""
    sizes, folder = settings.sizes, SOURCES[source](settings)
    views = find_views(tasks(settings), [folder], find_buildings([folder]))
    data = TrainTaskDataset(tasks(settings), views, sizes.scale.image_size)
    reality = Reality(
        "train", data, sizes.batches[0], settings.device, settings.workers, endless=True
    )
    batches = iter(reality)
    # What the processes have loaded in advance is not counted: two batches each, and one at hand.
    for _ in islice(batches, 2 * settings.workers + 1):
        pass
    finish(settings.device)
    began = time.perf_counter()
    count = 4 * max(1, settings.workers)
    for _ in islice(batches, count):
        pass
    finish(settings.device)
    seconds = time.perf_counter() - began
    return {"rate": count * sizes.batches[0] / seconds, "workers": settings.workers}


def waiting(settings: Settings, source: str) -> dict:
    """Train in the fastest mode that needs no compiling: seconds per step, and waiting for data."""
    sizes = settings.sizes
    flags = [
        "--data-dirs", str(SOURCES[source](settings)), "--models-dir", str(networks(settings)),
        "--batch-size", str(sizes.batches[0]), "--num-workers", str(settings.workers),
        "--precision", "bf16", "--channels-last",
    ]  # fmt: skip
    figures = trained(sizes.config, flags, sizes.epochs, sizes.steps)
    share = figures["waiting"]
    return {"seconds": figures["seconds"], "waiting": share * figures["seconds"]}


def forward(settings: Settings, name: str, precision: str) -> dict:
    """Time a kind of work of `FORWARD`: images per second, published (in fp32) and ours."""
    sizes = settings.sizes
    setup = Setup(
        sizes.config, sizes.scale, sizes.forward, settings.device, sizes.repeats, precision
    )  # fmt: skip
    seconds = forward_seconds(setup, name)
    return {way: sizes.forward / statistics.median(values) for way, values in seconds.items()}

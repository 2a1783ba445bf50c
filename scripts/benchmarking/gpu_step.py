"""The report on a GPU: the training step in every mode, its curves and its limits."""

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import default_collate

from datasets import Batch, TaskDataset
from energy import get_config
from graph import TaskGraph
from label_cache import Budget, LabelCache
from loading.layouts import find_buildings, find_views
from precision import numerical_precision
from scripts.benchmarking.gpu_settings import SKIPPED, Cell, Settings, rooms, tasks
from scripts.benchmarking.published_schedule import PublishedStep
from scripts.benchmarking.step import (
    LAYER_CLASSES,
    REST,
    Setup,
    Work,
    alternating,
    build,
    check_gradients,
    finish,
    layer_class,
    own_step,
    product,
    random_batch,
)
from training.step import Step
from transfers import Scale
from utils import evenly_spaced

LABELS_BYTES = 2**34  # limit for cached labels
CURVE_LR = 4e-4  # the published rate for training from random weights
GRADIENTS = "gradients beside the published ones"


@dataclass(frozen=True)
class Way:
    """A way to compute the training step."""

    precision: str = "fp32"
    published: bool = False
    channels_last: bool = False
    compiled: bool = False
    cached: bool = False  # the frozen networks' outputs on labels
    captured: bool = False  # the whole step as one CUDA graph


YARDSTICK, FASTEST = "published, fp32", "bf16, channels last"
PUBLISHED = {YARDSTICK: Way(published=True), "published, tf32": Way("tf32", published=True)}
OWN = {
    "fp32": Way(),
    "tf32": Way("tf32"),
    "bf16": Way("bf16"),
    FASTEST: Way("bf16", channels_last=True),
}
CACHED = {"bf16, channels last, labels cached": Way("bf16", channels_last=True, cached=True)}
COMPILED = {"bf16, channels last, compiled": Way("bf16", channels_last=True, compiled=True)}
CAPTURED = {"bf16, channels last, CUDA graph": Way("bf16", channels_last=True, captured=True)}
WAYS = PUBLISHED | OWN | CACHED | CAPTURED | COMPILED
AGAIN = "fp32, again"  # of the curves: how far two equal runs are apart


def step_name(way: str, k: int, batch: int) -> str:
    """Return the name of the cell of a way, with k losses and that batch."""
    return f"{way}, k = {k}, batch {batch}"


# ---- cells --------------------------------------------------------------------------


def step_cells(settings: Settings) -> Iterator[Cell]:
    """The step: published, and ours in all modes that need no compiling."""
    yield GRADIENTS, partial(gradients, settings)
    for batch in settings.sizes.batches:
        for k in settings.sizes.counts:
            for name in PUBLISHED | OWN | CACHED:
                yield step_name(name, k, batch), partial(timed, settings, name, k, batch)


def captured_cells(settings: Settings) -> Iterator[Cell]:
    """The step as one CUDA graph."""
    return _first_batch(settings, CAPTURED)


def compiled_cells(settings: Settings) -> Iterator[Cell]:
    """The step with compiled networks."""
    return _first_batch(settings, COMPILED)


def _first_batch(settings: Settings, ways: dict[str, Way]) -> Iterator[Cell]:
    batch = settings.sizes.batches[0]
    for k in settings.sizes.counts:
        for name in ways:
            yield step_name(name, k, batch), partial(timed, settings, name, k, batch)


def limit_cells(settings: Settings) -> Iterator[Cell]:
    """Shares of the card's rates, and the time by class of layers."""
    batch = settings.sizes.batches[0]
    for name in (FASTEST, "tf32", "fp32"):
        for k in settings.sizes.counts:
            yield step_name(name, k, batch), partial(limits, settings, name, k, batch)


def curve_cells(settings: Settings) -> Iterator[Cell]:
    """The losses of the first steps, in every mode."""
    for name in [*OWN, AGAIN]:
        yield name, partial(curve, settings, OWN.get(name, Way()))


# ---- one step -----------------------------------------------------------------------


@cache
def _graph_on_cpu(config: str, scale: Scale, yardsticks: bool) -> TaskGraph:
    """Return the graph; its random weights take seconds to draw, so they are drawn once."""
    return build(Setup(config, scale, 1, torch.device("cpu"), 1), yardsticks)


def prepared(
    settings: Settings, way: Way, batch_size: int
) -> tuple[Setup, Callable[[Batch, Sequence[str]], object]]:
    """Return the setup of a way, and its training step on a copy of the same random weights."""
    sizes = settings.sizes
    setup = Setup(
        sizes.config, sizes.scale, batch_size, settings.device, sizes.repeats,
        way.precision, way.compiled, way.channels_last,
    )  # fmt: skip
    graph = copy.deepcopy(_graph_on_cpu(sizes.config, sizes.scale, way.published)).to(
        settings.device
    )
    if not way.published:
        labels = LabelCache(Budget(LABELS_BYTES)) if way.cached else None
        return setup, own_step(setup, graph, labels)
    step = PublishedStep(graph, get_config(sizes.config))

    def published(batch: Batch, names: Sequence[str]) -> None:
        with numerical_precision(settings.device, way.precision):
            step(batch, names)

    return setup, published


def gradients(settings: Settings) -> dict:
    """Compare both steps' gradients in float64. Raises UserError if they differ."""
    sizes = settings.sizes
    setup = Setup(sizes.config, sizes.scale, 2, settings.device, 1)
    return {"difference": check_gradients(setup, settings.losses[: sizes.counts[0]])}


def timed(settings: Settings, name: str, k: int, batch_size: int) -> dict:
    """Time the step: median, smallest and largest seconds; the first step; peak memory in bytes."""
    way, cuda = WAYS[name], settings.device.type == "cuda"
    if way.captured and not cuda:
        return {SKIPPED: "CUDA graphs need a GPU"}
    if way.compiled:
        torch.compiler.reset()  # forget code for other batch sizes: torch would generalise it
    setup, step = prepared(settings, way, batch_size)
    batch, names = random_batch(setup), settings.losses[:k]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    function: Callable[[], object] = lambda: step(batch, names)  # noqa: E731
    if way.captured:
        assert isinstance(step, Step)
        function = captured(step, batch, names)
    function()
    finish(settings.device)
    first = time.perf_counter() - began
    seconds = alternating({"step": function}, setup.repeats, settings.device)["step"]
    return {
        "seconds": statistics.median(seconds),
        "smallest": min(seconds),
        "largest": max(seconds),
        "first": first,
        "peak": torch.cuda.max_memory_allocated() if cuda else None,
    }


def captured(step: Step, batch: Batch, names: Sequence[str]) -> Callable[[], None]:
    """Record the step on this batch as a CUDA graph, and return the function that replays it.

    Before, the step is taken three times to warm up; the recording itself computes nothing.
    """
    for group in step.optimizer.param_groups:
        group["capturable"] = True
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(batch, names)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(batch, names)
    return graph.replay


# ---- curves -------------------------------------------------------------------------


def curve(settings: Settings, way: Way) -> dict:
    """Train from the same random weights on the same views: {"loss", "direct": value per step}."""
    sizes = settings.sizes
    _, step = prepared(settings, way, sizes.small_batch)
    assert isinstance(step, Step)
    for group in step.optimizer.param_groups:
        group["lr"] = CURVE_LR
    batches, names = room_batches(settings), settings.losses[: sizes.counts[0]]
    taken = [step(batches[number % len(batches)], names) for number in range(sizes.curve)]
    return {
        "loss": [float(losses["loss"]) for losses in taken],
        "direct": [float(losses["mae"]) for losses in taken],
    }


def room_batches(settings: Settings) -> list[Batch]:
    """Return up to four batches of views of the rooms, on the device."""
    folder, sizes = rooms(settings), settings.sizes
    views = find_views(tasks(settings), [folder], find_buildings([folder]))
    chosen = evenly_spaced(views, 4 * sizes.small_batch)
    data = TaskDataset(tasks(settings), chosen, sizes.scale.image_size)
    batches = []
    for first in range(0, len(data) - sizes.small_batch + 1, sizes.small_batch):
        numbers = range(first, first + sizes.small_batch)
        tensors = default_collate([data[number] for number in numbers])
        names = [task.name for task in tasks(settings)]
        values = {n: t.to(settings.device) for n, t in zip(names, tensors, strict=True)}
        batches.append(Batch(values, numbers))
    return batches


# ---- limits -------------------------------------------------------------------------


def limits(settings: Settings, name: str, k: int, batch_size: int) -> dict:
    """Compare a step with the rates of a matrix product and of a copy, taken in the same run.

    Returns the step's seconds, operations and bytes, both rates (operations and bytes per
    second), and by class of layers {"flops", "bytes", "allowed", "seconds"}. "allowed" are the
    seconds that the rates allow if each operation is bound by the slower of the two. "seconds"
    are the profiler's for one step: on a GPU those of its kernels.
    """
    way, sizes, device = WAYS[name], settings.sizes, settings.device
    setup, step = prepared(settings, way, batch_size)
    batch, names = random_batch(setup), settings.losses[:k]
    with Work() as work:
        step(batch, names)
    multiply = product(
        device, torch.bfloat16 if way.precision == "bf16" else torch.float32, sizes.matrix
    )
    source = torch.zeros(sizes.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def multiplied() -> None:
        with numerical_precision(device, way.precision):
            multiply()

    functions = {
        "step": lambda: step(batch, names),
        "product": multiplied,
        "copy": lambda: target.copy_(source),
    }
    times = alternating(functions, setup.repeats, device)
    seconds = {what: statistics.median(values) for what, values in times.items()}
    flops_rate = 2 * sizes.matrix**3 / seconds["product"]
    bytes_rate = 2 * sizes.copied / seconds["copy"]  # read and written
    spent = time_by_class(functions["step"], device)
    classes = {c: dict.fromkeys(("flops", "bytes", "allowed"), 0.0) for c in [*LAYER_CLASSES, REST]}
    for title, flops, moved in work.operations:
        classes[title]["flops"] += flops
        classes[title]["bytes"] += moved
        classes[title]["allowed"] += max(flops / flops_rate, moved / bytes_rate)
    return {
        "seconds": seconds["step"], "flops": work.flops, "bytes": work.bytes,
        "flops rate": flops_rate, "bytes rate": bytes_rate,
        "classes": {c: figures | {"seconds": spent[c]} for c, figures in classes.items()},
    }  # fmt: skip


def time_by_class(function: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Profile one call: the seconds of each class of layers."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiled:
        function()
        finish(device)
    spent: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        # kernels are listed once more on their own, as events of the GPU
        if event.device_type == DeviceType.CPU:
            total = event.self_device_time_total if cuda else event.self_cpu_time_total
            spent[layer_class(event.key)] += total / 1e6
    return {title: spent[title] for title in [*LAYER_CLASSES, REST]}

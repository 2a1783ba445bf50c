"""The benchmark's parts that compute: the training step, its cost and memory, forward passes."""

import gc
import math
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from datasets import Batch
from devices import compile_networks, forward_only
from energy import evaluate_losses, get_config, paths_for, perceptual_losses, yardstick_of
from graph import TaskGraph, edges_of
from measuring.consistency_energy import measure_batch
from models import load_network, make_optimizer, save_network
from scripts.benchmarking.published_schedule import PublishedStep
from tables import Row
from task_configs import TASKS
from training.label_cache import Budget, LabelCache
from training.step import Step
from transfers import TRANSFERS, Scale
from utils import UserError

ALLOWED = 1e-9  # relative difference of the two steps' gradients, in float64


@dataclass(frozen=True)
class Setup:
    """What is measured, and how."""

    config: str
    scale: Scale
    batch_size: int
    device: torch.device
    repeats: int
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False

    @property
    def how(self) -> str:
        """Precision and the rest, in words."""
        more = [name for name in ("compile", "channels_last") if getattr(self, name)]
        return ", ".join([self.precision, *more])


# ---- timing -------------------------------------------------------------------------


def alternating(
    ways: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each way, `repeats` times, in turn; one round before that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            _finish(device)
            start = time.perf_counter()
            way()
            _finish(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """How many times faster, of the medians, and the range over rounds: "3.1 (2.9 … 3.3)"."""
    each = [s / f for s, f in zip(slow, fast, strict=True)]
    middle = statistics.median(slow) / statistics.median(fast)
    return f"{middle:.2f} ({min(each):.2f} … {max(each):.2f})"


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- the training step --------------------------------------------------------------


def build(setup: Setup, yardsticks: bool = False) -> TaskGraph:
    """The networks of all losses of the configuration, with fresh weights, the same each time."""
    config = get_config(setup.config)
    names = ["mae", *perceptual_losses(config)]
    if yardsticks:
        names += [yardstick_of(name) for name in perceptual_losses(config)]
    networks = {}
    for edge in edges_of(paths_for(config, names)):
        torch.manual_seed(sum(map(ord, "".join(edge))))
        networks[edge] = TRANSFERS[edge].build(setup.scale)
    return TaskGraph(networks, config["paths"]["n(x)"]).to(setup.device)


def random_batch(setup: Setup) -> Batch:
    """Noise in every domain: what values there are does not change what is computed."""
    generator = torch.Generator().manual_seed(0)
    names = {path[0] for path in get_config(setup.config)["paths"].values()} - {"imagenet"}
    size = setup.scale.image_size
    shapes = {n: (setup.batch_size, TASKS[n].channels, size, size) for n in sorted(names)}
    made = {n: torch.rand(s, generator=generator).to(setup.device) for n, s in shapes.items()}
    return Batch(made, range(setup.batch_size))


def own_step(setup: Setup, graph: TaskGraph, labels: LabelCache | None = None) -> Step:
    """This project's step on the graph, prepared as the setup says."""
    if setup.channels_last:
        graph.to(memory_format=torch.channels_last)
    if setup.compile:
        compile_networks(graph.networks.values())
    optimizer = make_optimizer(graph.target.parameters())
    return Step(
        graph, get_config(setup.config), optimizer, setup.device,
        precision=setup.precision, labels=labels,
    )  # fmt: skip


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The length of two gradients' difference over the length of theirs, whole networks at once."""
    apart = sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True))
    return math.sqrt(apart / sum(float(g.square().sum()) for g in theirs))


def step_table(setup: Setup) -> list[Row]:
    """Seconds of a step, published and ours, for all losses and for two of them.

    Their gradients are compared first: raises UserError where, in float64, they differ.
    """
    names = perceptual_losses(get_config(setup.config))
    rows: list[Row] = [
        ("k", "published, s/step", "ours, s/step", "times faster",
         "ours, labels cached, s/step", "times faster",
         "gradients differ by", "in float64")
    ]  # fmt: skip
    for k in sorted({min(2, len(names)), len(names)}, reverse=True):
        rows.append((str(k), *_compared(setup, names[:k])))
        gc.collect()
    return rows


def _compared(setup: Setup, chosen: Sequence[str]) -> Row:
    exact = _check_gradients(setup, chosen)
    config, batch = get_config(setup.config), random_batch(setup)
    theirs = PublishedStep(build(setup, yardsticks=True), config)
    ours, cached = (
        own_step(setup, build(setup)),
        own_step(setup, build(setup), LabelCache(Budget(2**34))),
    )
    wanted = theirs(batch, chosen)
    ours(batch, chosen)
    apart = _difference_of(ours, wanted)
    del wanted
    ways = {
        "published": lambda: theirs(batch, chosen),
        "ours": lambda: ours(batch, chosen),
        "cached": lambda: cached(batch, chosen),
    }
    seconds = alternating(ways, setup.repeats, setup.device)
    slow, fast, faster = seconds.values()
    return (
        f"{statistics.median(slow):.3g}",
        f"{statistics.median(fast):.3g}", ratio(slow, fast),
        f"{statistics.median(faster):.3g}", ratio(slow, faster),
        f"{apart:.1e}", f"{exact:.1e}",
    )  # fmt: skip


def _check_gradients(setup: Setup, chosen: Sequence[str]) -> float:
    """How far the two steps' gradients are apart in float64, for two views; UserError if far.

    float64, as in float32 rounding alone moves the gradients of fresh networks by a per
    cent: the two steps' own agree with each other only where they round alike.
    """
    small = replace(setup, batch_size=min(2, setup.batch_size), precision="fp32")
    batch = random_batch(small)
    batch = Batch({name: value.double() for name, value in batch.items()}, batch.views)
    config = get_config(setup.config)
    wanted = PublishedStep(build(small, yardsticks=True).double(), config)(batch, chosen)
    ours = own_step(small, build(small).double())
    ours(batch, chosen)
    apart = _difference_of(ours, wanted)
    if not apart < ALLOWED:
        raise UserError(f"the two steps' gradients differ by {apart:.1e} of their length")
    return apart


def _difference_of(step: Step, wanted: Sequence[Tensor]) -> float:
    return difference([p.grad for p in step.parameters if p.grad is not None], wanted)


def cost_table(setup: Setup) -> list[Row]:
    """Seconds of our step over k and over the batch, and what a straight line leaves."""
    config = get_config(setup.config)
    names = perceptual_losses(config)
    step = own_step(setup, build(setup))
    rows: list[Row] = [("k", "batch", "s/step", "the straight line says")]
    wide = replace(setup, batch_size=4 * setup.batch_size)
    whole = random_batch(wide)
    counts = sorted({0, 1, 2, 4, len(names)} & set(range(len(names) + 1)))
    cases = [(k, setup.batch_size) for k in counts]
    line = [(min(2, len(names)), setup.batch_size * factor) for factor in (1, 2, 4)]
    for group, variable in ((cases, 0), (line, 1)):
        ways = {}
        for k, size in group:
            batch = Batch({name: value[:size] for name, value in whole.items()}, range(size))
            ways[str((k, size))] = lambda b=batch, k=k: step(b, names[:k])
        seconds = alternating(ways, setup.repeats, setup.device)
        found = [statistics.median(seconds[str(case)]) for case in group]
        for case, value, fitted in zip(group, found, _line([c[variable] for c in group], found),
                                       strict=True):  # fmt: skip
            rows.append((str(case[0]), str(case[1]), f"{value:.3g}", f"{fitted:.3g}"))
    return rows


def _line(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """The values at `xs` of the straight line nearest to the points."""
    slope, offset = statistics.linear_regression(xs, ys)
    return [offset + slope * x for x in xs]


# ---- memory -------------------------------------------------------------------------


def memory_table(setup: Setup) -> list[Row]:
    """Peak memory of two steps with all losses, each way in a process of its own."""
    rows: list[Row] = [("step", "peak, MiB", "networks and batch, MiB")]
    for way in ("published", "ours"):
        peak, before = memory_of(setup, way)
        rows.append((way, f"{peak:.0f}", f"{before:.0f}"))
    return rows


def memory_of(setup: Setup, way: str) -> tuple[float, float]:
    """Peak memory in MiB of a new process that takes two steps, and that before them."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (setup, way, torch.get_num_threads()))


def _peak_memory(setup: Setup, way: str, threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    config, batch = get_config(setup.config), random_batch(setup)
    graph = build(setup, yardsticks=True)
    step = PublishedStep(graph, config) if way == "published" else own_step(setup, graph)
    before = _memory(setup.device)
    for _ in range(2):
        step(batch, perceptual_losses(config))
    return _memory(setup.device), before


def _memory(device: torch.device) -> float:
    """The most this process has held so far, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # VmHWM begins anew with each program; getrusage's figure is inherited from the parent
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if not found:
        raise UserError("peak memory is read from /proc/self/status, which this system lacks")
    return int(found[1]) / 2**10


# ---- the share of the device's speed ------------------------------------------------


class _Operations(TorchDispatchMode):
    """Counts floating-point operations. torch's own counter fails at gradients of leaves."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def speed_table(setup: Setup) -> list[Row]:
    """Floating-point operations a second of our step, beside a large matrix product's."""
    config, batch = get_config(setup.config), random_batch(setup)
    names = perceptual_losses(config)
    step = own_step(setup, build(setup))
    with _Operations() as counter:
        step(batch, names)
    size = 8192 if setup.device.type == "cuda" else 2048
    dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32
    square = torch.rand(size, size, device=setup.device, dtype=dtype)
    seconds = alternating(
        {"step": lambda: step(batch, names), "product": lambda: square @ square},
        setup.repeats, setup.device,
    )  # fmt: skip
    rate = {
        "step": counter.total / statistics.median(seconds["step"]),
        "product": 2 * size**3 / statistics.median(seconds["product"]),
    }
    return [
        ("work", "TFLOP/s", "share of the product's"),
        (f"matrix product, {size}²", f"{rate['product'] / 1e12:.3g}", "100 %"),
        ("our step, all losses", f"{rate['step'] / 1e12:.3g}",
         f"{rate['step'] / rate['product']:.0%}"),
    ]  # fmt: skip


# ---- forward only -------------------------------------------------------------------


def forward_table(setup: Setup) -> list[Row]:
    """Images a second of the consistency energy and of the demo, published way and ours."""
    rows: list[Row] = [("work", "published, images/s", "ours, images/s", "times faster")]
    images = torch.rand(setup.batch_size, 3, *[setup.scale.image_size] * 2, device=setup.device)
    for name, ways in (("consistency energy", _energy_ways(setup, images)),
                       ("demo, one network", _demo_ways(setup, images))):  # fmt: skip
        seconds = alternating(ways, setup.repeats, setup.device)
        speed = [f"{len(images) / statistics.median(seconds[w]):.3g}" for w in ways]
        rows.append((name, *speed, ratio(seconds["published"], seconds["ours"])))
    return rows


def _energy_ways(setup: Setup, images: Tensor) -> dict[str, Callable[[], object]]:
    """Published: prefixes of paths computed anew for each path, and with autograd's records."""
    config = get_config("energy_calc_nogt")
    edges = edges_of(config["paths"])
    graph = TaskGraph({e: TRANSFERS[e].build(setup.scale) for e in edges}).to(setup.device)
    batch = {"rgb": images}

    def published() -> None:
        values = {n: graph.sample({n: path}, batch)[n] for n, path in config["paths"].items()}
        evaluate_losses(config, list(config["losses"]), values, "train_subset")

    def ours() -> None:
        with forward_only(setup.device, setup.precision):
            measure_batch(graph, "energy_calc_nogt", batch)

    return {"published": published, "ours": ours}


def _demo_ways(setup: Setup, images: Tensor) -> dict[str, Callable[[], object]]:
    """Published: for every image the weights are read again, and images go one by one."""
    transfer = TRANSFERS["rgb", "normal"]
    network: nn.Module = transfer.build(setup.scale).to(setup.device).eval()
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / transfer.checkpoint
    save_network(file, network, setup.scale)

    def published(folder: tempfile.TemporaryDirectory = folder) -> None:  # keeps the folder
        for image in images:
            load_network(network, file, setup.scale)
            network(image[None])

    def ours() -> None:
        with forward_only(setup.device, setup.precision):
            network(images)

    return {"published": published, "ours": ours}

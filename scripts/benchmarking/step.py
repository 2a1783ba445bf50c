"""Benchmarks of computation: the training step, its cost and memory, forward passes."""

import gc
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from datasets import Batch
from devices import compile_networks, peak_memory
from energy import get_config, paths_for, perceptual_losses, yardstick_of
from graph import TaskGraph, edges_of
from label_cache import Budget, LabelCache
from losses import evaluate_losses
from measuring.consistency_energy import measure_batch
from models import load_network, make_optimizer, save_network
from precision import forward_only, numerical_precision
from scripts.benchmarking.published_schedule import PublishedStep
from tables import Row
from task_configs import TASKS
from training.step import Step
from transfers import TRANSFERS, Scale
from utils import UserError

Result = TypeVar("Result")
ALLOWED = 1e-9  # relative difference of the two steps' gradients, in float64


@dataclass(frozen=True)
class Setup:
    """The settings of a benchmark."""

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
        """The precision and further options, as text."""
        options = [name for name in ("compile", "channels_last") if getattr(self, name)]
        return ", ".join([self.precision, *options])


# ---- timing -------------------------------------------------------------------------


def alternating(
    ways: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Time functions in `repeats` alternating rounds, after one warm-up round: {name: seconds}."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, function in ways.items():
            finish(device)
            start = time.perf_counter()
            function()
            finish(device)
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """Format the ratio of the medians, and its range over rounds: "3.10 (2.90 … 3.30)"."""
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    middle = statistics.median(slow) / statistics.median(fast)
    return f"{middle:.2f} ({min(ratios):.2f} … {max(ratios):.2f})"


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- the training step --------------------------------------------------------------


def build(setup: Setup, yardsticks: bool = False) -> TaskGraph:
    """Build the graph of all losses of the configuration, with reproducible random weights."""
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
    """Return a batch of noise. The values do not affect the amount of computation."""
    generator = torch.Generator().manual_seed(0)
    names = {path[0] for path in get_config(setup.config)["paths"].values()} - {"imagenet"}
    size = setup.scale.image_size
    shapes = {n: (setup.batch_size, TASKS[n].channels, size, size) for n in sorted(names)}
    values = {n: torch.rand(s, generator=generator).to(setup.device) for n, s in shapes.items()}
    return Batch(values, range(setup.batch_size))


def own_step(setup: Setup, graph: TaskGraph, labels: LabelCache | None = None) -> Step:
    """Return this project's training step on the graph, with the options of the setup."""
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
    """Return the relative difference ‖ours − theirs‖ / ‖theirs‖ of two gradients."""
    squared_distance = sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True))
    return math.sqrt(squared_distance / sum(float(g.square().sum()) for g in theirs))


def in_fp32(setup: Setup, function: Callable[[], Result]) -> Result:
    """Call the function in fp32. By default, PyTorch's convolutions on GPUs round to tf32."""
    with numerical_precision(setup.device):
        return function()


def step_table(setup: Setup) -> list[Row]:
    """Measure the seconds per step, published and ours, for all losses and for two of them.

    The gradients of both steps are compared first. Raises UserError if they differ in float64.
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
    float64_difference = check_gradients(setup, chosen)
    config, batch = get_config(setup.config), random_batch(setup)
    theirs = PublishedStep(build(setup, yardsticks=True), config)
    ours, cached = (
        own_step(setup, build(setup)),
        own_step(setup, build(setup), LabelCache(Budget(2**34))),
    )
    expected = in_fp32(setup, lambda: theirs(batch, chosen))
    ours(batch, chosen)
    gradient_difference = _difference_of(ours, expected)
    del expected
    functions = {
        "published": lambda: in_fp32(setup, lambda: theirs(batch, chosen)),
        "ours": lambda: ours(batch, chosen),
        "cached": lambda: cached(batch, chosen),
    }
    seconds = alternating(functions, setup.repeats, setup.device)
    slow, fast, faster = seconds.values()
    return (
        f"{statistics.median(slow):.3g}",
        f"{statistics.median(fast):.3g}", ratio(slow, fast),
        f"{statistics.median(faster):.3g}", ratio(slow, faster),
        f"{gradient_difference:.1e}", f"{float64_difference:.1e}",
    )  # fmt: skip


def check_gradients(setup: Setup, chosen: Sequence[str]) -> float:
    """Return the relative difference of both steps' gradients in float64, for two views.

    Raises UserError if it exceeds `ALLOWED`. float64 is needed because rounding in float32
    alone changes the gradients of untrained networks by about 1 %.
    """
    small = replace(setup, batch_size=min(2, setup.batch_size), precision="fp32")
    batch = random_batch(small)
    batch = Batch({name: value.double() for name, value in batch.items()}, batch.views)
    config = get_config(setup.config)
    expected = PublishedStep(build(small, yardsticks=True).double(), config)(batch, chosen)
    ours = own_step(small, build(small).double())
    ours(batch, chosen)
    gradient_difference = _difference_of(ours, expected)
    if not gradient_difference < ALLOWED:
        raise UserError(
            f"the two steps' gradients differ by {gradient_difference:.1e} of their length"
        )
    return gradient_difference


def _difference_of(step: Step, expected: Sequence[Tensor]) -> float:
    return difference([p.grad for p in step.parameters if p.grad is not None], expected)


def cost_table(setup: Setup) -> list[Row]:
    """Measure the seconds of our step over k and batch size, and fit a straight line to each."""
    config = get_config(setup.config)
    names = perceptual_losses(config)
    step = own_step(setup, build(setup))
    rows: list[Row] = [("k", "batch", "s/step", "the straight line says")]
    wide = replace(setup, batch_size=4 * setup.batch_size)
    largest_batch = random_batch(wide)
    counts = sorted({0, 1, 2, 4, len(names)} & set(range(len(names) + 1)))
    k_cases = [(k, setup.batch_size) for k in counts]
    batch_cases = [(min(2, len(names)), setup.batch_size * factor) for factor in (1, 2, 4)]
    for group, variable in ((k_cases, 0), (batch_cases, 1)):
        functions = {}
        for k, size in group:
            batch = Batch(
                {name: value[:size] for name, value in largest_batch.items()}, range(size)
            )
            functions[str((k, size))] = lambda b=batch, k=k: step(b, names[:k])
        seconds = alternating(functions, setup.repeats, setup.device)
        medians = [statistics.median(seconds[str(case)]) for case in group]
        for case, value, fitted in zip(group, medians, _line([c[variable] for c in group], medians),
                                       strict=True):  # fmt: skip
            rows.append((str(case[0]), str(case[1]), f"{value:.3g}", f"{fitted:.3g}"))
    return rows


def _line(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """Return the values at `xs` of the line fitted to the points by least squares."""
    slope, offset = statistics.linear_regression(xs, ys)
    return [offset + slope * x for x in xs]


# ---- memory -------------------------------------------------------------------------


def memory_table(setup: Setup) -> list[Row]:
    """Measure the peak memory of two steps with all losses, each method in a new process."""
    rows: list[Row] = [("step", "peak, MiB", "networks and batch, MiB")]
    for method in ("published", "ours"):
        peak, before = memory_of(setup, method)
        rows.append((method, f"{peak:.0f}", f"{before:.0f}"))
    return rows


def memory_of(setup: Setup, method: str) -> tuple[float, float]:
    """Return the peak memory in MiB of a new process that takes two steps, and that before them."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_memory, (setup, method, torch.get_num_threads()))


def _peak_memory(setup: Setup, method: str, threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    config, batch = get_config(setup.config), random_batch(setup)
    graph = build(setup, yardsticks=True)
    step = PublishedStep(graph, config) if method == "published" else own_step(setup, graph)
    before = _memory(setup.device)
    for _ in range(2):
        step(batch, perceptual_losses(config))
    return _memory(setup.device), before


def _memory(device: torch.device) -> float:
    """Return the peak memory of this process so far, in MiB."""
    peak = peak_memory(device)
    if peak is None:
        raise UserError("peak memory is read from /proc/self/status, which this system lacks")
    return peak


# ---- speed relative to a matrix product ---------------------------------------------


LAYER_CLASSES = {"convolution": "conv", "GroupNorm": "group_norm", "upsampling": "upsample"}
REST = "rest"


def layer_class(operation: str) -> str:
    """Return the class of layers that an operation of PyTorch belongs to, by its name."""
    name = operation.lower().replace("groupnorm", "group_norm")
    return next((title for title, part in LAYER_CLASSES.items() if part in name), REST)


class Work(TorchDispatchMode):
    """Lists the operations within its block: (layer class, floating-point operations, bytes).

    The bytes are those of the tensors that an operation takes and of those that it returns:
    what has to be read and written if every operation is a separate pass. PyTorch's own
    FlopCounterMode fails at gradients of leaves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
        tensors = tree_leaves((args, kwargs, result)) if _touches_memory(func) else []
        moved = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
        self.operations.append((layer_class(func._schema.name), flops, moved))
        return result

    @property
    def flops(self) -> int:
        return sum(flops for _, flops, _ in self.operations)

    @property
    def bytes(self) -> int:
        return sum(moved for _, _, moved in self.operations)


def _touches_memory(func) -> bool:
    """Whether an operation reads or writes values: views and empty tensors do not."""
    views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
    return not views and "empty" not in func._schema.name


def product(device: torch.device, dtype: torch.dtype, size: int) -> Callable[[], Tensor]:
    """Return a function that multiplies two matrices of `size` × `size` random values."""
    square = torch.rand(size, size, device=device).to(dtype)
    return lambda: square @ square


def speed_table(setup: Setup) -> list[Row]:
    """Measure the FLOP/s of our step relative to those of a large matrix product."""
    config, batch = get_config(setup.config), random_batch(setup)
    names = perceptual_losses(config)
    step = own_step(setup, build(setup))
    with Work() as work:
        step(batch, names)
    size = 8192 if setup.device.type == "cuda" else 2048
    dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32
    ways = {"step": lambda: step(batch, names), "product": product(setup.device, dtype, size)}
    seconds = alternating(ways, setup.repeats, setup.device)
    rate = {
        "step": work.flops / statistics.median(seconds["step"]),
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
    """Measure the images per second of the consistency energy and the demo, both ways."""
    rows: list[Row] = [("work", "published, images/s", "ours, images/s", "times faster")]
    for name in FORWARD:
        seconds = forward_seconds(setup, name)
        speed = [f"{setup.batch_size / statistics.median(s):.3g}" for s in seconds.values()]
        rows.append((name, *speed, ratio(seconds["published"], seconds["ours"])))
    return rows


def forward_seconds(setup: Setup, name: str) -> dict[str, list[float]]:
    """Time one kind of work of `FORWARD` on a batch: {"published": seconds, "ours": seconds}."""
    images = torch.rand(setup.batch_size, 3, *[setup.scale.image_size] * 2, device=setup.device)
    functions = FORWARD[name](setup, images)
    published = functions["published"]
    functions["published"] = lambda: in_fp32(setup, published)
    return alternating(functions, setup.repeats, setup.device)


def _energy_ways(setup: Setup, images: Tensor) -> dict[str, Callable[[], object]]:
    """Return both ways to compute the energy.

    The published one recomputes prefixes for each path, and records operations for autograd.
    """
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
    """Return both ways to run the demo.

    The published one processes images one by one, and reloads the weights for each.
    """
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


FORWARD = {"consistency energy": _energy_ways, "demo, one network": _demo_ways}

"""The training step beside what its operations take at the machine's rates."""

import gc
import statistics
from collections.abc import Callable, Sequence

import torch

from energy import get_config, perceptual_losses
from scripts.benchmarking.published_schedule import PublishedStep
from scripts.benchmarking.step import (
    Setup,
    Work,
    alternating,
    build,
    check_gradients,
    in_fp32,
    own_step,
    product,
    random_batch,
    ratio,
)
from tables import Row

COPIED = 2**28  # bytes, so that they are in no cache


def floor_table(setup: Setup) -> list[Row]:
    """Measure both steps for all losses and for two of them, beside their floors.

    The rates are those of a large matrix product and of a copy, timed in the same rounds. A
    step's floor is the sum over its operations of the longer of two times: that of the
    floating-point operations, and that of the bytes that the operation takes and returns. Raises
    UserError if the two steps' gradients differ in float64.
    """
    names = perceptual_losses(get_config(setup.config))
    rows: list[Row] = [
        ("k", "step", "s/step", "times faster", "gradients in float64 differ by",
         "TFLOP", "s at the product's rate", "GB", "s at the copy's rate", "floor, s",
         "floor / measured")
    ]  # fmt: skip
    for k in sorted({min(2, len(names)), len(names)}, reverse=True):
        rows += _beside_floors(setup, names[:k])
        gc.collect()
    return rows


def _beside_floors(setup: Setup, chosen: Sequence[str]) -> list[Row]:
    apart = check_gradients(setup, chosen)
    batch, size = random_batch(setup), 8192 if setup.device.type == "cuda" else 2048
    theirs = PublishedStep(build(setup, yardsticks=True), get_config(setup.config))
    ours = own_step(setup, build(setup))
    dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32
    multiply = product(setup.device, dtype, size)
    source = torch.zeros(COPIED, dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    steps: dict[str, Callable[[], object]] = {
        "published": lambda: in_fp32(setup, lambda: theirs(batch, chosen)),
        "ours": lambda: ours(batch, chosen),
    }
    rates: dict[str, Callable[[], object]] = {
        "product": lambda: in_fp32(setup, multiply),
        "copy": lambda: target.copy_(source),
    }
    works = {name: _work_of(step) for name, step in steps.items()}
    seconds = alternating(steps | rates, setup.repeats, setup.device)
    flops_rate = 2 * size**3 / statistics.median(seconds["product"])
    bytes_rate = 2 * COPIED / statistics.median(seconds["copy"])  # read and written
    rows: list[Row] = []
    for name, work in works.items():
        measured = statistics.median(seconds[name])
        floor = sum(max(f / flops_rate, b / bytes_rate) for _, f, b in work.operations)
        beside = name == "ours"
        rows.append((
            str(len(chosen)), name, f"{measured:.3g}",
            ratio(seconds["published"], seconds[name]) if beside else "1",
            f"{apart:.1e}" if beside else "",
            f"{work.flops / 1e12:.3g}", f"{work.flops / flops_rate:.3g}",
            f"{work.bytes / 1e9:.3g}", f"{work.bytes / bytes_rate:.3g}",
            f"{floor:.3g}", f"{floor / measured:.0%}",
        ))  # fmt: skip
    return rows


def _work_of(step: Callable[[], object]) -> Work:
    with Work() as work:
        step()
    return work

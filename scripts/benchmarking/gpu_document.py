"""The report on a GPU as a document, written from the stored results, however many there are."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from files import write_atomically
from scripts.benchmarking import gpu_runs
from scripts.benchmarking.gpu_data import PRECISIONS, SOURCES
from scripts.benchmarking.gpu_settings import FAILED, FULL, SKIPPED, TINY, Sizes
from scripts.benchmarking.gpu_step import (
    AGAIN,
    CACHED,
    CAPTURED,
    COMPILED,
    FASTEST,
    GRADIENTS,
    OWN,
    PUBLISHED,
    YARDSTICK,
    step_name,
)
from scripts.benchmarking.modes import apart
from scripts.benchmarking.step import FORWARD, LAYER_CLASSES, REST
from tables import Row, markdown_table
from utils import counted

Results = Mapping[str, Mapping]  # {part: {"about": …, "cells": {name: figures}}}
Form = Callable[[Mapping], str]

NOT_MEASURED, NOT_FINITE = "not measured", "not finite"
FASTER_GOALS = {2: 20.0, 8: 8.0}  # {k: times as fast as the published schedule in fp32}
SHARE_GOAL = 0.5  # of what operations or bytes allow
PICTURE = "gpu_losses.png"

INTRODUCTION = """\
# Measured on a GPU

`python -m scripts.gpu_report` measures everything below and writes this document. It needs one
NVIDIA GPU, no network connection and at most 25 minutes. The most important measurements come
first. Each result is stored as soon as it exists, and a command that was stopped continues where it
stopped.

The networks have random weights and the published size. Unless stated otherwise, k is the number of
perceptual losses in use, the batch is of random numbers, and times are medians after a warm-up,
with the device synchronised before and after. The yardstick is the published training step
([benchmarks.md](benchmarks.md)) in fp32.
"""


def document(results: Results) -> str:
    """Return the document. What has no result reads "not measured"."""
    sizes = TINY if _is_tiny(results) else FULL
    sections = {
        "Goals": goals(results, sizes),
        "Does it run?": runs(results),
        "The training step": steps(results, sizes),
        "Share of the card's rates": rates(results, sizes),
        "Time by class of layers": layers(results, sizes),
        "The first losses in every mode": curves(results, sizes),
        "Data": data(results, sizes),
        "Demo and energy": forward(results),
    }
    text = "\n".join(f"\n## {title}\n\n{section}" for title, section in sections.items())
    return f"{INTRODUCTION}\n{state(results)}\n{text}\n"


def _is_tiny(results: Results) -> bool:
    return any(part["about"].get("tiny") for part in results.values())


def state(results: Results) -> str:
    """Say what was measured on, one line for each way, or that nothing was."""
    lines: dict[str, list[str]] = {}
    for name, part in results.items():
        if about := part["about"]:
            line = (
                f"{about['device']}, driver {about['driver']}, "
                f"{counted(about['cards'], 'GPU')} in the machine; torch {about['torch']}, "
                f"Python {about['python']}; {about['date']}; "
                f"`{about['command']}`"
            )
            lines.setdefault(line, []).append(name)
    if not lines:
        return "**Nothing has been measured yet, because no GPU was available.**"
    text = "\n".join(f"- {', '.join(names)}: {line}" for line, names in lines.items())
    if _is_tiny(results):
        text = f"**No GPU: settings for a check only. The numbers mean nothing.**\n\n{text}"
    return text


def cell(results: Results, part: str, name: str, form: Form) -> str:
    """Return a cell's text: its figures in that form, or why there are none."""
    figures = results.get(part, {}).get("cells", {}).get(name)
    if figures is None:
        return NOT_MEASURED
    if FAILED in figures:
        reason = str(figures[FAILED]).replace("|", "/")
        return reason if reason == "out of memory" else f"failed: {reason}"
    if SKIPPED in figures:
        return f"{NOT_MEASURED}: {figures[SKIPPED]}"
    return form(figures)


# ---- the parts ----------------------------------------------------------------------


def runs(results: Results) -> str:
    names = (
        gpu_runs.TESTS, gpu_runs.SMALL, gpu_runs.FULL_SIZE, gpu_runs.RESUMED, gpu_runs.PARALLEL,
        gpu_runs.TORCHRUN,
    )  # fmt: skip
    rows: list[Row] = [
        (name, cell(results, "runs", name, lambda f: f"{f['said']} ({f['seconds']:.0f} s)"))
        for name in names
    ]
    return markdown_table(("what", "result"), rows)


def steps(results: Results, sizes: Sizes) -> str:
    lines = []
    difference = cell(results, "step", GRADIENTS, lambda f: f"{f['difference']:.1e}")
    lines += [f"Relative difference of the two steps' gradients in float64: {difference}.", ""]
    head = ("k", "batch", "step", "s/step", "times faster", "first step, s", "peak memory, GiB")
    rows: list[Row] = []
    for batch in sizes.batches:
        faster = COMPILED | CAPTURED if batch == sizes.batches[0] else {}
        for k in sizes.counts:
            yardstick = _step(results, YARDSTICK, k, batch)
            for way in [*PUBLISHED, *OWN, *CACHED, *faster]:
                name, part = step_name(way, k, batch), _part_of(way)
                rows.append((
                    str(k), str(batch), way,
                    cell(results, part, name, _seconds),
                    _times(yardstick, _step(results, way, k, batch)),
                    cell(results, part, name, lambda f: f"{f['first']:.3g}"),
                    cell(results, part, name, _peak),
                ))  # fmt: skip
    note = (
        "In brackets: the smallest and largest time. \"Labels cached\" is the time once the frozen "
        "networks' outputs on the labels are known. The first step of a compiled network includes "
        "the compilation, and that of a CUDA graph the recording."
    )  # fmt: skip
    return "\n".join([*lines, markdown_table(head, rows), "", note])


def _part_of(way: str) -> str:
    return "compiled" if way in COMPILED else "graphs" if way in CAPTURED else "step"


def _seconds(figures: Mapping) -> str:
    return "{seconds:.3g} ({smallest:.3g} … {largest:.3g})".format(**figures)


def _peak(figures: Mapping) -> str:
    return NOT_MEASURED if figures["peak"] is None else f"{figures['peak'] / 2**30:.1f}"


def _step(results: Results, way: str, k: int, batch: int) -> float | None:
    """Return the seconds of a step, or None if it was not measured."""
    cells = results.get(_part_of(way), {}).get("cells", {})
    return cells.get(step_name(way, k, batch), {}).get("seconds")


def _times(slow: float | None, fast: float | None) -> str:
    return f"{slow / fast:.2f}" if slow and fast else NOT_MEASURED


def _limit_names(sizes: Sizes) -> list[tuple[str, int, str]]:
    ways = (FASTEST, "tf32", "fp32")
    return [(way, k, step_name(way, k, sizes.batches[0])) for way in ways for k in sizes.counts]


def rates(results: Results, sizes: Sizes) -> str:
    columns: dict[str, Form] = {
        "s/step": lambda f: f"{f['seconds']:.3g}",
        "10¹² operations": lambda f: f"{f['flops'] / 1e12:.3g}",
        "GB": lambda f: f"{f['bytes'] / 1e9:.3g}",
        "product, 10¹²/s": lambda f: f"{f['flops rate'] / 1e12:.3g}",
        "copy, GB/s": lambda f: f"{f['bytes rate'] / 1e9:.3g}",
        "share of the product's rate": lambda f: f"{_shares(f)[0]:.0%}",
        "share of the copy's rate": lambda f: f"{_shares(f)[1]:.0%}",
        "share of what both allow": lambda f: f"{_shares(f)[2]:.0%}",
    }
    rows: list[Row] = [
        (way, str(k), *(cell(results, "limits", name, form) for form in columns.values()))
        for way, k, name in _limit_names(sizes)
    ]
    note = (
        f"Batch {sizes.batches[0]}. Operations are those of convolutions and matrix products. "
        "Bytes are those of the tensors that each operation of PyTorch takes and returns. Both "
        f"rates were measured in the same run: a product of {sizes.matrix} × {sizes.matrix} "
        "matrices in the step's precision, and a copy within the card's memory. The last column "
        "adds up the time that each operation needs at the slower of the two rates, and divides "
        "the sum by the time of the step."
    )
    return f"{markdown_table(('step', 'k', *columns), rows)}\n\n{note}"


def _shares(figures: Mapping) -> tuple[float, float, float]:
    """Return the shares of the matrix rate, of the memory rate, and of what both allow."""
    seconds = figures["seconds"]
    allowed = sum(part["allowed"] for part in figures["classes"].values())
    return (
        figures["flops"] / seconds / figures["flops rate"],
        figures["bytes"] / seconds / figures["bytes rate"],
        allowed / seconds,
    )


def layers(results: Results, sizes: Sizes) -> str:
    rows: list[Row] = []
    for way, k, name in _limit_names(sizes):
        for title in [*LAYER_CLASSES, REST]:
            rows.append((way, str(k), title, *(
                cell(results, "limits", name, lambda f, t=title, form=form: form(f["classes"][t]))  # type: ignore[misc]
                for form in (
                    lambda c: f"{c['seconds']:.3g}", lambda c: f"{c['allowed']:.3g}",
                    lambda c: f"{c['flops'] / 1e12:.3g}", lambda c: f"{c['bytes'] / 1e9:.3g}",
                )
            )))  # fmt: skip
    head = ("step", "k", "class", "s", "s that the rates allow", "10¹² operations", "GB")
    note = "The first time is that of the kernels in one step, measured by the profiler."
    return f"{markdown_table(head, rows)}\n\n{note}"


def curves(results: Results, sizes: Sizes) -> str:
    cells = results.get("curves", {}).get("cells", {})
    reference = cells.get("fp32", {})
    rows: list[Row] = []
    for name in [*OWN, AGAIN]:
        row = [name]
        for kind in ("loss", "direct"):
            row.append(cell(results, "curves", name, lambda f, kind=kind: _last(f[kind])))  # type: ignore[misc]
            row.append(_apart(cells.get(name, {}).get(kind), reference.get(kind)))
        rows.append(row)
    head = ("mode", f"loss after {sizes.curve} steps", "apart", "direct loss", "apart")
    note = (
        f"Trained on views of the rooms at k = {sizes.counts[0]}, batch "
        f"{sizes.small_batch}, from the same random weights. \"Apart\" is the largest relative "
        "difference from the curve of fp32."
    )  # fmt: skip
    shown = f"\n\n![the losses of every mode]({PICTURE})" if reference.get("loss") else ""
    return f"{markdown_table(head, rows)}\n\n{note}{shown}"


def _last(curve: list) -> str:
    return NOT_FINITE if curve[-1] is None else f"{curve[-1]:.5f}"


def _apart(curve: list | None, reference: list | None) -> str:
    """Return the largest relative difference of two curves. null is not finite."""
    if not curve or not reference:
        return NOT_MEASURED
    if None in curve + reference:
        return NOT_FINITE
    return apart(curve, reference)


def data(results: Results, sizes: Sizes) -> str:
    rows: list[Row] = []
    for source in SOURCES:
        waiting = f"training from {source}"
        rows.append((
            source,
            cell(results, "data", f"loading from {source}",
                 lambda f: f"{f['rate']:.3g} ({f['workers']} processes)"),
            cell(results, "data", waiting, lambda f: f"{f['seconds']:.3g}"),
            cell(results, "data", waiting, lambda f: f"{f['waiting']:.3g}"),
        ))  # fmt: skip
    head = ("source", "loading alone, views/s", "training, s/step", "of it waiting for data, s")
    note = (
        f"Rooms of {sizes.file_size} pixels, read at {sizes.scale.image_size}, batch "
        f"{sizes.batches[0]}; training at k = 2 in {FASTEST}. The files are in the system's cache."
    )
    return f"{markdown_table(head, rows)}\n\n{note}"


def forward(results: Results) -> str:
    rows: list[Row] = []
    for name in FORWARD:
        for precision in PRECISIONS:
            key = f"{name}, {precision}"
            rows.append((
                name, precision,
                cell(results, "forward", key, lambda f: f"{f['published']:.3g}"),
                cell(results, "forward", key, lambda f: f"{f['ours']:.3g}"),
            ))  # fmt: skip
    head = ("work", "our precision", "published (fp32), images/s", "ours, images/s")
    return markdown_table(head, rows)


# ---- goals --------------------------------------------------------------------------


def goals(results: Results, sizes: Sizes) -> str:
    """Return the table of goals: each is reached, not reached or not measured."""
    rows: list[Row] = []
    batch, tiny = sizes.batches[0], _is_tiny(results)
    for k, goal in FASTER_GOALS.items():
        slow = _step(results, YARDSTICK, k, batch)
        found = {way: _step(results, way, k, batch) for way in OWN | COMPILED | CAPTURED}
        times = {way: slow / seconds for way, seconds in found.items() if slow and seconds}
        best = max(times, key=lambda way: times[way], default=None)
        text = f"{times[best]:.1f} times: {best}" if best else ""
        rows.append((
            f"≥ {goal:.0f} times as fast as the published schedule in fp32 at k = {k}",
            *_verdict(times[best] >= goal if best else None, text, tiny),
        ))  # fmt: skip
    for k in FASTER_GOALS:
        figures = results.get("limits", {}).get("cells", {}).get(step_name(FASTEST, k, batch), {})
        share = _shares(figures)[2] if "classes" in figures else None
        text = "" if share is None else f"{share:.0%}: {FASTEST}"
        rows.append((
            f"≥ {SHARE_GOAL:.0%} of what operations or bytes allow, k = {k}",
            *_verdict(None if share is None else share >= SHARE_GOAL, text, tiny),
        ))  # fmt: skip
    return markdown_table((f"goal, batch {batch}", "measured", "verdict"), rows)


def _verdict(reached: bool | None, text: str, tiny: bool) -> tuple[str, str]:
    if tiny or reached is None:
        return NOT_MEASURED, NOT_MEASURED
    return text, "reached" if reached else "not reached"


# ---- files --------------------------------------------------------------------------


def write_document(results: Results, target: Path) -> None:
    """Write the document and, if there are curves, their picture beside it."""
    cells = results.get("curves", {}).get("cells", {})
    drawn = {name: figures for name, figures in cells.items() if "loss" in figures}
    write_atomically(target, lambda path: path.write_text(document(results), encoding="utf-8"))
    if drawn:
        draw_curves(drawn, target.with_name(PICTURE))


def draw_curves(cells: Mapping[str, Mapping], target: Path) -> None:
    """Draw the losses of every mode by step, as PNG: the weighted sum, and the direct loss."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    titles = {"loss": "weighted sum of the losses", "direct": "direct loss"}
    for axes, (kind, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name, figures in cells.items():
            values = np.array(figures[kind], dtype=float)  # null, not finite: a gap
            style = ":" if name == AGAIN else "-"
            axes.plot(np.arange(1, len(values) + 1), values, style, label=name)
        axes.set(title=title, xlabel="step")
    axes.legend()
    write_atomically(target, lambda path: figure.savefig(path, format="png", dpi=100))

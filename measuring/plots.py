"""Plots of the energy programs, each as PDF and PNG."""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from files import write_atomically
from measuring.statistics import Values, regression

LONGEST = 32  # characters of a name in a legend
NAMED = 12  # maximum number of queries for a legend; if there are more, there is none

# the colour-blind safe palette by Okabe and Ito
BLUE, RED = "#0072B2", "#D55E00"
OTHERS = "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#D55E00"


def save_figure(figure, stem: Path) -> None:
    """Write {stem}.pdf and {stem}.png. Raises UserError if they cannot be written."""
    for kind in ("pdf", "png"):
        # into memory first: on a full disk, Matplotlib's PDF writer fails with other errors
        buffer = io.BytesIO()
        # without its date, a figure of the same data is the same file
        undated = {"CreationDate": None} if kind == "pdf" else None
        figure.savefig(buffer, format=kind, dpi=150, metadata=undated)
        save = partial(Path.write_bytes, data=buffer.getvalue())
        write_atomically(stem.parent / f"{stem.name}.{kind}", save)


def plot_energy(
    stem: Path, energy: Values, error: Values, title: str, queries: Mapping[str, float] = {}
) -> None:
    """Plot standardised error over standardised energy of views, with the regression line.

    `queries`, {name: energy}, are drawn as vertical lines.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    named = 0 < len(queries) <= NAMED
    figure = Figure(figsize=(8.5 if named else 6, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(energy, error, s=14, alpha=0.6, linewidths=0, color=BLUE)
    line = regression(energy, error)
    if line:
        ends = np.array([energy.min(), energy.max()])
        axes.plot(ends, line.slope * ends + line.intercept, color=RED)
    for number, (name, value) in enumerate(queries.items()):
        look: dict = {"color": colormaps["viridis"](number / len(queries))}
        if named:
            style = "-" if number < len(OTHERS) else "--"
            look = {"color": OTHERS[number % len(OTHERS)], "linestyle": style}
            look["label"] = _readable(Path(name).name)
        axes.axvline(value, linewidth=1, **look)
    if named:
        figure.legend(loc="outside right upper", fontsize="small")  # never on the points
    axes.set_xlabel("consistency energy (mean absolute deviations)")
    axes.set_ylabel("L1 error of normals (standard deviations)")
    axes.set_title(title, fontsize="medium")
    save_figure(figure, stem)


def plot_shifts(stem: Path, rows: Mapping[str, Sequence], title: str) -> None:
    """Plot energy and, if there is one, error over the levels of each shift.

    `rows` are the columns of `measuring.shifts.summary`, whose first row holds the clean
    images. Each point is labelled with the ROC-AUC for distinguishing it from clean.
    """
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(rows["shift"][1:]))
    figure = Figure(figsize=(3.6 * len(kinds), 4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for position, (axes, kind) in enumerate(zip(panels, kinds, strict=True)):
        chosen = [0, *(i for i, name in enumerate(rows["shift"]) if name == kind)]
        labels = ["clean", *(f"{rows['level'][i]:g}" for i in chosen[1:])]
        energy, spread = ([rows[name][i] for i in chosen] for name in ("energy", "energy_se"))
        axes.errorbar(labels, energy, yerr=spread, color=BLUE, marker="o", capsize=3)
        for i, label in zip(chosen[1:], labels[1:], strict=True):
            low = rows["energy"][i] - np.nan_to_num(rows["energy_se"][i])
            axes.annotate(f"{rows['auc'][i]:.2f}", (label, low), xytext=(0, -5), va="top",
                          textcoords="offset points", ha="center", fontsize="small")  # fmt: skip
        axes.set_xlabel(kind)
        axes.margins(y=0.15)
        axes.set_xlim(-0.4, len(labels) - 0.6)  # x margins have no effect on shared axes
        if position == 0:
            axes.set_ylabel("energy ± se (mean absolute deviations)", color=BLUE)
        if "error" in rows:
            error_axes = axes.twinx()
            error = [rows["error"][i] for i in chosen]
            error_axes.plot(labels, error, color=RED, marker="s", linestyle="--")
            error_axes.set_ylim(0, 1.1 * max(rows["error"]))
            if position == len(kinds) - 1:
                error_axes.set_ylabel("L1 error of normals × 100", color=RED)
            else:
                error_axes.set_yticklabels([])
    heading = f"consistency energy under domain shift, {title}; numbers: ROC-AUC against clean"
    figure.suptitle(heading, fontsize="medium")
    save_figure(figure, stem)


def _readable(name: str) -> str:
    """Escape a file name for matplotlib.

    It would parse $ as a formula, fail at undecodable bytes, and hide labels that begin with _.
    Long names are shortened, so that the legend leaves room for the plot.
    """
    name = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"
    name = name.encode(errors="backslashreplace").decode().replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name

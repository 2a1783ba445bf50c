"""The plots of the energy programs, each as PDF and PNG."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from files import write_atomically
from measuring.statistics import Values, regression

NAMED = 12  # queries that a legend names; of more it gives the number alone

# Okabe and Ito's colours, which the colour-blind can tell apart
BLUE, RED = "#0072B2", "#D55E00"
OTHERS = "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#D55E00"


def save_figure(figure, stem: Path) -> None:
    """Write {stem}.pdf and {stem}.png."""
    for kind in ("pdf", "png"):
        save = partial(figure.savefig, format=kind, dpi=150)
        write_atomically(stem.parent / f"{stem.name}.{kind}", save)


def plot_energy(
    stem: Path, energy: Values, error: Values, title: str, queries: Mapping[str, float] = {}
) -> None:
    """Standardised error over standardised energy, a point a view, with the regression line.

    `queries` are drawn as vertical lines at their energies, {name: energy}.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(energy, error, s=14, alpha=0.6, linewidths=0, color=BLUE)
    line = regression(energy, error)
    if line:
        ends = np.array([energy.min(), energy.max()])
        axes.plot(ends, line.slope * ends + line.intercept, color=RED)
    for number, (name, value) in enumerate(queries.items()):
        look: dict = {"color": colormaps["viridis"](number / len(queries))}
        if len(queries) <= NAMED:
            style = "-" if number < len(OTHERS) else "--"
            look = {"color": OTHERS[number % len(OTHERS)], "linestyle": style}
            look["label"] = _readable(Path(name).name)
        axes.axvline(value, linewidth=1, **look)
    if queries and len(queries) <= NAMED:
        axes.legend(fontsize="small")
    axes.set_xlabel("consistency energy (mean absolute deviations)")
    axes.set_ylabel("L1 error of normals (standard deviations)")
    axes.set_title(title, fontsize="medium")
    save_figure(figure, stem)


def plot_shifts(stem: Path, rows: Mapping[str, Sequence], title: str) -> None:
    """Energy, and where there is one the error beside it, over the levels of each shift.

    `rows` are the columns of `measuring.shifts.summary`, whose first row is clean. The
    number at each point is the ROC-AUC of telling it from clean.
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
        axes.set_xlim(-0.4, len(labels) - 0.6)  # margins in x are lost where an axis is shared
        if position == 0:
            axes.set_ylabel("energy ± se (mean absolute deviations)", color=BLUE)
        if "error" in rows:
            beside = axes.twinx()
            error = [rows["error"][i] for i in chosen]
            beside.plot(labels, error, color=RED, marker="s", linestyle="--")
            beside.set_ylim(0, 1.1 * max(rows["error"]))
            if position == len(kinds) - 1:
                beside.set_ylabel("L1 error of normals × 100", color=RED)
            else:
                beside.set_yticklabels([])
    heading = f"consistency energy under domain shift, {title}; numbers: ROC-AUC against clean"
    figure.suptitle(heading, fontsize="medium")
    save_figure(figure, stem)


def _readable(name: str) -> str:
    """A file's name as text that matplotlib draws as it is: no bytes, no formulas, not hidden."""
    name = name.encode(errors="backslashreplace").decode().replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name

"""The part of the report about the energy: its correlation with the error, and ROC-AUCs."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from files import read_json
from measuring.plots import BLUE, RED, save_figure
from measuring.reproduction.results import NOT_MEASURED
from measuring.reproduction.steps import Places, energy_networks
from measuring.statistics import pearson
from tables import markdown_table, read_csv


def energy_part(places: Places, figures: Path) -> str:
    """The energy against the error and against degradations, for both kinds of networks."""
    title = "## Energy"
    rows, shifts = [], {}
    for name in energy_networks(places):
        keys = f"energy_val_{name}", f"energy_{name}"
        if any(statistics_of(places, key) for key in keys):
            cells = [correlation(places, key, "pearson") for key in keys]
            cells += [correlation(places, keys[1], "spearman"), _per_building(places, name)]
            rows.append([name, *cells])
        if found := areas(places, name):
            shifts[name] = found
    if not rows:
        return f"{title}\n\n{NOT_MEASURED}"
    head = ["networks domain → normal, trained on", "validation: r", "test: r", "test: ρ",
            "test: r of each building, median (range)"]  # fmt: skip
    parts = [title, markdown_table(head, rows)]
    best = chosen_on_validation(places)
    if best:
        parts.append(f"By validation, the networks trained on {best} are chosen.")
    if shifts:
        kinds = next(iter(shifts.values()))
        lines = [[kind, f"{level:g}", *(f"{table[kind, level]:.3f}" for table in shifts.values())]
                 for kind, level in kinds]  # fmt: skip
        parts += ["ROC-AUC for telling degraded from clean test views by their energy:",
                  markdown_table(["degradation", "level", *shifts], lines)]  # fmt: skip
        plot_auc(figures / "auc", shifts)
        parts.append("![ROC-AUC over the levels](results/auc.png)")
    return "\n\n".join(parts)


def statistics_of(places: Places, key: str) -> dict | None:
    """Return the statistics of an evaluation of the energy; None if it was not done."""
    file = places.results(key) / "statistics.json"
    return read_json(file) if file.is_file() else None


def correlation(places: Places, key: str, name: str) -> str:
    """Return pearson or spearman of an evaluation of the energy, with its interval, as text."""
    statistics = statistics_of(places, key)
    if statistics is None or statistics[name]["value"] is None:
        return NOT_MEASURED
    found = statistics[name]
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"


def chosen_on_validation(places: Places) -> str | None:
    """Return which networks have the larger r on validation views; None if that is not known."""
    found = {}
    for name in energy_networks(places):
        statistics = statistics_of(places, f"energy_val_{name}") or {}
        found[name] = statistics.get("pearson", {}).get("value")
    if any(value is None for value in found.values()):
        return None
    return max(found, key=lambda name: found[name])


def _per_building(places: Places, name: str) -> str:
    """Return the median and the range of r within each test building."""
    file = places.results(f"energy_{name}") / "data.csv"
    if not file.is_file():
        return NOT_MEASURED
    values = read_csv(file, ["normalized_energy", "normalized_error"])
    with open(file, newline="", encoding="utf-8") as opened:
        buildings = np.array([row["building"] for row in csv.DictReader(opened)])
    found = [pearson(*(values[n][buildings == b] for n in values)).value
             for b in np.unique(buildings)]  # fmt: skip
    finite = [r for r in found if np.isfinite(r)]
    if not finite:
        return NOT_MEASURED
    return f"{np.median(finite):.2f} ({min(finite):.2f} … {max(finite):.2f}), n = {len(finite)}"


def areas(places: Places, name: str) -> dict[tuple[str, float], float]:
    """Return the ROC-AUC of each level of degradation, {(kind, level): area}; {} if not measured.

    The levels of each kind are in their order of strength.
    """
    file = places.results(f"shift_{name}") / "shift.csv"
    if not file.is_file():
        return {}
    values = read_csv(file, ["level", "auc"])
    with open(file, newline="", encoding="utf-8") as opened:
        kinds = [row["shift"] for row in csv.DictReader(opened)]
    rows = list(zip(kinds, values["level"], values["auc"], strict=True))
    return {(kind, float(level)): float(auc) for kind, level, auc in rows if kind != "clean"}


def plot_auc(stem: Path, shifts: Mapping[str, Mapping[tuple[str, float], float]]) -> None:
    """Plot the ROC-AUC over the levels of each degradation, a line for each kind of networks."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(kind for kind, _ in next(iter(shifts.values()))))
    figure = Figure(figsize=(3.2 * len(kinds), 3.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0], kinds,
                          strict=True):  # fmt: skip
        for (name, table), colour in zip(shifts.items(), (BLUE, RED), strict=True):
            at = {level: auc for (k, level), auc in table.items() if k == kind}
            axes.plot([f"{level:g}" for level in at], list(at.values()), marker="o",
                      color=colour, label=f"trained on {name}")  # fmt: skip
        axes.axhline(0.5, color="grey", linewidth=0.8)
        axes.set_xlabel(kind)
    figure.axes[0].set_ylabel("ROC-AUC against clean")
    figure.axes[0].legend(fontsize="small")
    save_figure(figure, stem)

"""The part of the report about the energy: its correlation with the error, and ROC-AUCs.

All intervals are of bootstraps over buildings.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from files import read_json
from measuring.plots import BLUE, RED, plot_energy, save_figure
from measuring.reproduction.results import NOT_MEASURED
from measuring.reproduction.steps import OTHER_SETS, Places, energy_networks
from measuring.statistics import (
    Table,
    Values,
    auc_over_buildings,
    fitted_weights,
    over_buildings,
    pearson,
    roc_auc,
    spearman,
    standardised,
    standardised_paths,
)
from tables import markdown_table, read_csv


class Estimate(NamedTuple):
    """A measured value with its interval; NaN without one."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Energies:
    """An evaluation of the energy of labelled views: its result files."""

    table: Table  # (N,) each: the losses, and the standardised energy and error
    statistics: Mapping
    buildings: list[str]

    @property
    def pair(self) -> tuple[Values, Values]:
        """The standardised energy and error, (N,) each."""
        return self.table["normalized_energy"], self.table["normalized_error"]

    def weighted(self, other: "Energies") -> "Energies":
        """The same with the weights of the paths that fit the errors of other views best."""
        paths = standardised_paths(other.table, other.statistics)
        weights = fitted_weights(paths, other.table["error"])
        energy = standardised_paths(self.table, other.statistics) @ weights
        return replace(self, table={**self.table, "normalized_energy": energy})

    def of_each_path(self) -> dict[str, float]:
        """Pearson's r of each path's disagreement alone, {domain: r}."""
        error = self.table["error"]
        return {name.removeprefix("percep_").strip("_"): pearson(self.table[name], error).value
                for name in self.statistics["columns"]}  # fmt: skip

    def correlations(self) -> dict[str, Estimate]:
        """Pearson's r and Spearman's ρ, {"pearson": …, "spearman": …}; {} if not defined."""
        values = {"pearson": pearson(*self.pair).value, "spearman": spearman(*self.pair).value}
        if any(map(math.isnan, values.values())):
            return {}
        intervals = over_buildings(*self.pair, self.buildings)
        return {name: Estimate(value, *intervals[name]) for name, value in values.items()}

    def of_each_building(self) -> list[float]:
        """Pearson's r within each building, where it is defined."""
        names = np.asarray(self.buildings)
        found = [pearson(*(values[names == b] for values in self.pair)).value
                 for b in np.unique(names)]  # fmt: skip
        return [r for r in found if np.isfinite(r)]


def read_energies(places: Places, key: str) -> Energies | None:
    """Return an evaluation of the energy; None if it was not done."""
    folder = places.results(key)
    if not all((folder / name).is_file() for name in ("data.csv", "statistics.json")):
        return None
    statistics = read_json(folder / "statistics.json")
    names = [*statistics["columns"], "error", "normalized_energy", "normalized_error"]
    buildings = _texts(folder / "data.csv", "building")
    return Energies(read_csv(folder / "data.csv", names), statistics, buildings)


def _texts(file: Path, column: str) -> list[str]:
    with open(file, newline="", encoding="utf-8") as opened:
        return [row[column] for row in csv.DictReader(opened)]


# ---- the part of the page -------------------------------------------------------------


def energy_part(places: Places, figures: Path) -> str:
    """The energy against the error, against other rooms and against degradations."""
    title = "## Energy"
    parts = [
        *_correlation_part(places, figures),
        *_sets_part(places),
        *_shifts_part(places, figures),
    ]
    return "\n\n".join([title, *(parts or [NOT_MEASURED])])


def _correlation_part(places: Places, figures: Path) -> list[str]:
    rows, paths = [], {}
    for name in energy_networks(places):
        validation, test = (read_energies(places, f"energy{of}_{name}") for of in ("_val", ""))
        if validation or test:
            rows.append([name, _found(validation, "pearson"), *_of_test(test)])
        if validation and test:
            rows.append([f"{name}, weighted", "fitted", *_of_test(test.weighted(validation))])
        if test:
            paths[name] = test.of_each_path()
    if not rows:
        return []
    head = ["networks domain → normal, trained on", "validation: r", "test: r", "test: ρ",
            "test: r of each building, median (range)"]  # fmt: skip
    parts = [
        markdown_table(head, rows),
        "*Weighted*: in place of the mean over the paths, a sum with weights ≥ 0, which fit the "
        "errors of the validation views best.",
    ]
    if paths:
        lines = [[domain, *(f"{of_path[domain]:.2f}" for of_path in paths.values())]
                 for domain in next(iter(paths.values()))]  # fmt: skip
        parts += ["Each path alone, test views, r:",
                  markdown_table(["path through", *paths], lines)]  # fmt: skip
    best = chosen_on_validation(places)
    if best is None:
        return parts
    parts.append(f"By validation, the networks trained on {best} are chosen.")
    if energies := read_energies(places, f"energy_{best}"):
        plot_energy(figures / "energy", *energies.pair, f"{len(energies.buildings)} test views")
        parts.append("![error over energy of the test views](results/energy.png)")
    return parts


def _found(energies: Energies | None, name: str) -> str:
    estimate = energies.correlations().get(name) if energies else None
    return str(estimate) if estimate else NOT_MEASURED


def _of_test(energies: Energies | None) -> list[str]:
    """The cells of test views: r, ρ, and r within the buildings."""
    inside = energies.of_each_building() if energies else []
    each = (f"{np.median(inside):.2f} ({min(inside):.2f} … {max(inside):.2f}), "
            f"n = {len(inside)}" if inside else NOT_MEASURED)  # fmt: skip
    return [_found(energies, "pearson"), _found(energies, "spearman"), each]


def chosen_on_validation(places: Places) -> str | None:
    """Return which networks have the larger r on validation views; None if that is not known."""
    found = {}
    for name in energy_networks(places):
        energies = read_energies(places, f"energy_val_{name}")
        found[name] = pearson(*energies.pair).value if energies else math.nan
    if any(map(math.isnan, found.values())):
        return None
    return max(found, key=lambda name: found[name])


# ---- other rooms ------------------------------------------------------------------------


def _sets_part(places: Places) -> list[str]:
    """The energy of other rooms than those trained on, against the test rooms."""
    rows = []
    for name in energy_networks(places):
        for kind, area in areas_of_sets(places, name).items():
            energies = read_energies(places, f"energy_{name}_{kind}")
            assert energies is not None
            found = energies.correlations()
            cells = [str(found[key]) if found else NOT_MEASURED for key in ("pearson", "spearman")]
            rows.append([kind, name, str(len(energies.buildings)), str(area), *cells])
    if not rows:
        return []
    head = ["views", "networks trained on", "number", "ROC-AUC", "r", "ρ"]
    return [
        "Other kinds of rooms: ROC-AUC for telling them from the test rooms by their energy, and "
        "the correlation of energy and error among them:",
        markdown_table(head, rows),
    ]


def areas_of_sets(places: Places, name: str) -> dict[str, Estimate]:
    """Return the ROC-AUC of each other set of rooms against the test rooms, {set: area}."""
    clean, result = read_energies(places, f"energy_{name}"), {}
    for kind in OTHER_SETS:
        other = read_energies(places, f"energy_{name}_{kind}")
        if clean is None or other is None:
            continue
        by = clean.statistics
        columns = [standardised(part.table, by)["normalized_energy"] for part in (clean, other)]
        buildings = [f"{number} {building}" for number, part in enumerate((clean, other))
                     for building in part.buildings]  # fmt: skip
        result[kind] = _area(columns[0], columns[1], buildings)
    return result


def _area(clean: Values, shifted: Values, buildings: list[str]) -> Estimate:
    """The ROC-AUC with its interval; `buildings` are of the clean views, then of the others."""
    energies = np.concatenate([clean, shifted])
    is_shifted = np.arange(len(energies)) >= len(clean)
    ends = auc_over_buildings(energies, is_shifted, buildings)
    return Estimate(roc_auc(clean, shifted), *ends)


# ---- degradations -----------------------------------------------------------------------


class Level(NamedTuple):
    """The views at a level of a degradation: mean error (L1 × 100), and ROC-AUC against clean."""

    error: float
    area: Estimate


def _shifts_part(places: Places, figures: Path) -> list[str]:
    """ROC-AUCs of each level of each degradation, as a table and a figure."""
    shifts = {name: found for name in energy_networks(places) if (found := levels(places, name))}
    if not shifts:
        return []
    first = next(iter(shifts.values()))
    lines = [[kind, f"{level:g}", f"{found.error:.2f}",
              *(str(of_kind[kind, level].area) for of_kind in shifts.values())]
             for (kind, level), found in first.items()]  # fmt: skip
    plot_auc(figures / "auc", shifts)
    return [
        "Degraded test views: the direct error, and the ROC-AUC for telling them from clean ones "
        "by their energy, with both kinds of networks:",
        markdown_table(["degradation", "level", "direct L1 × 100", *shifts], lines),
        "![ROC-AUC over the levels](results/auc.png)",
    ]


def levels(places: Places, name: str) -> dict[tuple[str, float], Level]:
    """Return each level of degradation, {(kind, level): found}; {} if not measured.

    The levels of each kind are in their order of strength.
    """
    file = places.results(f"shift_{name}") / "shift_images.csv"
    if not file.is_file():
        return {}
    values = read_csv(file, ["level", "error", "normalized_energy"])
    energies, kinds = values["normalized_energy"], np.array(_texts(file, "shift"))
    buildings = np.array([image.partition("/")[0] for image in _texts(file, "image")])
    clean, result = kinds == "clean", {}
    for kind, level in dict.fromkeys(zip(kinds, values["level"], strict=True)):
        at = (kinds == kind) & (values["level"] == level)
        if kind != "clean":
            area = _area(energies[clean], energies[at], [*buildings[clean], *buildings[at]])
            result[str(kind), float(level)] = Level(100 * values["error"][at].mean(), area)
    return result


def plot_auc(stem: Path, shifts: Mapping[str, Mapping[tuple[str, float], Level]]) -> None:
    """Plot the ROC-AUC over the levels of each degradation, a line for each kind of networks."""
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(kind for kind, _ in next(iter(shifts.values()))))
    figure = Figure(figsize=(3.2 * len(kinds), 3.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0], kinds,
                          strict=True):  # fmt: skip
        for (name, table), colour in zip(shifts.items(), (BLUE, RED), strict=False):
            at = {f"{level:g}": of.area for (k, level), of in table.items() if k == kind}
            axes.plot(list(at), [area.value for area in at.values()], marker="o", color=colour,
                      label=f"trained on {name}")  # fmt: skip
            axes.fill_between(list(at), [area.low for area in at.values()],
                              [area.high for area in at.values()], color=colour, alpha=0.15,
                              linewidth=0)  # fmt: skip
        axes.axhline(0.5, color="grey", linewidth=0.8)
        axes.set_xlabel(kind)
    figure.axes[0].set_ylabel("ROC-AUC against clean")
    figure.axes[0].legend(fontsize="small")
    save_figure(figure, stem)

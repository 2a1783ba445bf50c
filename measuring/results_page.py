"""The report of scripts.reproduce: a page of tables and figures, from the result files alone.

What has not been measured is said to be so.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from files import make_folder, read_json, write_atomically
from measuring.closing_table import DIRECT
from measuring.plots import BLUE, OTHERS, RED, save_figure
from measuring.reproduction import (
    EQUAL_TIME,
    OTHER_SETS,
    SCALES,
    Places,
    Size,
    Stage,
    energy_networks,
    size_text,
)
from measuring.statistics import Difference, Values, paired_difference, pearson
from tables import markdown_table, read_csv
from utils import UserError, as_arguments, duration

NOT_MEASURED = "not measured"
Images = dict[str, dict[str, Values]]  # {network: {error: (N,)}}


def write_page(page: Path, folder: Path, scale: str, seeds: int, stages: Sequence[Stage]) -> None:
    """Write the page, and its figures into the folder `results` beside it.

    Raises UserError if a result file cannot be read, or the page cannot be written.
    """
    size, places = SCALES[scale], Places(folder)
    figures = make_folder(page.parent / "results")
    parts = [
        _head(folder, scale, size, seeds, stages),
        *(_target(places, size, target) for target in size.targets),
        _shifts(places, size, figures),
        _fractions(places, size),
        _adaptation(places, size),
        _energy(places, figures),
        _commands(folder, stages),
    ]
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    write_atomically(page, lambda name: name.write_text(text, encoding="utf-8"))


# ---- reading ------------------------------------------------------------------------


def read_images(places: Places, key: str) -> tuple[Images, list[str]] | None:
    """Return the errors of an evaluation and the images' buildings; None if it was not done.

    Raises UserError if its file cannot be read.
    """
    file = places.results(key) / "images.csv"
    if not file.is_file():
        return None
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        networks = list(dict.fromkeys(row["network"] for row in rows))
        names = [name for name in rows[0] if name not in ("", "network", "building", "view")]
        errors = {
            network: {name: np.array([float(row[name] or "nan") for row in rows
                                      if row["network"] == network]) for name in names}
            for network in networks
        }  # fmt: skip
        return errors, [row["building"] for row in rows if row["network"] == networks[0]]
    except (OSError, KeyError, ValueError, IndexError):
        raise UserError(f"{file} is not what scripts.evaluate writes: remove its stage's file, to "
                        f"measure it again") from None  # fmt: skip


def by_method(errors: Images) -> dict[str, list[dict[str, Values]]]:
    """Group networks named "consistency 0", "consistency 1", … by method, a seed each."""
    groups: dict[str, list[dict[str, Values]]] = {}
    for label, rows in errors.items():
        method, _, seed = label.rpartition(" ")
        groups.setdefault(method if seed.isdecimal() and method else label, []).append(rows)
    return groups


def over_seeds(runs: Sequence[Mapping[str, Values]], row: str) -> Values:
    """Return each image's mean over the seeds of an error: (N,)."""
    return np.mean([run[row] for run in runs], axis=0)


def perceptual_rows(rows: Sequence[str], end: str = "true") -> list[str]:
    """Return the names of the perceptual errors against truth, or those of another end."""
    return [row for row in rows if row.startswith("percep_") and row.endswith(end)]


def mean_change(
    first: Sequence[Mapping[str, Values]], second: Sequence[Mapping[str, Values]],
    rows: Sequence[str], buildings: Sequence[str], resamples: int,
) -> Difference:  # fmt: skip
    """Return the change of the mean of several errors, each in units of its mean of `first`."""
    bases = {row: np.nanmean(over_seeds(first, row)) for row in rows}
    bases = {row: base for row, base in bases.items() if base > 0}  # of 0 there is no per cent
    if not bases:
        return Difference(*[float("nan")] * len(Difference._fields))
    one, two = (np.mean([over_seeds(runs, row) / base for row, base in bases.items()], axis=0)
                for runs in (first, second))  # fmt: skip
    return paired_difference(one, two, buildings, resamples)


def change_text(change: Difference) -> str:
    """Format a change in per cent with its interval."""
    if not np.isfinite(change.percent):
        return "–"
    interval = f" [{change.percent_low:+.1f}, {change.percent_high:+.1f}]"
    return f"{change.percent:+.1f} %{interval if np.isfinite(change.percent_low) else ''}"


# ---- the parts of the page ----------------------------------------------------------


def _head(folder: Path, scale: str, size: Size, seeds: int, stages: Sequence[Stage]) -> str:
    marks = [m for m in (_mark(folder, stage) for stage in stages) if m]
    dates = sorted(mark["finished"] for mark in marks)
    machines = dict.fromkeys(
        f"{m['hardware']['gpu'] or m['hardware']['processor']}, {m['hardware']['cores']} cores, "
        f"torch {m['hardware']['torch']}" for m in marks
    )  # fmt: skip
    seconds = sum(mark["seconds"] for mark in marks)
    flags = " ".join(as_arguments({"scale": scale, "seeds": seeds}))
    lines = [
        "# Results",
        f"Written by `python -m scripts.reproduce {flags}`, which makes "
        f"everything from nothing. {len(marks)} of {len(stages)} stages are done"
        + (f", from {dates[0]} to {dates[-1]}, in {duration(seconds)}." if marks else "."),
        f"Hardware: {'; '.join(machines) or NOT_MEASURED}.",
        f"The data are rendered rooms, half of them hard ones: {size.train} buildings with "
        f"{size.views} views each for training, {size.val} for validation and {size.test} for the "
        f"test. Images have {size.image_size} pixels, networks width {size.width}. Validation "
        f"chose the baselines' epochs and the energy's networks. The test views were rendered "
        f"after all training.",
        f"Intervals (95 %, in brackets) are of paired bootstraps over buildings, of the images' "
        f"means over seeds ({size.resamples} draws). They do not hold the spread between seeds, "
        f"which stands after ±.",
    ]
    return "\n\n".join(lines)


def _mark(folder: Path, stage: Stage) -> dict | None:
    file = folder / "stages" / f"{stage.name.replace('/', '_')}.json"
    return read_json(file) if file.is_file() else None


def _target(places: Places, size: Size, target: str) -> str:
    """Each error of each method on the test rooms, and the change by consistency everywhere."""
    title = f"## {target.capitalize()}: equal steps, equal time"
    read = read_images(places, f"test_{target}")
    if read is None:
        return f"{title}\n\n{NOT_MEASURED}"
    errors, buildings = read
    groups = by_method(errors)
    pair = [groups.get(name) for name in ("without", "consistency")]
    head = ["error", *groups, *(["consistency against without"] if all(pair) else [])]
    rows = []
    for row in next(iter(errors.values())):
        rows.append([row, *(_mean_text(runs, row) for runs in groups.values())])
        if pair[0] and pair[1]:
            change = mean_change(pair[0], pair[1], [row], buildings, size.resamples)
            rows[-1].append(change_text(change))
    parts = [title, markdown_table(head, rows)]
    changes = []
    for place, key in {"test rooms": "test", **{k: k for k in OTHER_SETS}}.items():
        found = read_images(places, f"{key}_{target}")
        if found:
            changes += _changes(place, by_method(found[0]), found[1], size)
    if changes:
        head = ["views", "consistency against", "direct", "perceptual, predicted",
                "perceptual, true"]  # fmt: skip
        parts += ["Change of the errors, in per cent; perceptual errors are averaged over the "
                  "domains:", markdown_table(head, changes)]  # fmt: skip
    return "\n\n".join(parts)


def _mean_text(runs: Sequence[Mapping[str, Values]], row: str) -> str:
    means = [float(np.nanmean(run[row])) for run in runs]
    spread = f" ± {np.std(means, ddof=1):.3f}" if len(means) > 1 else ""
    return f"{np.mean(means):.3f}{spread}"


def _changes(
    place: str, groups: Mapping[str, list], buildings: Sequence[str], size: Size
) -> list[list[str]]:
    """Return a row for each method that consistency is compared with."""
    rows = []
    for other in ("baseline", "without", EQUAL_TIME.replace(",", ""), "random_perceptual"):
        if other not in groups or "consistency" not in groups:
            continue
        cells = []
        for names in ([DIRECT], *(perceptual_rows(list(groups[other][0]), end)
                                  for end in ("predicted", "true"))):  # fmt: skip
            cells.append(change_text(mean_change(
                groups[other], groups["consistency"], names, buildings, size.resamples,
            )) if names else NOT_MEASURED)  # fmt: skip
        rows.append([place, other, *cells])
    return rows


def _shifts(places: Places, size: Size, figures: Path) -> str:
    """The direct and the perceptual error over the levels of each degradation: a figure."""
    target = size.targets[0]
    levels: dict[str, dict[float, dict[str, tuple[float, float]]]] = {}
    for shift in size.shifts:
        read = read_images(places, f"{shift.replace(':', '_')}_{target}")
        kind, _, level = shift.partition(":")
        if read:
            levels.setdefault(kind, {})[float(level)] = {
                method: (_mean(runs, [DIRECT]), _mean(runs, perceptual_rows(list(runs[0]))))
                for method, runs in by_method(read[0]).items()
            }
    title = f"## Degraded images: {target}"
    if not levels:
        return f"{title}\n\n{NOT_MEASURED}"
    plot_levels(figures / "degraded", levels)
    rows = [
        [kind, f"{level:g}", *(f"{direct:.2f} / {other:.2f}" for direct, other in found.values())]
        for kind, at in levels.items() for level, found in at.items()
    ]  # fmt: skip
    methods = list(next(iter(next(iter(levels.values())).values())))
    table = markdown_table(["degradation", "level", *methods], rows)
    return (
        f"{title}\n\nDirect error / mean perceptual error against the domains' labels, L1 × 100:"
        f"\n\n{table}\n\n![direct and perceptual errors over the levels](results/degraded.png)"
    )


def _mean(runs: Sequence[Mapping[str, Values]], rows: Sequence[str]) -> float:
    return float(np.mean([np.nanmean(run[row]) for run in runs for row in rows])) if rows else (
        float("nan"))  # fmt: skip


def plot_levels(
    stem: Path, levels: Mapping[str, Mapping[float, Mapping[str, tuple[float, float]]]]
) -> None:
    """Plot errors over levels, {kind: {level: {method: (direct, perceptual)}}}, as PNG and PDF."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(levels), 5.5), layout="constrained")
    panels = figure.subplots(2, len(levels), squeeze=False, sharey="row")
    colours = dict.fromkeys((BLUE, RED, *OTHERS))
    for column, (kind, at) in enumerate(levels.items()):
        labels = [f"{level:g}" for level in at]
        for row, name in enumerate(("direct L1 × 100", "perceptual, true, L1 × 100")):
            axes = panels[row][column]
            for method, colour in zip(next(iter(at.values())), colours, strict=False):
                values = [found[method][row] for found in at.values()]
                axes.plot(labels, values, marker="o", color=colour, label=method)
            axes.set_xlabel(kind)
            if column == 0:
                axes.set_ylabel(name)
    panels[0][0].legend(fontsize="small")
    save_figure(figure, stem)


def _fractions(places: Places, size: Size) -> str:
    """The errors after training on shares of the views."""
    rows, target = [], size.targets[0]
    for share in (*size.fractions, 1.0):
        key = f"test_{target}" if share == 1 else f"fraction_{size_text(share)}"
        read = read_images(places, key)
        if read is None:
            continue
        groups = by_method(read[0])
        names = perceptual_rows(list(groups["without"][0]))
        one, two = groups["without"], groups["consistency"]
        rows.append([f"{100 * share:g} %", *(f"{_mean(runs, [DIRECT]):.3f}" for runs in (one, two)),
                     *(change_text(mean_change(one, two, part, read[1], size.resamples))
                       if part else NOT_MEASURED for part in ([DIRECT], names))])  # fmt: skip
    head = ["training views", "without, direct", "consistency, direct", "change, direct",
            "change, perceptual, true"]  # fmt: skip
    text = markdown_table(head, rows) if rows else NOT_MEASURED
    return f"## Fewer training views: {target}\n\n{text}"


def _adaptation(places: Places, size: Size) -> str:
    """The direct errors on the other sets, before and after fine-tuning on few of their views."""
    rows = []
    for kind in OTHER_SETS:
        read = read_images(places, f"adapted_{kind}")
        if read is None:
            continue
        errors, buildings = read
        for count in (0, *size.adapted):
            one, two = errors[f"without {count}"], errors[f"consistency {count}"]
            parts = [[DIRECT], perceptual_rows(list(one))]
            rows.append([kind, str(count), *(f"{_mean([run], [DIRECT]):.3f}" for run in (one, two)),
                         *(change_text(mean_change([one], [two], part, buildings, size.resamples))
                           if part else NOT_MEASURED for part in parts)])  # fmt: skip
    head = ["set", "views to adapt to", "without, direct", "consistency, direct",
            "change, direct", "change, perceptual, true"]  # fmt: skip
    text = markdown_table(head, rows) if rows else NOT_MEASURED
    return f"## Out of the distribution, before and after fine-tuning: {size.targets[0]}\n\n{text}"


def _energy(places: Places, figures: Path) -> str:
    """The energy against the error and against degradations, for both kinds of networks."""
    title = "## Energy"
    rows, shifts = [], {}
    for name in energy_networks(places):
        found = [_statistics(places, key) for key in (f"energy_val_{name}", f"energy_{name}")]
        if any(found):
            cells = [_correlation(statistics, "pearson") for statistics in found]
            cells += [_correlation(found[1], "spearman"), _per_building(places, name)]
            rows.append([name, *cells])
        file = places.results(f"shift_{name}") / "shift.csv"
        if file.is_file():
            shifts[name] = _read_shifts(file)
    if not rows:
        return f"{title}\n\n{NOT_MEASURED}"
    head = ["networks domain → normal, trained on", "validation: r", "test: r", "test: ρ",
            "test: r of each building, median (range)"]  # fmt: skip
    parts = [title, markdown_table(head, rows)]
    best = _chosen_on_validation(places)
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


def _statistics(places: Places, key: str) -> dict | None:
    file = places.results(key) / "statistics.json"
    return read_json(file) if file.is_file() else None


def _correlation(statistics: Mapping | None, name: str) -> str:
    if statistics is None or statistics[name]["value"] is None:
        return NOT_MEASURED
    found = statistics[name]
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"


def _chosen_on_validation(places: Places) -> str | None:
    """Return which networks have the larger r on validation views; None if that is not known."""
    found = {}
    for name in energy_networks(places):
        statistics = _statistics(places, f"energy_val_{name}") or {}
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


def _read_shifts(file: Path) -> dict[tuple[str, float], float]:
    """Return the ROC-AUC of each level, {(kind, level): area}, without clean."""
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


def _commands(folder: Path, stages: Sequence[Stage]) -> str:
    """The stages that are done, with their times; the commands in words without the folder."""
    rows, blocks = [], []
    for stage in stages:
        mark = _mark(folder, stage)
        if not mark:
            rows.append([stage.name, str(len(stage.steps)), "not done", ""])
            continue
        rows.append([stage.name, str(len(stage.steps)), duration(mark["seconds"]),
                     mark["finished"]])  # fmt: skip
        blocks += [c.replace(str(folder) + os.sep, "").replace(str(folder), ".") for c in
                   mark["commands"]]  # fmt: skip
    table = markdown_table(["stage", "commands", "time", "finished"], rows)
    listed = "```\n" + "\n".join(blocks) + "\n```" if blocks else ""
    return (f"## Stages and commands\n\n{table}\n\nThe commands, in order, with paths relative to "
            f"the folder of the results:\n\n{listed}")  # fmt: skip

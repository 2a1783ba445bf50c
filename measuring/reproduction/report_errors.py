"""The parts of the report that compare errors: tables with intervals, and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from measuring.closing_table import DIRECT
from measuring.plots import BLUE, OTHERS, RED, save_figure
from measuring.reproduction.results import (
    NOT_MEASURED,
    above_the_frozen_networks,
    answer,
    change_text,
    mean_change,
    mean_of,
    perceptual_rows,
    read_groups,
    read_images,
)
from measuring.reproduction.scales import Size
from measuring.reproduction.steps import (
    EQUAL_TIME,
    OTHER_SETS,
    Places,
    seed_keys,
    shift_name,
    size_text,
)
from measuring.statistics import Values
from tables import markdown_table


def target_part(places: Places, size: Size, target: str) -> str:
    """Each error of each method on the test rooms, and the change by consistency everywhere."""
    title = f"## {target.capitalize()}: equal steps, equal time"
    read = read_groups(places, seed_keys("test", target, size))
    if read is None:
        return f"{title}\n\n{NOT_MEASURED}"
    groups, buildings = read
    pair = [groups.get(name) for name in ("without", "consistency")]
    head = ["error", *groups, *(["consistency against without"] if all(pair) else [])]
    rows = []
    for row in next(iter(groups.values()))[0]:
        rows.append([row, *(_mean_text(runs, row) for runs in groups.values())])
        if pair[0] and pair[1] and row.endswith("truth mapped"):
            rows[-1].append("–")  # the same for all networks
        elif pair[0] and pair[1]:
            change = mean_change(pair[0], pair[1], [row], buildings, size.resamples)
            rows[-1].append(change_text(change))
    parts = [title, markdown_table(head, rows)]
    changes = []
    for place, key in {"test rooms": "test", **{k: k for k in OTHER_SETS}}.items():
        found = read_groups(places, seed_keys(key, target, size))
        if found:
            changes += _changes(place, *found, size)
    if changes:
        head = ["views", "consistency against", "direct", "perceptual, predicted",
                "perceptual, true", "perceptual, true, above the truth mapped"]  # fmt: skip
        parts += ["Change of the errors, in per cent; perceptual errors are averaged over the "
                  "domains. The truth mapped by a frozen network has that network's own error, "
                  "which no prediction can avoid; the last column is without it:",
                  markdown_table(head, changes)]  # fmt: skip
    if pair[0] and pair[1]:
        told = answer(pair[0], pair[1], buildings, size.resamples)
        parts.append(f"Consistency against equal steps without it, on test rooms: {told}.")
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
        pair = groups[other], groups["consistency"]
        for names in ([DIRECT], *(perceptual_rows(groups[other][0], end)
                                  for end in ("predicted", "true"))):  # fmt: skip
            cells.append(change_text(mean_change(*pair, names, buildings, size.resamples))
                         if names else NOT_MEASURED)  # fmt: skip
        cells.append(change_text(above_the_frozen_networks(*pair, buildings, size.resamples)))
        rows.append([place, other, *cells])
    return rows


def shifts_part(places: Places, size: Size, figures: Path) -> str:
    """The direct and the perceptual error over the levels of each degradation: a figure."""
    target = size.targets[0]
    levels: dict[str, dict[float, dict[str, tuple[float, float]]]] = {}
    rows: list[list[str]] = []
    for shift in size.shifts:
        read = read_groups(places, seed_keys(shift_name(shift), target, size))
        if not read:
            continue
        kind, _, level = shift.partition(":")
        groups, buildings = read
        found = {
            method: (mean_of(runs, [DIRECT]), mean_of(runs, perceptual_rows(runs[0])))
            for method, runs in groups.items()
        }
        levels.setdefault(kind, {})[float(level)] = found
        rows.append([kind, level, *(f"{direct:.2f} / {other:.2f}" for direct, other
                                    in found.values())])  # fmt: skip
        for names in ([DIRECT], perceptual_rows(groups["without"][0])):
            rows[-1].append(change_text(mean_change(groups["without"], groups["consistency"],
                                                    names, buildings, size.resamples)))  # fmt: skip
    title = f"## Degraded images: {target}"
    if not levels:
        return f"{title}\n\n{NOT_MEASURED}"
    plot_levels(figures / "degraded", levels)
    methods = list(next(iter(next(iter(levels.values())).values())))
    table = markdown_table(["degradation", "level", *methods, "change, direct",
                            "change, perceptual, true"], rows)  # fmt: skip
    return (
        f"{title}\n\nDirect error / mean perceptual error against the domains' labels, L1 × 100, "
        f"and the changes of consistency against equal steps without it:"
        f"\n\n{table}\n\n![direct and perceptual errors over the levels](results/degraded.png)"
    )


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


def shorter_part(places: Places, size: Size) -> str:
    """Training with and without consistency, from the baseline and from a shorter one."""
    rows, target = [], size.targets[0]
    for epochs, key in ((size.short_epochs, "shorter"), (size.baseline_epochs, "test")):
        groups, buildings = read_groups(places, seed_keys(key, target, size)) or ({}, [])
        if not {"baseline", "without", "consistency"} <= set(groups):
            continue
        pair = groups["without"], groups["consistency"]
        start, *direct = (f"{mean_of(runs, [DIRECT]):.3f}" for runs in (groups["baseline"], *pair))
        changes = [mean_change(*pair, names, buildings, size.resamples)
                   for names in ([DIRECT], perceptual_rows(pair[0][0]),
                                 perceptual_rows(pair[0][0], "predicted"))]  # fmt: skip
        rows.append([str(epochs * size.steps), start, *direct, *map(change_text, changes)])
    head = ["steps of the baseline", "baseline, direct", "without, direct", "consistency, direct",
            *(f"change, {kind}" for kind in ("direct", "perceptual, true",
                                             "perceptual, predicted"))]  # fmt: skip
    text = markdown_table(head, rows) if rows else NOT_MEASURED
    note = (
        "A baseline that is still far from its end gains from any further training. Here both "
        f"ways continue for {size.trained_epochs * size.steps} steps from two baselines:"
    )
    return f"## From baselines trained shorter and longer: {target}\n\n{note}\n\n{text}"


def fractions_part(places: Places, size: Size) -> str:
    """The errors after training on shares of the views."""
    rows, target = [], size.targets[0]
    for share in (*size.fractions, 1.0):
        whole, part_key = seed_keys("test", target, size), f"fraction_{size_text(share)}"
        read = read_groups(places, whole if share == 1 else [part_key])
        if read is None:
            continue
        groups, buildings = read
        names = perceptual_rows(groups["without"][0])
        one, two = groups["without"], groups["consistency"]
        direct = (f"{mean_of(runs, [DIRECT]):.3f}" for runs in (one, two))
        rows.append([f"{100 * share:g} %", *direct,
                     *(change_text(mean_change(one, two, part, buildings, size.resamples))
                       if part else NOT_MEASURED for part in ([DIRECT], names))])  # fmt: skip
    head = ["training views", "without, direct", "consistency, direct", "change, direct",
            "change, perceptual, true"]  # fmt: skip
    text = markdown_table(head, rows) if rows else NOT_MEASURED
    note = (f"Baselines on shares of the views are trained for {size.short_epochs * size.steps} "
            f"steps, that on all views for {size.baseline_epochs * size.steps}.")  # fmt: skip
    return f"## Fewer training views: {target}\n\n{note}\n\n{text}"


def adaptation_part(places: Places, size: Size) -> str:
    """The direct errors on shifted views, before and after fine-tuning on few of them."""
    rows = []
    for kind in (*OTHER_SETS, *map(shift_name, size.adapted_shifts)):
        read = read_images(places, f"adapted_{kind}")
        if read is None:
            continue
        errors, buildings = read
        for count in (0, *size.adapted):
            one, two = errors[f"without {count}"], errors[f"consistency {count}"]
            parts = [[DIRECT], perceptual_rows(one)]
            direct = (f"{mean_of([run], [DIRECT]):.3f}" for run in (one, two))
            rows.append([kind, str(count), *direct,
                         *(change_text(mean_change([one], [two], part, buildings, size.resamples))
                           if part else NOT_MEASURED for part in parts)])  # fmt: skip
    head = ["views", "views to adapt to", "without, direct", "consistency, direct",
            "change, direct", "change, perceptual, true"]  # fmt: skip
    text = markdown_table(head, rows) if rows else NOT_MEASURED
    return f"## Out of the distribution, before and after fine-tuning: {size.targets[0]}\n\n{text}"

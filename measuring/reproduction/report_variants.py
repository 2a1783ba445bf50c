"""The parts of the report about other trainings: other losses, weights, choices, methods."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from measuring.closing_table import DIRECT
from measuring.plots import BLUE, save_figure
from measuring.reproduction.evaluation_stages import compared_networks
from measuring.reproduction.results import (
    NOT_MEASURED,
    Images,
    answer,
    change_text,
    mean_change,
    mean_of,
    perceptual_rows,
    read_images,
)
from measuring.reproduction.scales import Size
from measuring.reproduction.steps import NAMED_METHODS, Places, is_fresh
from measuring.reproduction.training_stages import ALL, FIXED
from measuring.statistics import Difference
from methods.table import METHODS
from tables import markdown_table

ANGLE = "angular error (°)"
ANGLE_COLUMN = "angle (°)"
TITLES = {
    "unsupervised": "Consistency through domains without labels",
    "weights": "Balanced or fixed weights",
    "choice": "How many perceptual losses, and which",
    "methods": "All methods",
}
DRAWN = "choice", "methods"  # groups of many networks have a figure
LINEAR = 5.0  # per cent: the figures' axes are linear up to here, and logarithmic beyond
TICKS = -50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50, 100

Changes = Mapping[str, Mapping[str, Difference]]  # {network: {column: its change}}


def variant_parts(places: Places, size: Size, figures: Path) -> list[str]:
    """Return the parts, one for each group of networks that is compared with `without`."""
    return [_part(places, size, group, figures) for group in compared_networks(size)]


def _part(places: Places, size: Size, group: str, figures: Path) -> str:
    target = size.targets[0]
    parts = [f"## {TITLES[group]}: {target}", _note(group, size)]
    read = read_images(places, f"{group}_{target}")
    if read is None:
        return "\n\n".join([*parts, NOT_MEASURED])
    errors, buildings = read
    changes = _changes(errors, buildings, size)
    parts.append(_table(errors, changes, group == "methods"))
    if group in DRAWN:
        plot_variants(figures / group, changes)
        parts.append(
            f"![changes of the errors by each network](results/{group}.png)\n\n"
            f"*The changes in the table, with 95 % intervals. The axes are logarithmic beyond "
            f"±{LINEAR:g} %.*"
        )
    found = "\n".join(
        f"- {name} against {other}: "
        f"{answer([errors[other]], [errors[name]], buildings, size.resamples)}"
        for name, other in _pairs(group, size, errors)
    )
    return "\n\n".join([*parts, found])


def _note(group: str, size: Size) -> str:
    """Say what was compared, and what that does not tell."""
    steps = size.trained_epochs * size.steps
    same = f"Seed 0 alone, {steps} steps from the same baseline; changes are against `without`."
    if group == "unsupervised":
        return f"The frozen networks lead to edges and corners of the image alone. {same}"
    if group == "weights":
        return (f"All perceptual losses in each step: weighted by the sizes of their gradients, or "
                f"added with weight 1, like the direct loss. {same}")  # fmt: skip
    if group == "choice":
        return (f"`consistency` is trained with 2 losses, chosen at random each epoch. Win rates "
                f"choose those that most often exceed their direct loss on validation views. "
                f"{same}")  # fmt: skip
    fresh = [name for name in compared_networks(size)[group] if name in METHODS and is_fresh(name)]
    return (
        f"The methods of docs/methods.md. {same} Except: {', '.join(fresh)} "
        f"{'has a network' if len(fresh) == 1 else 'have networks'} of another shape, which starts "
        f"from fresh weights. What else a method trains, such as discriminators, starts fresh too; "
        f"`global` divides the steps among its nine networks, and the start of `cycle` was trained "
        f"on pairs."
    )


def _shown(name: str) -> str:
    return f"{NAMED_METHODS[name]} (`{name}`)" if name in NAMED_METHODS else name


def _changes(errors: Images, buildings: Sequence[str], size: Size) -> Changes:
    """The changes of each network's errors against the first network's, for each column."""
    first, *others = errors
    return {
        name: {kind: mean_change([errors[first]], [errors[name]], rows, buildings, size.resamples)
               for kind, rows in _kinds(errors[first]).items()} for name in others
    }  # fmt: skip


def _table(errors: Images, changes: Changes, names_of_methods: bool) -> str:
    """The errors of each network, and their changes against the first one."""
    kinds = _kinds(next(iter(errors.values())))
    head = ["network", *kinds, *(f"change, {name}" for name in kinds)]
    lines = []
    for name, rows in errors.items():
        line = [_shown(name) if names_of_methods else name,
                *(f"{mean_of([rows], of):.3f}" for of in kinds.values())]  # fmt: skip
        line += [change_text(changes[name][kind]) if name in changes else "–" for kind in kinds]
        lines.append(line)
    return markdown_table(head, lines)


def _kinds(rows: Mapping[str, object]) -> dict[str, list[str]]:
    """The columns of a table, {name: rows of errors}."""
    kinds = {
        "direct": [DIRECT], ANGLE_COLUMN: [ANGLE] if ANGLE in rows else [],
        "perceptual, predicted": perceptual_rows(rows, "predicted"),
        "perceptual, true": perceptual_rows(rows),
    }  # fmt: skip
    return {name: of for name, of in kinds.items() if of}


def plot_variants(stem: Path, changes: Changes) -> None:
    """Plot the changes of networks' errors with their intervals, a panel for each column."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    kinds = [kind for kind in next(iter(changes.values())) if kind != ANGLE_COLUMN]
    figure = Figure(figsize=(3.4 * len(kinds) + 1.2, 1.2 + 0.3 * len(changes)),
                    layout="constrained")  # fmt: skip
    panels = figure.subplots(1, len(kinds), squeeze=False, sharex=True, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for place, of in enumerate(changes.values()):
            axes.plot([of[kind].percent_low, of[kind].percent_high], [place] * 2, color=BLUE)
            axes.plot(of[kind].percent, place, "o", color=BLUE, markersize=4)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_xlabel("change (%)")
        axes.set_title(kind, fontsize="medium")
        axes.tick_params(labelsize="small")
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=0.7)
    low, high = axes.get_xlim()
    shown = [tick for tick in TICKS if low <= tick <= high]
    axes.set_xticks(shown, [f"{tick:+d}" if tick else "0" for tick in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(1.2 * min(low, -1.0), 1.2 * max(high, 1.0))  # the ends are not on the frame
    panels[0].set_yticks(range(len(changes)), list(changes))
    panels[0].set_ylim(len(changes) - 0.5, -0.5)  # the first network at the top
    save_figure(figure, stem)


def _pairs(group: str, size: Size, errors: Images) -> list[tuple[str, str]]:
    """The comparisons of a group, (network, the one that it is compared with)."""
    first, *others = errors
    pairs = {
        "unsupervised": [("unsupervised", first), ("unsupervised", "consistency")],
        "weights": [(ALL, FIXED)],
        "choice": [(f"{k} by win rate", "consistency" if k == 2 else f"{k} at random")
                   for k in size.winrate_ks] + [(ALL, "consistency")],
    }.get(group, [(name, first) for name in others])  # fmt: skip
    return [pair for pair in pairs if set(pair) <= set(errors)]

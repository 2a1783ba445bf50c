"""The parts of the report about other trainings: other losses, weights, choices, methods."""

from collections.abc import Mapping, Sequence

from measuring.closing_table import DIRECT
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
TITLES = {
    "unsupervised": "Consistency through domains without labels",
    "weights": "Balanced or fixed weights",
    "choice": "How many perceptual losses, and which",
    "methods": "All methods",
}


def variant_parts(places: Places, size: Size) -> list[str]:
    """Return the parts, one for each group of networks that is compared with `without`."""
    return [_part(places, size, group) for group in compared_networks(size)]


def _part(places: Places, size: Size, group: str) -> str:
    target = size.targets[0]
    parts = [f"## {TITLES[group]}: {target}", _note(group, size)]
    read = read_images(places, f"{group}_{target}")
    if read is None:
        return "\n\n".join([*parts, NOT_MEASURED])
    errors, buildings = read
    parts.append(_table(errors, buildings, size, group == "methods"))
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


def _table(errors: Images, buildings: Sequence[str], size: Size, names_of_methods: bool) -> str:
    """The errors of each network, and their changes against the first one."""
    first = next(iter(errors))
    kinds = {name: rows for name, rows in _kinds(errors[first]).items() if rows}
    head = ["network", *kinds, *(f"change, {name}" for name in kinds)]
    lines = []
    for name, rows in errors.items():
        shown = _shown(name) if names_of_methods else name
        line = [shown, *(f"{mean_of([rows], of):.3f}" for of in kinds.values())]
        line += ["–" if name == first else
                 change_text(_change(errors, buildings, size, name, first, of))
                 for of in kinds.values()]  # fmt: skip
        lines.append(line)
    return markdown_table(head, lines)


def _kinds(rows: Mapping[str, object]) -> dict[str, list[str]]:
    """The columns of a table, {name: rows of errors}."""
    return {
        "direct": [DIRECT], "angle (°)": [ANGLE] if ANGLE in rows else [],
        "perceptual, predicted": perceptual_rows(rows, "predicted"),
        "perceptual, true": perceptual_rows(rows),
    }  # fmt: skip


def _change(
    errors: Images, buildings: Sequence[str], size: Size, name: str, first: str, rows: Sequence[str]
) -> Difference:
    return mean_change([errors[first]], [errors[name]], rows, buildings, size.resamples)


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

"""The head of the report: the paper's claims, each with what was measured, and a figure of changes.

Nothing is decided here by hand: each answer is that of an interval.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from measuring.closing_table import DIRECT
from measuring.plots import BLUE, RED, save_figure
from measuring.reproduction.report_energy import (
    Estimate,
    areas_of_sets,
    chosen_on_validation,
    levels,
    read_energies,
)
from measuring.reproduction.results import (
    NOT_MEASURED,
    Runs,
    above_the_frozen_networks,
    change_by_perfection,
    change_text,
    finding,
    kinds_of_error,
    mean_change,
    perceptual_rows,
    read_groups,
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
from measuring.statistics import Difference
from tables import markdown_table

EQUALS = {"equal steps": "without", "equal time": EQUAL_TIME.replace(",", "")}
STRONG_BLUR = "blur:2"


def claims_part(places: Places, size: Size, figures: Path) -> str:
    """The table of claims, and a figure of the changes by consistency for each target."""
    rows = [*_errors(places, size), *_elsewhere(places, size), *_energy(places)]
    text = markdown_table(["claim of the paper", "measured", "holds here"], rows)
    parts = ["## The claims", text]
    if plot_changes(figures / "changes", places, size):
        parts.append(
            "![changes of all errors by consistency](results/changes.png)\n\n"
            "*Changes of the errors on test rooms by consistency, with 95 % intervals, against "
            "the same training without it: for equal steps (filled) and for equal time (hollow).*"
        )
    return "\n\n".join(parts)


def _errors(places: Places, size: Size) -> Iterator[list[str]]:
    """Whether the errors of each target are lower, against equal steps and against equal time."""
    for target in size.targets:
        groups, buildings = read_groups(places, seed_keys("test", target, size)) or ({}, [])
        for kind in ("direct error", "perceptual errors against truth"):
            claim = f"consistency lowers the {kind}: {target}"
            found = {}
            for equal, other in EQUALS.items():
                if other in groups and "consistency" in groups:
                    names = kinds_of_error(groups[other])[kind]
                    found[equal] = mean_change(groups[other], groups["consistency"], names,
                                               buildings, size.resamples)  # fmt: skip
            yield [claim, *_told(found)]
        if "without" in groups and "consistency" in groups:
            change = above_the_frozen_networks(groups["without"], groups["consistency"],
                                               buildings, size.resamples)  # fmt: skip
            measured, holds = _told({"equal steps": change})
            most = change_by_perfection(groups["without"])
            if np.isfinite(most):
                measured += (f"; the whole of these errors would change by {most:+.1f} % if the "
                             f"predictions were the truth")  # fmt: skip
            yield [f"… of the part that the frozen networks do not cause: {target}", measured,
                   holds]  # fmt: skip


def _told(found: dict[str, Difference]) -> tuple[str, str]:
    """The changes in per cent, and what their intervals tell."""
    if not found:
        return NOT_MEASURED, NOT_MEASURED
    measured = "; ".join(f"{name}: {change_text(change)}" for name, change in found.items())
    answers = {name: _holds(finding(change)) for name, change in found.items()}
    if len(set(answers.values())) == 1:
        return measured, next(iter(answers.values()))
    return measured, "; ".join(f"{name}: {answer}" for name, answer in answers.items())


def _holds(found: str) -> str:
    """The answer to a claim that an error is lower."""
    return {"lower": "yes", "higher": "no, it is higher"}.get(found, found)


def _elsewhere(places: Places, size: Size) -> Iterator[list[str]]:
    """Whether it generalises better, and helps more with fewer views: the first target."""
    target = size.targets[0]
    steps = size.short_epochs * size.steps
    yield _one(f"it lowers the errors of a baseline of {steps} steps: {target}", places,
               seed_keys("shorter", target, size), size)  # fmt: skip
    shown = {kind.replace("_", " "): kind for kind in OTHER_SETS}
    for name, key in {**shown, "blurred images": shift_name(STRONG_BLUR)}.items():
        yield _one(f"it generalises better to {name}: {target}", places,
                   seed_keys(key, target, size), size)  # fmt: skip
    for share in size.fractions:
        yield _one(f"it helps with {100 * share:g} % of the training views: {target}", places,
                   [f"fraction_{size_text(share)}"], size)  # fmt: skip


def _one(claim: str, places: Places, keys: Sequence[str], size: Size) -> list[str]:
    """The direct and the perceptual error of evaluations of the same views, against equal steps."""
    groups, buildings = read_groups(places, keys) or ({}, [])
    if not {"without", "consistency"} <= set(groups):
        return [claim, NOT_MEASURED, NOT_MEASURED]
    changes = {
        kind.partition(" ")[0]: mean_change(groups["without"], groups["consistency"], names,
                                            buildings, size.resamples)
        for kind, names in kinds_of_error(groups["without"]).items() if names
    }  # fmt: skip
    return [claim, *_told(changes)]


def _energy(places: Places) -> Iterator[list[str]]:
    """Whether the energy of the networks that validation chose tells when to distrust."""
    name = chosen_on_validation(places)
    energies = read_energies(places, f"energy_{name}") if name else None
    found = energies.correlations() if energies else {}
    r, rho = (found.get(key) for key in ("pearson", "spearman"))
    yield ["the energy rises with the error (the paper: r = 0.67)",
           f"r = {r}, ρ = {rho}" if r else NOT_MEASURED, _above(r, 0, "it falls")]  # fmt: skip
    apart = "the energy tells {} apart: {} (the paper, of other shifts: ROC-AUC 0.95)"
    for kind, area in areas_of_sets(places, name).items() if name else ():
        yield [apart.format("other rooms", kind.replace("_", " ")), f"ROC-AUC {area}",
               _above(area, 0.5, "they have less")]  # fmt: skip
    degraded = levels(places, name) if name else {}
    for kind in dict.fromkeys(kind for kind, _ in degraded):
        values = [found.area.value for at, found in degraded.items() if at[0] == kind]
        rises = all(a < b for a, b in zip(values, values[1:], strict=False))
        yield [apart.format("degraded images", kind),
               f"{' '.join(f'{value:.2f}' for value in values)}, from the mildest level on",
               f"up to {max(values):.2f}; "
               f"{'rises' if rises else 'does not rise'} with every level"]  # fmt: skip
    if not degraded:
        yield ["the energy tells degraded images apart", NOT_MEASURED, NOT_MEASURED]


def _above(estimate: Estimate | None, level: float, otherwise: str) -> str:
    """What the interval tells: whether the estimate is above a level."""
    if estimate is None:
        return NOT_MEASURED
    if np.isnan(estimate.low):
        return "without an interval"
    if estimate.low > level:
        return "yes"
    return f"no, {otherwise}" if estimate.high < level else "not told apart by the interval"


# ---- the figure -----------------------------------------------------------------------


def plot_changes(stem: Path, places: Places, size: Size) -> bool:
    """Plot the change of each error with its interval, a panel for each target; False if none."""
    from matplotlib.figure import Figure

    panels = {}
    for target in size.targets:
        groups, buildings = read_groups(places, seed_keys("test", target, size)) or ({}, [])
        if {"without", "consistency"} <= set(groups):
            panels[target] = groups, buildings
    if not panels:
        return False
    height = 1.5 + 0.28 * max(len(_shown(groups["without"])) for groups, _ in panels.values())
    figure = Figure(figsize=(4.2 * len(panels), height), layout="constrained")
    for axes, (target, (groups, buildings)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        rows = _shown(groups["without"])
        for offset, (other, colour) in zip((-0.15, 0.15), zip(EQUALS.values(), (BLUE, RED),
                                           strict=True), strict=True):  # fmt: skip
            if other not in groups:
                continue
            for place, row in enumerate(rows):
                change = mean_change(groups[other], groups["consistency"], [row], buildings,
                                     size.resamples)  # fmt: skip
                axes.plot([change.percent_low, change.percent_high], [place + offset] * 2,
                          color=colour)  # fmt: skip
                axes.plot(change.percent, place + offset, "o", color=colour,
                          markerfacecolor=colour if other == "without" else "white")  # fmt: skip
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [_short(row) for row in rows], fontsize="small")
        axes.invert_yaxis()
        axes.set_xlabel("change (%)")
        axes.set_title(target, fontsize="medium")
    save_figure(figure, stem)
    return True


def _shown(runs: Runs) -> Sequence[str]:
    return [DIRECT, *perceptual_rows(runs[0]), *perceptual_rows(runs[0], "predicted")]


def _short(row: str) -> str:
    """An error's name, short: percep_curv × 100, true is curv, true."""
    return row.removeprefix("percep_").replace(" × 100", "").replace(" L1", "")

"""The curves of a run as a picture, drawn from its log: losses, errors and win rates by epoch."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from energy import is_perceptual, loss_name
from files import write_atomically
from loading.photographs import MARK

Points = dict[float, float]  # {epoch: value}

WITH, WITHOUT = "train", "direct"  # the phases' labels in the log
STYLES = {WITH: "-", WITHOUT: ":"}
# the colour-blind safe palette by Okabe and Ito, without its yellow
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F"


@dataclass(frozen=True)
class Curves:
    """What is drawn of a log.

    `train` and `val` are {phase: {loss: points}}, `wins` is {loss: points}. Losses have their
    names in the configuration ("mae", "percep_curv"); "loss" is the weighted sum.
    """

    train: Mapping[str, Mapping[str, Points]]
    val: Mapping[str, Mapping[str, Points]]
    wins: Mapping[str, Points]


def read_curves(log: Path, steps_per_epoch: int) -> Curves:
    """Read the curves of a JSONL log. Training losses are averaged over each epoch."""
    train: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    val: dict = defaultdict(lambda: defaultdict(dict))
    wins: dict = defaultdict(dict)
    with open(log, encoding="utf-8") as file:
        for record in map(json.loads, file):
            epoch = record.get("step", 0) / steps_per_epoch
            if "win rates" in record:
                for name, rate in record["win rates"].items():
                    wins[name][epoch] = rate
            elif record.get("split") in STYLES:
                for name, value in _losses(record).items():
                    train[record["split"]][name][np.ceil(epoch)].append(value)
            elif "split" in record:
                phase = WITH if record["split"] == "val" else WITHOUT
                for name, value in _losses(record).items():
                    val[phase][name][epoch] = value
    means = {
        phase: {name: {e: float(np.mean(v)) for e, v in p.items()} for name, p in losses.items()}
        for phase, losses in train.items()
    }
    return Curves(means, val, wins)


def _losses(record: Mapping) -> dict[str, float]:
    """Return a record's losses by name: "percep_curv_mae : f(n(x)) -> f(y^)" → "percep_curv"."""
    losses = {}
    for title, value in record.items():
        if title == "loss" or " : " in title:
            name = title.partition(" : ")[0]
            losses[name.removesuffix("_mae").removesuffix("_mse")] = value
    return losses


def draw_curves(curves: Curves, path: Path, title: str, squared: bool = False) -> None:
    """Draw the curves as a PNG file, atomically. `squared` tells whether losses are squared."""
    figure = figure_of(curves, title, squared)
    save = partial(figure.savefig, format="png", dpi=100, metadata={"Software": MARK})
    write_atomically(path, save)


def figure_of(curves: Curves, title: str, squared: bool):
    """Return the curves as a figure of matplotlib.

    Four panels: the training losses, the direct error on the validation views, the perceptual
    errors there as shares of what they were before training, and the win rates.
    """
    from matplotlib.figure import Figure

    direct = "mse" if squared else "mae"
    figure = Figure(figsize=(10, 7))
    (losses, error), (perceptual, wins) = figure.subplots(2, 2)
    several = WITHOUT in curves.train or WITHOUT in curves.val
    for phase, style in STYLES.items():
        suffix = ", without consistency" if phase == WITHOUT else ""
        train, val = curves.train.get(phase, {}), curves.val.get(phase, {})
        if phase == WITH:  # without consistency, the sum is the direct loss
            _line(losses, train.get("loss", {}), "weighted sum", COLOURS[0], style)
        _line(losses, train.get(direct, {}), f"direct{suffix}", COLOURS[1], style)
        own = [n for n in train if n not in ("loss", direct) and not is_perceptual(n)]
        for name, colour in zip(own, COLOURS[2:], strict=False):  # of a method's own step
            _line(losses, train[name], name, colour, style)
        words = "with consistency" if several and not suffix else suffix[2:] or "direct error"
        _line(error, val.get(direct, {}), words, COLOURS[1], style)
        for name, colour in _coloured(curves):
            points = val.get(name, {})
            start = next(iter(points.values()), 0.0)
            shares = {epoch: 100 * value / start for epoch, value in points.items() if start}
            _line(perceptual, shares, loss_name(name) if phase == WITH else "", colour, style)
    for name, colour in _coloured(curves):
        points = curves.wins.get(name, {})
        _line(wins, {epoch: 100 * rate for epoch, rate in points.items()}, "", colour, "-")
    wins.set_ylim(-3, 103)
    _finish(figure, (
        (losses, "training losses", "loss"),
        (error, "direct error, validation views", "squared error" if squared else "L1"),
        (perceptual, "perceptual errors, validation views", "% of the error before training"),
        (wins, "win rates, validation views", "% of views that exceed the yardstick"),
    ), title)  # fmt: skip
    return figure


def _coloured(curves: Curves) -> list[tuple[str, str]]:
    """Return the perceptual losses with their colours."""
    names = dict.fromkeys(n for losses in curves.val.values() for n in losses if is_perceptual(n))
    return [(name, COLOURS[i % len(COLOURS)]) for i, name in enumerate(names)]


def _line(axes, points: Points, label: str, colour: str, style: str) -> None:
    if points:
        marker = "." if len(points) < 40 else None
        axes.plot(list(points), list(points.values()), style, label=label or None, color=colour,
                  marker=marker)  # fmt: skip


def _finish(figure, panels: Sequence[tuple], title: str) -> None:
    """Add titles, axes and legends; the legends stand below the panels, off the points."""
    figure.suptitle(title, x=0.07, ha="left", fontsize="x-large")
    figure.subplots_adjust(0.07, 0.14, 0.98, 0.88, hspace=0.62, wspace=0.2)
    for axes, heading, unit in panels:
        axes.set_title(heading, fontsize="medium", loc="left")
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit, fontsize="small")
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        if not axes.lines:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "none in this run", transform=axes.transAxes, ha="center",
                      color="grey")  # fmt: skip
        elif count := len(axes.get_legend_handles_labels()[0]):
            many = count > 4
            axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.23), ncols=2 + 2 * many,
                        fontsize="x-small", frameon=False, borderaxespad=0)  # fmt: skip

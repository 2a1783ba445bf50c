"""The pictures of a run: the outputs of all paths on a few fixed views, side by side."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from colouring import (
    DIFFERENCE,
    Limits,
    coloured,
    difference,
    difference_ends,
    ends,
    limits_of,
    look_of,
    top_difference,
)
from datasets import Batch, Reality
from graph import TaskGraph, edges_of
from logger import Logger
from pictures import Ball, Bar, Column, error_bar, error_map, page
from task_configs import get_task
from utils import log

ROWS = 4  # views from each reality
# The domain that marks the holes of a target whose mask value can be a valid value too. A plot
# may list it for this purpose alone, as published; then it is not shown.
HOLES = {"reshading": "depth_zbuffer"}
NOTE = (
    "Each row is one view. Both images of a pair have the same colours and limits, taken from "
    "the left one.\nGrey: no ground truth. Letters as in the configuration."
)

Path_ = tuple[str, ...]


class Pictures:
    """Draws the plots of a configuration, always on the same views.

    Leaves out realities that the run does not have, and logs them. Also leaves out paths
    whose ground truth or networks are not loaded.
    """

    def __init__(
        self,
        config: Mapping,
        realities: Mapping[str, Reality],
        graph: TaskGraph,
        logger: Logger,
        folder: Path,
    ) -> None:
        self.config, self.logger, self.folder = config, logger, folder
        self.plots = {}
        self._rows: dict[str, list[str]] = {}
        for name, plot in config["plots"].items():
            shown = [r for r in plot["realities"] if r in realities] or ["val"]
            missing = [r for r in plot["realities"] if r not in realities]
            if missing:
                log.info(
                    "pictures: no reality %s in this run; showing %s",
                    ", ".join(missing), ", ".join(shown),
                )  # fmt: skip
            samples = {reality: realities[reality].sample(ROWS) for reality in shown}
            batch = _joined(list(samples.values()))
            paths = {p: config["paths"][p] for p in plot["paths"]}
            paths = {
                p: path
                for p, path in paths.items()
                if path[0] in batch and all(map(graph.has, edges_of({p: path})))
            }
            title = f"{name}_[{', '.join(shown)}]_[{', '.join(paths)}]"
            self._rows[title] = _row_names(samples)
            self.plots[title] = (
                batch,
                paths,
                min(plot["size"], 2 * realities[shown[0]].dataset.image_size),
            )

    @torch.no_grad()
    def draw(self, graph: TaskGraph, moment: str, name: str, heading: str = "") -> None:
        """Draw all plots as PNG files and Visdom windows.

        File names begin with `name`, window names with `moment` ("start" or ""). `heading`
        stands on top of each page.
        """
        graph.eval()
        for number, (title, (batch, paths, cell)) in enumerate(self.plots.items()):
            values = graph.sample(paths, batch)
            groups = self._columns(paths, values, batch)
            file = self.folder / f"{name}{f'_{number}' if number else ''}.png"
            picture = page(groups, cell, heading, self._rows[title], NOTE)
            self.logger.picture(f"{moment}_{title}", picture, file)

    def _columns(
        self, paths: Mapping[str, Path_], values: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> list[list[Column]]:
        """Return the columns of a page, in groups: first the target, then each pair."""
        target: list[Column] = []
        groups = [target]
        for names in grouped(paths, self.config["paths"]):
            if len(names) == 2:
                groups.append(self._pair(names[0], names[1], values))
                continue
            (name,) = names
            path = paths[name]
            if path == (HOLES.get(self._target),):
                continue
            # the prediction has the colours of its ground truth
            scaled_by = "y^" if name == "n(x)" and "y^" in values else name
            limits = limits_of(get_task(path[-1]), values[scaled_by])
            beside = name == "n(x)" and bool(target) and target[-1].letters == "y^"
            shared = name == "y^" and "n(x)" in paths and bool(look_of(get_task(path[-1])).colours)
            column = self._column(name, values[name], limits, not shared, span=1 + beside)
            if name in ("x", "y^", "n(x)"):
                target.append(column)
            else:
                groups.append([column])
            if name == "n(x)" and "y^" in values:
                target.append(self._error_column(values, batch))
        return [group for group in groups if group]

    @property
    def _target(self) -> str:
        return self.config["paths"]["n(x)"][-1]

    def _column(
        self, name: str, values: Tensor, limits: Limits, legend: bool, span: int = 1
    ) -> Column:
        task = get_task(self.config["paths"][name][-1])
        look = look_of(task)
        shown: Bar | Ball | None = None
        if legend and look.colours:
            shown = Bar(look.colours, ends(look, limits))
        elif legend and task.name == "normal" and name != "n(x)":
            shown = Ball()
        path, prediction = self.config["paths"][name], self.config["paths"]["n(x)"]
        cells = coloured(task, values, limits, mark=path[: len(prediction)] != prediction)
        return Column(in_words(path, self.config["paths"]), cells, name, shown, span)

    def _pair(self, truth: str, prediction: str, values: Mapping[str, Tensor]) -> list[Column]:
        """Return three columns: what follows from the truth and the prediction, the difference."""
        task = get_task(self.config["paths"][truth][-1])
        look, limits = look_of(task), limits_of(task, values[truth])
        top = top_difference(task, limits)
        return [
            self._column(truth, values[truth], limits, legend=not look.colours),
            self._column(prediction, values[prediction], limits, legend=bool(look.colours), span=2),
            Column(
                "difference",
                difference(task, values[prediction], values[truth], top),
                f"|{prediction} − {truth}|",
                Bar(DIFFERENCE, difference_ends(look, top)),
            ),
        ]

    def _error_column(self, values: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Column:
        task = get_task(self._target)
        bar = error_bar(values["n(x)"], values["y^"], task.variance)
        return Column("squared error", self._error(values, batch), "error", bar)

    def _error(self, values: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        target = get_task(self.config["paths"]["y^"][-1])
        mask = target.mask(values["y^"])
        holes = HOLES.get(target.name)
        if holes and holes in batch:
            mask = get_task(holes).mask(batch[holes])
        return error_map(values["n(x)"], values["y^"], mask, target.variance)


def grouped(paths: Mapping[str, Path_], known: Mapping[str, Path_]) -> list[list[str]]:
    """Return the names of a plot's paths, singly or as pairs (truth, prediction).

    The paths of a pair continue from the target's ground truth and from its prediction in the same
    way. `known` are the paths of the configuration.
    """
    truth, prediction = known.get("y^", ()), known.get("n(x)", ())

    def goes_on(path: Path_, start: Path_) -> bool:
        return bool(start) and len(path) > len(start) and path[: len(start)] == start

    groups = []
    for name, path in paths.items():
        if goes_on(path, prediction):
            ends_alike = [n for n in paths if paths[n] == (*truth, *path[len(prediction) :])]
            groups.append([*ends_alike[:1], name])
        else:
            groups.append([name])
    paired = {group[0] for group in groups if len(group) == 2}
    return [group for group in groups if len(group) == 2 or group[0] not in paired]


def in_words(path: Path_, known: Mapping[str, Path_]) -> str:
    """Return a column's heading, such as "curvature of prediction".

    `known` are the paths of the configuration: x, y^, n(x) and others.
    """
    names = [look_of(get_task(domain)).name for domain in path]
    truth, prediction = known.get("y^"), known.get("n(x)")
    if path == known.get("x"):
        return names[0] if path == ("rgb",) else f"input {names[0]}"
    if path == prediction:
        return f"predicted {names[-1]}"
    if len(path) == 1:
        return f"true {names[0]}"
    for start, word in ((prediction, "prediction"), (truth, f"true {names[0]}")):
        if start and path[: len(start)] == start:
            return " of ".join([*reversed(names[len(start) :]), word])
    return f"{names[-1]} from {' and '.join(names[:-1])}"


def _joined(batches: list[Batch]) -> dict[str, Tensor]:
    """Return one batch of the domains that all of the realities read."""
    common = [name for name in batches[0] if all(name in batch for batch in batches)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in common}


def _row_names(samples: Mapping[str, Batch]) -> list[str]:
    counts = {reality: len(next(iter(batch.values()))) for reality, batch in samples.items()}
    return [f"{reality} {i + 1}" for reality, count in counts.items() for i in range(count)]

"""The pictures of a run: what each path gives on a few fixed views, side by side."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from datasets import Reality
from graph import TaskGraph, edges_of
from logger import Logger
from pictures import error_map, in_order, montage
from task_configs import TASKS
from utils import log

ROWS = 8  # views of each reality


class Pictures:
    """Draws the plots of a configuration, on the same views every time.

    Realities that a plot names and the run lacks, and paths whose networks the run has
    not loaded, are left out; one line says which.
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
        for name, plot in config["plots"].items():
            shown = [r for r in plot["realities"] if r in realities] or ["val"]
            lacking = [r for r in plot["realities"] if r not in realities]
            if lacking:
                log.info(
                    "pictures: no reality %s in this run; showing %s",
                    ", ".join(lacking), ", ".join(shown),
                )  # fmt: skip
            batch = _fixed_views([realities[reality] for reality in shown])
            paths = {p: config["paths"][p] for p in plot["paths"]}
            paths = {
                p: path
                for p, path in paths.items()
                if path[0] in batch and all(map(graph.has, edges_of({p: path})))
            }
            title = f"{name}_[{', '.join(shown)}]_[{', '.join(paths)}]"
            self.plots[title] = (
                batch,
                paths,
                min(plot["size"], 2 * realities[shown[0]].dataset.image_size),
            )

    @torch.no_grad()
    def draw(self, graph: TaskGraph, moment: str, name: str) -> None:
        """Draw all plots: PNGs called by `name`, Visdom windows by `moment` ("start" or "")."""
        graph.eval()
        for number, (title, (batch, paths, cell)) in enumerate(self.plots.items()):
            values = graph.sample(paths, batch)
            if {"n(x)", "y^"} <= set(values):
                values["error"] = self._error(values, batch)
            columns = {c: values[c] for c in in_order(list(paths)) if c in values}
            file = self.folder / f"{name}{f'_{number}' if number else ''}.png"
            self.logger.picture(f"{moment}_{title}", montage(columns, cell), file)

    def _error(self, values: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        target = TASKS[self.config["paths"]["y^"][-1]]
        mask = target.mask(values["y^"])
        if target.name == "reshading" and "depth_zbuffer" in batch:
            # holes are darkness in reshading, which a dark pixel can be too
            mask = TASKS["depth_zbuffer"].mask(batch["depth_zbuffer"])
        return error_map(values["n(x)"], values["y^"], mask, target.variance)


def _fixed_views(realities: list[Reality]) -> dict[str, Tensor]:
    """A batch of evenly spaced views, not augmented, of each reality in turn.

    It holds the domains that all of the realities read.
    """
    batches = [reality.sample(ROWS) for reality in realities]
    common = [name for name in batches[0] if all(name in batch for batch in batches)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in common}

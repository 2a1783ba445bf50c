"""The pictures of a run: the outputs of all paths on a few fixed views, side by side."""

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

ROWS = 8  # views from each reality


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
        for name, plot in config["plots"].items():
            shown = [r for r in plot["realities"] if r in realities] or ["val"]
            missing = [r for r in plot["realities"] if r not in realities]
            if missing:
                log.info(
                    "pictures: no reality %s in this run; showing %s",
                    ", ".join(missing), ", ".join(shown),
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
        """Draw all plots as PNG files and Visdom windows.

        File names begin with `name`, window names with `moment` ("start" or "").
        """
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
            # reshading marks holes as black, but a valid pixel can be black too
            mask = TASKS["depth_zbuffer"].mask(batch["depth_zbuffer"])
        return error_map(values["n(x)"], values["y^"], mask, target.variance)


def _fixed_views(realities: list[Reality]) -> dict[str, Tensor]:
    """Return a batch of evenly spaced views from each reality, without augmentation.

    The batch holds the domains that all of the realities read.
    """
    batches = [reality.sample(ROWS) for reality in realities]
    common = [name for name in batches[0] if all(name in batch for batch in batches)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in common}

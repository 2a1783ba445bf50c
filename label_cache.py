"""Cache of the frozen networks' outputs on ground-truth labels, and on images.

Without augmentation, a view's labels never change, so each output is computed only once.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets import Batch
from graph import Path, TaskGraph


@dataclass
class Budget:
    """A memory budget in bytes that several caches share."""

    total: float
    taken: int = 0

    def take(self, size: int) -> bool:
        """Reserve `size` bytes if they fit. Returns whether they did."""
        if self.taken + size > self.total:
            return False
        self.taken += size
        return True


class LabelCache:
    """Caches the values (C, S, S) of paths that start at files, by path and view.

    A cache serves one data set. Values stay on the device that computed them. Those that do
    not fit into the budget are computed again each time, and so are those of paths from the
    domains `changing`, which differ each time a view is drawn.
    """

    def __init__(self, budget: Budget, changing: Collection[str] = ()) -> None:
        self.budget, self.changing = budget, frozenset(changing)
        self._kept: dict[tuple[Path, int], Tensor] = {}

    def frozen_values(
        self, graph: TaskGraph, paths: Mapping[str, Sequence[str]], batch: Batch
    ) -> dict[Path, Tensor]:
        """Return `values` of the paths, each only up to the graph's target network."""
        frozen = {}
        for name, path in paths.items():
            edges = list(zip(path, path[1:], strict=False))
            end = edges.index(graph.target_edge) + 1 if graph.target_edge in edges else len(path)
            frozen[name] = tuple(path[:end])
        return self.values(graph, frozen, batch)

    @torch.no_grad()
    def values(
        self, graph: TaskGraph, paths: Mapping[str, Path], batch: Batch
    ) -> dict[Path, Tensor]:
        """Return the value (B, C, S, S) of each path that has a network, by path."""
        values: dict[Path, Tensor] = {}
        for name, path in paths.items():
            if len(path) == 1:  # the ground truth itself
                continue
            kept = [self._kept.get((path, view)) for view in batch.views]
            cached = [value for value in kept if value is not None]
            if len(cached) < len(batch.views):
                values[path] = graph.sample({name: path}, batch, values)[name]
                if path[0] not in self.changing:
                    self._keep(path, batch.views, values[path])
            else:
                values[path] = torch.stack(cached)
        return values

    def _keep(self, path: Path, views: list[int], values: Tensor) -> None:
        for view, value in zip(views, values, strict=True):
            size = value.numel() * value.element_size()
            if (path, view) not in self._kept and self.budget.take(size):
                self._kept[path, view] = value.clone()

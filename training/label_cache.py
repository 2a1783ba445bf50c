"""Cache of the frozen networks' outputs on ground-truth labels.

They are the same each time a view is loaded, as long as it is not augmented.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets import Batch
from graph import Path, TaskGraph


@dataclass
class Budget:
    """Bytes that several caches may take together, and have taken."""

    total: float
    taken: int = 0

    def take(self, size: int) -> bool:
        """Whether there was room for so many bytes, which are taken then."""
        if self.taken + size > self.total:
            return False
        self.taken += size
        return True


class LabelCache:
    """Values (C, S, S) of paths from ground truths, by path and view of one data set.

    They stay on the device they were computed on. What does not fit into the budget is
    computed each time.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._kept: dict[tuple[Path, int], Tensor] = {}

    @torch.no_grad()
    def values(
        self, graph: TaskGraph, paths: Mapping[str, Path], batch: Batch
    ) -> dict[Path, Tensor]:
        """The value (B, C, S, S) of each path of more than one step, by path."""
        found: dict[Path, Tensor] = {}
        for name, path in paths.items():
            if len(path) == 1:
                continue
            kept = [self._kept.get((path, view)) for view in batch.views]
            there = [value for value in kept if value is not None]
            if len(there) < len(kept):
                found[path] = graph.sample({name: path}, batch, found)[name]
                self._keep(path, batch.views, found[path])
            else:
                found[path] = torch.stack(there)
        return found

    def _keep(self, path: Path, views: list[int], values: Tensor) -> None:
        for view, value in zip(views, values, strict=True):
            size = value.numel() * value.element_size()
            if (path, view) not in self._kept and self.budget.take(size):
                self._kept[path, view] = value.clone()

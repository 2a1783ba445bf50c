"""What frozen networks make of ground truths, kept: it is the same each time a view comes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from datasets import Batch
from graph import Path, TaskGraph


class LabelCache:
    """Values (C, S, S) of label branches by path and view, up to `budget` bytes.

    They stay on the device they were computed on. What does not fit is computed each time.
    """

    def __init__(self, budget: float) -> None:
        self.budget = budget
        self.bytes = 0
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
            if (path, view) not in self._kept and self.bytes + size <= self.budget:
                self._kept[path, view] = value.clone()
                self.bytes += size

"""One training step as the published code schedules it: the benchmark's yardstick.

Counted with hooks on that code (multiperceptual_normal): every network behind re-entrant
activation checkpointing; n(x) computed anew for every path through it, the first result
used; all perceptual losses evaluated and taken back for their gradients' sizes whatever k
is; gradients into ground truths and frozen weights; a backward pass of its own for the
weighted sum. Two things are left out, both in its favour: at k below the number of losses
its last pass here takes the chosen losses alone (the published one stops with an error),
and nothing is logged.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from energy import balance, evaluate_losses, gradient_norm, paths_for, perceptual_losses
from energy import yardstick_of as yardstick
from graph import Path, TaskGraph


class PublishedStep:
    """Computes the gradient of the weighted sum of "mae" and the chosen losses, and steps."""

    def __init__(self, graph: TaskGraph, config: Mapping) -> None:
        self.graph, self.config = graph, config
        graph.requires_grad_(True)
        self.parameters = list(graph.target.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=3e-5, weight_decay=2e-6, amsgrad=True)

    def __call__(self, batch: Mapping[str, Tensor], chosen: Sequence[str]) -> list[Tensor]:
        """Train on a batch; returns the step's gradient."""
        leaves = {name: value.detach().requires_grad_() for name, value in batch.items()}
        perceptual = perceptual_losses(self.config)
        names = ["mae", *perceptual]
        values: dict[Path, Tensor] = {}
        losses = {name: self._loss(name, leaves, values) for name in names}
        for name in perceptual:
            self._loss(yardstick(name), leaves, values)
        norms = {}
        for name in names:
            losses[name].backward(retain_graph=True)
            norms[name] = gradient_norm(self._gradient())
            self.optimizer.zero_grad()
        weights = balance({name: norms[name] for name in ("mae", *chosen)})
        sum(weights[name] * losses[name] for name in weights).backward()
        gradient = self._gradient()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return gradient

    def _gradient(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _loss(self, name: str, leaves: Mapping[str, Tensor], values: dict[Path, Tensor]) -> Tensor:
        paths = paths_for(self.config, [name])
        sampled = {}
        for label, path in paths.items():
            path = tuple(path)
            known = values.get(path)  # of a whole path; what paths share is computed again
            sampled[label] = self._value(path, leaves, values) if known is None else known
        return evaluate_losses(self.config, [name], sampled)[name].mean()

    def _value(
        self, path: Path, leaves: Mapping[str, Tensor], values: dict[Path, Tensor]
    ) -> Tensor:
        if len(path) == 1:
            return leaves[path[0]]
        before = self._value(path[:-1], leaves, values)
        network: nn.Module = self.graph.network((path[-2], path[-1]))
        computed = checkpoint(network, before, use_reentrant=True)
        return values.setdefault(path, computed)

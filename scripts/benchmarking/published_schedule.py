"""A training step with the same order of computations as the published code.

It is the reference of the benchmark. What the published code computes was counted with hooks
(for multiperceptual_normal):

- Every network uses re-entrant activation checkpointing.
- n(x) is recomputed for every path through it, although the first result is used.
- All perceptual losses are evaluated and differentiated to get gradient norms, whatever k is.
- Gradients are also computed for ground truths and frozen weights.
- The weighted sum needs a further backward pass.

There are two simplifications, both in favour of the published code. If k is less than the
number of losses, the last backward pass uses only the chosen losses here; the published code
stops with an error. And nothing is logged.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from balancing import balance, gradient_norm
from energy import paths_for, perceptual_losses
from energy import yardstick_of as yardstick
from graph import Path, TaskGraph
from losses import evaluate_losses


class PublishedStep:
    """A training step on the weighted sum of "mae" and the chosen perceptual losses."""

    def __init__(self, graph: TaskGraph, config: Mapping) -> None:
        self.graph, self.config = graph, config
        graph.requires_grad_(True)
        self.parameters = list(graph.target.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=3e-5, weight_decay=2e-6, amsgrad=True)

    def __call__(self, batch: Mapping[str, Tensor], chosen: Sequence[str]) -> list[Tensor]:
        """Train on a batch. Returns the gradient of the step."""
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
            computed = values.get(path)  # complete paths only; shared prefixes are recomputed
            sampled[label] = self._value(path, leaves, values) if computed is None else computed
        return evaluate_losses(self.config, [name], sampled)[name].mean()

    def _value(
        self, path: Path, leaves: Mapping[str, Tensor], values: dict[Path, Tensor]
    ) -> Tensor:
        if len(path) == 1:
            return leaves[path[0]]
        inputs = self._value(path[:-1], leaves, values)
        network: nn.Module = self.graph.network((path[-2], path[-1]))
        computed = checkpoint(network, inputs, use_reentrant=True)
        return values.setdefault(path, computed)

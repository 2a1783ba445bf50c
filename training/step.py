"""One training step's losses and gradients, with nothing computed twice.

The target network's prediction is computed once, and each loss is taken back through its
frozen networks to the prediction on its own, so that only one loss's activations are in
memory at a time. What reaches the prediction is then taken back through the target
network: once a loss where the sizes of gradients are to be balanced, once for all where
the weights are known.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from datasets import Batch
from devices import Ranks, numerical_precision
from energy import balanced_gradient, evaluate_losses, gradient_norm, loss_pairs, paths_for
from graph import Path, TaskGraph
from training.label_cache import LabelCache
from utils import UserError


@dataclass
class Losses:
    """A batch's losses, up to the prediction.

    `prediction` is n(x) (B, C, H, W) with its graph, `values` the scalar losses without
    theirs, `to_prediction` each loss's gradient at the prediction.
    """

    prediction: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)
    to_prediction: dict[str, Tensor] = field(default_factory=dict)

    def gradients(self, parameters: Sequence[nn.Parameter]) -> Iterator[tuple[str, list[Tensor]]]:
        """Each loss's gradient at the target network's parameters, in turn; once only."""
        for position, (name, cotangent) in enumerate(self.to_prediction.items(), start=1):
            last = position == len(self.to_prediction)
            yield name, self._back(parameters, cotangent, retain_graph=not last)

    def weighted_gradient(
        self, parameters: Sequence[nn.Parameter], weights: Mapping[str, Tensor | float]
    ) -> list[Tensor]:
        """The gradient of the weighted sum, by a single pass; once only."""
        parts = [weights[name] * cotangent for name, cotangent in self.to_prediction.items()]
        return self._back(parameters, torch.stack(parts).sum(0))

    def _back(
        self, parameters: Sequence[nn.Parameter], cotangent: Tensor, **kwargs
    ) -> list[Tensor]:
        found = torch.autograd.grad(
            self.prediction, parameters, cotangent, materialize_grads=True, **kwargs
        )
        return list(found)


def losses_of(
    graph: TaskGraph,
    config: Mapping,
    names: Sequence[str],
    batch: Batch,
    squared: bool = False,
    labels: LabelCache | None = None,
) -> Losses:
    """The named losses of a batch {task: (B, C, S, S)}, and their gradients at n(x).

    `labels` caches the frozen networks' outputs on ground truths.
    """
    path = tuple(config["paths"]["n(x)"])
    prediction = graph.sample({"n(x)": path}, batch)["n(x)"]
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    leaf = prediction.detach().requires_grad_()
    found = Losses(prediction)
    for group in _sharing(config, names, path):
        paths = paths_for(config, group)
        known = {path: leaf}
        if labels is not None:
            truths = {name: p for name, p in paths.items() if p[: len(path)] != path}
            known |= labels.values(graph, truths, batch)
        values = graph.sample(paths, batch, known)
        losses = evaluate_losses(config, group, values, squared=squared)
        for position, (name, loss) in enumerate(losses.items(), start=1):
            found.values[name] = loss.detach().mean()
            (found.to_prediction[name],) = torch.autograd.grad(
                loss.mean(), leaf, retain_graph=position < len(losses)
            )
    return found


def _sharing(config: Mapping, names: Sequence[str], prediction: Path) -> list[list[str]]:
    """The losses in groups, such that losses of two groups share no value beyond n(x)."""
    groups: list[tuple[set[Path], list[str]]] = []
    for name in names:
        beyond = set()
        for pair in loss_pairs(config, name):
            for path in (tuple(config["paths"][p]) for p in pair):
                _check_start(path, prediction)
                beyond |= {path[:i] for i in range(2, len(path) + 1)} - {prediction}
        members = [name]
        for group in [g for g in groups if g[0] & beyond]:
            groups.remove(group)
            beyond |= group[0]
            members = group[1] + members
        groups.append((beyond, members))
    return [members for _, members in groups]


def _check_start(path: Path, prediction: Path) -> None:
    edges = list(zip(path, path[1:], strict=False))
    if prediction[-2:] in edges[1:]:
        raise UserError(
            f"the path {' → '.join(path)} uses the network that trains, "
            f"{' → '.join(prediction)}, after its first step, where it gets no gradient"
        )


@dataclass
class Step:
    """Computes the target network's gradients and takes the optimiser's step.

    `mode` "winrate" weighs the losses by the sizes of their gradients, measured every
    `balance_every` steps, "standard" adds them. No value is read by the host: a loss or
    gradient that is not finite raises `found_bad`, which stops all later updates on the
    device, until someone looks (`bad`).
    """

    graph: TaskGraph
    config: Mapping
    optimizer: torch.optim.Optimizer
    device: torch.device
    mode: str = "winrate"
    squared: bool = False
    balance_every: int = 1
    precision: str = "fp32"
    ranks: Ranks = field(default_factory=Ranks)
    labels: LabelCache | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    age: int = 0  # steps since the weights were measured

    def __post_init__(self) -> None:
        self.parameters = list(self.graph.target.parameters())
        self.bad = torch.zeros((), device=self.device)

    def __call__(self, batch: Batch, chosen: Sequence[str]) -> dict[str, Tensor]:
        """Train on a batch. Returns the scalar losses, "loss" being their weighted sum."""
        names = ["mae", *chosen]
        with numerical_precision(self.device, self.precision):
            losses = losses_of(self.graph, self.config, names, batch, self.squared, self.labels)
            gradient, size = self._gradient(losses, names)
        means = self.ranks.average(torch.stack([losses.values[name] for name in names]))
        values = dict(zip(names, means, strict=True))
        total = torch.stack([self.weights[name] * values[name] for name in names]).sum()
        self._update(gradient, size + total)
        return {"loss": total, **values}

    def _gradient(self, losses: Losses, names: list[str]) -> tuple[list[Tensor], Tensor]:
        """The step's gradient, and a size that is finite if and only if it is."""
        if self.mode == "standard":
            self.weights = dict.fromkeys(names, torch.ones((), device=self.device))
        elif list(self.weights) != names or self.age >= self.balance_every:
            gradients = self.ranks.averaged(losses.gradients(self.parameters))
            gradient, self.weights, norms = balanced_gradient(gradients, len(names))
            self.age = 1
            return gradient, torch.stack(list(norms.values())).sum()
        self.age += 1
        gradient = losses.weighted_gradient(self.parameters, self.weights)
        ((_, gradient),) = self.ranks.averaged([("", gradient)])
        return gradient, gradient_norm(gradient)

    def _update(self, gradient: list[Tensor], size: Tensor) -> None:
        for parameter, g in zip(self.parameters, gradient, strict=True):
            parameter.grad = g
        self.bad = torch.maximum(self.bad, (~torch.isfinite(size)).float())
        # What AMP's scaler sets: the fused optimiser skips the update where it is not 0.
        self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()

"""The losses, gradients and update of one training step, with nothing computed twice.

The target network computes the prediction once. Each loss is then differentiated on its own,
through its frozen networks, down to the prediction. Only one loss's activations are in memory
at a time. The second half of the backward pass goes through the target network. If gradient
sizes must be measured, it runs once for each loss. If the weights are known, it runs once for
the weighted sum.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from balancing import balanced_gradient, gradient_norm
from datasets import Batch
from devices import Ranks
from energy import loss_pairs, paths_for
from graph import Path, TaskGraph
from label_cache import LabelCache
from losses import evaluate_losses
from methods.interface import TrainingStep
from precision import numerical_precision
from training.wide_layers import Product, total_size, wide_layers_for
from utils import UserError

__all__ = ["Losses", "Step", "TrainingStep", "losses_of"]


@dataclass
class Losses:
    """The losses of a batch, differentiated down to the prediction.

    `prediction` is n(x) (B, C, H, W) with its autograd graph. `values` are the scalar losses,
    detached. `to_prediction` is the gradient (B, C, H, W) of each loss at the prediction.
    """

    prediction: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)
    to_prediction: dict[str, Tensor] = field(default_factory=dict)

    def gradients(
        self,
        parameters: Sequence[nn.Parameter],
        products: Mapping[Tensor, Product] | None = None,
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield the name and parameter gradient of each loss. Frees the graph: call once.

        For a parameter of `products`, it is the gradient at the product's outputs instead.
        """
        for position, (name, cotangent) in enumerate(self.to_prediction.items(), start=1):
            last = position == len(self.to_prediction)
            yield name, self._back(parameters, cotangent, products or {}, retain_graph=not last)

    def weighted_gradient(
        self, parameters: Sequence[nn.Parameter], weights: Mapping[str, Tensor | float]
    ) -> list[Tensor]:
        """Return the gradient of the weighted sum, by one pass. Frees the graph: call once."""
        parts = [weights[name] * cotangent for name, cotangent in self.to_prediction.items()]
        return self._back(parameters, torch.stack(parts).sum(0))

    def _back(
        self,
        parameters: Sequence[nn.Parameter],
        cotangent: Tensor,
        products: Mapping[Tensor, Product] = MappingProxyType({}),
        retain_graph: bool = False,
    ) -> list[Tensor]:
        places: list = [products[p].outputs if p in products else p for p in parameters]
        found = torch.autograd.grad(
            self.prediction, places, cotangent, retain_graph=retain_graph, allow_unused=True
        )
        return [_own(g, p, products.get(p)) for g, p in zip(found, parameters, strict=True)]


def _own(gradient: Tensor | None, parameter: Tensor, product: Product | None) -> Tensor:
    """Return a gradient that may be changed in place: zeros if it is None."""
    if gradient is None:
        return torch.zeros_like(parameter) if product is None else product.no_gradient(parameter)
    # unlike those of parameters, gradients of inner values may be shared
    return gradient if product is None else gradient.clone()


def losses_of(
    graph: TaskGraph,
    config: Mapping,
    names: Sequence[str],
    batch: Batch,
    squared: bool = False,
    labels: LabelCache | None = None,
) -> Losses:
    """Return the named losses of a batch {task: (B, C, S, S)}, and their gradients at n(x).

    `labels` caches the frozen networks' outputs on ground truths. Raises UserError if a path
    uses the target network after its first step.
    """
    prediction_path = tuple(config["paths"]["n(x)"])
    start = {"n(x)": prediction_path}
    before = labels.frozen_values(graph, start, batch) if labels is not None else {}
    prediction = graph.sample(start, batch, before)["n(x)"]
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    leaf = prediction.detach().requires_grad_()
    result = Losses(prediction)
    for group in _group_by_shared_values(config, names, prediction_path):
        paths = paths_for(config, group)
        known = {prediction_path: leaf}
        if labels is not None:
            known |= labels.frozen_values(graph, paths, batch)
        values = graph.sample(paths, batch, known)
        losses = evaluate_losses(config, group, values, squared=squared)
        for position, (name, loss) in enumerate(losses.items(), start=1):
            result.values[name] = loss.detach().mean()
            (result.to_prediction[name],) = torch.autograd.grad(
                loss.mean(), leaf, retain_graph=position < len(losses)
            )
    return result


def _group_by_shared_values(
    config: Mapping, names: Sequence[str], prediction: Path
) -> list[list[str]]:
    """Return the losses in groups. Different groups share no network output except n(x)."""
    groups: list[tuple[set[Path], list[str]]] = []
    for name in names:
        outputs = set()  # the network outputs that the loss uses, each as a prefix
        for pair in loss_pairs(config, name):
            for path in (tuple(config["paths"][p]) for p in pair):
                _check_start(path, prediction)
                outputs |= {path[:i] for i in range(2, len(path) + 1)} - {prediction}
        members = [name]
        for group in [g for g in groups if g[0] & outputs]:
            groups.remove(group)
            outputs |= group[0]
            members = group[1] + members
        groups.append((outputs, members))
    return [members for _, members in groups]


def _check_start(path: Path, prediction: Path) -> None:
    rest = path[len(prediction) - 1 :] if path[: len(prediction)] == prediction else path
    if prediction[-2:] in list(zip(rest, rest[1:], strict=False)):
        raise UserError(
            f"the path {' → '.join(path)} uses the network that trains, "
            f"{' → '.join(prediction)}, after its first step, where it gets no gradient"
        )


@dataclass
class Step:
    """Computes the target network's gradients and takes the optimiser's step.

    `mode` "winrate" weights the losses by the sizes of their gradients, which are measured every
    `balance_every` steps; "standard" adds the losses. The host reads no value during a step. A
    loss or gradient that is not finite sets the flag `bad` on the device. That step and all
    later ones then leave the network unchanged. `steps` is the number of steps of the whole run,
    over which `decay` lowers the learning rate to 0 by a cosine.
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
    steps: int = 1

    def __post_init__(self) -> None:
        self.parameters = self.graph.trained_parameters
        self.bad = torch.zeros((), device=self.device)
        self.networks: dict[str, nn.Module] = {}  # no others train
        self._wide = wide_layers_for(self.graph, self.device, self.precision)
        total = max(1, self.steps)
        self._decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total)

    def __call__(self, batch: Batch, chosen: Sequence[str]) -> dict[str, Tensor]:
        """Train on a batch. Returns the scalar losses by name; "loss" is their weighted sum."""
        names = ["mae", *chosen]
        with numerical_precision(self.device, self.precision), self._wide or nullcontext():
            losses = losses_of(self.graph, self.config, names, batch, self.squared, self.labels)
            gradient, size = self._gradient(losses, names)
        means = self.ranks.average(torch.stack([losses.values[name] for name in names]))
        values = dict(zip(names, means, strict=True))
        total = torch.stack([self.weights[name] * values[name] for name in names]).sum()
        self._update(gradient, size + total)
        return {"loss": total, **values}

    def _gradient(self, losses: Losses, names: list[str]) -> tuple[list[Tensor], Tensor]:
        """Return the step's gradient, and a scalar that is finite exactly when it is."""
        if self.mode == "standard":
            self.weights = dict.fromkeys(names, torch.ones((), device=self.device))
        elif list(self.weights) != names or self.age >= self.balance_every:
            gradient, self.weights, norms = self._balanced(losses, len(names))
            self.age = 1
            return gradient, torch.stack(list(norms.values())).sum()
        self.age += 1
        gradient = losses.weighted_gradient(self.parameters, self.weights)
        ((_, gradient),) = self.ranks.averaged([("", gradient)])
        return gradient, gradient_norm(gradient)

    def _balanced(self, losses: Losses, count: int) -> tuple[list[Tensor], dict, dict]:
        """Return what `balanced_gradient` does.

        It is linear in the gradients. So for wide layers, it gets the gradients at the layer's
        outputs, and the result is turned into the weights' gradients at the end. With several
        ranks, sizes have to be measured after averaging, for which the weights' own are used.
        """
        products = self._wide.products(losses.prediction) if self._wide else {}
        if count == 1 or self.ranks.count > 1:
            products = {}
        gradients = self.ranks.averaged(losses.gradients(self.parameters, products))
        if not products:
            return balanced_gradient(gradients, count)
        found = [products.get(p) for p in self.parameters]
        entries = sum(p.numel() for p in self.parameters)
        gradient, weights, norms = balanced_gradient(
            gradients, count, norm=lambda gradient: total_size(gradient, found) / entries
        )
        whole = [
            g if product is None else product.gradient(g, p)
            for g, p, product in zip(gradient, self.parameters, found, strict=True)
        ]
        return whole, weights, norms

    def _update(self, gradient: list[Tensor], size: Tensor) -> None:
        for parameter, g in zip(self.parameters, gradient, strict=True):
            parameter.grad = g
        self.bad = torch.maximum(self.bad, (~torch.isfinite(size)).float())
        # AMP's scaler sets the same attributes. The fused optimiser skips the update if
        # found_inf is not 0.
        self.optimizer.found_inf = self.bad  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()

    def decay(self) -> None:
        """Lower the learning rate by a step of the schedule."""
        self._decay.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the losses, the optimiser and the schedule."""
        return {
            "weights": {name: float(weight) for name, weight in self.weights.items()},
            "age": self.age,
            "optimizer": self.optimizer.state_dict(),
            "decay": self._decay.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        self.weights = {n: torch.tensor(w, device=self.device) for n, w in state["weights"].items()}
        self.age = state["age"]
        self.optimizer.load_state_dict(state["optimizer"])
        self._decay.load_state_dict(state["decay"])

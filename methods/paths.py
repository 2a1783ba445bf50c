"""Paths through a graph of domains, and how much their ends disagree: their violations.

A path (i, j, …, k) has a network f_ij at its beginning and a rest f_p, and visits no domain twice.
Its violation is |f_p(f_ij(x)) − f_p(y_j)|. For a path (i, j), this is the direct error.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations

import torch
from torch import Tensor

from datasets import Batch
from devices import Ranks
from energy import TRAINING, paths_for
from graph import Path, TaskGraph
from losses import at_least_float32, evaluate_losses, valid_error
from precision import numerical_precision
from task_configs import TASKS
from transfers import Edge

DOMAINS = ("rgb", "normal", "depth_zbuffer", "reshading")  # the first is the image
LONGEST = len(DOMAINS) - 1


def paths_of_length(length: int, domains: Sequence[str] = DOMAINS) -> list[Path]:
    """Return all paths of `length` networks. None leads to the first domain, the image."""
    return [path for path in permutations(domains, length + 1) if domains[0] not in path[1:]]


def edges() -> list[Edge]:
    """Return the edges that have a network: all between the domains, but none to the image."""
    return [(source, target) for source, target in paths_of_length(1)]


def beginning_with(edge: Edge, length: int, domains: Sequence[str] = DOMAINS) -> list[Path]:
    """Return the paths of `length` networks whose first network is that of the edge."""
    return [path for path in paths_of_length(length, domains) if path[:2] == edge]


def path_name(path: Path) -> str:
    """Return the path in words: "rgb → normal → reshading"."""
    return " → ".join(path)


def path_losses(paths: Iterable[Path]) -> dict:
    """Return a configuration whose losses are the violations, named by `path_name`."""
    config: dict = {"paths": {}, "losses": {}}
    for path in paths:
        rest = path[1:]
        config["paths"] |= {path_name(path): path, path_name(rest): rest}
        config["losses"][path_name(path)] = {TRAINING: [(path_name(path), path_name(rest))]}
    return config


def violations_of(graph: TaskGraph, paths: Sequence[Path], batch: Batch) -> dict[Path, Tensor]:
    """Return the violation of each path on each view of a batch, {path: (B,)}.

    As in all perceptual losses, pixels that are invalid in f_p(y_j) count as zero.
    """
    config = path_losses(paths)
    names = [path_name(path) for path in paths]
    losses = evaluate_losses(config, names, graph.sample(paths_for(config, names), batch))
    return {path: losses[name] for path, name in zip(paths, names, strict=True)}


@torch.no_grad()
def mean_violations(
    graph: TaskGraph,
    paths: Sequence[Path],
    batches: Iterable[Batch],
    device: torch.device,
    precision: str = "fp32",
    ranks: Ranks | None = None,
) -> dict[Path, float]:
    """Return the mean violation of each path over the views of all batches of all `ranks`.

    For a path (i, j), it is the direct error as in the closing table: over valid pixels.
    """
    graph.eval()
    config = path_losses(paths)
    per_view: dict[Path, list[Tensor]] = {path: [] for path in paths}
    for batch in batches:
        with numerical_precision(device, precision):
            values = graph.sample(config["paths"], batch)
        losses = evaluate_losses(config, [path_name(p) for p in paths if len(p) > 2], values)
        for path, of_views in per_view.items():
            if len(path) > 2:
                of_views.append(losses[path_name(path)])
            else:
                label = batch[path[1]]
                prediction = at_least_float32(values[path_name(path)])
                of_views.append(valid_error(prediction, label, TASKS[path[1]].mask(label)))
    local = {path: torch.cat(values).cpu() for path, values in per_view.items() if values}
    parts = (ranks or Ranks()).gathered(local)
    return {
        path: float(torch.cat([part[path] for part in parts if path in part]).double().nanmean())
        for path in paths
    }


def violation_of_edges(violations: Mapping[Path, float]) -> dict[Edge, float]:
    """Return the mean violation of the paths that begin with each network, except direct errors."""
    found: dict[Edge, list[float]] = {}
    for path, value in violations.items():
        if len(path) > 2:
            found.setdefault((path[0], path[1]), []).append(value)
    return {edge: sum(values) / len(values) for edge, values in found.items()}

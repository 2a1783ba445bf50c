"""Evaluation of a target network: the errors in the table that ends a training run."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets import Batch
from devices import Ranks
from energy import loss_of, paths_for
from graph import Path, TaskGraph
from label_cache import LabelCache
from losses import angular_error, evaluate_losses, valid_error
from measuring.errors import direct_errors
from models import unwrapped
from modules.several import SeveralOutputs
from tables import text_table
from task_configs import get_task

DIRECT = "direct L1 × 100"  # the row of the error against the ground truth


@torch.no_grad()
def measure(
    graph: TaskGraph,
    config: Mapping,
    perceptual: Sequence[str],
    reality: Iterable[Batch],
    ranks: Ranks | None = None,
    labels: LabelCache | None = None,
    quiet: bool = True,
    detailed: bool = False,
) -> dict[str, float]:
    """Return mean errors over all views of a reality, or of batches, {row: value}, in this order:

    - "direct L1 × 100": prediction against ground truth, over valid pixels,
    - "angular error (°)": the same for normals only,
    - "direct L1 × 100, {domain}" for the other domains with labels that the network predicts
      (`SeveralOutputs`), and the angular error of normals among them,
    - "… × 100, predicted" for each perceptual loss: the prediction mapped to the second
      domain, against the ground truth mapped there (the loss that training minimises),
    - "… × 100, true" for each perceptual loss whose second domain has labels: the mapped
      prediction against these labels (the paper's evaluation).

    `detailed` adds the measures of the literature after the direct error (see `errors`).
    Each of the `ranks` measures its share of the views. All get the means over all views.
    `labels` caches the frozen networks' outputs on the reality's ground truths. Unless `quiet`,
    a terminal shows a progress bar.
    """
    graph.eval()
    sums: dict[str, list] = {}
    paths = {"y^": config["paths"]["y^"], "n(x)": config["paths"]["n(x)"]}
    paths |= paths_for(config, perceptual)
    bar = tqdm(reality, unit="batch", desc="measuring", leave=False, disable=quiet or None)
    for batch in bar:
        known = labels.frozen_values(graph, paths, batch) if labels else {}
        errors = image_errors(graph, config, perceptual, batch, known, detailed)
        for row, values in errors.items():
            sums.setdefault(row, []).append(values)
    local = {row: torch.cat(values).cpu() for row, values in sums.items()}
    per_rank = (ranks or Ranks()).gathered(local)
    rows = dict.fromkeys(row for part in per_rank for row in part)
    return {
        row: float(torch.cat([part[row] for part in per_rank if row in part]).nanmean())
        for row in rows
    }


def _network(graph: TaskGraph, path: Path) -> nn.Module | None:
    """Return the network that predicts from the image, if it is a single one."""
    return unwrapped(graph.network(path)) if len(path) == 2 else None


def _direct_errors(prediction: Tensor, truth: Tensor, domain: str) -> dict[str, Tensor]:
    """Return the errors of a prediction over valid pixels, {row: (B,)}."""
    mask = get_task(domain).mask(truth)
    rows = {DIRECT: 100 * valid_error(prediction, truth, mask)}
    if domain == "normal":
        rows["angular error (°)"] = angular_error(prediction, truth, mask)
    return rows


def _errors_elsewhere(
    network: SeveralOutputs, batch: Mapping[str, Tensor], target: str
) -> dict[str, Tensor]:
    """Return the errors of the network's other predictions that have labels, {row: (B,)}."""
    return {
        f"{row}, {domain}": error
        for domain, prediction in network.outputs(batch["rgb"]).items()
        if domain != target and domain in batch
        for row, error in _direct_errors(prediction, batch[domain], domain).items()
    }


@torch.no_grad()
def image_errors(
    graph: TaskGraph,
    config: Mapping,
    perceptual: Sequence[str],
    batch: Batch | Mapping[str, Tensor],
    known: Mapping[Path, Tensor] | None = None,
    detailed: bool = False,
) -> dict[str, Tensor]:
    """Return the errors of each image of a batch, {row: (B,)}: the rows of `measure`.

    `known` are values of paths that were computed before. `detailed` adds the rows of
    `errors.direct_errors` after those of the direct error, and to each "…, true" the row
    "…, truth mapped": the frozen network's own error, which a perfect prediction would have.
    """
    paths = {"y^": config["paths"]["y^"], "n(x)": config["paths"]["n(x)"]}
    values = graph.sample(paths | paths_for(config, perceptual), batch, known)
    prediction, truth = values["n(x)"], values["y^"]
    target = config["paths"]["y^"][-1]
    rows = _direct_errors(prediction, truth, target)
    if detailed:
        rows |= direct_errors(target, prediction, truth, get_task(target).mask(truth))
    if isinstance(network := _network(graph, paths["n(x)"]), SeveralOutputs):
        rows |= _errors_elsewhere(network, batch, target)
    for name, loss in evaluate_losses(config, perceptual, values).items():
        rows[f"{name} × 100, predicted"] = 100 * loss
    for name in perceptual:
        domain, pairs = loss_of(config, name)[2:]
        if domain in batch:
            labels, ends = batch[domain], {"true": pairs[0][0]}
            if detailed:
                ends["truth mapped"] = pairs[0][1]
            for end, path in ends.items():
                error = valid_error(values[path], labels, get_task(domain).mask(labels))
                rows[f"{name} × 100, {end}"] = 100 * error
    return rows


def table(columns: Mapping[str, Mapping[str, float]], views: str = "held-out views") -> str:
    """Format measurements side by side, with the change from the first column in per cent.

    `views` says which views were measured; it heads the first column.
    """
    (first, start), *others = columns.items()
    rows = []
    for name, value in start.items():
        cells = [name, f"{value:.3f}"]
        for _, column in others:
            change = f"{100 * (column[name] / value - 1):+6.2f} %" if value else f"{'–':>8}"
            cells.append(f"{column[name]:.3f} ({change})")
        rows.append(cells)
    return text_table([views, first, *(name for name, _ in others)], rows)

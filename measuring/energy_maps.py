"""The consistency energy of each pixel: maps of where the paths disagree."""

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from energy import ENERGY_DOMAINS, straight_loss
from pictures import montage
from task_configs import TASKS
from transfers import FULL_SIZE

STRAIGHT_LOSSES = [straight_loss(domain) for domain in ENERGY_DOMAINS]
STRAIGHT = "n((x))"  # the path that predicts normals directly from the image
WHITE = 0.99  # the quantile of an image's energies from which on pixels are drawn white


def disagreements(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return |straight − through domain| of each pixel, averaged over channels.

    The result is {domain: (B, 1, H, W)}. As in the loss, it is zero where the path through the
    domain predicts an invalid normal. Its mean over the pixels is the image's loss.
    """
    straight = values[STRAIGHT]
    result = {}
    for domain in ENERGY_DOMAINS:
        through = values[f"n({domain}(x))"]
        difference = (straight - through).abs() * TASKS["normal"].mask(through)
        result[domain] = difference.mean(dim=1, keepdim=True)
    return result


def pixel_energy(parts: Mapping[str, Tensor], by: Mapping | None = None) -> Tensor:
    """Average the disagreements over domains: (B, 1, H, W).

    If `by` is given, the statistics of a labelled run, each domain is standardised first:
    (d − mean) / mean absolute deviation, both computed over images.
    """
    if by is None:
        return torch.stack(list(parts.values())).mean(dim=0)
    statistics = {domain: by["columns"][straight_loss(domain)] for domain in parts}
    terms = [(m - statistics[d]["mean"]) / statistics[d]["deviation"] for d, m in parts.items()]
    return torch.stack(terms).mean(dim=0)


def limits(energy: Tensor, white: float | None, standardise: bool) -> tuple[float, float]:
    """Return the energies of one image (1, H, W) that are drawn black and white."""
    low = float(energy.quantile(1 - WHITE)) if standardise else 0.0
    return low, max(top_of(energy, white), low + 1e-6)


def top_of(energy: Tensor, white: float | None) -> float:
    """Return the energy that is drawn white: `white`, or the image's quantile if it is None."""
    return max(float(energy.quantile(WHITE)), 1e-6) if white is None else white


def shaded(energy: Tensor, low: float, high: float) -> Tensor:
    """Scale energies to grey values in [0, 1], from black at `low` to white at `high`."""
    return ((energy - low) / (high - low)).clamp(0, 1)


def drawn(columns: Mapping[str, Tensor]) -> Image.Image:
    """Draw columns (C, H, W) of any sizes as one labelled picture."""
    return montage({name: values[None] for name, values in columns.items()}, FULL_SIZE)

"""Where in an image the paths disagree: the consistency energy of each pixel."""

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from energy import ENERGY_DOMAINS, straight_loss
from pictures import montage
from task_configs import TASKS
from transfers import FULL_SIZE

STRAIGHT_LOSSES = [straight_loss(domain) for domain in ENERGY_DOMAINS]
STRAIGHT = "n((x))"  # the path straight from the image
WHITE = 0.99  # this quantile of an image's pixels, and all above it, is white


def disagreements(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|straight − via the domain| of each pixel, the mean of channels: {domain: (B, 1, H, W)}.

    Zero where the path through the domain has no valid normal, as in the loss; the mean
    over the pixels is the image's loss against that domain.
    """
    straight = values[STRAIGHT]
    result = {}
    for domain in ENERGY_DOMAINS:
        through = values[f"n({domain}(x))"]
        difference = (straight - through).abs() * TASKS["normal"].mask(through)
        result[domain] = difference.mean(dim=1, keepdim=True)
    return result


def pixel_energy(parts: Mapping[str, Tensor], by: Mapping | None = None) -> Tensor:
    """The mean over domains of the disagreements: (B, 1, H, W).

    `by`, the statistics of a labelled run, standardises each first: (d − mean) / mean
    absolute deviation, both of images.
    """
    if by is None:
        return torch.stack(list(parts.values())).mean(dim=0)
    known = {domain: by["columns"][straight_loss(domain)] for domain in parts}
    terms = [(m - known[d]["mean"]) / known[d]["deviation"] for d, m in parts.items()]
    return torch.stack(terms).mean(dim=0)


def limits(energy: Tensor, white: float | None, standardise: bool) -> tuple[float, float]:
    """The energies drawn black and white, of one image's (1, H, W)."""
    low = float(energy.quantile(1 - WHITE)) if standardise else 0.0
    return low, max(top_of(energy, white), low + 1e-6)


def top_of(energy: Tensor, white: float | None) -> float:
    """The energy that is drawn white: the one given, or the image's own quantile."""
    return max(float(energy.quantile(WHITE)), 1e-6) if white is None else white


def shaded(energy: Tensor, low: float, high: float) -> Tensor:
    """Energies as grey values in [0, 1], white from `high` on."""
    return ((energy - low) / (high - low)).clamp(0, 1)


def drawn(columns: Mapping[str, Tensor]) -> Image.Image:
    """The columns (C, H, W), whatever their sizes, as one labelled picture."""
    return montage({name: values[None] for name, values in columns.items()}, FULL_SIZE)

"""Losses and errors of predictions. Pure functions of tensors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from energy import loss_pairs
from task_configs import get_task

# ---- losses of a configuration ------------------------------------------------------


def masked_loss(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, squared: bool = False
) -> Tensor:
    """Return the mean of |p − t|, or of (p − t)² if `squared`, per sample: (B,).

    `prediction` and `target` are (B, C, H, W). Pixels outside `mask` contribute zero but
    remain in the denominator of the mean (as published).
    """
    if mask is not None:
        prediction, target = prediction * mask, target * mask
    difference = prediction - target
    difference = difference.square() if squared else difference.abs()
    return difference.mean(dim=(1, 2, 3))


def evaluate_losses(
    config: Mapping,
    names: Sequence[str],
    values: Mapping[str, Tensor],
    reality: str = "train",
    squared: bool = False,
) -> dict[str, Tensor]:
    """Compute losses per sample, {name: (B,)}, from the values of their paths.

    The loss of a pair is the L1 error, or the squared error if `squared`. Pixels where the
    second path is invalid are masked, except for ImageNet features. A loss of several pairs
    is the sum over the pairs.
    """
    losses = {}
    for name in names:
        terms = []
        for first, second in loss_pairs(config, name, reality):
            task = get_task(config["paths"][second][-1])
            prediction, target = at_least_float32(values[first]), at_least_float32(values[second])
            mask = None if task.name == "imagenet" else task.mask(target.detach())
            terms.append(masked_loss(prediction, target, mask, squared))
        losses[name] = torch.stack(terms).sum(dim=0)
    return losses


def at_least_float32(values: Tensor) -> Tensor:
    """Convert 16-bit values to float32, which the mean over an image needs."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


# ---- errors over valid pixels -------------------------------------------------------


def valid_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of |p − t| over valid pixels per sample: (B,). NaN if none is valid.

    `prediction` and `target` are (B, C, H, W), `mask` is bool (B, C, H, W) or (B, 1, H, W).
    """
    error = ((prediction - target).abs() * mask).sum(dim=(1, 2, 3))
    return error / mask.expand_as(prediction).sum(dim=(1, 2, 3))


def angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle in degrees between encoded normals at each pixel: (B, H, W).

    `first` and `second` are (B, 3, H, W) in [0, 1], which encodes normals in [−1, 1].
    """
    first, second = 2 * first - 1, 2 * second - 1
    # atan2 is accurate at small angles, where arccos is not
    sine = torch.linalg.vector_norm(torch.linalg.cross(first, second, dim=1), dim=1)
    return torch.rad2deg(torch.atan2(sine, (first * second).sum(dim=1)))


def angular_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean angle in degrees between encoded normals over valid pixels: (B,).

    `prediction` and `target` are (B, 3, H, W) in [0, 1], which encodes normals in [−1, 1]. Of the
    bool `mask` (B, C, H, W), the first channel is used. NaN if no pixel is valid.
    """
    valid = mask[:, 0]
    return (angles(prediction, target) * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))

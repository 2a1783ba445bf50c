"""Errors of each image against its ground truth, as the literature reports them.

Pure functions of tensors. All are per image, over valid pixels; NaN if no pixel is valid. A table
reports their means over the images.
"""

import torch
from torch import Tensor

from losses import angles
from measuring.result_files import in_metres

WITHIN = (11.25, 22.5, 30.0)  # degrees
RATIO = 1.25  # the bound of δ
BETTER_HIGHER = ("within", "δ")  # beginnings of the rows in which higher is better


def direct_errors(
    target: str, prediction: Tensor, truth: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """Return the errors of predictions (B, C, H, W) of the domain `target`, {row: (B,)}.

    The rows are the mean squared error × 1000, and those of `normal_errors` or `depth_errors`.
    `mask` (B, C, H, W) tells which pixels are valid.
    """
    rows = {"direct MSE × 1000": 1000 * squared_error(prediction, truth, mask)}
    if target == "normal":
        rows |= normal_errors(prediction, truth, mask[:, 0])
    if target == "depth_zbuffer":
        metres = in_metres(prediction)[:, 0], in_metres(truth)[:, 0]
        rows |= depth_errors(*metres, mask[:, 0])
    return rows


def squared_error(prediction: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of (p − t)² over valid pixels: (B,)."""
    error = ((prediction - truth).square() * mask).sum(dim=(1, 2, 3))
    return error / mask.expand_as(prediction).sum(dim=(1, 2, 3))


def normal_errors(prediction: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Return statistics of the angle between encoded normals (B, 3, H, W) in [0, 1], {row: (B,)}.

    They are its median and its root mean square in degrees, and the share of pixels in per cent
    whose angle is below 11.25°, 22.5° and 30°. `valid` is (B, H, W).
    """
    angle = torch.where(valid, angles(prediction, truth), torch.nan).flatten(1)
    rows = {
        "median angle (°)": angle.nanquantile(0.5, dim=1),
        "RMSE angle (°)": angle.square().nanmean(dim=1).sqrt(),
    }
    for bound in WITHIN:
        below = torch.where(angle.isnan(), torch.nan, (angle < bound).float())
        rows[f"within {bound:g}° (%)"] = 100 * below.nanmean(dim=1)
    return rows


def depth_errors(prediction: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Return errors of depth (B, H, W) in metres, {row: (B,)}.

    They are the mean of |p − t| / t, the root mean squared error in metres, and the share of
    pixels in per cent with max(p / t, t / p) < 1.25; then the same three for `aligned`
    predictions. Pixels whose true depth is 0 are left out.
    """
    valid = valid & (truth > 0)
    rows = {}
    for end, depth in {"": prediction, ", aligned": aligned(prediction, truth, valid)}.items():
        error, count = depth - truth, valid.sum(dim=(1, 2))
        safe = torch.where(valid, truth, 1.0)
        relative = (error.abs() / safe * valid).sum(dim=(1, 2)) / count
        # both ratios are below the bound; without a division by a prediction of 0
        close = (depth < RATIO * truth) & (truth < RATIO * depth) & valid
        rows[f"abs-rel × 100{end}"] = 100 * relative
        rows[f"RMSE (m){end}"] = ((error.square() * valid).sum(dim=(1, 2)) / count).sqrt()
        rows[f"δ < {RATIO:g} (%){end}"] = 100 * close.sum(dim=(1, 2)) / count
    return rows


def aligned(prediction: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Return a · p + b with the a and b of each image that fit the truth by least squares.

    All are (B, H, W). A constant prediction becomes the mean of the truth.
    """
    p, t, v = prediction.double(), truth.double(), valid.double()
    count = v.sum(dim=(1, 2), keepdim=True)
    mean_p, mean_t = ((x * v).sum(dim=(1, 2), keepdim=True) / count for x in (p, t))
    spread = ((p - mean_p).square() * v).sum(dim=(1, 2), keepdim=True)
    shared = ((p - mean_p) * (t - mean_t) * v).sum(dim=(1, 2), keepdim=True)
    slope = torch.where(spread > 0, shared / spread, 0.0)
    return (slope * (p - mean_p) + mean_t).to(prediction.dtype)

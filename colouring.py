"""How each domain is shown: the table `LOOKS`, a row for each domain.

The values that networks and losses work with stay as they are; colours are only for viewing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from task_configs import ImageTask

DEPTH_UNIT = 1 / 512  # metres for each step of a depth file
DEPTH_RANGE = 8000 * DEPTH_UNIT  # metres at the value 1, about 15.6
# 1/m at the values 0 and 1 of principal_curvature, whose zero is 127 of 255
FLATTEST, CURVATURE_RANGE = 127 / 255, 255 / 127 * 33.3
INVALID = 0.505  # the grey of invalid pixels, as in the error map
QUANTILES = 0.01, 0.99  # the part of the values that a stretched scale spans

Limits = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """How the values of a domain, (B, C, H, W), are shown.

    `name`: the domain in words.
    `colours`: a colour map of matplotlib, for the mean of the first `averaged` channels (0: of
    all). "" shows the first three channels as red, green and blue.
    `unit`, `origin`, `factor`: the number beside the colour bar is (value − origin) · factor,
    in that unit.
    `limits`: the values at the ends of the scale; None takes them from the picture's own values.
    `centred`: whether `origin` is in the middle of a scale taken from the values.
    `marks_invalid`: whether invalid pixels are grey. It is False where valid pixels may have the
    mask value, too.
    `frame`: pixels at each border that are not shown.
    `apart`: the largest difference that pictures of differences show, as a share of the length
    of the values' scale.
    """

    name: str
    colours: str = ""
    unit: str = ""
    origin: float = 0.0
    factor: float = 1.0
    limits: Limits | None = None
    centred: bool = False
    marks_invalid: bool = False
    frame: int = 0
    averaged: int = 0
    apart: float = 1.0

    def number(self, value: float) -> float:
        """Return the number beside the bar for a value of the domain."""
        return (value - self.origin) * self.factor


LOOKS: dict[str, Look] = {
    "rgb": Look("image"),
    "normal": Look("normals", marks_invalid=True),
    "principal_curvature": Look(
        "curvature",
        "RdBu_r",
        "1/m",
        FLATTEST,
        CURVATURE_RANGE,
        centred=True,
        marks_invalid=True,
        averaged=2,
        apart=0.5,  # the third channel is empty
    ),
    "depth_zbuffer": Look("depth", "turbo", "m", factor=DEPTH_RANGE, marks_invalid=True, apart=0.5),
    "reshading": Look("shading", "gray", limits=(0.0, 1.0), apart=0.5),
    "edge_occlusion": Look("occlusion edges", "gray_r"),
    # The filter sees zeros outside the image, which makes a strong edge all around it.
    "sobel_edges": Look("edges", "gray_r", frame=1),
    "keypoints2d": Look("2D keypoints", "inferno"),
    "keypoints3d": Look("3D keypoints", "inferno"),
}
DIFFERENCE = "magma"  # the colour map of differences


def look_of(task: ImageTask) -> Look:
    """Return the domain's row of `LOOKS`. A domain that has none gets a plain look.

    That is red, green and blue for three channels, else "viridis", stretched. Labels are shown
    by the number of their class.
    """
    if task.name in LOOKS:
        return LOOKS[task.name]
    name = task.name.replace("_", " ")
    if task.name.endswith("blur") and task.name.removesuffix("blur") in LOOKS:
        return replace(LOOKS[task.name.removesuffix("blur")], name=name)
    if task.classes:
        return Look(name, "nipy_spectral", limits=(0.0, task.classes - 1.0))
    return Look(name, "" if task.channels == 3 else "viridis")


# ---- values → colours -----------------------------------------------------------------


def shade(task: ImageTask, values: Tensor) -> Tensor:
    """Return what a colour map is applied to, (B, H, W) float32 on the CPU.

    That is the mean of the channels, or for labels the number of the class.
    """
    values = values.detach().float().cpu()
    if task.classes:
        return values.argmax(dim=1).float()
    return _averaged(task, values)


def _averaged(task: ImageTask, values: Tensor) -> Tensor:
    return values[:, : look_of(task).averaged or None].mean(dim=1)


def validity(task: ImageTask, values: Tensor) -> Tensor:
    """Return which pixels are drawn in colour: (B, H, W) bool on the CPU."""
    values = values.detach().float().cpu()
    if not look_of(task).marks_invalid:
        return torch.ones(values.shape[0], *values.shape[2:], dtype=torch.bool)
    return task.mask(values)[:, 0]


def limits_of(task: ImageTask, *columns: Tensor) -> Limits:
    """Return the values (low, high) at the ends of the scale for these (B, C, H, W) together."""
    look = look_of(task)
    if look.limits:
        return look.limits
    parts = []
    for column in columns:
        shades, valid = shade(task, column), validity(task, column)
        shades, valid = _without_frame(shades, look.frame), _without_frame(valid, look.frame)
        parts.append(shades[valid & shades.isfinite()])
    found = torch.cat(parts).numpy()
    if not found.size:
        return look.origin, look.origin + 1.0
    low, high = (float(q) for q in np.quantile(found, QUANTILES))
    if look.centred:
        reach = max(abs(low - look.origin), abs(high - look.origin), 1e-6)
        return look.origin - reach, look.origin + reach
    return low, max(high, low + 1e-6)


def coloured(task: ImageTask, values: Tensor, limits: Limits, mark: bool = True) -> Tensor:
    """Draw values in the colours of their domain: (B, C, H, W) → (B, 3, H, W) in [0, 1].

    Invalid pixels are grey, where the domain marks them. `mark` = False is for predictions,
    whose pixels are all valid.
    """
    look = look_of(task)
    if look.colours:
        picture = mapped(shade(task, values), look.colours, limits)
    else:
        picture = values.detach().float().cpu()[:, :3].nan_to_num(0).clamp(0, 1)
        picture = picture if picture.shape[1] == 3 else picture[:, :1].expand(-1, 3, -1, -1)
    if mark:
        picture = torch.where(validity(task, values)[:, None], picture, INVALID)
    return _without_frame(picture, look.frame)


def mapped(values: Tensor, colours: str, limits: Limits) -> Tensor:
    """Apply a colour map of matplotlib: (B, H, W) → (B, 3, H, W) in [0, 1]."""
    from matplotlib import colormaps

    low, high = limits
    scaled = ((values.detach().float().cpu() - low) / (high - low)).nan_to_num(0).clamp(0, 1)
    return torch.from_numpy(colormaps[colours](scaled.numpy())[..., :3]).float().movedim(-1, 1)


def difference(task: ImageTask, first: Tensor, second: Tensor, top: float) -> Tensor:
    """Draw |first − second|, averaged over channels: (B, C, H, W) → (B, 3, H, W).

    The colours span 0 … `top`. Invalid pixels of `second` are grey, where the domain marks them.
    """
    apart = _averaged(task, (first - second).detach().float().cpu().abs())
    picture = mapped(apart, DIFFERENCE, (0.0, top))
    picture = torch.where(validity(task, second)[:, None], picture, INVALID)
    return _without_frame(picture, look_of(task).frame)


def top_difference(task: ImageTask, limits: Limits) -> float:
    """Return the difference at the end of the scale of a difference.

    It depends on the limits alone, so that the pictures of all epochs can be compared.
    """
    return (limits[1] - limits[0]) * look_of(task).apart


def _without_frame(values: Tensor, frame: int) -> Tensor:
    """Cut `frame` pixels off each border, where that leaves anything."""
    if not frame or min(values.shape[-2:]) <= 2 * frame:
        return values
    return values[..., frame:-frame, frame:-frame]


# ---- legends ----------------------------------------------------------------------------


def ramp(colours: str, width: int, height: int) -> Tensor:
    """Draw a colour map from left to right: (3, height, width) in [0, 1]."""
    return mapped(torch.linspace(0, 1, width).expand(1, height, width), colours, (0, 1))[0]


def ends(look: Look, limits: Limits) -> list[str]:
    """Return the numbers below a bar: at its left end, its middle and its right end."""
    low, high = limits
    return numbers([look.number(value) for value in (low, (low + high) / 2, high)], look.unit)


def difference_ends(look: Look, top: float) -> list[str]:
    """Return the numbers below the bar of a difference."""
    return numbers([0.0, look.factor * top / 2, look.factor * top], look.unit)


def numbers(values: Sequence[float], unit: str = "") -> list[str]:
    """Return numbers as texts for a bar, with the unit after the last."""
    size = max(abs(value) for value in values)
    digits = 0 if size >= 20 else 1 if size >= 2 else 2 if size >= 0.2 else 3
    texts = [f"{value:.{digits}f}".replace("-", "−") for value in values]
    texts = ["0" if not text.strip("−0.") else text for text in texts]
    return [*texts[:-1], f"{texts[-1]} {unit}".strip()]


def ball(size: int) -> Tensor:
    """Draw a sphere in the colours of its normals, (3, size, size), black outside.

    It is seen from the front: x points right, y down and z away from the camera.
    """
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    inside = x**2 + y**2 <= 1
    normals = torch.stack([x, y, -(1 - x**2 - y**2).clamp_min(0).sqrt()])
    return torch.where(inside, (normals + 1) / 2, 0.0)

"""3D Ken Burns: a camera that moves through an image by its predicted depth.

After "3D Ken Burns Effect from a Single Image" (Niklaus et al., 2019), whose networks for depth,
its refinement and inpainting are not used: depth is that of this project's networks, and what comes
into sight is filled from the background around it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from loading.video_files import written_video
from measuring.depth_3d import EDGE, View
from measuring.prediction import resized
from pictures import to_image
from utils import UserError, check_positive

# Points that are farther than the nearest one at a pixel by at most this share are seen there too.
SAME = 0.03
FAINT = 0.02  # a point that covers less of a pixel does not hide what is behind
MOST_FRAMES = 900


@dataclass(frozen=True)
class Position:
    """Where the camera is, described by what happens in the picture to an object at the focus.

    At `zoom` 1.2, the object appears 1.2 times as large. If the camera has moved to the `right`
    and `down`, the object has moved to the left and up in the picture, by these shares of its width
    and height. Raises UserError for a zoom outside 0.5 … 3, or a share outside −0.5 … 0.5.
    """

    zoom: float = 1.0
    right: float = 0.0
    down: float = 0.0

    def __post_init__(self) -> None:
        if not 0.5 <= self.zoom <= 3:
            raise UserError(f"a zoom is 0.5 to 3, not {self.zoom:g}")
        if max(abs(self.right), abs(self.down)) > 0.5:
            raise UserError(f"a shift is −0.5 to 0.5, not {self.right:g},{self.down:g}")

    def to(self, other: "Position", share: float) -> "Position":
        """Return the position after a `share`, 0 … 1, of the way to another."""
        zoom = self.zoom ** (1 - share) * other.zoom**share  # growing evenly
        return Position(
            min(max(zoom, 0.5), 3),
            self.right + share * (other.right - self.right),
            self.down + share * (other.down - self.down),
        )

    def metres(self, view: View) -> tuple[float, float, float]:
        """Return the camera's place (x, y, z) in the view's frame."""
        height, width = view.depth.shape
        focus = focus_of(view)
        z = focus * (1 - 1 / self.zoom)
        scale = (focus - z) / view.focal
        return self.right * width * scale, self.down * height * scale, z


def focus_of(view: View) -> float:
    """Return the depth at the focus: the median of the picture's middle third, in metres."""
    height, width = view.depth.shape
    middle = view.depth[height // 3 : height - height // 3, width // 3 : width - width // 3]
    return float(middle.median())


def eased(share: float) -> float:
    """Return a share of the time, 0 … 1, as a share of the way: slow at both ends."""
    return (1 - math.cos(math.pi * share)) / 2


# ---- rendering ----------------------------------------------------------------------------


def render(view: View, x: float, y: float, z: float) -> tuple[Tensor, Tensor]:
    """Render a view from the place (x, y, z) in metres, looking the same way.

    Returns the picture (3, H, W) in [0, 1] and its depth (H, W) in metres from the new place, 0 in
    holes, where nothing is seen. Each pixel of the view is a point. It is drawn on the four pixels
    around its place in the new picture, with bilinear weights. At each of these, only the nearest
    point counts, and those hardly farther (a z-buffer). Points behind the camera are left out.
    """
    height, width = view.depth.shape
    factor = _density(view, z)
    image, depth = view.image, view.depth
    across, down = view.offsets()
    if factor > 1:
        image, depth, across, down = _denser(view, factor)
    distance = depth - z
    seen = distance > 0.02
    distance = torch.where(seen, distance, 1.0)
    place_x = across * (depth / distance) - view.focal * x / distance + width / 2 - 0.5
    place_y = down * (depth / distance) - view.focal * y / distance + height / 2 - 0.5
    left, top = place_x.floor(), place_y.floor()
    parts = []
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        column, row = left + j, top + i
        weight = (1 - (place_x - column).abs()) * (1 - (place_y - row).abs())
        inside = seen & (weight > FAINT)
        inside &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = (row * width + column)[inside].long()
        parts.append((index, weight[inside], distance[inside], image[:, inside]))
    return _blended(parts, height, width)


def _blended(
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]], height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Average the nearest points on each pixel. `parts` are (index, weight, distance, colours)."""
    nearest = torch.full((height * width,), math.inf)
    for index, _, distance, _ in parts:
        nearest.scatter_reduce_(0, index, distance, "amin")
    sums = torch.zeros(5, height * width)
    for index, weight, distance, colours in parts:
        front = distance <= (1 + SAME) * nearest[index]
        index, weight = index[front], weight[front]
        values = torch.cat([colours[:, front], distance[front][None], torch.ones(1, len(index))])
        sums.index_add_(1, index, values * weight)
    mean = sums[:4] / sums[4].clamp_min(1e-12)
    return mean[:3].view(3, height, width), mean[3].view(height, width)


def _density(view: View, z: float) -> int:
    """Return into how many points a pixel's side is divided, so that surfaces have no cracks.

    Each point is drawn on four pixels, so points up to 1.7 pixels apart leave no pixel out. Only
    the nearest hundredth of the points, which spread most, may be farther apart: these gaps are
    filled.
    """
    near = float(view.depth.flatten()[:: max(1, view.depth.numel() // 10000)].quantile(0.01))
    spread = near / max(near - z, near / 8)
    return min(4, math.ceil(spread / 1.6))


def _denser(view: View, factor: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide each pixel into `factor` × `factor` points: image, depth, and their offsets.

    Colours are interpolated. Depth is too, but not over edges, where a pixel keeps its own.
    """
    size = [factor * side for side in view.depth.shape]
    image = resized(view.image[None], size)[0]
    smooth = resized(view.depth[None, None], size)[0, 0]
    own = view.depth.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    depth = torch.where((smooth - own).abs() < 0.02 * own, smooth, own)
    height, width = size
    across = (torch.arange(width) + 0.5) / factor - view.depth.shape[1] / 2
    down = (torch.arange(height) + 0.5) / factor - view.depth.shape[0] / 2
    return image, depth, across[None], down[:, None]


# ---- holes --------------------------------------------------------------------------------


def filled(picture: Tensor, depth: Tensor) -> Tensor:
    """Fill the holes of a rendered picture (3, H, W), where its depth (H, W) is 0.

    For each pixel of a hole, the first pixel outside it is searched for to the left, right, top
    and bottom. Of those found, the farthest and those hardly nearer are used, because what comes
    into sight behind an object belongs to the background. The pixel gets the mean of their colours,
    weighted by the inverse of their distance in the picture.
    """
    hole = depth == 0
    if not hole.any() or hole.all():
        return picture
    rows, columns = hole.nonzero(as_tuple=True)
    found_depth, weights, colours = [], [], []
    for index, steps in _first_beyond(hole):
        index, steps = index[hole], steps[hole]
        found = index >= 0
        index = index.clamp_min(0)
        found_depth.append(torch.where(found, depth.flatten()[index], 0.0))
        weights.append(torch.where(found, 1.0 / steps.clamp_min(1), 0.0))
        colours.append(picture.flatten(1)[:, index])
    depths = torch.stack(found_depth)
    background = depths >= depths.amax(dim=0) / (1 + EDGE)
    share = torch.stack(weights) * background
    share = share / share.sum(dim=0).clamp_min(1e-12)
    result = picture.clone()
    result[:, rows, columns] = sum(s * c for s, c in zip(share, colours, strict=True))
    return result


def _first_beyond(hole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for four directions, each pixel's first pixel outside holes, and its distance.

    The first is a flat index (H, W), −1 where there is none; the second is in pixels.
    """
    own = torch.arange(hole.numel()).view(hole.shape)
    for axis in (0, 1):
        for turned in (False, True):
            holes, numbers = (t.flip(axis) if turned else t for t in (hole, own))
            line = torch.arange(hole.shape[axis]).view([-1, 1] if axis == 0 else [1, -1])
            last = torch.where(holes, -1, line).cummax(dim=axis).values
            index = torch.where(last < 0, -1, numbers.gather(axis, last.clamp_min(0)))
            pair = index, line - last
            yield tuple(t.flip(axis) if turned else t for t in pair)  # type: ignore[misc]


# ---- clips ----------------------------------------------------------------------------------


def clip_frames(
    view: View, end: Position, start: Position = Position(), count: int = 75
) -> Iterator[Image.Image]:
    """Yield the pictures on the way from `start` to `end`, slow at both ends, with holes filled."""
    for number in range(count):
        position = start.to(end, eased(number / max(1, count - 1)))
        yield to_image(filled(*render(view, *position.metres(view))))


def frame_count(seconds: float, fps: float) -> int:
    """Return the number of frames of a clip. Raises UserError if there are too many."""
    check_positive(seconds=seconds, fps=fps)
    count = max(1, round(seconds * fps))
    if count > MOST_FRAMES:
        raise UserError(
            f"a clip of {seconds:g} s has {count} frames at {fps:g} a second, and {MOST_FRAMES} "
            f"are the most: give fewer `seconds`, or a lower `fps`"
        )
    return count


def write_clip(
    view: View,
    path: Path,
    end: Position,
    start: Position = Position(),
    *,
    seconds: float = 3.0,
    fps: float = 25.0,
) -> Iterator[tuple[int, int]]:
    """Write a clip as an MP4; yields (frames done, all frames) after each of them.

    The file gets its name at the end. If the generator is closed earlier, there is no file. Raises
    UserError for a clip that is too long, or if it cannot be written.
    """
    count = frame_count(seconds, fps)
    with written_video(path, Fraction(fps).limit_denominator(1000)) as writer:
        for number, picture in enumerate(clip_frames(view, end, start, count), 1):
            writer.add(picture)
            yield number, count

"""Checks of a view's files: whether they are broken or have an unexpected encoding."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from loading.bad_files import reason_of_file
from loading.layouts import Place, View
from loading.view_lists import LISTED
from task_configs import FORMATS, READ_ERRORS, TASKS, ImageTask, check_size
from utils import check_regular

DEEP = "depth_zbuffer", "edge_occlusion", "keypoints2d", "keypoints3d"  # 16-bit grey
HOLE = 65535  # depth value of invalid pixels
LENGTH_TOLERANCE = 0.1  # allowed deviation of a normal's length from 1
ODD_SHARE = 0.1  # share of odd pixels to report; smaller shares occur at the edges of objects
# Minimum agreement of normals with the gradient of depth (see `_axes`). It is 0.93 or more for
# the rooms and for Taskonomy.
AXES_AGREE = 0.5
ENOUGH = 4  # views of a building that are needed to judge the direction of its normals
TILT = 0.1  # mean difference of y between a picture's halves from which up or down is judged


class Finding(NamedTuple):
    """A problem of a file, or of a domain in a building. `kind` is "broken" or "odd"."""

    kind: str
    path: str
    text: str


class Checked(NamedTuple):
    """The result of checking a view.

    `findings` are the problems of each domain. `shares` are the shares of pixels with the
    values 0 and 65535, for 16-bit domains. `axes` (2, 2) is the agreement in sign of red and
    green normals (rows) with the gradient of depth to the right and down (columns). It is
    None unless the view has both domains. `tilt` is described in `_tilt`.
    """

    findings: dict[str, list[Finding]]
    shares: dict[str, tuple[float, float]]
    axes: np.ndarray | None
    tilt: tuple[float, float] | None = None


def check_view(job: tuple[View, Sequence[str]]) -> Checked:
    """Check a view's files of the named domains. `job` is (view, names of domains)."""
    view, names = job
    findings: dict[str, list[Finding]] = {name: [] for name in names}
    pixels, shares = {}, {}
    for name in names:
        path = str(view.path(TASKS[name]))
        try:
            values, mode = _read(path)
        except READ_ERRORS as error:
            findings[name].append(Finding("broken", path, reason_of_file(error, path)))
            continue
        pixels[name] = values
        odd = list(_oddities(TASKS[name], values, mode))
        findings[name] += [Finding("odd", path, text) for text in odd]
        if name in DEEP and not odd:
            shares[name] = float((values == 0).mean()), float((values == HOLE).mean())
    sizes = {name: values.shape[1::-1] for name, values in pixels.items()}
    most_common = Counter(sizes.values()).most_common(1)
    for name, size in sizes.items():
        if size != most_common[0][0]:
            text = "{} × {} pixels, other files of its view {} × {}: they must be equal".format(
                *size, *most_common[0][0]
            )
            findings[name].append(Finding("odd", str(view.path(TASKS[name])), text))
    sound = {name: values for name, values in pixels.items() if not findings[name]}
    return Checked(findings, shares, _axes(sound), _tilt(sound))


def _read(path: str) -> tuple[np.ndarray, str]:
    """Return the file's raw pixels and its mode. Raises one of READ_ERRORS."""
    check_regular(path)
    with Image.open(path, formats=FORMATS) as file:
        check_size(file.size, 1)
        file.verify()  # checks the checksums, which reading the pixels does not
    with Image.open(path, formats=FORMATS) as file:
        return np.array(file), file.mode


def _oddities(task: ImageTask, values: np.ndarray, mode: str) -> Iterator[str]:
    """Yield deviations of a file's encoding from docs/encodings.md."""
    if task.name in DEEP:
        expected, matches = "16-bit grey", mode.startswith("I")
    elif task.classes:
        expected, matches = "8-bit labels", mode in ("L", "P")
    else:
        expected, matches = "8-bit colour", mode in ("RGB", "RGBA")
    if not matches:
        yield f"mode {mode}, not {expected}"
    elif task.name == "depth_zbuffer":
        yield from _depth_oddities(values)
    elif task.name == "normal":
        yield from _normal_oddities(values)
    elif task.name == "rgb" and (values == values[:1, :1]).all():
        yield "one colour all over"


def _depth_oddities(values: np.ndarray) -> Iterator[str]:
    valid = values[values != HOLE]
    if not valid.size:
        yield "nothing but holes (65535)"
    elif valid.max() <= 255:
        yield f"no depth above {valid.max()}/512 m: 8-bit values in a 16-bit file?"
    elif (share := float((values == 0).mean())) > (0 if valid.size == values.size else ODD_SHARE):
        yield f"{share:.1%} of the pixels are 0, where holes are 65535 (a step is 1/512 m)"


def _vectors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the normals (H, W, 3) of a file's pixels, and the mask (H, W) of valid ones."""
    return values[..., :3] / 127.5 - 1, (values[..., :3] != 128).any(axis=-1)


def _normal_oddities(values: np.ndarray) -> Iterator[str]:
    vectors, valid = _vectors(values)
    if not valid.any():
        yield "nothing but holes (128, 128, 128)"
        return
    lengths = np.linalg.norm(vectors[valid], axis=-1)
    wrong = float((abs(lengths - 1) > LENGTH_TOLERANCE).mean())
    if wrong > ODD_SHARE:
        yield f"{wrong:.0%} of the normals are not of length 1 (mean {lengths.mean():.2f})"


def _axes(pixels: dict[str, np.ndarray]) -> np.ndarray | None:
    """Return the agreement in sign of red and green with the gradient of depth: (2, 2).

    Rows are red and green, columns are the gradients to the right and down. Values are in
    [-1, 1]. If a normal points to the right, the surface's depth increases to the right; if
    it points down, the depth increases downwards.
    """
    depth, normal = pixels.get("depth_zbuffer"), pixels.get("normal")
    if depth is None or normal is None or depth.ndim != 2 or normal.ndim != 3:
        return None
    if depth.shape != normal.shape[:2] or min(depth.shape) < 3 or depth.dtype == np.uint8:
        return None
    vectors, valid = _vectors(normal)
    depth = depth.astype(np.float64)
    down, right = np.gradient(depth)
    # exclude depth discontinuities between objects
    smooth = valid & (depth != HOLE) & (np.hypot(down, right) < 0.1 * depth)
    slopes = [np.sign(slope[smooth]) for slope in (right, down)]
    components = [vectors[..., i][smooth] for i in range(2)]
    sizes = [np.abs(component).sum() + 1e-9 for component in components]
    return np.array([[(component * slope).sum() / size for slope in slopes]
                     for component, size in zip(components, sizes, strict=True)])  # fmt: skip


def direction_findings(place: Place, checked: Iterable[Checked]) -> list[Finding]:
    """Check whether a building's normals point up and towards the camera where they should.

    In most pictures of rooms the lower half shows more floor, whose normals point up (green near
    0), and the upper half more ceiling. A surface can only be seen from its front (blue ≤ 128).
    """
    tilts = [view.tilt for view in checked if view.tilt is not None]
    if len(tilts) < ENOUGH:
        return []
    down, away = np.mean(tilts, axis=0)
    inverted = [c for c, wrong in (("green", down < -TILT), ("blue", away > 0.5)) if wrong]
    if not inverted:
        return []
    both = " and ".join(inverted)
    what = {"green": "y points up", "blue": "z points towards the camera"}
    said = " and ".join(what[colour] for colour in inverted)
    text = f"it looks as if {said}; if so, invert {both} in all files (docs/encodings.md)"
    return [Finding("odd", _folder(place), text)]


def _tilt(pixels: dict[str, np.ndarray]) -> tuple[float, float] | None:
    """Return two properties of a view's normals.

    They are the mean of their y in the upper half minus that in the lower half (positive if y
    points down, as it should), and the share of normals that point away from the camera.
    """
    normal = pixels.get("normal")
    if normal is None or normal.ndim != 3 or min(normal.shape[:2]) < 4:
        return None
    vectors, valid = _vectors(normal)
    middle = len(normal) // 2
    halves = [vectors[part][..., 1][valid[part]] for part in (slice(middle), slice(middle, None))]
    if not all(half.size for half in halves):
        return None
    away = float((vectors[valid][:, 2] > 0.2).mean())
    return float(halves[0].mean() - halves[1].mean()), away


def _folder(place: Place) -> str:
    """Return the folder of a building's normals; a list of views has none of its own."""
    listed = place.layout == LISTED
    return str(place.data_dir if listed else place.view("").path(TASKS["normal"]).parent)


def axes_findings(place: Place, checked: Iterable[Checked]) -> list[Finding]:
    """Check the axes of a building's normals against depth, averaged over its views."""
    agreements = [view.axes for view in checked if view.axes is not None]
    if not agreements:
        return []
    axes = np.mean(agreements, axis=0)
    if abs(axes[0, 1]) + abs(axes[1, 0]) > abs(axes[0, 0]) + abs(axes[1, 1]):
        texts = ["red and green are swapped"]
    else:
        directions = ("red", "right", "left"), ("green", "down", "up")
        texts = [
            f"{colour} points {wrong} instead of {right}"
            if agreement < -AXES_AGREE
            else f"{colour} is not the axis that points {right}"
            for (colour, right, wrong), agreement in zip(directions, axes.diagonal(), strict=True)
            if agreement < AXES_AGREE
        ]
    return [Finding("odd", _folder(place), f"{text}, by the slopes of depth") for text in texts]

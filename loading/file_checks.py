"""What is wrong with a view's files: broken, or encoded in another way than expected."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from loading.bad_files import reason_of_file
from loading.layouts import Place, View
from task_configs import FORMATS, READ_ERRORS, TASKS, ImageTask, check_size

DEEP = "depth_zbuffer", "edge_occlusion", "keypoints2d", "keypoints3d"  # 16-bit grey
HOLE = 65535  # of depth; 0 is not a depth
LENGTH_TOLERANCE = 0.1  # of a normal, from 1
ODD_SHARE = 0.1  # of the pixels: below, it is the edges of things
AXES_AGREE = 0.5  # of normals with the slopes of depth: 0.93 and more in rooms and Taskonomy


class Finding(NamedTuple):
    """One thing wrong with a file, or with a building's domain; kind: broken or odd."""

    kind: str
    path: str
    text: str


class Checked(NamedTuple):
    """A view's findings, its 16-bit domains' shares of 0 and 65535, and its axes.

    `axes` is (2, 2): how far red and green (rows) agree in sign with the slope of depth to
    the right and down (columns); None without both domains.
    """

    findings: dict[str, list[Finding]]
    shares: dict[str, tuple[float, float]]
    axes: np.ndarray | None


def check_view(job: tuple[View, Sequence[str]]) -> Checked:
    """What is wrong with a view's files of the named domains."""
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
    usual = Counter(sizes.values()).most_common(1)
    for name, size in sizes.items():
        if size != usual[0][0]:
            text = "{} × {} pixels, most of its view {} × {}".format(*size, *usual[0][0])
            findings[name].append(Finding("odd", str(view.path(TASKS[name])), text))
    sound = {name: values for name, values in pixels.items() if not findings[name]}
    return Checked(findings, shares, _axes(sound))


def _read(path: str) -> tuple[np.ndarray, str]:
    """The file's pixels as they are, and its mode. Raises one of READ_ERRORS."""
    with Image.open(path, formats=FORMATS) as file:
        check_size(file.size, 1)
        file.verify()  # the checksums, which reading the pixels alone passes over
    with Image.open(path, formats=FORMATS) as file:
        return np.array(file), file.mode


def _oddities(task: ImageTask, values: np.ndarray, mode: str) -> Iterator[str]:
    """What is odd about a file's encoding, against docs/encodings.md."""
    if task.name in DEEP:
        wanted, right = "16-bit grey", mode.startswith("I")
    elif task.classes:
        wanted, right = "8-bit labels", mode in ("L", "P")
    else:
        wanted, right = "8-bit colour", mode in ("RGB", "RGBA")
    if not right:
        yield f"mode {mode}, not {wanted}"
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
    elif (share := float((values == 0).mean())) > ODD_SHARE:
        yield f"{share:.0%} of the pixels are 0, where holes are 65535"


def _vectors(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals (H, W, 3) of a file's pixels, and where they are valid."""
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
    # a wide view of a floor has some by rights: the camera looks down on it
    away = float((vectors[valid][:, 2] > 0.2).mean())
    if away > 0.5:
        yield f"{away:.0%} of the normals point away from the camera: blue is another axis?"


def _axes(pixels: dict[str, np.ndarray]) -> np.ndarray | None:
    """How far red and green agree in sign with the slopes of depth: (2, 2) in [-1, 1].

    Where a surface faces right, its depth grows to the right; where it faces down,
    downwards.
    """
    depth, normal = pixels.get("depth_zbuffer"), pixels.get("normal")
    if depth is None or normal is None or depth.ndim != 2 or normal.ndim != 3:
        return None
    if depth.shape != normal.shape[:2] or min(depth.shape) < 3 or depth.dtype == np.uint8:
        return None
    vectors, valid = _vectors(normal)
    depth = depth.astype(np.float64)
    down, right = np.gradient(depth)
    # steps between things say nothing of the surface
    smooth = valid & (depth != HOLE) & (np.hypot(down, right) < 0.1 * depth)
    slopes = [np.sign(slope[smooth]) for slope in (right, down)]
    sides = [vectors[..., i][smooth] for i in range(2)]
    sizes = [np.abs(side).sum() + 1e-9 for side in sides]
    return np.array([[(side * slope).sum() / size for slope in slopes]
                     for side, size in zip(sides, sizes, strict=True)])  # fmt: skip


def axes_findings(place: Place, checked: Iterable[Checked]) -> list[Finding]:
    """What the building's normals and depth say of the axes, taken together."""
    found = [view.axes for view in checked if view.axes is not None]
    if not found:
        return []
    axes = np.mean(found, axis=0)
    if abs(axes[0, 1]) + abs(axes[1, 0]) > abs(axes[0, 0]) + abs(axes[1, 1]):
        said = ["red and green are swapped"]
    else:
        ways = ("red", "right", "left"), ("green", "down", "up")
        said = [
            f"{colour} points {wrong} instead of {right}"
            if agreement < -AXES_AGREE
            else f"{colour} is not the axis that points {right}"
            for (colour, right, wrong), agreement in zip(ways, axes.diagonal(), strict=True)
            if agreement < AXES_AGREE
        ]
    where = str(place.view("").path(TASKS["normal"]).parent)
    return [Finding("odd", where, f"{text}, by the slopes of depth") for text in said]

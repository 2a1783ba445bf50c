"""Predicted depth in three dimensions: points and surfaces of an image, and their GLB files.

The camera frame is that of the normals: x to the right, y down, z away from the camera, in metres.
"""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from files import write_atomically
from loading.photographs import whole
from measuring.prediction import Predictor, resized
from measuring.result_files import in_metres, unit_vectors
from precision import forward_only
from utils import UserError, check_one_of

FIELD_OF_VIEW = 60.0  # degrees; in the middle of what the rooms have, 48 … 82
EDGE = 0.1  # depth has an edge where the far side is farther by more than this share
NEAREST = 0.1  # metres; smaller predictions are raised to this
OUTLIERS = 0.02  # the share of the nearest pixels that are moved to the border of the others
VERTICES = 2**17  # of a file, at most: 2 MB
SIDE = 768  # pixels of the longer side of a view


@dataclass(frozen=True)
class View:
    """An image with depth, all of the same size, on the CPU.

    `image` is (3, H, W) in [0, 1]. `depth` (H, W) is in metres along the optical axis, as the
    z-buffer has it, not along the ray. `normals` (3, H, W) are unit vectors, or None.
    `field_of_view` is the angle in degrees between the left and the right border; the optical axis
    goes through the centre, and pixels are square. Raises UserError for an angle outside 1 … 170.
    """

    image: Tensor
    depth: Tensor
    normals: Tensor | None = None
    field_of_view: float = FIELD_OF_VIEW

    def __post_init__(self) -> None:
        check_angle(self.field_of_view)

    @property
    def focal(self) -> float:
        """The focal length in pixels."""
        return self.depth.shape[1] / 2 / math.tan(math.radians(self.field_of_view) / 2)

    def offsets(self) -> tuple[Tensor, Tensor]:
        """Return how far each pixel's centre is right of and below the optical axis, in pixels:
        (1, W) and (H, 1).
        """
        height, width = self.depth.shape
        across = torch.arange(width) + 0.5 - width / 2
        return across[None], (torch.arange(height) + 0.5 - height / 2)[:, None]

    def points(self) -> Tensor:
        """Return the point that each pixel shows, (H, W, 3), in metres."""
        across, down = self.offsets()
        scaled = self.depth / self.focal
        return torch.stack([across * scaled, down * scaled, self.depth], dim=-1)


def check_angle(field_of_view: float) -> None:
    """Raise UserError unless the angle is between 1 and 170 degrees."""
    if not 1 <= field_of_view <= 170:
        raise UserError(f"`field_of_view` is 1 to 170 degrees, not {field_of_view:g}")


def predicted_view(
    image: Image.Image,
    depth: Predictor,
    normal: Predictor | None = None,
    *,
    field_of_view: float = FIELD_OF_VIEW,
    size: int | None = None,
    side: int = SIDE,
) -> View:
    """Predict the depth of a whole image with the first network of a predictor of the task depth.

    The networks see the image with a shorter side of `size` pixels (default: that of their
    training). The view has a size of its own: both sides are even, and the longer one has at most
    `side` pixels. The depth is resized to that, and its edges are sharpened. `normal`, a predictor
    of the task normal, adds normals.
    """
    factor = min(1.0, side / max(image.size))
    width, height = (max(2, 2 * round(length * factor / 2)) for length in image.size)
    picture = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    shown = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) / 255

    def values(predictor: Predictor) -> Tensor:
        inputs = whole(image, size or predictor.input_sizes[0], predictor.multiple)
        with forward_only(predictor.device):
            found = next(iter(predictor.predict([inputs[None]], size or 1).values()))
        return resized(found.float().cpu(), (height, width))[0].clone()

    metres = in_metres(values(depth)[0])
    # networks see less at the picture's border, and predict lines there that would stand in front
    metres = metres.clamp_min(max(NEAREST, float(np.quantile(metres.numpy(), OUTLIERS))))
    normals = unit_vectors(values(normal)) if normal else None
    reach = max(1, round(2 * max(height, width) / 256))
    return View(shown, sharpened(metres, reach), normals, field_of_view)


def sharpened(depth: Tensor, reach: int) -> Tensor:
    """Make the slopes at edges of depth (H, W) steps: each pixel takes the nearer of two values.

    These are the smallest and the largest depth within `reach` pixels, where the largest is more
    than `EDGE` above the smallest. Elsewhere depth stays as it is. Networks, and enlarging, draw an
    edge as a slope, which would become a surface between the near and the far side.
    """
    for _ in range(2):
        high = F.max_pool2d(depth[None], 2 * reach + 1, stride=1, padding=reach)[0]
        low = -F.max_pool2d(-depth[None], 2 * reach + 1, stride=1, padding=reach)[0]
        nearer = torch.where(depth - low < high - depth, low, high)
        depth = torch.where(high > (1 + 2 * EDGE) * low, nearer, depth)
    return depth


# ---- GLB --------------------------------------------------------------------------------


def glb(view: View, kind: str = "mesh", vertices: int = VERTICES) -> bytes:
    """Return the GLB file of a view, a "mesh" or "points", with a colour at each vertex.

    A large view is thinned out to about `vertices`. Triangles of the mesh that span an edge of
    depth are left out: those whose farthest corner is more than `EDGE` farther than the nearest.
    As glTF requires, y points up and z towards the camera, which is at the origin; lengths are in
    metres, and colours are linear light. The view's normals, if any, are those of the mesh's
    vertices.

    Raises UserError for another `kind`, or if the package trimesh is not installed.
    """
    check_one_of("kind", kind, ("mesh", "points"))
    if find_spec("trimesh") is None:
        raise UserError("GLB needs the package trimesh: pip install trimesh (uv has it in the "
                        "extra `web`)")  # fmt: skip
    import trimesh

    height, width = view.depth.shape
    step = max(1, math.ceil(math.sqrt(height * width / vertices)))
    rows, columns = (slice((n % step) // 2, None, step) for n in (height, width))
    flip = torch.tensor([1.0, -1.0, -1.0])
    places = (view.points()[rows, columns] * flip).numpy()
    colours = (255 * linear(view.image[:, rows, columns])).round().byte().permute(1, 2, 0).numpy()
    flat, rgb = places.reshape(-1, 3), colours.reshape(-1, 3)
    if kind == "points":
        return cast(bytes, trimesh.PointCloud(flat, colors=rgb).export(file_type="glb"))
    normals = None
    if view.normals is not None:
        normals = (view.normals.permute(1, 2, 0)[rows, columns] * flip).reshape(-1, 3).numpy()
    mesh = trimesh.Trimesh(
        flat, triangles(view.depth[rows, columns].numpy()), vertex_normals=normals,
        vertex_colors=rgb, process=False,
    )  # fmt: skip
    return cast(bytes, mesh.export(file_type="glb", include_normals=normals is not None))


def triangles(depth: np.ndarray) -> np.ndarray:
    """Return the triangles between neighbouring pixels of depth (H, W), two for each square.

    They are numbers of pixels, (T, 3), and face the camera. Those that span an edge of depth are
    left out.
    """
    number = np.arange(depth.size).reshape(depth.shape)
    corners = [number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]]
    top_left, top_right, low_left, low_right = (c.reshape(-1) for c in corners)
    found = np.concatenate([
        np.stack([top_left, low_left, top_right], axis=1),
        np.stack([top_right, low_left, low_right], axis=1),
    ])  # fmt: skip
    far = depth.reshape(-1)[found]
    return found[far.max(axis=1) <= (1 + EDGE) * far.min(axis=1)]


def linear(colours: Tensor) -> Tensor:
    """Convert sRGB colours in [0, 1] to linear light in [0, 1], as glTF's vertices have it."""
    low = colours / 12.92
    return torch.where(colours <= 0.04045, low, ((colours + 0.055) / 1.055) ** 2.4)


def write_glb(view: View, path: Path, kind: str = "mesh") -> None:
    """Write a view as `path`, atomically; see `glb`. Raises UserError on failure."""
    data = glb(view, kind)
    write_atomically(path, lambda name: name.write_bytes(data))

"""Depth and normals of a pinhole camera's image: each computed from the other, over windows.

Pixels are square and the optical axis goes through the image's centre. Axes: x to the right, y
down, z forward. Depths are metres along z. Normals are unit vectors that point towards the camera.
The formulas are those of GeoNet (Qi et al., CVPR 2018).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 0.05  # relative difference of depth up to which a pixel is on the same surface
ALIKE = 0.95  # cosine of the angle between normals from which they are of the same surface
GRAZING = 0.02  # cosine below which a surface is too flat to be intersected with a ray
SUPPORT = 1e-6  # of a determinant: below it, a window holds too few points for a plane


def focal_length(field_of_view: Tensor | float, image: Tensor) -> Tensor:
    """Return the focal length in pixels of an image (…, H, W), in its type and on its device.

    `field_of_view` is the angle in degrees between its left and right border.
    """
    angle = torch.as_tensor(field_of_view, dtype=image.dtype, device=image.device)
    return image.shape[-1] / 2 / torch.tan(angle * (math.pi / 360))


def rays(image: Tensor, focal: Tensor) -> Tensor:
    """Return the rays with z = 1 through the centres of an image's pixels: (3, H, W)."""
    height, width = image.shape[-2:]
    x = (torch.arange(width).to(image) + 0.5 - width / 2) / focal
    y = (torch.arange(height).to(image) + 0.5 - height / 2) / focal
    down, right = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([right, down, torch.ones_like(right)])


def normals_from_depth(
    depth: Tensor, field_of_view: Tensor | float, radius: int = 2, valid: Tensor | None = None
) -> Tensor:
    """Return the least-squares normals of the points that a depth image shows: (B, 3, H, W).

    `depth` (B, 1, H, W) is positive. The normal n of a pixel solves A n = 1, where the rows of A
    are the points of the window (2 `radius` + 1)² that are `valid` (B, 1, H, W), bool, and differ
    by less than 5 % in depth from the pixel. Where these span no plane, the normal is (0, 0, −1).
    """
    focal = focal_length(field_of_view, depth)
    # The unknown is n of the points (Δu, Δv, 1) · z / z₀ with Δ in windows: a linear change of
    # coordinates, which does not change the solution, and is well conditioned in float32.
    offsets = _offsets(radius).to(depth)
    rows = torch.cat([offsets / max(1, radius), torch.ones_like(offsets[:, :1])], dim=1)  # (K, 3)
    ratio = _windows(depth, radius) / depth  # (B, K, H, W)
    member = _windows(_validity(depth, valid), radius) * ((ratio - 1).abs() < NEAR)
    ratio = ratio * member
    pairs = torch.triu_indices(3, 3, device=depth.device)
    products = rows[:, pairs[0]] * rows[:, pairs[1]]  # (K, 6): the upper triangle
    count = member.sum(dim=1).clamp(min=1)[:, None]
    matrix = torch.einsum("bkhw,km->bmhw", ratio.square(), products) / count
    vector = torch.einsum("bkhw,km->bmhw", ratio, rows) / count
    solution, determinant = _solve(matrix, vector)
    x, y, z = solution.unbind(1)
    ray, scale = rays(depth, focal), focal / max(1, radius)
    normal = -torch.stack([scale * x, scale * y, z - scale * (ray[0] * x + ray[1] * y)], dim=1)
    facing = -torch.stack([torch.zeros_like(x), torch.zeros_like(x), torch.ones_like(x)], dim=1)
    spans = (determinant > SUPPORT)[:, None]
    return F.normalize(torch.where(spans, normal, facing), dim=1)


def _solve(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return adj(M) b, which is M⁻¹ b · det M, and det M of symmetric 3 × 3 matrices.

    `matrix` (B, 6, H, W) are the upper triangles row by row, `vector` is (B, 3, H, W).
    """
    a, b, c, d, e, f = matrix.unbind(1)
    first = d * f - e * e, c * e - b * f, b * e - c * d
    second = a * f - c * c, b * c - a * e
    adjugate = (first, (first[1], *second), (first[2], second[1], a * d - b * b))
    x, y, z = vector.unbind(1)
    solution = torch.stack([row[0] * x + row[1] * y + row[2] * z for row in adjugate], dim=1)
    return solution, a * first[0] + b * first[1] + c * first[2]


def depth_from_normals(
    depth: Tensor,
    normals: Tensor,
    field_of_view: Tensor | float,
    radius: int = 2,
    valid: Tensor | None = None,
) -> Tensor:
    """Return depth refined by the kernel regression of normals: (B, 1, H, W).

    `depth` (B, 1, H, W) is positive, `normals` (B, 3, H, W) are unit vectors. The plane through
    each point of a pixel's window, with that point's normal n_j, predicts the depth of the pixel
    i. The result is the mean of the predictions, with the weights n_i · n_j. Points take part if
    they are `valid` (B, 1, H, W), bool, their weight exceeds 0.95, and neither the pixel's ray nor
    their own meets the plane from behind or at too flat an angle. A pixel without such points
    keeps its depth.
    """
    ray = rays(depth, focal_length(field_of_view, depth))
    slope = (normals * ray).sum(dim=1, keepdim=True)  # n_j · r_j
    planes = torch.cat([normals, depth * slope, _validity(depth, valid) * (slope < -GRAZING)], 1)
    neighbours = _windows(planes, radius)  # (B, 5 K, H, W)
    n, distance, usable = neighbours.unflatten(1, (5, -1)).split((3, 1, 1), dim=1)
    weight = (n * normals[:, :, None]).sum(dim=1)  # (B, K, H, W)
    seen = (n * ray[:, None]).sum(dim=1)  # n_j · r_i
    member = (usable[:, 0] > 0) & (weight > ALIKE) & (seen < -GRAZING)
    predicted = distance[:, 0] / torch.where(member, seen, torch.ones_like(seen))
    weight = torch.where(member, weight, torch.zeros_like(weight))
    total = weight.sum(dim=1, keepdim=True)
    mean = (weight * predicted).sum(dim=1, keepdim=True) / total.clamp(min=ALIKE)
    return torch.where(total > 0, mean, depth)


def _offsets(radius: int) -> Tensor:
    """Return the offsets (Δu, Δv) of a window's pixels in the order of `unfold`: (K, 2)."""
    steps = torch.arange(-radius, radius + 1)
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([right.flatten(), down.flatten()], dim=1)


def _windows(values: Tensor, radius: int) -> Tensor:
    """Return each pixel's window, zero outside the image: (B, C, H, W) → (B, C K, H, W)."""
    size = 2 * radius + 1
    return F.unfold(values, size, padding=radius).unflatten(-1, values.shape[-2:])


def _validity(depth: Tensor, valid: Tensor | None) -> Tensor:
    """Return 1 for valid pixels and 0 for others, in the type of `depth`."""
    return torch.ones_like(depth) if valid is None else valid.to(depth)

"""Normals, curvatures and texture coordinates of points on primitives and shells of rooms."""

from __future__ import annotations

import numpy as np
from scipy.special import erfc

from .scene import BOX, CYLINDER, ELLIPSOID, Scene
from .trace import dot, length

# Peak curvature is TURN / w if a right angle is rounded with curvature ~ exp(-(d / w)^2).
TURN = np.sqrt(np.pi) / 2


def box_edges(distance, bevel, sign, normal, side, axis):
    """Bend ``normal`` (R, 3) in place near a box's edges, and return the curvatures (R, 2).

    ``distance`` (R, 3) is the distance to the nearest face along each axis, and ``side`` (R, 3)
    the side of that face (+-1). ``axis`` (R,) is the axis of the face that was hit. ``sign`` is
    +1 for convex and -1 for concave edges.
    """
    rows = np.arange(len(axis))
    bends = []
    for k in range(1, 3):
        other = (axis + k) % 3
        width = bevel[rows, axis, other]
        q = np.minimum(distance[rows, other] / width, 6)
        bends.append(sign * TURN / width * np.exp(-q * q))
        # The normal turns by the integral of the curvature, which is 45 degrees at the edge.
        normal[rows, other] += side[rows, other] * sign * np.tan(np.pi / 4 * erfc(q))
    normal /= length(normal)[:, None]
    return np.stack(bends, 1)


def thing_surface(scene: Scene, thing, point):
    """Return normals (R, 3), curvatures (R, 2) and texture coordinates (R, 2).

    ``thing`` (R,) are the indices of the primitives on which the points lie.
    """
    axes, half = scene.axes[thing], scene.half[thing]
    local = np.einsum("rij,rj->ri", axes, point - scene.centre[thing])
    unit = local / half
    kind = scene.kind[thing]
    normal, curvature = np.zeros_like(local), np.zeros((len(thing), 2), np.float32)
    uv = local[:, :2] + local[:, 2:]
    bevel = scene.bevel[thing]
    k = np.nonzero(kind == BOX)[0]
    if len(k):
        axis, rows = np.abs(unit[k]).argmax(1), np.arange(len(k))
        side = np.where(unit[k] < 0, -1, 1).astype(np.float32)
        bent = np.zeros((len(k), 3), np.float32)
        bent[rows, axis] = side[rows, axis]
        # [a, b]: width of the rounding on face a towards face b, limited by the face's size.
        narrow = np.minimum(0.5 * half[k][:, None, :], 1.5 * half[k][:, :, None])
        width = np.minimum(bevel[k][:, None, None], narrow)
        distance = np.maximum(half[k] - np.abs(local[k]), 0)
        curvature[k] = box_edges(distance, width, 1, bent, side, axis)
        normal[k] = bent
        first = np.where(axis == 0, 1, 0)
        second = np.where(axis == 2, 1, 2)
        flip = half[k][rows, first] < half[k][rows, second]  # grain runs along the longer side
        first, second = np.where(flip, second, first), np.where(flip, first, second)
        uv[k] = np.stack([local[k][rows, first], local[k][rows, second]], 1)
    k = np.nonzero(kind == ELLIPSOID)[0]
    if len(k):
        h2 = half[k] ** 2
        slope = local[k] / h2
        s = length(slope)
        normal[k] = slope / s[:, None]
        volume = np.prod(h2, 1)
        gauss = 1 / (volume * s**4)
        mean = (h2.sum(1) - dot(local[k], local[k])) / (2 * volume * s**3)
        root = np.sqrt(np.maximum(mean**2 - gauss, 0))
        curvature[k] = np.stack([mean + root, mean - root], 1)
    k = np.nonzero(kind == CYLINDER)[0]
    if len(k):
        p, h = local[k], half[k]
        r = np.hypot(p[:, 0], p[:, 1])
        radial = np.stack([p[:, 0], p[:, 1], 0 * r], 1) / np.maximum(r, 1e-6)[:, None]
        up = np.stack([0 * r, 0 * r, np.sign(p[:, 2])], 1)
        cap = (h[:, 2] - np.abs(p[:, 2])) / h[:, 2] < (h[:, 0] - r) / h[:, 0]
        cap &= h[:, 2] - np.abs(p[:, 2]) < 1e-3 + 1e-3 * h[:, 2]
        width = np.minimum(bevel[k], 0.45 * np.minimum(h[:, 0], h[:, 2]))
        q = np.maximum(np.where(cap, h[:, 0] - r, h[:, 2] - np.abs(p[:, 2])), 0) / width
        q = np.minimum(q, 6)
        lean = np.tan(np.pi / 4 * erfc(q))[:, None]
        bent = np.where(cap[:, None], up + lean * radial, radial + lean * up)
        normal[k] = bent / length(bent)[:, None]
        bend = TURN / width * np.exp(-q * q)
        curvature[k] = np.stack([bend, np.where(cap, 0, 1 / h[:, 0])], 1)
        turn = np.arctan2(p[:, 1], p[:, 0]) * h[:, 0]
        uv[k] = np.where(cap[:, None], p[:, :2], np.stack([turn, p[:, 2]], 1))
    world = np.einsum("rij,ri->rj", axes, normal)
    return world, curvature, uv + scene.offset[thing]


def shell_surface(low, high, face, point, bevel: float):
    """Like ``thing_surface`` for the inside of a room ``low..high``, whose edges are concave.

    Also returns the distance (R,) to the nearest edge of the room.
    """
    axis = face // 2
    rows = np.arange(len(face))
    middle, half = (low + high) / 2, (high - low) / 2
    local = (point - middle).astype(np.float32)
    side = np.where(local < 0, -1, 1).astype(np.float32)
    distance = np.maximum(half - np.abs(local), 0).astype(np.float32)
    normal = np.zeros_like(local)
    normal[rows, axis] = np.where(face % 2 == 0, 1, -1)
    width = np.full((len(face), 3, 3), bevel, np.float32)
    curvature = box_edges(distance, width, -1, normal, side, axis)
    first, second = np.where(axis == 0, 1, 0), np.where(axis == 2, 1, 2)
    uv = np.stack([point[rows, first], point[rows, second]], 1)
    corner = np.minimum(distance[rows, (axis + 1) % 3], distance[rows, (axis + 2) % 3])
    return normal, curvature, uv, corner

"""Ray tracing of primitives, on flat lists of (ray, primitive) pairs that are culled by cells.

All arrays are float32. A ray is ``origin + t * direction``. The directions of camera rays have
z = 1 in the camera frame, so t is the z-buffer depth.
"""

from __future__ import annotations

import numpy as np

from .scene import BOX, CYLINDER, ELLIPSOID, Scene

FAR = np.float32(1e4)
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
EDGES = [(i, j) for i in range(8) for j in range(i + 1, 8) if np.sum(CORNERS[i] != CORNERS[j]) == 1]
BLOCK = 16384  # rays per block, so that their pairs (about 10 per ray) fit into the cache


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise scalar product of (R, 3) arrays: (R,). Much faster than a sum over an axis of 3."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def length(a: np.ndarray) -> np.ndarray:
    """Row-wise Euclidean length of an (R, 3) array: (R,)."""
    return np.sqrt(dot(a, a))


def unit_frames(scene: Scene) -> np.ndarray:
    """Return matrices (N, 3, 3) from the world to unit primitives (with half extents 1)."""
    return (scene.axes / scene.half[:, :, None]).astype(np.float32)


def pairs(cells: np.ndarray, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs (ray, primitive) to test.

    ``cells`` (R,) are the cells of the rays; ``overlap`` (C, N) tells which primitives may be
    hit by the rays of a cell.
    """
    count = overlap.sum(1)
    listed = np.nonzero(overlap)[1]
    start = np.cumsum(count) - count
    repeat = count[cells]
    ray = np.repeat(np.arange(len(cells)), repeat)
    shift = start[cells] - (np.cumsum(repeat) - repeat)
    return ray, listed[np.arange(len(ray)) + np.repeat(shift, repeat)]


def slab(o, d, lo, hi):
    """Narrow [lo, hi] to where |o + t d| <= 1 in one coordinate."""
    inverse = 1 / np.where(np.abs(d) < 1e-12, np.float32(1e-12), d)
    a, b = (-1 - o) * inverse, (1 - o) * inverse
    return np.maximum(lo, np.minimum(a, b)), np.minimum(hi, np.maximum(a, b))


def _round(o, d, axes, lo, hi):
    """Narrow [lo, hi] to the inside of the unit ball (3 axes) or the unit tube (2 axes)."""
    a = sum(d[i] * d[i] for i in axes) + np.float32(1e-12)
    b = sum(o[i] * d[i] for i in axes)
    # The distance from the axis at the perpendicular foot avoids cancellation for objects that
    # are far and small.
    foot = -b / a
    miss = sum((o[i] + foot * d[i]) ** 2 for i in axes)
    root = np.sqrt(np.maximum(1 - miss, 0) / a)
    lo = np.where(miss < 1, np.maximum(lo, foot - root), FAR)
    return lo, np.minimum(hi, foot + root)


def entry(kind: np.ndarray, o: list, d: list, near: float) -> np.ndarray:
    """Return the ray parameter (P,) where P rays enter their primitives, FAR if they miss.

    Origins ``o`` and directions ``d`` are in the frame of the unit primitive: three (P,) each.
    """
    out = np.full(len(kind), FAR, np.float32)
    for one in (BOX, ELLIPSOID, CYLINDER):
        pick = np.nonzero(kind == one)[0]
        if not len(pick):
            continue
        p, q = [c[pick] for c in o], [c[pick] for c in d]
        lo = np.full(len(pick), -FAR, np.float32)
        hi = np.full(len(pick), FAR, np.float32)
        if one == BOX:
            for axis in range(3):
                lo, hi = slab(p[axis], q[axis], lo, hi)
        else:
            lo, hi = _round(p, q, (0, 1, 2) if one == ELLIPSOID else (0, 1), lo, hi)
            if one == CYLINDER:
                lo, hi = slab(p[2], q[2], lo, hi)
        out[pick] = np.where((lo < hi) & (lo > near), lo, FAR)
    return out


def rotate(matrix: np.ndarray, which: np.ndarray, v: np.ndarray, row=None) -> list:
    """Return ``matrix[which] @ v[row]`` for P pairs, as three (P,) arrays.

    ``v`` is (R, 3). If ``row`` (P,) is None, every row is used once.
    """
    x, y, z = (c if row is None else np.ascontiguousarray(c)[row] for c in v.T)
    flat = np.ascontiguousarray(matrix.reshape(len(matrix), 9).T)
    return [flat[k][which] * x + flat[k + 1][which] * y + flat[k + 2][which] * z
            for k in (0, 3, 6)]  # fmt: skip


def nearest(scene: Scene, frames, origin, directions, cells, overlap, near=0.05):
    """Find the first primitive on R rays from one origin: t (R,) and index (R,), -1 if none."""
    t = np.full(len(directions), FAR, np.float32)
    index = np.full(len(directions), -1, np.int64)
    local = np.einsum("nij,nj->ni", frames, origin.astype(np.float32) - scene.centre)
    for s in range(0, len(directions), BLOCK):
        block = slice(s, s + BLOCK)
        ray, thing = pairs(cells[block], overlap)
        if not len(ray):
            continue
        d = rotate(frames, thing, directions[block], ray)
        hit = entry(scene.kind[thing], [local[:, i][thing] for i in range(3)], d, near)
        good = np.nonzero(hit < FAR)[0]
        # Positive floats sort like their bits, so one integer key holds t (high half) and the
        # primitive's index (low half).
        key = (hit[good].view(np.uint32).astype(np.int64) << 32) | thing[good]
        best = np.full(len(cells[block]), np.iinfo(np.int64).max)
        np.minimum.at(best, ray[good], key)
        found = best < np.iinfo(np.int64).max
        t[block][found] = (best[found] >> 32).astype(np.uint32).view(np.float32)
        index[block][found] = best[found] & 0xFFFFFFFF
    return t, index


def screen_overlap(scene: Scene, position, camera, focal, size: int, cell: int) -> np.ndarray:
    """Return which primitives may be visible in each ``cell`` x ``cell`` px square: (C, N) bool."""
    corners = scene.centre[:, None] + (CORNERS * scene.half[:, None]) @ scene.axes
    points = (corners - position) @ camera.T  # (N, 8, 3), camera frame
    near = 0.04
    first, second = points[:, [e[0] for e in EDGES]], points[:, [e[1] for e in EDGES]]
    gap = second[..., 2] - first[..., 2]
    gap = np.where(np.abs(gap) < 1e-9, 1e-9, gap)
    along = np.clip((near - first[..., 2]) / gap, 0, 1)
    cut = first + along[..., None] * (second - first)  # where edges cross the near plane
    crossing = (first[..., 2] - near) * (second[..., 2] - near) < 0
    points = np.concatenate([points, cut], 1)
    valid = np.concatenate([points[:, :8, 2] >= near, crossing], 1)
    uv = points[..., :2] / np.maximum(points[..., 2:], near) * focal + size / 2
    low = np.where(valid[..., None], uv, np.inf).min(1) - 1
    high = np.where(valid[..., None], uv, -np.inf).max(1) + 1
    edge = np.arange(0, size, cell)
    across = (low[:, :1] < edge + cell) & (high[:, :1] > edge)
    down = (low[:, 1:] < edge + cell) & (high[:, 1:] > edge)
    return (down.T[:, None] & across.T[None]).reshape(-1, len(scene.kind))


def exit_box(low, high, origin, directions):
    """Find where rays from inside a box leave it: t (R,) and face (R,)."""
    t = np.full(len(directions), FAR, np.float32)
    face = np.zeros(len(directions), np.int64)
    for axis in range(3):
        d = directions[:, axis]
        d = np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
        wall = np.where(d > 0, np.float32(high[axis]), np.float32(low[axis]))
        far = (wall - np.float32(origin[axis])) / d
        closer = far < t
        t[closer], face[closer] = far[closer], (2 * axis + (d > 0))[closer]
    return t, face

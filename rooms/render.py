"""Rendering of a view of a scene: the geometry of every pixel, and anti-aliased rgb.

Camera frame: x right, y down, z forward (the frame of Taskonomy's normals).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from scipy.ndimage import gaussian_filter

from . import shade
from .scene import LABEL, Scene
from .surfaces import shell_surface, thing_surface
from .trace import FAR, dot, exit_box, length, nearest, screen_overlap, unit_frames
from .variants import GLASS

# Ids of surfaces: HOLE, 6 * room + face for shells of rooms, FIRST_THING + index for primitives.
HOLE = -1
FIRST_THING = 1000


# Offsets of the extra rays of an anti-aliased pixel (px from its centre): a rotated grid.
SUBPIXEL = np.array([(-0.375, -0.125), (-0.125, 0.375), (0.125, -0.375), (0.375, 0.125)])


@dataclass
class Camera:
    """Position (3,) m; rows of ``frame`` (3, 3) = right, down, forward in the world; field of view
    (radians) across the square image."""

    position: np.ndarray
    frame: np.ndarray
    view_angle: float


@dataclass
class Hits:
    """What R rays hit; world frame, metres. ``surface`` is HOLE where there is nothing."""

    t: np.ndarray  # (R,) depth along the optical axis
    surface: np.ndarray  # (R,)
    point: np.ndarray  # (R, 3)
    normal: np.ndarray  # (R, 3)
    curvature: np.ndarray  # (R, 2) 1/m, convex positive, the stronger one first
    uv: np.ndarray  # (R, 2) m on the surface
    material: np.ndarray  # (R,)
    label: np.ndarray  # (R,)
    openness: np.ndarray  # (R,) share of the ambient light that arrives, 0..1
    footprint: np.ndarray  # (R,) width of a pixel on the surface, in m
    inside: np.ndarray  # (R,) bool: in the main room, not in one behind a doorway
    sample: np.ndarray  # (R,) index of the position on a light to which shadow rays go
    borrow: np.ndarray  # (R,) index of the ray whose shadows are used; own index: trace them
    smooth: Callable  # smooths shadows (R,) over neighbouring pixels


@dataclass
class View:
    """One rendered view, arrays (S, S, ...)."""

    rgb: np.ndarray  # (S, S, 3) uint8
    depth: np.ndarray  # (S, S) m along the optical axis
    normal: np.ndarray  # (S, S, 3) camera frame, pointing towards the camera
    curvature: np.ndarray  # (S, S, 2)
    label: np.ndarray  # (S, S)
    hole: np.ndarray  # (S, S) bool
    focal: float  # px


def look(position, yaw, pitch, roll, view_angle) -> Camera:
    """Return a camera with the given yaw (in the floor plane) and pitch (positive: upwards)."""
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0])
    down = np.cross(forward, right)
    right, down = (np.cos(roll) * right + np.sin(roll) * down,
                   np.cos(roll) * down - np.sin(roll) * right)  # fmt: skip
    return Camera(np.asarray(position, np.float32), np.stack([right, down, forward]), view_angle)


class Renderer:
    """Casts rays from one camera into a scene."""

    def __init__(self, scene: Scene, camera: Camera, size: int):
        self.scene, self.camera, self.size = scene, camera, size
        self.focal = size / 2 / np.tan(camera.view_angle / 2)
        self.frames = unit_frames(scene)
        self.cell = max(4, size // 24)
        self.overlap = screen_overlap(
            scene, camera.position, camera.frame, self.focal, size, self.cell
        )

    def directions(self, u, v):
        """Return world directions (R, 3) with unit depth of image points (px; the first pixel's
        centre is 0.5)."""
        x, y = (u - self.size / 2) / self.focal, (v - self.size / 2) / self.focal
        ray = np.stack([x, y, np.ones_like(x)], 1)
        return (ray @ self.camera.frame).astype(np.float32)

    def depths(self, u, v):
        """Trace rays: depth t (R,), surface (R,) and world directions (R, 3)."""
        scene, origin = self.scene, self.camera.position
        directions = self.directions(u, v)
        wall_t, face = exit_box(np.zeros(3), scene.size, origin, directions)
        surface = face.copy()
        exact = wall_t.copy()
        for number, opening in enumerate(scene.openings):
            leave = origin + wall_t[:, None] * directions
            others = [k for k in range(3) if k != opening.face // 2]
            through = face == opening.face
            for k in others:
                through &= (leave[:, k] > opening.low[k]) & (leave[:, k] < opening.high[k])
            rays = np.nonzero(through)[0]
            if opening.annex is None:
                exact[rays], surface[rays] = FAR, HOLE
            else:
                t, beyond = exit_box(*opening.annex, origin, directions[rays])
                exact[rays], surface[rays] = t, 6 * (number + 1) + beyond
        wide = (self.size + self.cell - 1) // self.cell
        cells = (v // self.cell).astype(int) * wide + (u // self.cell).astype(int)
        t, thing = nearest(scene, self.frames, origin, directions, cells, self.overlap)
        nearer = t < exact
        surface[nearer] = FIRST_THING + thing[nearer]
        return np.where(nearer, t, exact), surface, directions

    def hits(self, u, v) -> tuple[Hits, np.ndarray]:
        """Trace rays. Returns all that shading and labels need, and the directions (R, 3)."""
        scene = self.scene
        t, surface, directions = self.depths(u, v)
        point = self.camera.position + t[:, None] * directions
        n = len(t)
        hits = Hits(t, surface, point, np.zeros((n, 3), np.float32),
                    np.zeros((n, 2), np.float32), np.zeros((n, 2), np.float32),
                    np.zeros(n, int), np.full(n, LABEL["background"]), np.ones(n, np.float32),
                    np.zeros(n, np.float32), surface >= 0, np.zeros(n, int),
                    np.arange(n), lambda x: x)  # fmt: skip
        rays = np.nonzero(surface >= FIRST_THING)[0]
        if len(rays):
            thing = surface[rays] - FIRST_THING
            found = thing_surface(scene, thing, point[rays])
            hits.normal[rays], hits.curvature[rays], hits.uv[rays] = found
            hits.material[rays], hits.label[rays] = scene.material[thing], scene.label[thing]
            low = np.clip(point[rays, 2] / 0.35, 0, 1)
            hits.openness[rays] = 0.6 + 0.4 * np.where(hits.normal[rays, 2] > 0.7, 1, low)
        rooms = [(0, np.zeros(3), scene.size)]
        rooms += [(k + 1, *o.annex) for k, o in enumerate(scene.openings) if o.annex is not None]
        for number, low, high in rooms:
            rays = np.nonzero((surface >= 6 * number) & (surface < 6 * number + 6))[0]
            if len(rays):
                face = surface[rays] - 6 * number
                found = shell_surface(low, high, face, point[rays], scene.shell_bevel)
                hits.normal[rays], hits.curvature[rays], hits.uv[rays], corner = found
                hits.material[rays] = scene.shell_materials[face]
                hits.openness[rays] = 1 - 0.35 * np.exp(-corner / 0.25)
        for axis in range(3):
            hits.inside &= (point[:, axis] > -0.05) & (point[:, axis] < scene.size[axis] + 0.05)
        far = length(directions)
        view = directions / far[:, None]
        # Rounding of edges is only simulated by bending normals, possibly away from the camera.
        # On a really round edge such points would be hidden, so the angle is limited to 90°.
        excess = np.maximum(dot(view, hits.normal) + 0.02, 0)
        hits.normal -= excess[:, None] * view
        hits.normal /= np.maximum(length(hits.normal), 1e-6)[:, None]
        slant = np.abs(dot(view, hits.normal))
        hits.footprint = (t * far / self.focal / np.maximum(slant, 0.05)).astype(np.float32)
        hits.label[surface == HOLE] = LABEL["uncertain"]
        strong = np.abs(hits.curvature[:, 0]) < np.abs(hits.curvature[:, 1])
        hits.curvature[strong] = hits.curvature[strong][:, ::-1]
        return hits, directions

    def radiance(self, hits: Hits, directions, noise, rng):
        """Return the linear colours (R, 3), including the sky."""
        out = np.empty((len(hits.t), 3), np.float32)
        hole = hits.surface == HOLE
        hits.point[hole] = self.camera.position  # keeps holes finite; overwritten below
        out[:] = shade.illuminate(self.scene, self.frames, noise, rng, hits, directions)
        out[hole] = shade.sky_colour(self.scene, noise, directions[hole])
        return out


def smoother(surface: np.ndarray) -> Callable:
    """Return a function that smooths values (R,) by a 4 x 4 mean over the same ``surface`` (S, S).

    The first S * S values belong to the centres of pixels. The others are not changed.
    """
    size = len(surface)

    def smooth(values):
        image = values[: size * size].reshape(size, size)
        for axis in (0, 1):
            total, count = np.zeros_like(image), np.zeros_like(image)
            for shift in (-1, 0, 1, 2):
                same = np.roll(surface, shift, axis) == surface
                total += same * np.roll(image, shift, axis)
                count += same
            image = total / count
        return np.concatenate([image.reshape(-1), values[size * size :]])

    return smooth


def joined(first: Hits, second: Hits) -> Hits:
    """Concatenate two lists of hits."""
    names = [f.name for f in fields(Hits) if f.name != "smooth"]
    parts = {n: np.concatenate([getattr(first, n), getattr(second, n)]) for n in names}
    return Hits(**parts, smooth=first.smooth)


def lenders(hits: Hits, more: Hits, pixel: np.ndarray, size: int) -> np.ndarray:
    """Find pixels whose smooth shadows can be reused for the extra rays ``more`` (R,).

    ``pixel`` (R,) are the rays' pixels. The result is the index of a nearby pixel that sees the
    same surface, or else the ray's own index in the joined list.
    """
    own = size * size + np.arange(len(pixel))
    out = own.copy()
    for dy, dx in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)):
        row, column = pixel // size + dy, pixel % size + dx
        other = np.clip(row, 0, size - 1) * size + np.clip(column, 0, size - 1)
        same = (out == own) & (hits.surface[other] == more.surface)
        same &= dot(hits.normal[other], more.normal) > 0.8
        out[same] = other[same]
    return out


def seams(surface, normal) -> np.ndarray:
    """Return the mask (S, S) of pixels to anti-alias: those at borders of surfaces and edges."""
    out = np.zeros(surface.shape, bool)
    for axis in (0, 1):
        a = tuple(slice(1 if axis == i else None, None) for i in range(2))
        b = tuple(slice(None, -1 if axis == i else None) for i in range(2))
        differs = (surface[a] != surface[b]) | (np.einsum("...i,...i", normal[a], normal[b]) < 0.9)
        out[a] |= differs
        out[b] |= differs
    return out


def behind_glass(renderer: Renderer, colour, hits: Hits, u, v, noise, rng) -> None:
    """Where ``hits`` are on glass, blend what lies behind it into ``colour`` (R, 3), in place.

    ``u``, ``v`` (R,) are the rays' image points.
    """
    glass = renderer.scene.gloss[renderer.scene.material] == GLASS  # (N,)
    rays = np.nonzero(hits.surface >= FIRST_THING)[0]
    rays = rays[glass[hits.surface[rays] - FIRST_THING]]
    if not len(rays):
        return
    beyond = Renderer(renderer.scene, renderer.camera, renderer.size)
    beyond.overlap = beyond.overlap & ~glass
    seen, directions = beyond.hits(u[rays], v[rays])
    colour[rays] = 0.15 * colour[rays] + 0.85 * beyond.radiance(seen, directions, noise, rng)


def render(
    scene: Scene,
    camera: Camera,
    size: int,
    rng: np.random.Generator,
    exposure: shade.Exposure = shade.Exposure(),  # noqa: B008
) -> View:
    """Render a view of ``size`` x ``size`` px. rgb uses 5 rays at seams; all else one ray."""
    renderer = Renderer(scene, camera, size)
    y, x = (a.reshape(-1) for a in np.mgrid[:size, :size])
    hits, directions = renderer.hits(x + 0.5, y + 0.5)
    surface = hits.surface.reshape(size, size)
    hole = surface == HOLE
    depth = hits.t.reshape(size, size)
    normal = hits.normal.reshape(size, size, 3)
    hits.sample = (y % 4) * 4 + x % 4
    extra = np.nonzero(seams(surface, normal).reshape(-1))[0]
    du, dv = SUBPIXEL.T
    u = (x[extra][:, None] + 0.5 + du).reshape(-1)
    v = (y[extra][:, None] + 0.5 + dv).reshape(-1)
    more, more_directions = renderer.hits(u, v)
    more.sample = (np.repeat(hits.sample[extra], 4) + np.tile([0, 5, 10, 15], len(extra))) % 16
    # Depth darkening (Luft et al. 2006): surfaces behind a near object get less ambient light.
    shallow = np.minimum(depth, 12)
    behind = np.clip(1 - gaussian_filter(shallow, 0.02 * size) / shallow, 0, 0.35).reshape(-1)
    every = joined(hits, more)
    every.borrow = np.concatenate([hits.borrow, lenders(hits, more, np.repeat(extra, 4), size)])
    every.openness *= 1 - np.concatenate([behind, np.repeat(behind[extra], 4)])
    every.smooth = smoother(surface)
    noise = shade.Noise(rng)
    colour = renderer.radiance(every, np.concatenate([directions, more_directions]), noise, rng)
    points = np.concatenate([x + 0.5, u]), np.concatenate([y + 0.5, v])
    behind_glass(renderer, colour, every, *points, noise, rng)
    image = colour[: size * size]
    image[extra] = (colour[size * size :].reshape(-1, 4, 3).sum(1) + image[extra]) / 5
    rgb = shade.develop(image.reshape(size, size, 3), rng, size / 512, exposure)
    return View(rgb, depth, normal @ camera.frame.T.astype(np.float32),
                hits.curvature.reshape(size, size, 2), hits.label.reshape(size, size), hole,
                renderer.focal)  # fmt: skip

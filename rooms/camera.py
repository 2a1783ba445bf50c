"""Where the camera stands: poses that see something and, in rooms with holes, a suitable hole."""

from __future__ import annotations

import numpy as np

from .render import HOLE, Camera, Renderer, look
from .scene import Scene

HOLE_SHARE = (0.01, 0.10)  # of the pixels of a view that has holes


def propose(scene: Scene, rng: np.random.Generator) -> Camera:
    """A random camera in the room, looking at something across it."""
    margin = 0.35
    low, high = np.full(3, margin), scene.size - margin
    position = rng.uniform(low, high)
    position[2] = np.clip(rng.normal(1.45, 0.25), 0.7, scene.size[2] - 0.3)
    holes = [o for o in scene.openings if o.annex is None] if scene.has_holes else []
    if holes and rng.random() < 0.7:
        opening = holes[rng.integers(len(holes))]
        target = (opening.low + opening.high) / 2
        target = target + rng.normal(0, 0.8, 3)
    else:
        target = rng.uniform(0.1, 0.9, 3) * scene.size
    away = target - position
    yaw = np.arctan2(away[1], away[0]) + rng.normal(0, 0.1)
    pitch = np.clip(np.arctan2(away[2], np.hypot(*away[:2])), -0.6, 0.2) * 0.6
    pitch += rng.normal(-0.06, 0.1)
    angle = np.radians(rng.uniform(48, 82))
    return look(position, yaw, pitch, rng.normal(0, 0.025), angle)


def hole_share_fits(share: float, tolerance: float = 1.0) -> bool:
    """No hole at all, or one of the wanted size."""
    return share == 0 or HOLE_SHARE[0] * tolerance <= share <= HOLE_SHARE[1] / tolerance


def choose_camera(scene: Scene, rng: np.random.Generator, tries: int = 40) -> Camera:
    """The first proposed camera that stands free and sees something; where the room has holes,
    preferably one of 1-10 % of the view (seen on a coarse 32 x 32 grid)."""
    grid, fallback = 32, None
    y, x = (a.reshape(-1) for a in np.mgrid[:grid, :grid])
    wants_hole = scene.has_holes and rng.random() < 0.9
    for attempt in range(tries * 4):
        camera = propose(scene, rng)
        offset = np.einsum("nij,nj->ni", scene.axes, camera.position - scene.centre)
        if (np.abs(offset) < scene.half + 0.2).all(1).any():
            continue
        t, surface, _ = Renderer(scene, camera, grid).depths(x + 0.5, y + 0.5)
        share = (surface == HOLE).mean()
        seen = np.minimum(t, 20)
        if np.median(seen) < 1.1 or (seen < 0.5).mean() > 0.08 or not hole_share_fits(share, 1.4):
            continue
        if np.unique(surface, return_counts=True)[1].max() > 0.6 * grid * grid:
            continue
        if share > 0 or not wants_hole or attempt > tries:
            return camera
        fallback = camera
    return fallback if fallback is not None else look_anywhere(scene, rng)


def look_anywhere(scene: Scene, rng: np.random.Generator) -> Camera:
    """Last resort in a crowded room: from under the ceiling's middle, at a wall without holes."""
    faces = [f for f in range(4) if all(o.face != f for o in scene.openings)] or [0]
    yaw = {0: np.pi, 1: 0.0, 2: -np.pi / 2, 3: np.pi / 2}[faces[rng.integers(len(faces))]]
    position = np.array([scene.size[0] / 2, scene.size[1] / 2, scene.size[2] - 0.35])
    return look(position, yaw, -0.25, 0.0, np.radians(55))

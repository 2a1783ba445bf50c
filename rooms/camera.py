"""Camera poses with an unobstructed view and, in rooms with holes, a hole of suitable size."""

from __future__ import annotations

import numpy as np

from .render import HOLE, Camera, Renderer, look
from .scene import Scene
from .variants import VIEW_ANGLES

HOLE_SHARE = (0.01, 0.10)  # allowed share of hole pixels in a view with holes


def propose(
    scene: Scene,
    rng: np.random.Generator,
    angles: tuple[float, float] = VIEW_ANGLES,
    roll: float = 0.025,
) -> Camera:
    """Return a random camera in the room, directed at a random target.

    Its view angle is within ``angles`` (degrees), and ``roll`` is the spread of its roll (radians).
    """
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
    direction = target - position
    yaw = np.arctan2(direction[1], direction[0]) + rng.normal(0, 0.1)
    pitch = np.clip(np.arctan2(direction[2], np.hypot(*direction[:2])), -0.6, 0.2) * 0.6
    pitch += rng.normal(-0.06, 0.1)
    angle = np.radians(rng.uniform(*angles))
    return look(position, yaw, pitch, rng.normal(0, roll), angle)


def hole_share_fits(share: float, tolerance: float = 1.0) -> bool:
    """Whether a view has no hole pixels, or a share within HOLE_SHARE, narrowed by `tolerance`."""
    return share == 0 or HOLE_SHARE[0] * tolerance <= share <= HOLE_SHARE[1] / tolerance


def choose_camera(
    scene: Scene,
    rng: np.random.Generator,
    tries: int = 40,
    angles: tuple[float, float] = VIEW_ANGLES,
    roll: float = 0.025,
) -> Camera:
    """Return the first proposed camera that is outside furniture and has an unobstructed view.

    In rooms with holes, views in which holes cover 1-10 % are preferred. Views are checked on a
    coarse grid of 32 x 32 rays.
    """
    grid, fallback = 32, None
    y, x = (a.reshape(-1) for a in np.mgrid[:grid, :grid])
    wants_hole = scene.has_holes and rng.random() < 0.9
    for attempt in range(tries * 4):
        camera = propose(scene, rng, angles, roll)
        offset = np.einsum("nij,nj->ni", scene.axes, camera.position - scene.centre)
        if (np.abs(offset) < scene.half + 0.2).all(1).any():
            continue
        t, surface, _ = Renderer(scene, camera, grid).depths(x + 0.5, y + 0.5)
        share = (surface == HOLE).mean()
        visible_depth = np.minimum(t, 20)
        if (
            np.median(visible_depth) < 1.1
            or (visible_depth < 0.5).mean() > 0.08
            or not hole_share_fits(share, 1.4)
        ):
            continue
        if np.unique(surface, return_counts=True)[1].max() > 0.6 * grid * grid:
            continue
        if share > 0 or not wants_hole or attempt > tries:
            return camera
        fallback = camera
    return fallback if fallback is not None else look_anywhere(scene, rng)


def look_anywhere(scene: Scene, rng: np.random.Generator) -> Camera:
    """Fallback for crowded rooms: a camera below the ceiling's centre, facing a wall without
    openings if there is one."""
    faces = [f for f in range(4) if all(o.face != f for o in scene.openings)] or [0]
    yaw = {0: np.pi, 1: 0.0, 2: -np.pi / 2, 3: np.pi / 2}[faces[rng.integers(len(faces))]]
    position = np.array([scene.size[0] / 2, scene.size[1] / 2, scene.size[2] - 0.35])
    return look(position, yaw, -0.25, 0.0, np.radians(55))

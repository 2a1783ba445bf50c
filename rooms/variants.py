"""Rooms that differ from the default ones: harder ones, and sets out of their distribution.

Everything random here comes from a generator of its own, so the default rooms do not change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils import check_one_of

from . import decor
from .scene import Builder, Light, hsv

DIFFICULTIES = ("default", "hard")
SETS = ("default", "other_furniture", "outdoor_light", "other_camera")
MIRROR, GLASS = 2.0, 3.0  # values of a material's gloss above those of ordinary materials
# Shares of the hard rooms that have each of these; each is drawn independently.
DIM, GLARING, RICH, MIRRORS, PANES, THIN = 0.4, 0.35, 0.6, 0.5, 0.4, 0.6
VIEW_ANGLES = (48.0, 82.0)  # degrees across the image, in all sets but other_camera
OTHER_ANGLES = ((24.0, 38.0), (96.0, 118.0))  # a telephoto lens, a wide-angle lens


@dataclass(frozen=True)
class Variant:
    """Which rooms: `difficulty` is one of DIFFICULTIES and `set` one of SETS.

    Hard rooms have more clutter, thin structures, mirrors, panes of glass, walls rich in texture,
    low light and glare: the image misleads, but the labels are right. The sets have other
    furniture and textures, outdoor light, or another field of view and pose. Raises UserError for
    other values.
    """

    difficulty: str = "default"
    set: str = "default"

    def __post_init__(self) -> None:
        check_one_of("difficulty", self.difficulty, DIFFICULTIES)
        check_one_of("set", self.set, SETS)

    @property
    def hard(self) -> bool:
        """Whether the rooms are hard ones."""
        return self.difficulty == "hard"

    def record(self) -> dict[str, str]:
        """Return the entries of rooms.json that are not the default."""
        entries = {"difficulty": self.difficulty, "set": self.set}
        return {name: value for name, value in entries.items() if value != "default"}


DEFAULT = Variant()


@dataclass(frozen=True)
class Exposure:
    """What a camera does with a view: `dim` scales the exposure, `noise` and `glare` are added."""

    dim: float = 1.0
    noise: float = 0.0
    glare: float = 0.0


def exposure_of(variant: Variant, rng: np.random.Generator) -> Exposure:
    """Return the exposure of a view. The default one draws no random number."""
    if not variant.hard:
        return Exposure()
    dark, glaring = rng.random(2) < (DIM, GLARING)
    dim, noise = (rng.uniform(0.12, 0.35), rng.uniform(0.02, 0.05)) if dark else (1.0, 0.0)
    return Exposure(dim, noise, rng.uniform(0.5, 1.5) if glaring else 0.0)


def pose_of(variant: Variant, rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """Return a view's range of view angles in degrees, and the spread of its roll in radians."""
    if variant.set != "other_camera":
        return VIEW_ANGLES, 0.025
    return OTHER_ANGLES[rng.integers(len(OTHER_ANGLES))], 0.15


def open_sky(size: np.ndarray, rng: np.random.Generator) -> tuple[list[Light], np.ndarray]:
    """Return outdoor light: the sun from above, and ambient light (2, 3) from a blue sky."""
    around = rng.uniform(0, 2 * np.pi)
    toward = np.array([0.7 * np.cos(around), 0.7 * np.sin(around), rng.uniform(0.6, 1.6)])
    toward /= np.linalg.norm(toward)
    sun = np.array([1.0, 0.95, 0.85]) * rng.uniform(2.5, 5.0)
    sky = np.array([0.55, 0.75, 1.15]) * rng.uniform(0.5, 1.0)
    ground = hsv(rng.uniform(0.1, 0.35), 0.4, 0.6) * rng.uniform(0.3, 0.6)
    return [Light(size / 2 + toward * 60, sun, 0.3, sun=True)], np.stack([ground, sky])


# ---- hard rooms ---------------------------------------------------------------------


def enrich_walls(b: Builder, shell: list[int], rng: np.random.Generator) -> list[int]:
    """Return the shell's materials, most of them with strong textures of two colours."""
    if rng.random() >= RICH:
        return shell
    kinds = ["checker", "stripes", "tiles", "painting", "noise", "wood"]
    result = list(shell)
    for face in range(6):
        if rng.random() < 0.75:
            one = hsv(rng.random(), rng.uniform(0, 0.7), rng.uniform(0.6, 1.0))
            two = hsv(rng.random(), rng.uniform(0, 0.9), rng.uniform(0.05, 0.5))
            kind, period = str(rng.choice(kinds)), rng.uniform(0.06, 0.7)
            result[face] = b.mat(one, two, kind, period, rng.choice([0.0, 0.4]))
    return result


def add_obstacles(b: Builder, walls, rng: np.random.Generator) -> None:
    """Add clutter, thin structures, mirrors and panes of glass to a room.

    `walls` are the `layout.Walls` of the room, whose free places are used.
    """
    builder_rng, b.rng = b.rng, rng
    try:
        size = walls.size
        for _ in range(int(rng.integers(4, 5 + int(size[0] * size[1] / 4)))):
            b.at(*rng.uniform(0.5, 0.95, 2) * rng.choice([1, 0.5]) * size[:2], 0, rng.uniform(0, 6))
            decor.clutter(b, rng.uniform(0.6, 1.6), rng.uniform(0.4, 1.2))
        if rng.random() < THIN:
            for _ in range(rng.integers(1, 4)):
                lattice(b, walls)
        if rng.random() < MIRRORS:
            for _ in range(rng.integers(1, 4)):
                mirror(b, walls)
        if rng.random() < PANES:
            for _ in range(rng.integers(1, 3)):
                pane(b, walls)
    finally:
        b.rng = builder_rng


def lattice(b: Builder, walls) -> None:
    """A railing, a clothes rack or cables: rods of 4 to 12 mm, free in the room."""
    rng = b.rng
    x, y = rng.uniform(0.25, 0.75, 2) * walls.size[:2]
    b.at(x, y, 0, rng.uniform(0, np.pi))
    mat = b.mat(hsv(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.05, 0.95)), gloss=0.3)
    wide, high = rng.uniform(0.6, 1.8), rng.uniform(0.7, 1.8)
    radius = rng.uniform(0.004, 0.012)
    for place in np.linspace(-wide / 2, wide / 2, int(rng.integers(3, 14))):
        b.post(place, 0, 0, high, radius, mat, bevel=0.002)
    for z in (0.1, high):
        b.box((-wide / 2, -radius, z - radius), (wide / 2, radius, z + radius), mat, bevel=0.002)


def mirror(b: Builder, walls) -> None:
    """A large mirror on a free part of a wall: it shows a room that is not there."""
    rng = b.rng
    width, height = rng.uniform(0.6, 1.8), rng.uniform(0.8, 1.8)
    found = walls.spot(width + 0.1)
    if found is None:
        return
    walls.at(b, *found)
    walls.taken[found[0]].append((found[1] - width / 2, found[1] + width / 2, False))
    low = rng.uniform(0.15, max(0.2, min(0.9, walls.size[2] - height - 0.2)))
    b.box((-width / 2, 0, low), (width / 2, 0.02, low + height),
          b.mat([0.9, 0.92, 0.93], gloss=MIRROR), bevel=0.005)  # fmt: skip


def pane(b: Builder, walls) -> None:
    """A pane of glass that stands in the room: what is behind it is seen through it."""
    rng = b.rng
    x, y = rng.uniform(0.25, 0.75, 2) * walls.size[:2]
    b.at(x, y, 0, rng.uniform(0, np.pi))
    width, height = rng.uniform(0.7, 1.6), rng.uniform(0.9, 2.0)
    glass = b.mat([0.75, 0.9, 0.85], gloss=GLASS)
    b.box((-width / 2, -0.006, 0.0), (width / 2, 0.006, height), glass, bevel=0.004, casts=False)

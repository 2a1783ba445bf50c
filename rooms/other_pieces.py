"""Furniture of the set other_furniture: other shapes and materials than in furniture.py.

Each function adds one piece in the local frame of a ``Builder``, as those in furniture.py do.
"""

from __future__ import annotations

import numpy as np

from .scene import BOX, Builder, hsv, rotation


def vivid(b: Builder, gloss: float = 0.2) -> int:
    """A saturated material with a large pattern, unlike wood, paint and cloth."""
    rng = b.rng
    one = hsv(rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.4, 1.0))
    two = hsv(rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.2, 1.0))
    kind = str(rng.choice(["sky", "painting", "checker", "tiles"]))
    return b.mat(one, two, kind, rng.uniform(0.08, 0.4), gloss)


def stone(b: Builder) -> int:
    """Marble or concrete."""
    tone = np.full(3, b.rng.uniform(0.15, 0.8))
    return b.mat(tone, tone * b.rng.uniform(0.3, 0.7), "sky", b.rng.uniform(0.1, 0.5), 0.4)


def bathtub(b: Builder, w, d):
    """A tub: four rounded walls and a floor, on feet."""
    mat, t = b.mat([0.9, 0.9, 0.88], gloss=0.6), 0.08
    b.box((-w / 2, 0, 0.1), (w / 2, d, 0.2), mat, bevel=0.04)
    for x in (-w / 2, w / 2 - t):
        b.box((x, 0, 0.15), (x + t, d, 0.62), mat, bevel=0.035)
    for y in (0.0, d - t):
        b.box((-w / 2, y, 0.15), (w / 2, y + t, 0.62), mat, bevel=0.035)
    for x in (-w / 2 + 0.15, w / 2 - 0.15):
        for y in (0.12, d - 0.12):
            b.ball((x, y, 0.06), 0.06, b.mat([0.6, 0.5, 0.2], gloss=0.6))


def fireplace(b: Builder, w, d):
    """A mantelpiece round a dark recess, and its chimney."""
    mat, side = stone(b), 0.22
    for x in (-w / 2, w / 2 - side):
        b.box((x, 0, 0), (x + side, d, 1.0), mat)
    b.box((-w / 2 - 0.05, 0, 1.0), (w / 2 + 0.05, d + 0.06, 1.12), mat)
    b.box((-w / 2 + side, 0, 0), (w / 2 - side, 0.02, 1.0), b.mat([0.02] * 3))
    b.box((-w / 4, 0, 1.12), (w / 4, d * 0.7, 6), mat)
    for _ in range(3):
        turn = rotation(b.rng.uniform(-0.5, 0.5), np.pi / 2)
        b.add(2, (0, d / 2, 0.1 + 0.08 * b.rng.random()), (0.05, 0.05, w / 5),
              b.mat([0.2, 0.1, 0.05], emission=1.0), turn=turn)  # fmt: skip


def piano(b: Builder, w, d):
    """An upright piano with its keys and a round stool."""
    black = b.mat([0.015] * 3, gloss=0.8)
    b.box((-w / 2, 0, 0), (w / 2, d * 0.6, 1.25), black)
    b.box((-w / 2, d * 0.5, 0.6), (w / 2, d, 0.7), black)
    b.box((-w / 2 + 0.08, d * 0.62, 0.7), (w / 2 - 0.08, d - 0.02, 0.72), b.mat([0.9] * 3))
    for x in (-w / 2 + 0.06, w / 2 - 0.06):
        b.post(x, d - 0.06, 0, 0.6, 0.035, black)
    b.post(0, d + 0.3, 0, 0.5, 0.03, black)
    b.post(0, d + 0.3, 0.5, 0.56, 0.18, vivid(b))


def barrels(b: Builder, w, d):
    """Barrels and a sphere, stacked."""
    r = min(w / 4, d / 2)
    for x in (-w / 4, w / 4):
        b.post(x, d / 2, 0, 0.9, r, vivid(b), bevel=0.05)
    b.ball((0, d / 2, 0.9 + r), r, vivid(b, 0.5))


def steps(b: Builder, w, d):
    """Cubes piled up like a pyramid."""
    for level, share in enumerate((1.0, 0.7, 0.4)):
        half = np.array([w, d, 0.0]) / 2 * share + [0, 0, 0.17]
        b.add(BOX, (0, d / 2, 0.17 + 0.34 * level), half, vivid(b), bevel=0.02,
              turn=rotation(0.25 * level))  # fmt: skip


def arch(b: Builder, w, d):
    """Two columns with a slanted roof on them, as of a stall."""
    mat = stone(b)
    for x in (-w / 2 + 0.1, w / 2 - 0.1):
        b.post(x, d / 2, 0, 1.9, 0.09, mat)
    for side in (-1, 1):
        b.add(BOX, (side * w / 4, d / 2, 2.0), (w / 3.6, d / 2, 0.04), vivid(b),
              turn=rotation(0, side * 0.5))  # fmt: skip


def beanbags(b: Builder, w, d):
    """Soft seats: flattened balls."""
    for x in np.linspace(-w / 3, w / 3, 2 + int(w > 1.5)):
        r = b.rng.uniform(0.28, 0.42)
        b.ball((x, d / 2, r * 0.6), (r, r, r * 0.65), vivid(b, 0.0))
        b.ball((x, d / 2 - r * 0.4, r * 1.1), (r * 0.8, r * 0.35, r * 0.55), vivid(b, 0.0))


def crates(b: Builder, w, d):
    """Slatted crates, turned."""
    for level in range(int(b.rng.integers(1, 4))):
        mat, turn = vivid(b), rotation(b.rng.uniform(-0.4, 0.4))
        for z in (0.06, 0.17, 0.28):
            b.add(BOX, (0, d / 2, z + 0.36 * level), (w / 2.4, d / 2.4, 0.04), mat, turn=turn)


# piece: (function, width range, depth range, weight, tall enough to cover a window)
WALL_PIECES = (
    (bathtub, (1.5, 1.9), (0.7, 0.9), 3, False),
    (fireplace, (1.1, 1.7), (0.35, 0.5), 3, True),
    (piano, (1.3, 1.6), (0.6, 0.7), 3, False),
    (barrels, (0.9, 1.4), (0.5, 0.7), 2, False),
    (steps, (0.8, 1.3), (0.8, 1.2), 2, False),
    (arch, (1.4, 2.4), (0.6, 0.9), 2, True),
    (beanbags, (1.2, 2.2), (0.8, 1.0), 3, False),
)
FREE_PIECES = (
    (beanbags, (1.2, 2.2), (0.8, 1.0), 3),
    (crates, (0.5, 0.9), (0.5, 0.9), 3),
    (barrels, (0.9, 1.4), (0.5, 0.7), 2),
    (steps, (0.8, 1.3), (0.8, 1.2), 2),
    (arch, (1.4, 2.0), (0.6, 0.8), 1),
)

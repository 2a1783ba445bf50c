"""Smaller objects of a room: lamps, plants, pictures, curtains, clutter (see furniture.py)."""

from __future__ import annotations

import numpy as np

from .furniture import books, cloth, legs, metal, on_top, paint, shade, wood
from .scene import LABEL, Builder, hsv, rotation


def floor_lamp(b: Builder, w, d):
    """Foot, pole and shade."""
    h, mat = b.rng.uniform(1.3, 1.8), metal(b)
    b.post(0, d / 2, 0, 0.025, 0.14, mat)
    b.post(0, d / 2, 0, h, 0.013, mat)
    b.post(0, d / 2, h - 0.12, h + 0.14, b.rng.uniform(0.14, 0.22), shade(b), casts=False)


def plant(b: Builder, w, d):
    """A pot with a bush of leaves or a small tree."""
    rng, y = b.rng, d / 2
    pot, r, h = paint(b, (0, 0.7)), rng.uniform(0.1, 0.2), rng.uniform(0.2, 0.4)
    b.label = LABEL["potted plant"]
    b.post(0, y, 0, h, r, pot, bevel=0.04)
    green = [b.mat(hsv(rng.uniform(0.22, 0.4), rng.uniform(0.4, 0.8), v), gloss=0.15)
             for v in (0.3, 0.45, 0.6)]  # fmt: skip
    if rng.random() < 0.4:
        tall = rng.uniform(0.5, 1.1)
        b.post(0, y, h, h + tall, 0.02, wood(b))
        for _ in range(rng.integers(5, 10)):
            spot = rng.normal(0, 0.14, 3) + (0, y, h + tall)
            b.ball(spot, rng.uniform(0.08, 0.18), green[rng.integers(3)])
    else:
        for k in range(rng.integers(8, 18)):
            turn_yaw, lean, size = 2.4 * k, rng.uniform(0.2, 1.1), rng.uniform(0.18, 0.42)
            turn = rotation(turn_yaw, lean)
            middle = np.array([0, y, h]) + turn[2] * size
            b.ball(middle, (0.02, rng.uniform(0.03, 0.07), size), green[k % 3], turn=turn)
    b.label = LABEL["background"]


def clutter(b: Builder, w, d):
    """Boxes, balls and baskets on the floor."""
    rng = b.rng
    for _ in range(rng.integers(1, 5)):
        x, y = rng.uniform(-w / 2, w / 2), rng.uniform(0.1, d)
        if rng.random() < 0.6:
            half = rng.uniform(0.08, 0.24, 3)
            mat = b.mat(hsv(0.08, 0.4, 0.7)) if rng.random() < 0.5 else paint(b)
            b.add(0, (x, y, half[2]), half, mat, turn=rotation(rng.uniform(0, 3)))
        elif rng.random() < 0.5:
            r = rng.uniform(0.08, 0.22)
            b.ball((x, y, r), r, paint(b, (0.3, 0.9), gloss=0.4))
        else:
            b.post(x, y, 0, rng.uniform(0.2, 0.5), rng.uniform(0.1, 0.2), cloth(b))


def pillar(b: Builder, w, d):
    """A column from floor to ceiling, round or square."""
    mat, r = paint(b, (0, 0.2), (0.5, 0.95), 0), min(w, d) / 2
    if b.rng.random() < 0.5:
        b.post(0, d / 2, 0, 6, r, mat)
        b.post(0, d / 2, 0, 0.15, r * 1.25, mat)
    else:
        b.box((-r, d / 2 - r, 0), (r, d / 2 + r, 6), mat, bevel=0.04)


def side_table(b: Builder, w, d):
    """A low table or stool with a few things on it."""
    mat, h = wood(b), b.rng.uniform(0.35, 0.55)
    if b.rng.random() < 0.4:
        b.post(0, d / 2, h - 0.03, h, min(w, d) / 2, mat)
        for angle in (0.5, 2.6, 4.7):
            x, y = np.cos(angle) * w * 0.3, np.sin(angle) * d * 0.3
            b.post(x, d / 2 + y, 0, h, 0.018, mat)
    else:
        b.box((-w / 2, 0, h - 0.03), (w / 2, d, h), mat)
        legs(b, w, d, h, 0.02, mat)
    on_top(b, w, d, h, b.rng.integers(0, 4))


def stairs(b: Builder, w, d):
    """Open steps climbing along the wall."""
    mat, n = wood(b), 9
    for k in range(n):
        x = -w / 2 + k * w / n
        b.box((x, 0.02, 0.19 * k + 0.14), (x + w / n + 0.03, d, 0.19 * k + 0.18), mat, bevel=0.02)
        if k % 2 == 0:
            b.post(x + 0.1, d - 0.03, 0.19 * k + 0.18, 0.19 * k + 1.0, 0.012, metal(b))


def radiator(b: Builder, w, d):
    """A ribbed radiator."""
    white = b.mat([0.75, 0.75, 0.72], gloss=0.2)
    for x in np.arange(-w / 2, w / 2, 0.07):
        b.box((x, 0.03, 0.12), (x + 0.05, 0.11, 0.72), white, bevel=0.024)
    b.box((-w / 2, 0.05, 0.2), (w / 2, 0.09, 0.23), white)
    b.box((-w / 2, 0.05, 0.6), (w / 2, 0.09, 0.63), white)


def rug(b: Builder, w, d):
    """A thin carpet with its own texture and a border."""
    border = cloth(b)
    b.box((-w / 2, 0, 0.002), (w / 2, d, 0.012), border, bevel=0.01)
    rng = b.rng
    colour, second = (hsv(rng.random(), rng.uniform(0.1, 0.8), rng.uniform(0.2, 0.9))
                      for _ in range(2))  # fmt: skip
    kind = rng.choice(["checker", "stripes", "noise", "painting", "fabric"])
    inner = b.mat(colour, second, kind, rng.uniform(0.08, 0.5))
    b.box((-w / 2 + 0.1, 0.1, 0.004), (w / 2 - 0.1, d - 0.1, 0.015), inner, bevel=0.01)


def picture(b: Builder, x, z, w, h):
    """A framed picture (or mirror-like pane) hanging at height z."""
    rng = b.rng
    frame = wood(b) if rng.random() < 0.5 else metal(b)
    one, two = (hsv(rng.random(), rng.uniform(0, 0.8), rng.uniform(0.1, 1)) for _ in range(2))
    canvas = b.mat(one, two, "painting", rng.uniform(0.1, 0.4), rng.choice([0, 0.5]))
    b.box((x - w / 2, 0, z - h / 2), (x + w / 2, 0.03, z + h / 2), frame, bevel=0.012)
    t = rng.uniform(0.02, 0.05)
    b.box((x - w / 2 + t, 0.01, z - h / 2 + t), (x + w / 2 - t, 0.034, z + h / 2 - t), canvas,
          bevel=0.01)  # fmt: skip


def wall_shelf(b: Builder, w, d):
    """A board on the wall with books; wall-mounted, so furniture may stand below."""
    z, mat = b.rng.uniform(1.3, 1.7), wood(b)
    b.box((-w / 2, 0, z), (w / 2, 0.22, z + 0.03), mat)
    books(b, -w / 2 + 0.05, w / 2 - 0.05, 0.01, 0.2, z + 0.03, 0.25)


def frame_opening(b: Builder, x0, x1, z0, z1, window: bool):
    """Casing round an opening; for windows also a sill, mullions and sometimes curtains."""
    rng, t = b.rng, b.rng.uniform(0.05, 0.1)
    tone = rng.choice([0.04, 0.6, 0.8])
    mat = b.mat([tone, tone * 0.97, tone * 0.92], gloss=0.15) if rng.random() < 0.6 else wood(b)
    for x in (x0 - t, x1):
        b.box((x, -0.06, z0), (x + t, 0.03, z1 + t), mat, bevel=0.02)
    b.box((x0, -0.06, z1), (x1, 0.03, z1 + t), mat, bevel=0.02)
    if not window:
        return
    b.box((x0 - 0.1, -0.06, z0 - 0.04), (x1 + 0.1, 0.12, z0), mat, bevel=0.02)
    bars = rng.integers(0, 4)
    for x in np.linspace(x0, x1, bars + 2)[1:-1]:
        b.box((x - 0.02, -0.04, z0), (x + 0.02, 0.01, z1), mat, bevel=0.016)
    if rng.random() < 0.5:
        z = z0 + (z1 - z0) * rng.choice([0.5, 0.7])
        b.box((x0, -0.04, z - 0.02), (x1, 0.01, z + 0.02), mat, bevel=0.016)
    if rng.random() < 0.45:
        curtain = cloth(b)
        for side in (-1, 1):
            start = x0 - 0.2 if side < 0 else x1 + 0.2
            for k in range(rng.integers(4, 8)):
                x = start - side * 0.07 * k
                b.post(x, 0.1 + 0.02 * (k % 2), 0.05, z1 + 0.12, 0.045, curtain)


def pendant(b: Builder, x, y, top, drop, shining):
    """A lamp hanging from the ceiling at world (x, y)."""
    b.at(x, y, 0, 0)
    r, z = b.rng.uniform(0.1, 0.22), top - drop
    mat = b.mat([0.9, 0.85, 0.7], emission=2.5 if shining else 0.0)
    if drop < 0.1:
        b.post(0, 0, top - 0.06, top, r, mat, casts=False)
        return
    b.post(0, 0, z, top, 0.008, b.mat([0.05] * 3), casts=False)
    if b.rng.random() < 0.5:
        b.ball((0, 0, z), r, mat, casts=False)
    else:
        b.post(0, 0, z - r * 0.4, z + r * 0.4, r * 1.3, mat, casts=False)

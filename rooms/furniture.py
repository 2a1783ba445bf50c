"""Pieces of furniture. Each function adds one piece in the local frame of a ``Builder``:
x along the wall from -w/2 to w/2, y from the wall at 0 to the front at d, z up from the floor."""

from __future__ import annotations

import numpy as np

from .scene import CYLINDER, LABEL, Builder, hsv, rotation


def wood(b: Builder):
    """A wooden material, from pale birch to dark walnut."""
    rng = b.rng
    colour = hsv(rng.uniform(0.05, 0.11), rng.uniform(0.3, 0.65), rng.uniform(0.3, 0.9))
    period, gloss = rng.uniform(0.05, 0.2), rng.choice([0, 0.1, 0.3])
    return b.mat(colour, colour * 0.6, "wood", period, gloss)


def paint(b: Builder, saturation=(0.0, 0.7), value=(0.15, 0.95), gloss=None):
    """A plain painted material."""
    rng = b.rng
    gloss = rng.choice([0, 0.05, 0.4]) if gloss is None else gloss
    low, high = saturation
    strength = low + (high - low) * rng.random() ** 1.6  # mostly muted colours
    return b.mat(hsv(rng.random(), strength, rng.uniform(*value)), gloss=gloss)


def cloth(b: Builder):
    """A woven, striped or checked material."""
    rng = b.rng
    colour = hsv(rng.random(), 0.8 * rng.random() ** 1.6, rng.uniform(0.2, 0.95))
    second = hsv(rng.random(), 0.6 * rng.random() ** 1.6, rng.uniform(0.2, 0.95))
    kind = rng.choice(["fabric", "fabric", "fabric", "stripes", "checker", "noise"])
    if kind == "fabric":
        second = colour * 0.6
    return b.mat(colour, second, kind, rng.uniform(0.03, 0.16))


def metal(b: Builder):
    """Steel, brass or black lacquer."""
    tint = b.rng.choice([0.02, 0.3, 0.55])
    return b.mat(np.array([1, 0.97, 0.9]) * tint, gloss=b.rng.uniform(0.3, 0.8))


def legs(b: Builder, w, d, top, radius, mat, inset=0.05, y0=0.0):
    """Four legs under a rectangle; round or square, by chance."""
    round_legs = b.rng.random() < 0.5
    for x in (-w / 2 + inset, w / 2 - inset):
        for y in (y0 + inset, y0 + d - inset):
            if round_legs:
                b.post(x, y, 0, top, radius, mat)
            else:
                b.box((x - radius, y - radius, 0), (x + radius, y + radius, top), mat)


def bottle(b: Builder, x, y, z, mat):
    """A bottle or a glass: body and neck."""
    h, r = b.rng.uniform(0.12, 0.24), b.rng.uniform(0.025, 0.045)
    b.post(x, y, z, z + h, r, mat, label=LABEL["bottle"])
    b.post(x, y, z + h, z + h * 1.5, r * 0.4, mat, label=LABEL["bottle"])


def books(b: Builder, x0, x1, y0, depth, z, room):
    """A row of standing books up to height ``room`` that may leave part of the shelf empty."""
    rng, x = b.rng, x0
    mats = [paint(b, (0.1, 0.9), gloss=0.05) for _ in range(4)]
    stop = x0 + (x1 - x0) * rng.uniform(0.3, 1.0)
    while x < stop - 0.07:
        w = rng.uniform(0.025, 0.075)
        h, d = room * rng.uniform(0.6, 0.95), depth * rng.uniform(0.6, 0.9)
        b.box((x, y0, z), (x + w - 0.003, y0 + d, z + h), mats[rng.integers(4)],
              bevel=0.01, label=LABEL["book"])  # fmt: skip
        x += w


def on_top(b: Builder, w, d, z, count, y0=0.0):
    """Small objects on a surface: books, bottles, bowls, boxes, a lamp."""
    rng = b.rng
    for _ in range(count):
        x = rng.uniform(-w / 2 + 0.1, w / 2 - 0.1)
        y = y0 + rng.uniform(0.1, max(0.11, d - 0.1))
        what = rng.integers(6)
        if what == 0:
            bottle(b, x, y, z, paint(b, gloss=0.7))
        elif what == 1:
            for level in range(rng.integers(1, 4)):
                turn, t = rotation(rng.uniform(-0.6, 0.6)), 0.03
                b.add(0, (x, y, z + t * (level + 0.5)), (0.12, 0.085, t / 2), paint(b),
                      bevel=0.01, turn=turn, label=LABEL["book"])  # fmt: skip
        elif what == 2:
            r = rng.uniform(0.04, 0.1)
            b.ball((x, y, z + r), r, paint(b, gloss=0.5))
        elif what == 3:
            b.post(x, y, z, z + rng.uniform(0.06, 0.12), rng.uniform(0.03, 0.09), paint(b))
        elif what == 4:
            half = rng.uniform(0.04, 0.14, 3)
            b.add(0, (x, y, z + half[2]), half, paint(b), turn=rotation(rng.uniform(0, 3)))
        else:
            table_lamp(b, x, y, z)


def table_lamp(b: Builder, x, y, z):
    """Foot, stem and a glowing shade."""
    h, r = b.rng.uniform(0.25, 0.45), b.rng.uniform(0.09, 0.16)
    body = metal(b)
    b.post(x, y, z, z + 0.02, r * 0.7, body)
    b.post(x, y, z, z + h, 0.012, body)
    b.post(x, y, z + h * 0.7, z + h * 1.2, r, shade(b), bevel=0.01, casts=False)


def shade(b: Builder):
    """A lampshade's material, lit or not."""
    colour = hsv(b.rng.uniform(0.05, 0.15), b.rng.uniform(0, 0.4), 0.95)
    return b.mat(colour, emission=b.rng.choice([0.0, 0.6, 2.0]))


def table(b: Builder, w, d):
    """A table with chairs round it."""
    rng, h = b.rng, b.rng.uniform(0.68, 0.78)
    top = wood(b) if rng.random() < 0.7 else paint(b, (0, 0.2))
    b.label = LABEL["dining table"]
    if rng.random() < 0.3:
        r = min(w, d) / 2
        b.post(0, d / 2, h - 0.035, h, r, top)
        b.post(0, d / 2, 0.02, h, 0.05, metal(b))
        b.post(0, d / 2, 0, 0.03, 0.28, metal(b))
        w = d = 2 * r * 0.75
    else:
        b.box((-w / 2, 0, h - 0.04), (w / 2, d, h), top)
        legs(b, w, d, h - 0.03, rng.uniform(0.02, 0.04), top if rng.random() < 0.6 else metal(b))
    b.label = LABEL["background"]
    on_top(b, w * 0.9, d * 0.9, h, rng.integers(0, 6))
    origin, yaw = b.origin, b.yaw
    frame_mat, seat_mat = (wood(b) if rng.random() < 0.6 else metal(b)), cloth(b)
    style = rng.integers(3)
    for side in (-1, 1):
        for k in range(max(1, int(w / 0.75))):
            if rng.random() < 0.8:
                x = (k + 0.5) * w / max(1, int(w / 0.75)) - w / 2
                y = d / 2 + side * (d / 2 + rng.uniform(0.0, 0.25))
                b.origin, b.yaw = origin, yaw
                spot = b.place((x + rng.normal(0, 0.03), y, 0))
                turn = yaw + (0 if side < 0 else np.pi) + rng.normal(0, 0.15)
                b.at(*spot, turn)
                chair(b, 0.44, 0.44, style, frame_mat, seat_mat)
    b.at(*origin, yaw)


def chair(b: Builder, w, d, style=None, frame_mat=None, seat_mat=None):
    """A chair looking along +y: legs, seat, and a slatted, solid or no back."""
    rng = b.rng
    style = rng.integers(3) if style is None else style
    frame_mat = wood(b) if frame_mat is None else frame_mat
    seat_mat = cloth(b) if seat_mat is None else seat_mat
    b.label = LABEL["chair"]
    b.box((-w / 2, 0, 0.42), (w / 2, d, 0.47), seat_mat, bevel=0.04)
    for x in (-w / 2 + 0.02, w / 2 - 0.02):
        b.post(x, d - 0.03, 0, 0.43, 0.016, frame_mat)
        b.post(x, 0.03, 0, 0.9, 0.016, frame_mat)
    if style == 0:
        for z in (0.55, 0.68, 0.82):
            b.box((-w / 2, 0.015, z), (w / 2, 0.04, z + 0.06), frame_mat)
    elif style == 1:
        b.box((-w / 2, 0.0, 0.55), (w / 2, 0.05, 0.92), seat_mat, bevel=0.04)
    else:
        for x in np.linspace(-w / 2 + 0.08, w / 2 - 0.08, 4):
            b.post(x, 0.03, 0.46, 0.86, 0.009, frame_mat)
        b.box((-w / 2, 0.01, 0.84), (w / 2, 0.05, 0.92), frame_mat)
    b.label = LABEL["background"]


def armchair(b: Builder, w, d):
    """A one-seated sofa."""
    sofa(b, w, d)


def sofa(b: Builder, w, d):
    """Base, arms, back, seat cushions and loose pillows, all well rounded."""
    rng, mat = b.rng, cloth(b)
    b.label = LABEL["couch"]
    arm, seat, back = rng.uniform(0.12, 0.22), rng.uniform(0.38, 0.46), rng.uniform(0.7, 0.9)
    b.box((-w / 2, 0.05, 0.08), (w / 2, d, seat - 0.12), mat, bevel=0.052)
    b.box((-w / 2, 0, 0.1), (w / 2, 0.22, back), mat, bevel=0.065)
    for side in (-1, 1):
        x = side * (w / 2 - arm / 2)
        b.box((x - arm / 2, 0.02, 0.08), (x + arm / 2, d, seat + 0.16), mat, bevel=0.065)
    count = max(1, round((w - 2 * arm) / 0.65))
    step = (w - 2 * arm) / count
    for k in range(count):
        x = -w / 2 + arm + k * step
        low = (x + 0.005, 0.2, seat - 0.14)
        b.box(low, (x + step - 0.005, d + 0.02, seat + 0.02), mat, bevel=0.052)
        b.add(0, (x + step / 2, 0.27, seat + 0.2), (step / 2 - 0.01, 0.07, 0.2), mat, bevel=0.065,
              turn=rotation(0, 0, 0.2))  # fmt: skip
        if rng.random() < 0.5:
            spot = (x + step * rng.uniform(0.2, 0.8), 0.42, seat + 0.17)
            turn = rotation(rng.normal(0, 0.3), rng.normal(0, 0.2), 0.4)
            b.ball(spot, (0.21, 0.08, 0.19), cloth(b), turn=turn)
    legs(b, w, d, 0.1, 0.025, wood(b))
    b.label = LABEL["background"]


def bed(b: Builder, w, d):
    """Frame, headboard, mattress, blanket and pillows."""
    rng, frame_mat = b.rng, wood(b)
    b.label = LABEL["bed"]
    h = rng.uniform(0.4, 0.6)
    b.box((-w / 2, 0, h + 0.02), (w / 2, 0.06, rng.uniform(0.8, 1.2)), frame_mat, bevel=0.04)
    b.box((-w / 2, 0, 0.12), (w / 2, d, h - 0.2), frame_mat)
    legs(b, w, d, 0.14, 0.03, frame_mat)
    inside = w / 2 - 0.03
    sheet = b.mat(hsv(rng.random(), rng.uniform(0, 0.15), 0.95))
    b.box((-inside, 0.05, h - 0.22), (inside, d - 0.02, h), sheet, bevel=0.065)
    edge = rng.uniform(0.35, 0.6) * d
    low = (-inside - 0.03, edge, h - 0.28)
    b.box(low, (inside + 0.03, d + 0.01, h + 0.04), cloth(b), bevel=0.065)
    for x in (-w / 4, w / 4) if w > 1.2 else (0,):
        turn = rotation(rng.normal(0, 0.1), 0, 0.25)
        b.ball((x, 0.32, h + 0.09), (0.3, 0.2, 0.09), sheet, turn=turn)
        if rng.random() < 0.3:
            b.ball((x, 0.5, h + 0.12), (0.2, 0.09, 0.16), cloth(b), turn=rotation(0, 0, 0.6))
    b.label = LABEL["background"]


def shelf(b: Builder, w, d):
    """An open bookcase with books and trinkets."""
    rng, mat = b.rng, (wood(b) if b.rng.random() < 0.6 else paint(b, (0, 0.3)))
    h, t = rng.uniform(1.0, 2.2), 0.025
    rows, columns = int(h / 0.36), max(1, round(w / 0.8))
    b.box((-w / 2, 0, 0), (w / 2, 0.015, h), mat)
    for x in np.linspace(-w / 2, w / 2 - t, columns + 1):
        b.box((x, 0, 0), (x + t, d, h), mat)
    step = (h - t) / rows
    for level in range(rows + 1):
        b.box((-w / 2, 0, level * step), (w / 2, d - 0.005, level * step + t), mat)
    width = (w - t) / columns
    for level in range(rows):
        for column in range(columns):
            x0, z = -w / 2 + t + column * width, level * step + t
            what = rng.random()
            if what < 0.6:
                books(b, x0, x0 + width - t, 0.02, d, z, step - t - 0.02)
            elif what < 0.75:
                x, r = x0 + width * rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.1)
                b.ball((x, d / 2, z + r), r, paint(b, gloss=0.5))
            elif what < 0.9:
                half = (width * 0.3, d * 0.4, step * rng.uniform(0.2, 0.35))
                b.add(0, (x0 + width / 2, d / 2, z + half[2]), half, paint(b))


def cabinet(b: Builder, w, d):
    """A sideboard, chest or wardrobe: body, raised fronts, knobs, things on top."""
    rng, h = b.rng, b.rng.choice([0.5, 0.8, 1.0, 1.9])
    mat = wood(b) if rng.random() < 0.5 else paint(b, (0, 0.4), (0.3, 0.95))
    knob = metal(b)
    b.box((-w / 2, 0, 0.06), (w / 2, d - 0.02, h), mat)
    b.box((-w / 2 + 0.04, 0.02, 0), (w / 2 - 0.04, d - 0.06, 0.07), mat)
    columns = max(1, round(w / 0.5))
    rows = 1 if h > 1.5 or rng.random() < 0.4 else max(2, int(h / 0.25))
    wide, high = w / columns, (h - 0.1) / rows
    for column in range(columns):
        for row in range(rows):
            x, z = -w / 2 + column * wide, 0.08 + row * high
            low = (x + 0.01, d - 0.03, z + 0.01)
            b.box(low, (x + wide - 0.01, d, z + high - 0.01), mat, bevel=0.016)
            b.ball((x + wide * (0.5 if rows > 1 else 0.85), d + 0.015, z + high / 2), 0.018, knob)
    if h < 1.2:
        on_top(b, w, d, h, rng.integers(0, 5))
    if h == 0.5 and rng.random() < 0.7:
        screen(b, min(w, 1.2) * 0.8, 0.15, h + 0.05)


def screen(b: Builder, w, y, z):
    """A television or monitor on a foot."""
    black = b.mat([0.012] * 3, gloss=0.8)
    glow = b.mat(hsv(b.rng.random(), 0.5, 0.8), hsv(b.rng.random(), 0.7, 0.3), "painting", 0.3,
                 0.3, b.rng.choice([0.0, 0.8]))  # fmt: skip
    b.label = LABEL["tv"]
    b.box((-w / 2, y, z), (w / 2, y + 0.04, z + w * 0.56), black, bevel=0.012)
    if b.rng.random() < 0.4:
        low = (-w / 2 + 0.02, y + 0.03, z + 0.02)
        b.box(low, (w / 2 - 0.02, y + 0.043, z + w * 0.56 - 0.02), glow, bevel=0.01)
    b.box((-0.12, y - 0.05, z - 0.05), (0.12, y + 0.12, z - 0.035), black)
    b.box((-0.03, y, z - 0.05), (0.03, y + 0.03, z + 0.05), black)
    b.label = LABEL["background"]


def desk(b: Builder, w, d):
    """A desk with a monitor and a chair."""
    h, mat = b.rng.uniform(0.7, 0.76), wood(b)
    b.box((-w / 2, 0, h - 0.03), (w / 2, d, h), mat)
    legs(b, w, d, h - 0.02, 0.025, metal(b))
    b.box((w / 2 - 0.45, 0.05, 0.15), (w / 2 - 0.06, d - 0.06, h - 0.03), mat)
    screen(b, b.rng.uniform(0.45, 0.7), 0.15, h + 0.05)
    b.box((-0.22, d - 0.25, h), (0.22, d - 0.1, h + 0.02), b.mat([0.03] * 3))
    on_top(b, w, d, h, b.rng.integers(0, 4))
    spot = b.place((b.rng.normal(0, 0.15), d + 0.35, 0))
    b.at(*spot, b.yaw + np.pi + b.rng.normal(0, 0.4))
    chair(b, 0.46, 0.46)


def kitchen(b: Builder, w, d):
    """A counter with sink, oven and hob, wall cabinets, often a refrigerator."""
    rng = b.rng
    front = wood(b) if rng.random() < 0.4 else paint(b, (0, 0.5), (0.25, 0.98))
    top = b.mat(hsv(rng.random(), 0.08, rng.uniform(0.1, 0.9)), None, "noise", 0.08, 0.4)
    steel = b.mat([0.4, 0.4, 0.42], gloss=0.7)
    x0 = -w / 2
    if rng.random() < 0.7:
        b.box((x0, 0, 0.03), (x0 + 0.65, d + 0.03, 1.85), steel if rng.random() < 0.5 else front,
              label=LABEL["refrigerator"])  # fmt: skip
        b.post(x0 + 0.58, d + 0.06, 0.8, 1.4, 0.012, steel, label=LABEL["refrigerator"])
        x0 += 0.68
    b.box((x0, 0, 0.1), (w / 2, d - 0.03, 0.87), front)
    b.box((x0, 0, 0.87), (w / 2, d, 0.91), top, bevel=0.02)
    cells = max(1, round((w / 2 - x0) / 0.55))
    step = (w / 2 - x0) / cells
    appliance, basin = rng.integers(cells), rng.integers(cells)
    for k in range(cells):
        x = x0 + k * step
        oven = k == appliance
        label = LABEL["oven"] if oven else LABEL["background"]
        mat = b.mat([0.02] * 3, gloss=0.8) if oven else front
        b.box((x + 0.01, d - 0.05, 0.12), (x + step - 0.01, d - 0.01, 0.84), mat, label=label,
              bevel=0.016)  # fmt: skip
        bar = rotation(0, np.pi / 2)
        b.add(CYLINDER, (x + step / 2, d + 0.015, 0.74), (0.01, 0.01, step * 0.3), steel,
              turn=bar, label=label)  # fmt: skip
        b.box((x + 0.006, 0, 1.45), (x + step - 0.006, 0.34, 2.1), front, bevel=0.02)
        if k == basin and not oven:
            b.box((x + 0.06, 0.1, 0.905), (x + step - 0.06, d - 0.1, 0.915), steel,
                  label=LABEL["sink"])  # fmt: skip
            b.post(x + step / 2, 0.1, 0.9, 1.2, 0.014, steel, label=LABEL["sink"])
    b.at(*b.place(((x0 + w / 2) / 2, 0, 0)), b.yaw)
    on_top(b, w / 2 - x0, d, 0.91, rng.integers(1, 6))
    for name, width, height in (("microwave", 0.45, 0.27), ("toaster", 0.26, 0.19)):
        if rng.random() < 0.5:
            x = rng.uniform(-0.5, 0.5) * max(w / 2 - x0 - width, 0)
            low = (x - width / 2, 0.06, 0.91)
            b.box(low, (x + width / 2, 0.06 + 0.8 * width, 0.91 + height), steel,
                  label=LABEL[name])  # fmt: skip

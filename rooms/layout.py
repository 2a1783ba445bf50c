"""Layout of a room from a seed: style of the building, shell, openings, lights, furniture."""

from __future__ import annotations

from functools import lru_cache
from zlib import crc32

import numpy as np

from . import decor, furniture, other_pieces
from .scene import Builder, Light, Opening, Scene, hsv
from .variants import DEFAULT, Variant, add_obstacles, enrich_walls, open_sky

# piece: (function, width range, depth range, weight, tall enough to cover a window)
WALL_PIECES = (
    (furniture.sofa, (1.5, 2.5), (0.8, 1.0), 3, False),
    (furniture.bed, (0.9, 1.9), (1.9, 2.1), 2, False),
    (furniture.shelf, (0.6, 2.2), (0.25, 0.4), 4, True),
    (furniture.cabinet, (0.6, 2.0), (0.35, 0.6), 4, True),
    (furniture.desk, (1.0, 1.7), (0.55, 0.8), 2, False),
    (furniture.kitchen, (1.8, 3.4), (0.6, 0.66), 2, True),
    (furniture.armchair, (0.8, 1.0), (0.8, 0.95), 2, False),
    (decor.floor_lamp, (0.4, 0.5), (0.4, 0.5), 2, False),
    (decor.plant, (0.4, 0.6), (0.4, 0.6), 3, False),
    (decor.radiator, (0.6, 1.4), (0.14, 0.15), 1, False),
    (decor.stairs, (2.2, 2.8), (0.8, 1.0), 1, True),
    (decor.wall_shelf, (0.6, 1.4), (0.2, 0.25), 1, True),
)
FREE_PIECES = (
    (furniture.table, (1.0, 2.2), (0.8, 1.1), 4),
    (decor.side_table, (0.5, 1.1), (0.5, 0.8), 3),
    (furniture.sofa, (1.4, 2.2), (0.8, 1.0), 2),
    (furniture.armchair, (0.8, 1.0), (0.8, 0.95), 2),
    (furniture.chair, (0.42, 0.5), (0.42, 0.5), 2),
    (decor.plant, (0.4, 0.6), (0.4, 0.6), 1),
    (decor.clutter, (0.8, 1.6), (0.5, 1.2), 2),
    (decor.pillar, (0.25, 0.5), (0.25, 0.5), 1),
)
SHARE_WITH_HOLES = 0.35  # share of rooms with holes; nearly all of their views show a hole


@lru_cache(maxsize=2)  # the views of a room are rendered one after another
def make_scene(seed: int, building: str, point: int, variant: Variant = DEFAULT) -> Scene:
    """Create the room ``point`` of a building. The result depends only on the arguments."""
    code = crc32(building.encode())
    style = np.random.default_rng(np.random.SeedSequence((seed, code)))
    rng = np.random.default_rng(np.random.SeedSequence((seed, code, 1, point)))
    extra = np.random.default_rng(np.random.SeedSequence((seed, code, 3, point)))  # of variants
    b = Builder(rng)
    size = np.array([rng.uniform(2.8, 7.5), rng.uniform(2.8, 9.0), rng.uniform(2.3, 3.4)])
    holes = bool(rng.random() < SHARE_WITH_HOLES)
    walls = Walls(size, rng)
    shell = shell_materials(b, style)
    if variant.hard:
        shell = enrich_walls(b, shell, extra)
    day = rng.random() < 0.7
    openings = make_openings(b, walls, holes, day)
    clutter = rng.choice([0.12, 0.5, 0.8, 1.0, 1.3], p=[0.14, 0.2, 0.26, 0.25, 0.15])
    furnish(b, walls, clutter, variant.set == "other_furniture")
    if variant.hard:
        add_obstacles(b, walls, extra)
    lights = make_lights(b, size, openings, day)
    # Stray light: dim in rooms lit by lamps alone, tinted by the walls.
    wall = b.materials[shell[0]][0][0]
    strength = rng.uniform(0.25, 0.7) * (1.0 if day else 0.6)
    above = strength * (0.6 + 0.4 * wall / max(wall.max(), 0.05))
    dusk = rng.uniform(0.5, 1.0) if day else 0.03
    ground = hsv(rng.uniform(0.08, 0.38), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.75))
    sky = np.stack([[0.35, 0.6, 1.2], [1.3, 1.4, 1.5], ground]) * dusk * 2
    ambient, outdoors = np.stack([above * 0.7, above]), variant.set == "outdoor_light"
    if outdoors:
        lights, ambient = open_sky(size, extra)
    return b.freeze(
        Scene(size, np.array(shell), float(rng.uniform(0.04, 0.07)), openings, lights,
              ambient, sky, holes, outdoors)
    )  # fmt: skip


class Walls:
    """The local frames of the four walls, and the occupied parts of walls and floor."""

    def __init__(self, size: np.ndarray, rng: np.random.Generator):
        w, d = size[:2]
        self.size, self.rng = size, rng
        # face: (x, y of its start, yaw of the frame whose y points into the room, length)
        self.frames = {0: (0, d, -np.pi / 2, d), 1: (w, 0, np.pi / 2, d),
                       2: (0, 0, 0.0, w), 3: (w, d, np.pi, w)}  # fmt: skip
        self.taken: dict[int, list] = {
            face: [] for face in self.frames
        }  # (x0, x1, blocks only tall things)
        self.floor: list[tuple] = []  # (x0, x1, y0, y1) world rectangles

    def at(self, b: Builder, face: int, along: float) -> None:
        """Put the builder's frame on wall ``face``, ``along`` metres from its start."""
        x, y, yaw, _ = self.frames[face]
        b.at(x + along * np.cos(yaw), y + along * np.sin(yaw), 0, yaw)

    def spot(self, width: float, tall: bool = True) -> tuple[int, float] | None:
        """Find a free part of a wall: (face, middle), or None after a few tries."""
        for _ in range(8):
            face = int(self.rng.integers(4))
            length = self.frames[face][3]
            if length < width + 0.1:
                continue
            middle = self.rng.uniform(width / 2 + 0.03, length - width / 2 - 0.03)
            low, high = middle - width / 2, middle + width / 2
            if all(high < x0 or low > x1 or (soft and not tall)
                   for x0, x1, soft in self.taken[face]):  # fmt: skip
                return face, middle
        return None

    def claim(self, rectangle: tuple) -> bool:
        """Reserve a rectangle of the floor (world frame). False if it overlaps another one."""
        x0, x1, y0, y1 = rectangle
        if x0 < -0.01 or y0 < -0.01 or x1 > self.size[0] + 0.01 or y1 > self.size[1] + 0.01:
            return False
        if any(x0 < q and x1 > p and y0 < s and y1 > r for p, q, r, s in self.floor):
            return False
        self.floor.append(rectangle)
        return True

    def rectangle(self, b: Builder, width: float, depth: float) -> tuple:
        """Return the world bounds of the local footprint [-w/2, w/2] x [0, d]."""
        points = [b.place((x, y, 0)) for x in (-width / 2, width / 2) for y in (0, depth)]
        (x0, y0, _), (x1, y1, _) = np.min(points, 0), np.max(points, 0)
        return x0 + 0.005, x1 - 0.005, y0 + 0.005, y1 - 0.005


def shell_materials(b: Builder, style: np.random.Generator) -> list[int]:
    """Materials of walls, floor and ceiling; the building's style sets the family of colours."""
    rng, hue = b.rng, style.random()
    pale = style.random() < 0.6
    saturation = rng.uniform(0, 0.12) if pale else rng.uniform(0.1, 0.5)
    wall = hsv(hue + rng.normal(0, 0.05), saturation, rng.uniform(0.6, 0.97))
    texture = rng.choice(["plain", "plain", "noise", "stripes", "tiles", "wood", "fabric"],
                         p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])  # fmt: skip
    second = wall * rng.uniform(0.6, 0.95)
    walls = b.mat(wall, second, texture, rng.uniform(0.12, 0.5), 0.15 if texture == "tiles" else 0)
    accent = walls
    if rng.random() < 0.35:
        accent = b.mat(hsv(rng.random(), rng.uniform(0.2, 0.7), rng.uniform(0.2, 0.8)))
    faces = [walls] * 4
    faces[rng.integers(4)] = accent
    kind = rng.choice(["wood", "wood", "wood", "tiles", "checker", "fabric", "noise", "plain"])
    if kind == "wood":
        tone = hsv(rng.uniform(0.05, 0.11), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.85))
        other = tone * 0.65
    else:
        tone = hsv(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.3, 0.9))
        other = tone * rng.uniform(0.3, 0.8)
    gloss = rng.choice([0, 0.15, 0.4, 0.8]) if kind not in ("fabric", "noise") else 0.0
    floor = b.mat(tone, other, kind, rng.uniform(0.12, 0.5), gloss)
    shade = rng.uniform(0.75, 0.98)
    ceiling = b.mat(hsv(hue, saturation * 0.3, shade), texture="wood" if rng.random() < 0.1
                    else "plain")  # fmt: skip
    return [*faces, floor, ceiling]


def make_openings(b: Builder, walls: Walls, holes: bool, day: bool) -> list[Opening]:
    """Windows and doorways with their frames. In rooms without holes, panes and doors close them
    or a doorway leads to a second, plain room."""
    rng, openings = b.rng, []
    height = walls.size[2]
    for _ in range(int(rng.integers(2, 5) if holes else rng.integers(1, 4))):
        window = rng.random() < 0.68
        width = rng.uniform(0.7, 2.4) if window else rng.uniform(0.8, 1.3)
        found = walls.spot(width + 0.3)
        if found is None:
            continue
        face, middle = found
        low = rng.choice([0.05, 0.5, 0.9]) if window else 0.0
        high = min(height - 0.15, rng.uniform(1.9, 2.4))
        walls.at(b, face, middle)
        decor.frame_opening(b, -width / 2, width / 2, low, high, window)
        walls.taken[face].append((middle - width / 2 - 0.3, middle + width / 2 + 0.3, window))
        if not window:
            walls.claim(walls.rectangle(b, width, 0.9))
        corners = [b.place((x, 0, z)) for x, z in ((-width / 2, low), (width / 2, high))]
        opening = Opening(face, np.min(corners, 0), np.max(corners, 0), window)
        close_opening(b, opening, width, low, high, holes, day)
        if opening.annex is not None or holes or window:
            openings.append(opening)
    return openings


def close_opening(b, opening, width, low, high, holes, day):
    """Leave an opening as a hole, or add a window pane, a door leaf or a room behind it."""
    rng = b.rng
    if holes and (opening.window or rng.random() < 0.5):
        return
    if opening.window:
        # A pane that the simulated scanner sees as a surface: bright by day, dark by night.
        tone = hsv(rng.uniform(0.5, 0.65), rng.uniform(0.0, 0.4), 0.95)
        second = hsv(rng.uniform(0.2, 0.4), 0.4, 0.5)
        glow = rng.uniform(1.0, 3.0) if day else 0.02
        texture = rng.choice(["plain", "noise", "sky"])
        pane = b.mat(tone, second, texture, rng.uniform(0.3, 1.0), 0.6, glow)
        b.box((-width / 2, -0.03, low), (width / 2, 0.004, high), pane, casts=False)
    elif rng.random() < 0.5:
        leaf = furniture.wood(b) if rng.random() < 0.4 else furniture.paint(b, (0, 0.4), (0.4, 1))
        b.box((-width / 2, -0.02, 0.005), (width / 2, 0.012, high), leaf)
        for z in (0.15, high * 0.55):
            x = width / 2 - 0.12
            b.box((-x, 0.0, z), (x, 0.02, z + high * 0.35), leaf, bevel=0.01)
        b.ball((width / 2 - 0.08, 0.06, 1.02), (0.03, 0.03, 0.03), furniture.metal(b))
    else:
        annex(b, opening, width)


def annex(b: Builder, opening: Opening, width: float) -> None:
    """Add a second room behind a doorway, with one piece of furniture."""
    rng = b.rng
    depth, side = rng.uniform(1.2, 4.0), rng.uniform(0.3, 1.5, 2)
    corners = [b.place((-width / 2 - side[0], -depth, 0)),
               b.place((width / 2 + side[1], 0, rng.uniform(2.2, 2.6)))]  # fmt: skip
    opening.annex = np.stack([np.min(corners, 0), np.max(corners, 0)])
    b.at(*b.place((rng.normal(0, 0.3), -depth, 0)), b.yaw)
    piece = [decor.plant, furniture.cabinet, furniture.shelf, decor.floor_lamp][rng.integers(4)]
    piece(b, 0.7, 0.4)


def pick(rng, pieces):
    """Choose a random row of a table of pieces, by weight."""
    weight = np.array([row[3] for row in pieces], float)
    return pieces[rng.choice(len(pieces), p=weight / weight.sum())]


def furnish(b: Builder, walls: Walls, clutter: float, other: bool = False) -> None:
    """Furniture along walls and in the middle, rugs, pictures, beams: ``clutter`` 0..1.3.

    ``other``: the pieces of other_pieces.py instead.
    """
    rng, size = b.rng, walls.size
    wall_pieces = other_pieces.WALL_PIECES if other else WALL_PIECES
    free_pieces = other_pieces.FREE_PIECES if other else FREE_PIECES
    area = size[0] * size[1]
    for _ in range(int(round(clutter * rng.uniform(0.3, 0.45) * area + 1))):
        piece, widths, depths, _, tall = pick(rng, wall_pieces)
        width, depth = rng.uniform(*widths), rng.uniform(*depths)
        found = walls.spot(width, tall)
        if found is None:
            continue
        walls.at(b, *found)
        if walls.claim(walls.rectangle(b, width, depth)):
            walls.taken[found[0]].append((found[1] - width / 2, found[1] + width / 2, True))
            piece(b, width, depth)
    if rng.random() < 0.5:
        w, d = size[0] * rng.uniform(0.3, 0.6), size[1] * rng.uniform(0.3, 0.6)
        b.at(size[0] / 2, size[1] / 2 - d / 2, 0, 0)
        decor.rug(b, w, d)
    for _ in range(int(round(clutter * rng.uniform(0.2, 0.32) * area))):
        piece, widths, depths, _ = pick(rng, free_pieces)
        width, depth = rng.uniform(*widths), rng.uniform(*depths)
        x, y = rng.uniform(0.6, size[0] - 0.6), rng.uniform(0.6, size[1] - 0.6)
        square = rng.integers(4) * np.pi / 2
        b.at(x, y, 0, square)
        room = 0.35 if piece is furniture.table else 0.05  # chairs stand round a table
        x0, x1, y0, y1 = walls.rectangle(b, width, depth)
        if walls.claim((x0 - room, x1 + room, y0 - room, y1 + room)):
            b.at(x, y, 0, square + rng.normal(0, 0.12))
            piece(b, width, depth)
    for _ in range(rng.integers(0, 6) if clutter > 0.2 else rng.integers(0, 2)):
        width, height = rng.uniform(0.3, 1.2), rng.uniform(0.3, 0.9)
        found = walls.spot(width + 0.1)
        if found is not None:
            walls.at(b, *found)
            decor.picture(b, 0, rng.uniform(1.45, 1.75), width, height)
    trim(b, walls)


def trim(b: Builder, walls: Walls) -> None:
    """Skirting boards beside doors, and ceiling beams in some rooms."""
    rng, size = b.rng, walls.size
    if rng.random() < 0.7:
        mat = b.mat([0.7, 0.69, 0.66]) if rng.random() < 0.6 else furniture.wood(b)
        for face, (_, _, _, length) in walls.frames.items():
            walls.at(b, face, 0)
            stops = sorted((x0 + 0.2, x1 - 0.2) for x0, x1, soft in walls.taken[face] if not soft)
            start = 0.0
            for low, high in [*stops, (length, length)]:
                if low > start:
                    b.box((start, 0, 0), (low, 0.015, 0.09), mat, bevel=0.006)
                start = max(start, high)
    if rng.random() < 0.2:
        beam = furniture.wood(b)
        b.at(0, 0, 0, 0)
        for x in np.arange(0.5, size[0], rng.uniform(0.6, 1.2)):
            b.box((x - 0.07, 0, size[2] - 0.16), (x + 0.07, size[1], size[2]), beam)


def make_lights(b: Builder, size, openings: list[Opening], day: bool) -> list[Light]:
    """Lamps hanging from the ceiling, daylight through windows, sometimes the sun."""
    rng, lights = b.rng, []
    for _ in range(rng.integers(0 if day and openings else 1, 4)):
        x, y = rng.uniform(0.25, 0.75, 2) * size[:2]
        drop = rng.choice([0.03, 0.03, rng.uniform(0.4, 0.9)])
        shining = not day or rng.random() < 0.6
        decor.pendant(b, x, y, size[2], drop, shining)
        if shining:
            warm = hsv(rng.uniform(0.05, 0.14), rng.uniform(0, 0.45), 1.0)
            if rng.random() < 0.12:
                warm = hsv(rng.random(), 0.5, 1.0)
            spot = np.array([x, y, size[2] - drop - 0.1])
            radius = rng.choice([0.02, 0.1, 0.25])
            lights.append(Light(spot, warm * rng.uniform(1.5, 5.0), radius))
    if not day:
        return lights
    windows = [o for o in openings if o.window]
    for opening in windows[:2]:
        inward = np.zeros(3)
        inward[opening.face // 2] = 1 if opening.face % 2 == 0 else -1
        middle = (opening.low + opening.high) / 2 + inward * 0.25
        area = np.prod(np.sort(opening.high - opening.low)[1:])
        cool = np.array([0.85, 0.95, 1.1]) * rng.uniform(1.5, 4.0) * np.sqrt(area)
        lights.append(Light(middle, cool, 0.3))
    if windows and rng.random() < 0.55:
        opening = windows[0]
        outward = np.zeros(3)
        outward[opening.face // 2] = -1 if opening.face % 2 == 0 else 1
        toward = outward + rng.normal(0, 0.4, 3) * (1 - abs(outward)) + [0, 0, rng.uniform(0.4, 1)]
        toward /= np.linalg.norm(toward)
        colour = np.array([1.0, 0.92, 0.78]) * rng.uniform(4.0, 12.0)
        lights.append(Light(size / 2 + toward * 60, colour, 0.3, sun=True))
    return lights

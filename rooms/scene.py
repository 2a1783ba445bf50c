"""The scene: a room's shell, openings, lights and furniture as arrays of primitives.

World frame: x, y horizontal, z up, metres; the room is the box ``[0, W] x [0, D] x [0, H]``.
Faces of a box are numbered ``2 * axis + (1 if high side else 0)``: 4 is the floor, 5 the ceiling.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import numpy as np

BOX, ELLIPSOID, CYLINDER = 0, 1, 2
TEXTURES = ("plain", "checker", "stripes", "wood", "noise", "tiles", "fabric", "painting", "sky")

# The 16 classes of the published segmentation task: the first 16 of Taskonomy's 18 labels.
LABELS = (
    "uncertain", "background", "bottle", "chair", "couch", "potted plant", "bed", "dining table",
    "toilet", "tv", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
)  # fmt: skip
LABEL = {name: index for index, name in enumerate(LABELS)}


@dataclass
class Light:
    """A round light: position (m), linear colour times intensity, radius (m); ``sun`` = far away
    and seen only through openings."""

    position: np.ndarray
    colour: np.ndarray
    radius: float
    sun: bool = False


@dataclass
class Opening:
    """A rectangular opening ``low..high`` (3-vectors, m) in face ``face`` of the room.

    Behind it is a second room, the box ``annex`` (2, 3), or a hole without data (None).
    """

    face: int
    low: np.ndarray
    high: np.ndarray
    window: bool
    annex: np.ndarray | None = None


@dataclass
class Scene:
    """A room as arrays over N primitives and M materials (see ``Builder.freeze``)."""

    size: np.ndarray  # (3,) m
    shell_materials: np.ndarray  # (6,) by face
    shell_bevel: float  # m
    openings: list[Opening]
    lights: list[Light]
    ambient: np.ndarray  # (2, 3) light from below, from above
    sky: np.ndarray  # (3, 3) linear colours: zenith, horizon, ground
    has_holes: bool
    open_sky: bool = False  # the sun shines through the ceiling
    kind: np.ndarray = field(init=False)  # (N,) BOX, ELLIPSOID or CYLINDER (axis local z)
    centre: np.ndarray = field(init=False)  # (N, 3)
    axes: np.ndarray = field(init=False)  # (N, 3, 3), rows: local axes in the world
    half: np.ndarray = field(init=False)  # (N, 3) half extents
    bevel: np.ndarray = field(init=False)  # (N,) width of the rounding of edges
    label: np.ndarray = field(init=False)  # (N,)
    material: np.ndarray = field(init=False)  # (N,)
    casts: np.ndarray = field(init=False)  # (N,) bool: throws a shadow
    offset: np.ndarray = field(init=False)  # (N, 2) origin of the texture
    colours: np.ndarray = field(init=False)  # (M, 2, 3) linear
    texture: np.ndarray = field(init=False)  # (M,) index into TEXTURES
    period: np.ndarray = field(init=False)  # (M,) m
    gloss: np.ndarray = field(init=False)  # (M,) 0..1
    emission: np.ndarray = field(init=False)  # (M,) radiance


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> np.ndarray:
    """Rows = local axes after roll about x, pitch about y, then yaw about z (radians): (3, 3)."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    about_z = np.array([[cy, sy, 0], [-sy, cy, 0], [0, 0, 1]])
    about_y = np.array([[cp, 0, -sp], [0, 1, 0], [sp, 0, cp]])
    about_x = np.array([[1, 0, 0], [0, cr, sr], [0, -sr, cr]])
    return about_x @ about_y @ about_z


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Linear colour (3,) of a display colour."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value)) ** 2.2


class Builder:
    """Collects primitives and materials.

    Furniture is built in a local frame, which ``at`` sets: x along the wall, y into the room, z up.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self.rows: list[tuple] = []
        self.materials: list[tuple] = []
        self.origin, self.yaw = np.zeros(3), 0.0
        self.label = LABEL["background"]

    def at(self, x: float, y: float, z: float, yaw: float) -> None:
        """Set the local frame in which the next primitives are placed."""
        self.origin, self.yaw = np.array([x, y, z], float), yaw

    def place(self, point) -> np.ndarray:
        """Transform a local point to the world frame."""
        return self.origin + np.asarray(point, float) @ rotation(self.yaw)

    def mat(self, colour, second=None, texture="plain", period=0.3, gloss=0.0, emission=0.0) -> int:
        """Add a material and return its index. ``second`` is the texture's second colour."""
        colour = np.asarray(colour)
        second = colour * 0.7 if second is None else np.asarray(second)
        self.materials.append(
            (np.stack([colour, second]), TEXTURES.index(texture), period, gloss, emission)
        )
        return len(self.materials) - 1

    def add(self, kind, centre, half, mat, bevel=0.03, turn=None, label=None, casts=True) -> None:
        """Add a primitive with half extents ``half``. ``turn`` rotates it in the local frame."""
        axes = rotation(self.yaw) if turn is None else turn @ rotation(self.yaw)
        label = self.label if label is None else label
        half = np.maximum(np.asarray(half, float), 0.002)
        offset = self.rng.uniform(0, 10, 2)
        self.rows.append((kind, self.place(centre), axes, half, bevel, label, mat, casts, offset))

    def box(self, low, high, mat, **more) -> None:
        """An axis-aligned (in the local frame) box between two corners."""
        low, high = np.asarray(low, float), np.asarray(high, float)
        self.add(BOX, (low + high) / 2, (high - low) / 2, mat, **more)

    def post(self, x, y, z0, z1, radius, mat, **more) -> None:
        """An upright cylinder."""
        half = (radius, radius, (z1 - z0) / 2)
        self.add(CYLINDER, (x, y, (z0 + z1) / 2), half, mat, **more)

    def ball(self, centre, half, mat, **more) -> None:
        """An ellipsoid (a sphere if ``half`` is a number)."""
        self.add(ELLIPSOID, centre, np.broadcast_to(half, 3), mat, **more)

    def freeze(self, scene: Scene) -> Scene:
        """Write the collected lists into ``scene`` as float32/int arrays."""
        for light in scene.lights:
            light.position = np.asarray(light.position, np.float32)
            light.colour = np.asarray(light.colour, np.float32)
        scene.ambient, scene.sky = scene.ambient.astype(np.float32), scene.sky.astype(np.float32)
        kind, centre, axes, half, bevel, label, material, casts, offset = zip(
            *self.rows, strict=True
        )
        scene.kind, scene.label = np.array(kind), np.array(label)
        scene.material, scene.casts = np.array(material), np.array(casts)
        for name, value in (("centre", centre), ("axes", axes), ("half", half)):
            setattr(scene, name, np.array(value, np.float32))
        scene.bevel, scene.offset = np.array(bevel, np.float32), np.array(offset, np.float32)
        colours, texture, period, gloss, emission = zip(*self.materials, strict=True)
        scene.colours, scene.texture = np.array(colours, np.float32), np.array(texture)
        scene.period, scene.gloss = np.array(period, np.float32), np.array(gloss, np.float32)
        scene.emission = np.array(emission, np.float32)
        return scene

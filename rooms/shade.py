"""Shading: textures, lights with shadows, highlights, the sky, and the camera's response.

All functions take flat arrays of R rays. So pixel centres and the extra rays of anti-aliased
pixels are processed alike.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter

from .scene import TEXTURES, Light, Scene
from .trace import BLOCK, FAR, dot, entry, length, pairs, rotate, slab
from .variants import MIRROR, Exposure

SAMPLES = 16  # positions on a light for soft shadows; neighbouring pixels use different ones


class Noise:
    """Smooth 2D value noise from a random table."""

    def __init__(self, rng: np.random.Generator):
        self.table = rng.random((128, 128), np.float32)

    def __call__(self, u, v):
        """Return values in 0..1. The lattice points are one unit apart."""
        i, j = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
        a, b = u - i, v - j
        a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
        i0, j0, i1, j1 = i & 127, j & 127, (i + 1) & 127, (j + 1) & 127
        t = self.table
        top = t[i0, j0] * (1 - b) + t[i0, j1] * b
        return top * (1 - a) + (t[i1, j0] * (1 - b) + t[i1, j1] * b) * a


def _line(x, width, blur):
    """Soft lines at integers: 1 on a line of ``width``, edges blurred over ``blur``."""
    d = np.abs(x - np.round(x))
    return np.clip((width / 2 - d) / np.maximum(blur, 0.02) + 0.5, 0, 1)


def _square(x, blur):
    """A square wave of period 2 in -1..1 with edges blurred over ``blur``."""
    triangle = 1 - np.abs(np.mod(x, 2) - 1) * 2
    return np.clip(triangle / np.maximum(blur, 0.05), -1, 1)


def mixture(kind: str, u, v, blur, noise: Noise):
    """Return the share (R,) of a texture's second colour.

    ``u``, ``v`` and the width of a pixel ``blur`` are in units of the texture's period.
    """
    fade = np.clip(1.4 - blur, 0, 1)  # textures finer than a pixel fade to their mean
    if kind == "checker":
        share = 0.5 + 0.5 * _square(u, blur) * _square(v, blur)
    elif kind == "stripes":
        share = 0.5 + 0.5 * _square(u, blur)
    elif kind == "wood":
        board = np.floor(v)
        grain = noise(u * 0.6 + board * 7.3, v * 6 + board * 3.1)
        ring = 0.5 + 0.5 * np.sin(25 * noise(u * 0.15 + board * 3.7, v * 1.5) + v * 8)
        plank = noise(board * 5.17, np.floor(u / 8 + board * 0.37) * 3.3)
        share = 0.3 * grain + 0.25 * ring * fade + 0.45 * plank
        share = np.maximum(share, _line(v, 0.04, blur))
    elif kind == "noise":
        share = 0.55 * noise(u, v) + 0.3 * noise(u * 2.7, v * 2.7) + 0.25 * noise(u * 7, v * 7)
    elif kind == "tiles":
        tone = 0.25 * noise(np.floor(u + 0.5) * 5.3, np.floor(v + 0.5) * 7.7)
        share = np.maximum(tone, np.maximum(_line(u, 0.05, blur), _line(v, 0.05, blur)))
    elif kind == "fabric":
        weave = 0.25 * np.sin(u * 12) * np.sin(v * 12) * np.clip(1 - blur * 5, 0, 1)
        share = 0.4 + weave + 0.3 * (noise(u * 3, v * 3) - 0.5)
    elif kind == "painting":
        share = np.clip(3 * noise(u, v) - 1 + 1.2 * (noise(u * 3, v) - 0.5), 0, 1)
    elif kind == "sky":
        share = np.clip(2 * noise(u, v * 0.7) - 0.6 + 0.8 * (noise(u * 4, v * 4) - 0.5), 0, 1)
    else:
        return 0.15 * noise(u * 0.4, v * 0.4)
    return share * fade + 0.4 * (1 - fade) if kind in ("checker", "stripes", "tiles") else share


def albedo(scene: Scene, noise: Noise, hits) -> np.ndarray:
    """Return the linear surface colours (R, 3) of hit points."""
    share = np.zeros(len(hits.material), np.float32)
    period = scene.period[hits.material]
    u, v = hits.uv[:, 0] / period, hits.uv[:, 1] / period
    blur = hits.footprint / period
    kinds = scene.texture[hits.material]
    for index, name in enumerate(TEXTURES):
        rays = np.nonzero(kinds == index)[0]
        if len(rays):
            share[rays] = mixture(name, u[rays], v[rays], blur[rays], noise)
    share = share[:, None]
    colours = scene.colours[hits.material]
    return colours[:, 0] * (1 - share) + colours[:, 1] * share


def sky_colour(scene: Scene, noise: Noise, directions) -> np.ndarray:
    """Return the colours (R, 3) seen through holes: sky, hazy horizon, trees and ground."""
    d = directions / length(directions)[:, None]
    angle = np.arctan2(d[:, 1], d[:, 0]) * 6
    rise = d[:, 2]
    trees = 0.25 * noise(angle * 1.5, rise * 3) + 0.12 * noise(angle * 8, rise * 20) - 0.1
    zenith, horizon, ground = scene.sky.astype(np.float32)
    w = np.clip(rise * 2, 0, 1)[:, None]
    leaf = ground * (0.5 + noise(angle * 12, rise * 60))[:, None]
    return np.where((rise < trees)[:, None], leaf, horizon * (1 - w) + zenith * w)


def octahedral(d):
    """Octahedral map of directions (R, 3) to the square [-1, 1]^2: (R, 2)."""
    d = d / (np.abs(d[:, :1]) + np.abs(d[:, 1:2]) + np.abs(d[:, 2:]))
    folded = (1 - np.abs(d[:, 1::-1])) * np.where(d[:, :2] >= 0, 1, -1)
    return np.where(d[:, 2:] < 0, folded, d[:, :2])


def _directions(uv):
    """Inverse of ``octahedral``, unit length."""
    z = 1 - np.abs(uv[:, 0]) - np.abs(uv[:, 1])
    xy = np.where(z[:, None] < 0, (1 - np.abs(uv[:, ::-1])) * np.where(uv >= 0, 1, -1), uv)
    d = np.concatenate([xy, z[:, None]], 1)
    return d / length(d)[:, None]


def light_cells(scene: Scene, frames, light: Light, toward):
    """Group shadow rays from a light into C cells of similar direction.

    Returns each ray's cell (R,), and which primitives the rays of a cell may hit (C, N).
    """
    grid = 40
    distance = length(toward)
    uv = octahedral(toward)
    low, high = uv.min(0), uv.max(0)
    step = np.maximum((high - low) / grid, 1e-6).astype(np.float32)
    index = np.minimum(((uv - low) / step).astype(int), grid - 1)
    used, cell = np.unique(index[:, 0] * grid + index[:, 1], return_inverse=True)
    reach = np.zeros(len(used), np.float32)
    np.maximum.at(reach, cell, distance)
    corner = low + np.stack([used // grid, used % grid], 1) * step
    direction = _directions(corner + step / 2).astype(np.float32)
    # Bounding cone of a cell, from its corners. The margin covers the distortion by the map.
    width = np.zeros(len(used), np.float32)
    for shift in ((0, 0), (0, 1), (1, 0), (1, 1)):
        there = _directions(corner + np.array(shift) * step)
        width = np.maximum(width, length(there - direction))
    width *= 1.15
    offset = scene.centre - light.position
    gap = length(offset)
    radius = length(scene.half) + light.radius
    casts = scene.casts & (gap - radius < reach.max())
    spread = np.where(gap <= radius, np.pi, np.arcsin(np.clip(radius / gap, 0, 1)))
    cosine = direction @ (offset / np.maximum(gap, 1e-6)[:, None]).T
    limit = np.minimum(spread + width.max(), np.pi)
    at, thing = np.nonzero((cosine > np.cos(limit)) & casts)
    # Test the remaining primitives as boxes, grown by the extent of the light and the cell.
    grow = light.radius + np.minimum(gap + radius, reach.max())[thing] * width[at]
    scale = 1 / (1 + grow[:, None] / scene.half[thing])
    local = np.einsum("nij,nj->ni", frames, -offset)
    way = rotate(frames, thing, direction[at])
    near, far = np.zeros(len(at), np.float32), reach[at]
    for axis in range(3):
        start = local[thing, axis] * scale[:, axis]
        near, far = slab(start, way[axis] * scale[:, axis], near, far)
    overlap = np.zeros(cosine.shape, bool)
    keep = near < far
    overlap[at[keep], thing[keep]] = True
    return cell, overlap


def visible(scene: Scene, frames, light: Light, samples, points, which) -> np.ndarray:
    """Return 1 if the segment from ``samples[which]`` to a point is unobstructed, else 0: (R,)."""
    out = np.ones(len(points), np.float32)
    if not len(points):
        return out
    cells, overlap = light_cells(scene, frames, light, points - light.position)
    offset = samples[None] - scene.centre[:, None]  # (N, K, 3)
    origins = np.einsum("nij,nkj->ink", frames, offset).reshape(3, -1)  # unit frames
    for s in range(0, len(points), BLOCK):
        ray, thing = pairs(cells[s : s + BLOCK], overlap)
        if not len(ray):
            continue
        direction = points[s : s + BLOCK] - samples[which[s : s + BLOCK]]
        d = rotate(frames, thing, direction, ray)
        start = thing * len(samples) + which[s : s + BLOCK][ray]
        t = entry(scene.kind[thing], [o[start] for o in origins], d, 0.0)
        out[s + ray[t < 1]] = 0
    return out


def through_opening(scene: Scene, points, sun) -> np.ndarray:
    """Whether the rays from points in the room to the sun pass through a window: (R,) bool."""
    direction = sun - points
    t = np.full(len(points), FAR)
    face = np.zeros(len(points), int)
    for axis in range(3):
        d = direction[:, axis]
        wall = np.where(d > 0, scene.size[axis], 0)
        far = (wall - points[:, axis]) / np.where(np.abs(d) < 1e-9, 1e-9, d)
        closer = far < t
        t[closer], face[closer] = far[closer], (2 * axis + (d > 0))[closer]
    leave = points + t[:, None] * direction
    free = (face == 5) & scene.open_sky
    for opening in scene.openings:
        if opening.window:
            others = [k for k in range(3) if k != opening.face // 2]
            inside = np.all(
                [(leave[:, k] > opening.low[k]) & (leave[:, k] < opening.high[k]) for k in others],
                axis=0,
            )
            free |= inside & (face == opening.face)
    return free


def illuminate(scene: Scene, frames, noise: Noise, rng, hits, directions) -> np.ndarray:
    """Return the linear radiance (R, 3) of hit points seen along world ``directions``."""
    colour = albedo(scene, noise, hits)
    up = 0.5 + 0.5 * hits.normal[:, 2:]
    light_sum = (scene.ambient[0] * (1 - up) + scene.ambient[1] * up) * hits.openness[:, None]
    gloss = scene.gloss[hits.material][:, None]
    view = directions / length(directions)[:, None]
    mirrored = view - 2 * dot(view, hits.normal)[:, None] * hits.normal
    shine = np.zeros_like(colour)
    traced = hits.borrow == np.arange(len(hits.borrow))
    for light in scene.lights:
        toward = light.position - hits.point
        distance = length(toward)[:, None]
        toward = toward / distance
        cosine = np.clip(dot(toward, hits.normal), 0, 1)
        lit = np.nonzero((cosine > 1e-3) & traced)[0]
        if light.sun:
            lit = lit[through_opening(scene, hits.point[lit], light.position)]
            strength = np.ones(len(hits.point), np.float32)
        else:
            strength = np.asarray(1 / (0.4 + distance[:, 0] ** 2))
        ball = rng.normal(size=(SAMPLES, 3))
        ball *= light.radius * rng.random((SAMPLES, 1)) ** (1 / 3) / length(ball)[:, None]
        samples = (light.position + ball).astype(np.float32)
        start = hits.point[lit] + hits.normal[lit] * np.float32(0.01)
        free = np.zeros(len(hits.point), np.float32)
        free[lit] = visible(scene, frames, light, samples, start, hits.sample[lit])
        free = hits.smooth(free)[hits.borrow]
        light_sum = light_sum + (strength * cosine * free)[:, None] * light.colour
        power = np.clip(dot(mirrored, toward), 0, 1) ** 60
        shine += (power * strength * free)[:, None] * light.colour * 1.5
    fresnel = 0.06 + 0.6 * (1 - np.abs(dot(view, hits.normal)[:, None])) ** 4
    shine += reflected(scene, noise, hits, mirrored, gloss)
    result = colour * light_sum + gloss * fresnel * 2 * shine
    mirror = np.nonzero(gloss[:, 0] == MIRROR)[0]
    if len(mirror):
        result[mirror] = 0.9 * shine[mirror]
    return result + colour * scene.emission[hits.material][:, None]


def reflected(scene: Scene, noise: Noise, hits, mirrored, gloss) -> np.ndarray:
    """Return the reflections (R, 3) of the empty room on glossy points: walls and windows."""
    out = np.zeros_like(mirrored)
    rays = np.nonzero((gloss[:, 0] > 0.05) & hits.inside)[0]
    if not len(rays):
        return out
    start, way = hits.point[rays], mirrored[rays].astype(np.float32)
    t = np.full(len(rays), FAR, np.float32)
    face = np.zeros(len(rays), int)
    for axis in range(3):
        zero = np.zeros((len(rays), 3), np.float32)
        d = np.where(np.abs(way[:, axis]) < 1e-6, 1e-6, way[:, axis])
        wall = np.where(d > 0, np.float32(scene.size[axis]), zero[:, 0])
        far = (wall - start[:, axis]) / d
        closer = far < t
        t[closer], face[closer] = far[closer], (2 * axis + (d > 0))[closer]
    leave = start + t[:, None] * way
    out[rays] = scene.colours[scene.shell_materials[face], 0] * scene.ambient[1]
    for opening in scene.openings:
        others = [k for k in range(3) if k != opening.face // 2]
        seen = (face == opening.face) & np.all(
            [(leave[:, k] > opening.low[k]) & (leave[:, k] < opening.high[k]) for k in others], 0
        )
        if opening.window:
            out[rays[seen]] = sky_colour(scene, noise, way[seen])
    return out


def develop(
    radiance: np.ndarray,
    rng: np.random.Generator,
    scale: float,
    exposure: Exposure = Exposure(),  # noqa: B008
) -> np.ndarray:
    """Convert linear radiance (S, S, 3) to 8-bit rgb like a camera.

    Applies exposure, glare, white balance, vignetting and noise. ``scale`` is S / 512.
    """
    size = len(radiance)
    level = np.percentile(radiance.mean(2), 60)
    target = rng.choice([0.05, 0.14, 0.25, 0.36, 0.6], p=[0.08, 0.17, 0.35, 0.28, 0.12])
    image = radiance * (target * rng.uniform(0.75, 1.35) / max(level, 1e-3))
    image = image * np.float32(exposure.dim)
    bright = np.clip(image - 1.0, 0, 6)
    if bright.max() > 0:
        # Glare: overexposed pixels spread their excess to their surroundings.
        blurred = gaussian_filter(bright, (6 * scale, 6 * scale, 0))
        wide = max(1, int(30 * scale))
        glow = uniform_filter(blurred, (wide, wide, 1))
        image = image + (rng.choice([0.03, 0.1, 0.3]) + exposure.glare) * glow
    # White balance: remove most of the light's tint, as cameras do.
    tint = np.median(image.reshape(-1, 3), 0) + 0.02
    image = image * (tint.mean() / tint) ** rng.uniform(0.2, 0.8) * np.exp(rng.normal(0, 0.04, 3))
    axis = np.linspace(-1, 1, size)
    image = image * (1 - rng.uniform(0, 0.3) * (axis[:, None] ** 2 + axis**2) / 2)[..., None]
    amount = rng.choice([0.002, 0.006, 0.012, 0.03], p=[0.3, 0.35, 0.25, 0.1])
    amount += exposure.noise
    noise = rng.standard_normal(image.shape, np.float32)
    image = image + noise * amount * np.sqrt(np.clip(image, 0.02, 1.5))
    image = np.clip(image, 0, None)
    image = np.where(image > 0.7, 0.7 + 0.3 * (1 - np.exp(-(image - 0.7) / 0.3)), image)
    return np.clip(255 * image ** (1 / 2.2) + 0.5, 0, 255).astype(np.uint8)

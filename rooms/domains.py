"""Conversion of a rendered view to the images of every domain, in Taskonomy's encodings.

The formulas of reshading and edge_occlusion, and the signs of normal and principal_curvature,
were determined from a real view of Taskonomy. tests/test_rooms.py checks them on rooms and, if
it is available, on the real view.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation, gaussian_filter, sobel, uniform_filter

from .render import View

# domain -> the tag in its file names
DOMAINS = {
    "rgb": "rgb", "normal": "normal", "depth_zbuffer": "depth_zbuffer", "reshading": "reshading",
    "principal_curvature": "principal_curvature", "edge_occlusion": "edge_occlusion",
    "keypoints2d": "keypoints2d", "keypoints3d": "keypoints3d",
    "segment_semantic": "segmentsemantic",
}  # fmt: skip
HOLE_DEPTH, HOLE_NORMAL, HOLE_RESHADING = 65535, 128, 13
RESHADING_GAIN, RESHADING_REACH = 1.594, 8.0  # about 5 / pi, and m^2: see reshading()
KEYPOINTS_2D_GAIN = 2.2
CURVATURE_SCALE = 127 * 0.03  # 127 grey levels correspond to a curvature of 1/0.03 m^-1


def rays(size: int, focal: float) -> np.ndarray:
    """Return the rays through the pixel centres in the camera frame, with z = 1: (S, S, 3)."""
    axis = ((np.arange(size) + 0.5 - size / 2) / focal).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return np.stack([x, y, np.ones_like(x)], -1)


def to_16_bit(values: np.ndarray, hole: np.ndarray, invalid: int) -> np.ndarray:
    """Round to uint16, clip to 0..65534, and set holes to ``invalid``."""
    out = np.clip(np.nan_to_num(values) + 0.5, 0, 65534).astype(np.uint16)
    out[hole] = invalid
    return out


def normal(view: View) -> np.ndarray:
    """Encode normals as 127.5 (n + 1): R = right, G = down, B = away from the camera."""
    out = np.clip(127.5 * (view.normal + 1) + 0.5, 0, 255).astype(np.uint8)
    out[view.hole] = HOLE_NORMAL
    return out


def reshading(view: View) -> np.ndarray:
    """Shade the view by one lamp at the camera: 255 * 1.594 * 8 / (8 + d^2) * cos.

    d is the distance in metres, and the angle is that between the ray and the normal. On the real
    view, the median error is 0.4 grey levels.
    """
    ray = rays(len(view.depth), view.focal)
    length = np.linalg.norm(ray, axis=-1)
    cosine = np.clip(-(ray * view.normal).sum(-1) / length, 0, 1)
    reach = RESHADING_REACH / (RESHADING_REACH + (view.depth * length) ** 2)
    grey = np.clip(255 * RESHADING_GAIN * reach * cosine + 0.5, 0, 255).astype(np.uint8)
    grey[view.hole] = HOLE_RESHADING
    return np.repeat(grey[..., None], 3, -1)


def principal_curvature(view: View) -> np.ndarray:
    """Encode the stronger (R) and the weaker (G) principal curvature, convex positive; B = 0."""
    k = np.clip(127 + CURVATURE_SCALE * view.curvature + 0.5, 0, 254)
    out = np.zeros((*view.hole.shape, 3), np.uint8)
    out[..., :2] = k
    out[view.hole] = 0
    return out


def edge_occlusion(view: View) -> np.ndarray:
    """Sobel gradient magnitude of sqrt(depth in m) times 1024; 0 in holes and next to them.

    This is the formula of the real files at 512 px. At S px, a pixel covers 512 / S times the
    width. The response is scaled so that its distribution after the loader's blur is about
    the same.
    """
    root = np.sqrt(np.where(view.hole, 0, view.depth))
    response = 1024 * np.hypot(sobel(root, 0), sobel(root, 1))
    response *= (len(root) / 512) ** 0.6
    return to_16_bit(response, binary_dilation(view.hole, np.ones((3, 3))), 0)


def enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of a float32 image to ``size`` x ``size``."""
    if len(image) == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def keypoints2d(view: View) -> np.ndarray:
    """Keypoint strength |xx yy - 0.81 xy^2| from the Hessian of the grey image (0.81: SURF).

    The result is the maximum over the scales 4, 8 and 16 px at 512 px. On the real view, a gain
    of 0.83 gives the distribution of the real file. Rooms have less texture than photographs,
    so the gain is larger here.
    """
    size = len(view.rgb)
    grey = Image.fromarray(view.rgb.mean(-1, dtype=np.float32))
    response = np.zeros((size, size), np.float32)
    for scale in (4, 8, 16):
        sigma = max(scale * size / 512, 0.8)
        shrink = max(1, int(sigma / 2))  # coarse scales do not need the full resolution
        small = np.asarray(grey.reduce(shrink) if shrink > 1 else grey)
        sigma /= shrink
        xx, yy, xy = (gaussian_filter(small, sigma, order=o) for o in ((0, 2), (2, 0), (1, 1)))
        strength = np.abs(xx * yy - 0.81 * xy**2) * sigma**4
        response = np.maximum(response, enlarge(strength, size))
    return to_16_bit(response * KEYPOINTS_2D_GAIN, np.zeros_like(view.hole), 0)


def keypoints3d(view: View) -> np.ndarray:
    """Corner response of the range image within about 0.25 m, a SUBSTITUTE for NARF.

    It is based on the covariance of the normals: its middle eigenvalue is 0 on planes, small on
    straight edges, and large where three directions meet. As in the real files, weak responses
    are set to zero.
    """
    size = len(view.depth)
    step = max(1, size // 128)
    n = np.where(view.hole[..., None], 0, view.normal)[::step, ::step]
    depth, valid = view.depth[::step, ::step], ~view.hole[::step, ::step]
    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    moments = [*(n[..., i] for i in range(3)), *(n[..., i] * n[..., j] for i, j in pairs)]
    moments.append(valid.astype(np.float32))
    target_width = 0.25 * view.focal / step / np.clip(depth, 0.3, 30)  # px
    widths = (3, 7, 15)
    total = np.zeros((len(depth), len(depth), 10), np.float32)
    previous = None
    for index, width in enumerate(widths):
        blurred = np.stack([uniform_filter(m, width) for m in moments], -1)
        if previous is None:
            total = blurred
        else:
            low = widths[index - 1]
            share = np.clip((2 * target_width - low) / (width - low), 0, 1)[..., None]
            total = total * (1 - share) + blurred * share
        previous = blurred
    total /= np.maximum(total[..., 9:], 1e-3)
    mean = total[..., :3]
    matrix = np.empty((*depth.shape, 3, 3), np.float32)
    for (i, j), column in zip(pairs, range(3, 9), strict=True):
        matrix[..., i, j] = matrix[..., j, i] = total[..., column] - mean[..., i] * mean[..., j]
    # Invariants replace the eigenvalues l_i: the sum of the principal 2x2 minors is
    # l1 l2 + l1 l3 + l2 l3.
    trace = matrix[..., 0, 0] + matrix[..., 1, 1] + matrix[..., 2, 2]
    minors = sum(matrix[..., i, i] * matrix[..., j, j] - matrix[..., i, j] ** 2
                 for i, j in ((0, 1), (0, 2), (1, 2)))  # fmt: skip
    response = np.sqrt(np.clip(minors, 0, None)) + 0.15 * trace
    response = gaussian_filter(np.clip(response - 0.045, 0, None) * 96000, 1.2)
    return to_16_bit(enlarge(response, size), view.hole, 0)


def encode(view: View) -> dict[str, np.ndarray]:
    """Return {domain: image}: uint8 (S, S, 3), uint8 (S, S) or uint16 (S, S)."""
    return {
        "rgb": view.rgb,
        "normal": normal(view),
        "depth_zbuffer": to_16_bit(view.depth * 512, view.hole, HOLE_DEPTH),
        "reshading": reshading(view),
        "principal_curvature": principal_curvature(view),
        "edge_occlusion": edge_occlusion(view),
        "keypoints2d": keypoints2d(view),
        "keypoints3d": keypoints3d(view),
        "segment_semantic": view.label.astype(np.uint8),
    }

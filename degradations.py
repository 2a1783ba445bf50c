"""Degradations of images: blur, JPEG, noise and darkness at several levels."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from photometric import blurred, compressed
from pictures import to_image
from utils import UserError, nearest

CLEAN = ("clean", 0.0)
Shift = tuple[str, float]  # (kind of corruption, its level)

# ---- the shifts ---------------------------------------------------------------------
#
# Each function takes an 8-bit RGB image, a level and the image's own random generator, and
# returns an image of the same size.


def noisy(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """Add Gaussian noise with σ = `level` × the full range."""
    pixels = np.asarray(image) + 255 * level * rng.standard_normal((*image.size[::-1], 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def darkened(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """Multiply all values by `level`."""
    return image.point(lambda value: value * level)


SHIFTS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "blur (σ)": (blurred, (0.5, 1, 1.5, 2, 4)),
    "JPEG (quality)": (compressed, (95, 50, 20, 10, 5)),
    "noise (σ)": (noisy, (0.025, 0.05, 0.1, 0.15, 0.2)),
    "darkening (factor)": (darkened, (0.8, 0.6, 0.35, 0.2, 0.1)),
}
# the lowest and the highest level of each
BOUNDS = {
    "blur (σ)": (0.0, 64.0), "JPEG (quality)": (1.0, 100.0), "noise (σ)": (0.0, 1.0),
    "darkening (factor)": (0.0, 1.0),
}  # fmt: skip


def parse_shift(text: str) -> Shift:
    """Return the shift that a text such as "blur:2" names, its kind and its level.

    The kinds are blur, jpeg, noise and darkening. Raises UserError for anything else.
    """
    kinds = {kind.split()[0].lower(): kind for kind in SHIFTS}
    name, _, number = text.partition(":")
    known = ", ".join(f"{short}:{SHIFTS[kind][1][2]:g}" for short, kind in kinds.items())
    if name.lower() not in kinds:
        raise UserError(f"`shift` is a kind and a level, such as {known}, not {text!r}"
                        f"{nearest(name, kinds)}")  # fmt: skip
    kind = kinds[name.lower()]
    low, high = BOUNDS[kind]
    try:
        level = float(number)
    except ValueError:
        level = float("nan")
    if not low <= level <= high:
        raise UserError(f"`shift` {name} has a level from {low:g} to {high:g}, not {number!r}")
    return kind, level


def shifted(images: Tensor, shift: Shift, numbers: Sequence[int]) -> Tensor:
    """Apply a shift to images (B, 3, S, S) in [0, 1], on the CPU.

    `numbers` are one for each image. An image's noise depends only on its number, so it is
    independent of the batch size. Returns images of the same shape and range.
    """
    if shift == CLEAN:
        return images
    kind, level = shift
    result = []
    for number, image in zip(numbers, images, strict=True):
        rng = np.random.default_rng(number)
        # Values are n / 255. Adding half a step keeps truncation from yielding n − 1.
        picture = to_image(image + 0.5 / 255)
        result.append(TF.to_tensor(SHIFTS[kind][0](picture, level, rng)))
    return torch.stack(result)

"""Strong changes of an image's look, for training networks that will be used on photographs.

They change only rgb, and move no pixel, so every label stays valid.
"""

import random
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter
from torch import Tensor

from utils import check_one_of

STRENGTHS = ("strong",)

Change = Callable[[Image.Image, random.Random], Image.Image]


def check_augment_rgb(strength: str | None) -> None:
    """Raise UserError unless `strength` is None or one of STRENGTHS."""
    if strength is not None:
        check_one_of("augment_rgb", strength, STRENGTHS)


def changed(rgb: Tensor, rng: random.Random) -> Tensor:
    """Return an image (3, H, W) in [0, 1] with a random look: new values, of 8 bits, in [0, 1].

    Each change of CHANGES is applied with its probability, in the order in which a camera
    does it: light and colour, lens, sensor, file. The result depends on the image and the state
    of `rng` only.
    """
    image = TF.to_pil_image((rgb * 255).round().to(torch.uint8))
    for probability, change in CHANGES:
        if rng.random() < probability:
            image = change(image, rng)
    return TF.to_tensor(image)


def change_gamma(image: Image.Image, rng: random.Random) -> Image.Image:
    """Apply a gamma between ½ (brighter) and 2 (darker)."""
    return TF.adjust_gamma(image, 2 ** rng.uniform(-1, 1))


def change_light(image: Image.Image, rng: random.Random) -> Image.Image:
    """Change brightness and contrast by up to 40 %."""
    image = TF.adjust_brightness(image, rng.uniform(0.6, 1.4))
    return TF.adjust_contrast(image, rng.uniform(0.6, 1.4))


def change_colours(image: Image.Image, rng: random.Random) -> Image.Image:
    """Scale the saturation by 0.3 … 1.7, and turn the hue by up to 36°."""
    image = TF.adjust_saturation(image, rng.uniform(0.3, 1.7))
    return TF.adjust_hue(image, rng.uniform(-0.1, 0.1))


def change_white_balance(image: Image.Image, rng: random.Random) -> Image.Image:
    """Scale each channel by a factor of its own between 0.75 and 1.33."""
    gains = [0.75 ** rng.uniform(-1, 1) for _ in range(3)]
    return _image(np.asarray(image, np.float32) * np.array(gains, np.float32))


def make_grey(image: Image.Image, rng: random.Random) -> Image.Image:
    """Remove the colour."""
    return TF.rgb_to_grayscale(image, 3)


def make_blurred(image: Image.Image, rng: random.Random) -> Image.Image:
    """Blur, by a Gaussian of 0.2 to 1.2 % of the shorter side."""
    return blurred(image, min(image.size) * rng.uniform(0.002, 0.012))


def make_coarse(image: Image.Image, rng: random.Random) -> Image.Image:
    """Resize to 40 … 80 % of the size and back, so that it looks like an enlarged image."""
    share = rng.uniform(0.4, 0.8)
    small = [max(1, round(side * share)) for side in image.size]
    how = Image.Resampling.BILINEAR
    return image.resize((small[0], small[1]), how).resize(image.size, how)


def make_noisy(image: Image.Image, rng: random.Random) -> Image.Image:
    """Add Gaussian noise, σ = 0.5 … 6 % of the range, one for all channels or for each."""
    values = np.asarray(image, np.float32)
    spread, channels = rng.uniform(0.005, 0.06) * 255, rng.choice((1, 3))
    noise = np.random.default_rng(rng.getrandbits(64)).normal(
        0, spread, (*values.shape[:2], channels)
    )
    return _image(values + noise.astype(np.float32))


def compress(image: Image.Image, rng: random.Random) -> Image.Image:
    """Store as JPEG of quality 15 … 90, and read it."""
    return compressed(image, rng.randint(15, 90))


def blurred(image: Image.Image, level: float, rng: object = None) -> Image.Image:
    """Apply a Gaussian blur with σ = `level` pixels; nothing is drawn from `rng`."""
    return image.filter(ImageFilter.GaussianBlur(level))


def compressed(image: Image.Image, level: float, rng: object = None) -> Image.Image:
    """Compress as JPEG of quality `level`; nothing is drawn from `rng`."""
    file = BytesIO()
    image.save(file, "JPEG", quality=int(level))
    with Image.open(file, formats=("JPEG",)) as read:
        return read.convert("RGB")


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


CHANGES: Sequence[tuple[float, Change]] = (
    (0.5, change_gamma),
    (0.5, change_light),
    (0.5, change_colours),
    (0.4, change_white_balance),
    (0.1, make_grey),
    (0.3, make_blurred),
    (0.2, make_coarse),
    (0.4, make_noisy),
    (0.4, compress),
)

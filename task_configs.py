"""The table of domains, `TASKS`: how their files are decoded and which pixels are invalid.

An `ImageTask` decodes a file to a float32 tensor (C, S, S). It also knows the value that
marks invalid pixels. docs/encodings.md describes the file encodings.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import functional as TF

from modules.corners import ShiTomasi
from utils import UserError, check_regular, nearest

LARGEST_FILE = 8192 * 8192  # maximum number of pixels in an image file
LARGEST = 4096 * 4096  # maximum number of pixels after resizing
# The formats of every image that is read. EPS is excluded because Pillow runs an external program
# (Ghostscript) to read it. AVIF came with Pillow 11.3.
FORMATS = ("PNG", "JPEG", "JPEG2000", "WEBP", "TIFF", "BMP", "GIF", "PPM") + (
    ("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()
)
# Exceptions that Pillow's decoders raise on broken files.
READ_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError,
    MemoryError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

# ---- transforms of file values: (C, S, S) → (C, S, S) float32 ------------------------


def identity(x: Tensor) -> Tensor:
    return x


def clamp_maximum(x: Tensor, maximum: float) -> Tensor:
    """Divide values of any shape by `maximum` and clamp to [0, 1]."""
    return (x.float() / maximum).clamp(0, 1)


SIGMA = 2.0  # standard deviation in pixels of the Gaussian in `blur`


def blur(x: Tensor, maximum: float, sigma: float = SIGMA) -> Tensor:
    """Apply a Gaussian filter, then x^0.8 / maximum^0.8, clamped to [0, 1].

    (1, S, S) int32 → (1, S, S) float32; `sigma` is in pixels. The filter works on 32-bit
    integers, so each of its two passes truncates. The published
    code does the same, and the published networks were trained on its output.
    """
    return raise_to_power(smooth(x, sigma), maximum)


def smooth(x: Tensor, sigma: float = SIGMA) -> Tensor:
    """Apply the Gaussian filter of `blur`: (1, S, S) int32 → (1, S, S) int32."""
    return torch.from_numpy(ndimage.gaussian_filter(x[0].numpy(), sigma=sigma))[None]


def raise_to_power(x: Tensor, maximum: float) -> Tensor:
    """Return x^0.8 / maximum^0.8, clamped to [0, 1], for non-negative integers of any shape.

    A lookup table makes the result independent of an element's position. torch.pow does not:
    its vectorised and scalar code paths can differ in the last bit.
    """
    return torch.from_numpy(_powers(maximum).take(x.numpy(), mode="clip"))


@cache
def _powers(maximum: float) -> np.ndarray:
    """Lookup table for `raise_to_power`: 0, 1, … up to where the result stays 1."""
    x = torch.arange(16 * (int(maximum) // 16 + 2), dtype=torch.float32)
    return (x**0.8 / maximum**0.8).clamp(0, 1).numpy()


def sobel(x: Tensor) -> Tensor:
    """Sobel gradient magnitude of the channel mean, blurred with σ = 2 pixels.

    (3, S, S) → (1, S, S).
    """
    blurred = ndimage.gaussian_filter(x.numpy().mean(axis=0), sigma=2)
    across = ndimage.sobel(blurred, axis=0, mode="constant")
    down = ndimage.sobel(blurred, axis=1, mode="constant")
    return torch.from_numpy(np.hypot(across, down))[None]


def corners(x: Tensor) -> Tensor:
    """The corner response of `modules.ShiTomasi`: (3, S, S) in [0, 1] → (1, S, S) in [0, 1]."""
    return ShiTomasi()(x[None])[0]


def check_size(size: tuple[int, int], image_size: int) -> None:
    """Raise ValueError if an image is too large, either in the file or after resizing.

    This protects against small files that claim huge dimensions and would exhaust memory.
    """
    width, height = size
    if width * height > LARGEST_FILE:
        raise ValueError(f"{width} × {height} pixels are more than {LARGEST_FILE}")
    if max(size) * image_size**2 > LARGEST * max(1, min(size)):
        raise ValueError(f"{width} × {height} pixels are too long and thin for a square")


@contextmanager
def open_file(path: str | Path | BinaryIO, image_size: int) -> Iterator[Image.Image]:
    """Open an image file (or its bytes) of one of the `FORMATS`, after checking its dimensions.

    Raises one of READ_ERRORS.
    """
    if isinstance(path, str | Path):
        check_regular(path)
    with Image.open(path, formats=FORMATS) as image:
        check_size(image.size, image_size)
        yield image


# ---- masks --------------------------------------------------------------------------


def valid_mask(target: Tensor, value: float, tolerance: float = 1e-3) -> Tensor:
    """Return the mask of valid pixels of `target` (B, C, H, W): bool, same shape.

    A pixel is invalid if each of its first three channels is within `tolerance` of `value`,
    or if it lies in the 5 × 5 neighbourhood of such a pixel.
    """
    invalid = ((target[:, :3] - value).abs() <= tolerance).all(dim=1, keepdim=True)
    dilated = F.max_pool2d(invalid.to(torch.float32), kernel_size=5, stride=1, padding=2)
    return (dilated == 0).expand_as(target)


# ---- tasks --------------------------------------------------------------------------


@dataclass(frozen=True)
class ColourJitter:
    """One sample of the colour jitter.

    `order` gives the order of the steps: 0 brightness, 1 contrast, 2 saturation, 3 hue.
    """

    order: tuple[int, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __call__(self, image: Image.Image) -> Image.Image:
        steps = (
            partial(TF.adjust_brightness, brightness_factor=self.brightness),
            partial(TF.adjust_contrast, contrast_factor=self.contrast),
            partial(TF.adjust_saturation, saturation_factor=self.saturation),
            partial(TF.adjust_hue, hue_factor=self.hue),
        )
        for i in self.order:
            image = steps[i](image)
        return image


@dataclass(frozen=True, eq=False)
class ImageTask:
    """A domain and the encoding of its files. Two tasks are equal if their names are equal.

    `folder`, `tag`: the domain's names in file paths; by default the task's name.
    `deep`: True if the files are 16-bit grey, False if they are 8-bit colour. By default
    True for domains of one channel.
    `transform`: maps file values (16-bit integers, or 8-bit values scaled to [0, 1]) to the
    domain's values.
    `mask_value`: the value of invalid pixels after loading; −1 if there are none.
    `variance`: divides the squared error in error maps.
    `blur_radius`: radius in pixels of a Gaussian blur applied to the file first.
    `classes`: the number of classes if the files hold 8-bit labels, else 0.
    """

    name: str
    channels: int = 3
    mask_value: float = -1.0
    variance: float = 1.0
    folder: str = ""
    tag: str = ""
    transform: Callable[[Tensor], Tensor] = identity
    blur_radius: float = 0.0
    classes: int = 0
    deep: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", self.folder or self.name)
        object.__setattr__(self, "tag", self.tag or self.folder)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageTask) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def path(self, data_dir: Path, building: str, view: str) -> Path:
        """Return the file of a view in the published layout. Others: `loading.layouts`."""
        name = f"{view}_domain_{self.tag}.png"
        return Path(data_dir) / f"{building}_{self.folder}" / self.folder / name

    def blurred(self, radius: float) -> "ImageTask":
        """Return this task with a Gaussian blur of `radius` pixels applied to the files."""
        return replace(self, name=f"{self.name}blur", blur_radius=radius)

    def mask(self, target: Tensor) -> Tensor:
        """Return `valid_mask` of `target` (B, C, H, W) for this domain's mask value."""
        return valid_mask(target, self.mask_value)

    def load(
        self,
        path: str | Path,
        image_size: int = 256,
        crop: int | None = None,
        jitter: ColourJitter | None = None,
    ) -> Tensor:
        """Load one file as (C, S, S) float32, where S is `image_size`.

        If `crop` is given, the image is first centre-cropped to `crop` file pixels. Then its
        shorter side is resized to S (bilinear and antialiased; nearest neighbour for labels)
        and the centre square is cropped. `jitter` is applied to rgb only. Raises one of
        READ_ERRORS if the file cannot be read or is too large, and ValueError if its encoding
        is wrong.
        """
        with open_file(path, image_size) as image:
            return self.decode(self.encode(image, image_size, crop, jitter))

    def encode(
        self,
        image: Image.Image,
        image_size: int = 256,
        crop: int | None = None,
        jitter: ColourJitter | None = None,
    ) -> Tensor:
        """Do all steps of `load` except the last, pointwise one, which `decode` does.

        Returns (3, S, S) uint8 for 8-bit colour, (1, S, S) uint8 for labels, and (1, S, S)
        int32 in 0 … 65535 for 16-bit files. Transforms without a known pointwise last step
        (sobel and user-defined ones) are applied completely: (C, S, S) float32. `image` is
        not modified, so several domains can be made from one opened file.
        """
        image = self._as_encoded(image)
        if self.blur_radius:
            image = image.filter(ImageFilter.GaussianBlur(self.blur_radius))
        if crop is not None:
            image = TF.center_crop(image, [crop, crop])
        if jitter is not None and self.name == "rgb":
            image = jitter(image)
        interpolation = (
            TF.InterpolationMode.NEAREST if self.classes else TF.InterpolationMode.BILINEAR
        )
        image = TF.center_crop(
            TF.resize(image, [image_size], interpolation), [image_size, image_size]
        )
        deep = image.mode == "I"
        raw = torch.from_numpy(np.array(image, np.int32))[None] if deep else TF.pil_to_tensor(image)
        if self.classes or self._function in (identity, clamp_maximum):
            values = raw
        elif self._function is blur:
            values = smooth(raw, self._options.get("sigma", SIGMA))
        else:
            values = self.transform(raw if deep else TF.to_tensor(image))
        return values[:3].contiguous()

    def decode(self, values: Tensor) -> Tensor:
        """Do the last step of `load` on the result of `encode` or a batch of such results.

        Returns (…, C, S, S) float32.
        """
        if self.classes:
            labels = values[..., 0, :, :].long()
            labels[labels >= self.classes] = 0
            return F.one_hot(labels, self.classes).movedim(-1, -3).float()
        if self._function is blur:
            return raise_to_power(values, self._options["maximum"])
        if self._function not in (identity, clamp_maximum):
            return values
        return self.transform(values.float().div(255) if values.dtype == torch.uint8 else values)

    @property
    def _function(self) -> Callable:
        return getattr(self.transform, "func", self.transform)

    @property
    def _options(self) -> Mapping:
        return getattr(self.transform, "keywords", {})

    def _as_encoded(self, image: Image.Image) -> Image.Image:
        """Convert the image to the mode of its encoding: "I" for 16 bits, RGB(A), or labels.

        Raises ValueError if the file has another encoding.
        """
        file = getattr(image, "filename", "the image")
        deep = image.mode.startswith("I")
        expects_deep = self.channels == 1 if self.deep is None else self.deep
        if self.classes:
            if not deep and image.mode not in ("L", "P"):
                raise ValueError(f"{file}: {self.name} is an 8-bit PNG of labels, not {image.mode}")
            return image.convert("L") if image.mode != "P" else image
        if expects_deep:
            if not deep:
                raise ValueError(f"{file}: {self.name} is a 16-bit grey PNG, not {image.mode}")
            # Mode "I;16" would become int16, in which values above 32767 are negative and
            # 65535 is −1. The depth mask and the strongest keypoints would be lost.
            return image.convert("I")
        grey = image.mode in ("1", "L", "LA") and self.name in ("normal", "principal_curvature")
        if deep or grey or image.mode == "F":
            raise ValueError(f"{file}: {self.name} is an 8-bit colour PNG, not {image.mode}")
        return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def _table(*tasks: ImageTask) -> dict[str, ImageTask]:
    return {task.name: task for task in tasks}


TASKS = _table(
    ImageTask("rgb"),
    ImageTask("imagenet", mask_value=0.0),  # ResNet features; there are no files
    ImageTask("normal", mask_value=0.502),
    ImageTask("principal_curvature", mask_value=0.0),
    ImageTask(
        "depth_zbuffer",
        channels=1,
        mask_value=1.0,
        variance=0.1,
        transform=partial(clamp_maximum, maximum=8000.0),
    ),
    ImageTask("segment_semantic", channels=16, tag="segmentsemantic", classes=16),
    ImageTask("reshading", mask_value=0.0507),
    ImageTask("edge_occlusion", channels=1, variance=0.1, transform=partial(blur, maximum=4000.0)),
    ImageTask("sobel_edges", channels=1, variance=5.0, folder="rgb", transform=sobel, deep=False),
    ImageTask(
        "keypoints3d", channels=1, variance=0.6, transform=partial(clamp_maximum, maximum=64131.0)
    ),
    ImageTask("keypoints2d", channels=1, variance=0.3, transform=partial(blur, maximum=2000.0)),
)


# Domains that the published system does not have. They are computed from other domains' files.
OWN_TASKS = _table(
    ImageTask("corners", channels=1, folder="rgb", transform=corners, deep=False),
)


def get_task(name: str) -> ImageTask:
    """Return the task of that name.

    Raises UserError if there is none; the message lists the known names.
    """
    known = TASKS | OWN_TASKS
    if name not in known:
        raise UserError(f"no task {name!r}{nearest(name, known)} (there are: {', '.join(known)})")
    return known[name]

"""The domains: one row each, how their files are read and where they are invalid.

`TASKS` is the table. An `ImageTask` turns a file into a float32 tensor (C, S, S) and
knows the value that marks invalid pixels. Encodings: docs/encodings.md.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import functional as TF

from utils import UserError, nearest

LARGEST_FILE = 8192 * 8192  # pixels of an image file
LARGEST = 4096 * 4096  # pixels of an image once it is resized
# EPS is not among them: Pillow starts another program to read it.
FORMATS = "PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"
# What Pillow's decoders raise on broken files.
READ_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError,
    MemoryError, AssertionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

# ---- file transforms: (C, S, S) raw values → (C, S, S) float32 -----------------------


def identity(x: Tensor) -> Tensor:
    return x


def clamp_maximum(x: Tensor, maximum: float) -> Tensor:
    """Integers to [0, 1], everything from `maximum` on being 1."""
    return (x.float() / maximum).clamp(0, 1)


SIGMA = 2.0  # pixels, of the Gaussian in `blur`


def blur(x: Tensor, maximum: float, sigma: float = SIGMA) -> Tensor:
    """Gaussian, then x^0.8 / maximum^0.8, clamped to [0, 1].

    The Gaussian runs on 32-bit integers, so each of its two passes truncates: so did
    the published one, and the published networks were trained on its output.
    """
    return raise_to_power(smooth(x, sigma), maximum)


def smooth(x: Tensor, sigma: float = SIGMA) -> Tensor:
    """The Gaussian of `blur`: (1, S, S) int32 → the same."""
    return torch.from_numpy(ndimage.gaussian_filter(x[0].numpy(), sigma=sigma))[None]


def raise_to_power(x: Tensor, maximum: float) -> Tensor:
    """The last step of `blur`, for integers from 0 in any shape.

    A table gives each integer the same float wherever it stands: torch's own power can
    differ in the last bit between the middle and the end of a tensor.
    """
    return torch.from_numpy(_powers(maximum).take(x.numpy(), mode="clip"))


@cache
def _powers(maximum: float) -> np.ndarray:
    """raise_to_power of 0, 1, …, until it is 1 for good."""
    x = torch.arange(16 * (int(maximum) // 16 + 2), dtype=torch.float32)
    return (x**0.8 / maximum**0.8).clamp(0, 1).numpy()


def sobel(x: Tensor) -> Tensor:
    """Edge strength of the channel mean blurred by σ = 2 pixels: (3, S, S) → (1, S, S)."""
    smooth = ndimage.gaussian_filter(x.numpy().mean(axis=0), sigma=2)
    across = ndimage.sobel(smooth, axis=0, mode="constant")
    down = ndimage.sobel(smooth, axis=1, mode="constant")
    return torch.from_numpy(np.hypot(across, down))[None]


def check_size(size: tuple[int, int], image_size: int) -> None:
    """ValueError for an image of too many pixels, or of too many once it is resized.

    A file of a few kilobytes can claim either, and take all memory.
    """
    width, height = size
    if width * height > LARGEST_FILE:
        raise ValueError(f"{width} × {height} pixels are more than {LARGEST_FILE}")
    if max(size) * image_size**2 > LARGEST * max(1, min(size)):
        raise ValueError(f"{width} × {height} pixels are too long and thin for a square")


@contextmanager
def open_file(path: str | Path, image_size: int) -> Iterator[Image.Image]:
    """An image file opened to be read, one in `FORMATS`, and not too large for `image_size`.

    Raises one of READ_ERRORS.
    """
    with Image.open(path, formats=FORMATS) as image:
        check_size(image.size, image_size)
        yield image


# ---- masks --------------------------------------------------------------------------


def valid_mask(target: Tensor, value: float, tolerance: float = 1e-3) -> Tensor:
    """Where `target` (B, C, H, W) holds data: bool of the same shape, True = valid.

    A pixel is invalid where every one of its first three channels is within
    `tolerance` of `value`, and so is all within two pixels of such a one.
    """
    invalid = ((target[:, :3] - value).abs() <= tolerance).all(dim=1, keepdim=True)
    grown = F.max_pool2d(invalid.to(torch.float32), kernel_size=5, stride=1, padding=2)
    return (grown == 0).expand_as(target)


# ---- the tasks ----------------------------------------------------------------------


@dataclass(frozen=True)
class ColourJitter:
    """The factors of one draw of brightness, contrast, saturation and hue, in order."""

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
    """One domain. Equal to another of the same name, and to nothing else.

    `folder` and `tag` are the domain's names in paths, the task's own unless given.
    `deep` tells whether its files are 16-bit grey (default: where it has one channel) or
    8-bit colour; `transform` takes their values, integers or [0, 1], to the domain's.
    `mask_value` marks invalid pixels after loading (−1: there are none). `variance`
    scales the error map's squared error. `blur_radius` blurs the image file first.
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
        """Where the published layout keeps this domain of a view (others: loading.layouts)."""
        name = f"{view}_domain_{self.tag}.png"
        return Path(data_dir) / f"{building}_{self.folder}" / self.folder / name

    def blurred(self, radius: float) -> "ImageTask":
        """The same domain of images blurred by a Gaussian of `radius` pixels."""
        return replace(self, name=f"{self.name}blur", blur_radius=radius)

    def mask(self, target: Tensor) -> Tensor:
        """`valid_mask` of `target` (B, C, H, W) at this domain's mask value."""
        return valid_mask(target, self.mask_value)

    def load(
        self,
        path: str | Path,
        image_size: int = 256,
        crop: int | None = None,
        jitter: ColourJitter | None = None,
    ) -> Tensor:
        """The domain of one file as (C, S, S) float32, S = `image_size`.

        A centre crop of `crop` file pixels first, if given; then the shorter side is
        resized to S (bilinear, antialiased; labels by nearest neighbour) and the centre
        cut out. `jitter` is applied to rgb alone. Raises one of READ_ERRORS for a file that
        cannot be read or is too large, ValueError for one in the wrong encoding.
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
        """`load` of an opened file up to its last, pointwise step: what `decode` takes.

        (3, S, S) uint8 for 8-bit colours, (1, S, S) uint8 for labels, (1, S, S) int32 from
        0 to 65535 for 16 bits. Where the transform ends in no pointwise step that is known
        here (sobel, a transform of one's own), its result: (C, S, S) float32. `image` stays
        as it is, so that several domains can be made of one file.
        """
        image = self._as_encoded(image)
        if self.blur_radius:
            image = image.filter(ImageFilter.GaussianBlur(self.blur_radius))
        if crop is not None:
            image = TF.center_crop(image, [crop, crop])
        if jitter is not None and self.name == "rgb":
            image = jitter(image)
        how = TF.InterpolationMode.NEAREST if self.classes else TF.InterpolationMode.BILINEAR
        image = TF.center_crop(TF.resize(image, [image_size], how), [image_size, image_size])
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
        """The last step of `load`: what `encode` gave, or a batch of it, → (…, C, S, S) float32."""
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
        """The image in a mode its encoding allows: "I" for 16 bits, RGB(A), or labels."""
        file = getattr(image, "filename", "the image")
        deep = image.mode.startswith("I")
        expected = self.channels == 1 if self.deep is None else self.deep
        if self.classes:
            if not deep and image.mode not in ("L", "P"):
                raise ValueError(f"{file}: {self.name} is an 8-bit PNG of labels, not {image.mode}")
            return image.convert("L") if image.mode != "P" else image
        if expected:
            if not deep:
                raise ValueError(f"{file}: {self.name} is a 16-bit grey PNG, not {image.mode}")
            # "I;16" would reach the tensor as int16, where 65535 is −1 and all above
            # 32767 is negative: the depth mask and the strongest keypoints would vanish.
            return image.convert("I")
        grey = image.mode in ("1", "L", "LA") and self.name in ("normal", "principal_curvature")
        if deep or grey or image.mode == "F":
            raise ValueError(f"{file}: {self.name} is an 8-bit colour PNG, not {image.mode}")
        return image if image.mode in ("RGB", "RGBA") else image.convert("RGB")


def _table(*tasks: ImageTask) -> dict[str, ImageTask]:
    return {task.name: task for task in tasks}


TASKS = _table(
    ImageTask("rgb"),
    ImageTask("imagenet", mask_value=0.0),  # a domain of features: it has no files
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


def get_task(name: str) -> ImageTask:
    """The task of that name; a UserError naming the known ones otherwise."""
    if name not in TASKS:
        raise UserError(f"no task {name!r}{nearest(name, TASKS)} (there are: {', '.join(TASKS)})")
    return TASKS[name]

"""The domains: one row each, how their files are read and where they are invalid.

`TASKS` is the table. An `ImageTask` turns a file into a float32 tensor (C, S, S) and
knows the value that marks invalid pixels. Encodings: docs/encodings.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor
from torchvision.transforms import functional as TF

from utils import UserError, nearest

# ---- file transforms: (C, S, S) raw values → (C, S, S) float32 -----------------------


def identity(x: Tensor) -> Tensor:
    return x


def clamp_maximum(x: Tensor, maximum: float) -> Tensor:
    """Integers to [0, 1], everything from `maximum` on being 1."""
    return (x.float() / maximum).clamp(0, 1)


def blur(x: Tensor, maximum: float, sigma: float = 2.0) -> Tensor:
    """Gaussian, then x^0.8 / maximum^0.8, clamped to [0, 1].

    The Gaussian runs on 32-bit integers, so each of its two passes truncates: so did
    the published one, and the published networks were trained on its output.
    """
    smooth = ndimage.gaussian_filter(x[0].numpy(), sigma=sigma)
    powered = torch.from_numpy(smooth).float()[None] ** 0.8
    return (powered / maximum**0.8).clamp(0, 1)


def sobel(x: Tensor) -> Tensor:
    """Edge strength of the channel mean blurred by σ = 2 pixels: (3, S, S) → (1, S, S)."""
    smooth = ndimage.gaussian_filter(x.numpy().mean(axis=0), sigma=2)
    across = ndimage.sobel(smooth, axis=0, mode="constant")
    down = ndimage.sobel(smooth, axis=1, mode="constant")
    return torch.from_numpy(np.hypot(across, down))[None]


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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageTask) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def path(self, data_dir: Path, building: str, view: str) -> Path:
        """Where the published layout keeps this domain of a view."""
        folder, tag = self.folder or self.name, self.tag or self.folder or self.name
        name = f"{view}_domain_{tag}.png"
        return Path(data_dir) / f"{building}_{folder}" / folder / name

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
        cut out. `jitter` is applied to rgb alone. Raises OSError for a file that cannot
        be read, ValueError for one in the wrong encoding.
        """
        with Image.open(path) as file:
            image = self._as_encoded(file, path)
        if self.blur_radius:
            image = image.filter(ImageFilter.GaussianBlur(self.blur_radius))
        if crop is not None:
            image = TF.center_crop(image, [crop, crop])
        if jitter is not None and self.name == "rgb":
            image = jitter(image)
        how = TF.InterpolationMode.NEAREST if self.classes else TF.InterpolationMode.BILINEAR
        image = TF.center_crop(TF.resize(image, [image_size], how), [image_size, image_size])
        if self.classes:
            labels = torch.from_numpy(np.array(image, dtype=np.int64))
            labels[labels >= self.classes] = 0
            return F.one_hot(labels, self.classes).permute(2, 0, 1).float()
        if image.mode == "I":
            raw = torch.from_numpy(np.array(image, dtype=np.int32))[None]
        else:
            raw = TF.to_tensor(image)
        return self.transform(raw)[:3].contiguous()

    def _as_encoded(self, image: Image.Image, path: str | Path) -> Image.Image:
        """The image in a mode its encoding allows: "I" for 16 bits, RGB(A), or labels."""
        deep = image.mode.startswith("I")
        expected = self.channels == 1 if self.deep is None else self.deep
        if self.classes:
            return image.convert("L") if image.mode != "P" else image.copy()
        if expected:
            if not deep:
                raise ValueError(f"{path}: {self.name} is a 16-bit grey PNG, not {image.mode}")
            # "I;16" would reach the tensor as int16, where 65535 is −1 and all above
            # 32767 is negative: the depth mask and the strongest keypoints would vanish.
            return image.convert("I")
        if deep or image.mode == "F":
            raise ValueError(f"{path}: {self.name} is an 8-bit colour PNG, not {image.mode}")
        return image.copy() if image.mode in ("RGB", "RGBA") else image.convert("RGB")


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

"""Photographs: conversion of any image to network input, and the images of a folder."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as TF

from loading.bad_files import reason_of_file
from task_configs import FORMATS, LARGEST, READ_ERRORS
from utils import UserError

MARK = "XTConsistency"  # "Software" tag of PNGs written by this project; not used as input


class BrokenImage(UserError):
    """An image file cannot be used. Other images of the folder are not affected."""


# ---- single images ------------------------------------------------------------------


def open_image(path: str | Path) -> Image.Image:
    """Read an image file, converted by `as_colour`. Raises BrokenImage, which names the file."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            file.load()
            return as_colour(file)
    except UnidentifiedImageError:
        raise BrokenImage(
            f"{path} is broken, or not an image in a format that is read here "
            f"({', '.join(FORMATS)})"
        ) from None
    except READ_ERRORS as error:
        raise BrokenImage(f"cannot read {path}: {reason_of_file(error, path)}") from None


def as_colour(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB, or RGBA if there is transparency, rotated according to EXIF.

    16-bit grey values are divided by 257. Floats are assumed to be in [0, 1], or in [0, 255]
    if any exceeds 1. The published demo accepts only RGB and RGBA.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if image.mode == "F":
            values = values * (255 if values.max() <= 1 else 1)
        else:
            values = values / 257
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGB", "RGBA"):
        return image
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def as_image(values: Image.Image | np.ndarray | Tensor) -> Image.Image:
    """Convert an image in memory to 8-bit RGB, or RGBA if there is transparency.

    `values` is a Pillow image, an array (H, W, 3) or (H, W), or a tensor (3, H, W) or (1, H, W)
    on any device, uint8 or floats in [0, 1]. Raises UserError for anything else.
    """
    if isinstance(values, Image.Image):
        return as_colour(values)
    if isinstance(values, Tensor):
        array = values.detach().cpu().float() if values.is_floating_point() else values.cpu()
        pixels = array.permute(1, 2, 0).numpy() if array.dim() == 3 else None
    else:
        pixels = np.asarray(values)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels is None or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise UserError(
            f"an image is an array (H, W, 3) or (H, W), or a tensor (3, H, W) or (1, H, W), not "
            f"{type(values).__name__} {tuple(values.shape)}"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also where a value is NaN
            raise UserError(f"an image's floats are in [0, 1], not up to {pixels.max():.4g}")
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UserError(f"an image holds uint8, or floats in [0, 1], not {pixels.dtype}")
    return Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())


def square(image: Image.Image, size: int) -> Tensor:
    """Resize the shorter side to `size` and crop the centre square: (3, S, S) in [0, 1].

    Resizing is bilinear and antialiased. Transparent parts become dark, because Pillow resizes
    premultiplied colours (as published).
    """
    if max(image.size) * size**2 <= LARGEST * min(image.size):
        small = TF.center_crop(TF.resize(image, [size]), [size, size])
    else:  # 20000 × 1 would become 5 million pixels long: resize only the part that is kept
        small = _resized_centre(image, size)
    return TF.to_tensor(small)[:3].contiguous()


def _resized_centre(image: Image.Image, size: int) -> Image.Image:
    """Crop, then resize. Equals resizing, then cropping, up to rounding of the borders."""
    short = min(image.size)
    borders = [((side - short) / 2, (side + short) / 2) for side in image.size]
    (left, right), (top, bottom) = borders
    resampling = Image.Resampling.BILINEAR
    return image.resize((size, size), resampling, box=(left, top, right, bottom))


def whole(image: Image.Image, size: int, multiple: int) -> Tensor:
    """Resize the whole image, with the shorter side to `size`: (3, H, W) in [0, 1].

    The aspect ratio is kept, except that each side is rounded to a multiple of `multiple`.
    Raises BrokenImage if the result would have more than `LARGEST` pixels.
    """
    short = min(image.size)
    width, height = (max(1, round(size * s / short / multiple)) * multiple for s in image.size)
    if width * height > LARGEST:
        raise BrokenImage(
            f"an image of {image.width} × {image.height} pixels would become {width} × {height}: "
            f"leave `size` out"
        )
    small = image.resize((width, height), Image.Resampling.BILINEAR)
    return TF.to_tensor(small)[:3].contiguous()


def unchanged(image: Image.Image) -> Tensor:
    """Convert an image in its own size: (3, H, W) in [0, 1].

    Raises BrokenImage if it has more than `LARGEST` pixels.
    """
    if image.width * image.height > LARGEST:
        raise BrokenImage(
            f"an image of {image.width} × {image.height} pixels is too large for its own size: "
            f"give a smaller `size`, or leave it out"
        )
    return TF.to_tensor(image)[:3].contiguous()


# ---- many images --------------------------------------------------------------------


def find_images(path: str | Path) -> tuple[list[Path], list[str]]:
    """List the images of a folder, or the given file, and the skipped entries with reasons.

    Broken files with an image's extension are included; `open_image` reports them. Raises
    UserError if there are no images.
    """
    path = Path(path)
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise UserError(f"no file or folder {path}")
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    images, skipped = [], []
    for entry in entries:
        reason = _reason_to_skip(entry)
        if reason:
            skipped.append(f"{entry.name} ({reason})")
        else:
            images.append(entry)
    if not images:
        raise UserError(f"no images in {path}{': ' if skipped else ''}{', '.join(skipped[:5])}")
    return images, skipped


def _reason_to_skip(entry: Path) -> str:
    if entry.is_dir():
        return "a folder"
    if not entry.is_file():
        return "not a file"
    endings = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    try:
        with Image.open(entry, formats=FORMATS) as file:
            return "written by this program" if file.info.get("Software") == MARK else ""
    except READ_ERRORS:
        return "" if entry.suffix.lower() in endings else "not an image"


def unique_names(
    paths: Sequence[Path], taken: Callable[[str], bool] = lambda _: False
) -> list[str]:
    """Return a unique name for each file's results: its stem or, if files share it, its name.

    Names are unique ignoring case, and short enough to append a suffix. `taken` tells which
    names must not be used.
    """
    stems = [_shortened(path.stem) for path in paths]
    counts = Counter(stem.casefold() for stem in stems)
    used = {stem for stem, count in counts.items() if count == 1}
    names = []
    for path, stem in zip(paths, stems, strict=True):
        has_unique_stem = stem.casefold() in used and counts[stem.casefold()] == 1
        base = name = stem if has_unique_stem else _shortened(path.name)
        number = 1
        while taken(name) or (name.casefold() in used and not (has_unique_stem and number == 1)):
            number += 1
            name = f"{base}_{number}"
        used.add(name.casefold())
        names.append(name)
    return names


def _shortened(name: str, limit: int = 150) -> str:
    """Shorten a name to `limit` bytes. File systems allow 255 bytes, including suffixes."""
    return os.fsdecode(os.fsencode(name)[:limit])


def read_batches(
    paths: Sequence[Path],
    read: Callable[[Path], tuple[Tensor, ...]],
    batch_size: int,
    report: Callable[[Path, str], None],
) -> Iterator[list[tuple[Path, tuple[Tensor, ...]]]]:
    """Read files in order, in batches of at most `batch_size` with the same shape.

    The shape of the first tensor is compared. A file for which `read` raises BrokenImage is
    passed to `report` and left out. The files of a batch are decoded in parallel by threads.
    """

    def attempt(path: Path):
        try:
            return path, read(path)
        except BrokenImage as error:
            return path, str(error)

    with ThreadPoolExecutor(max_workers=min(8, batch_size)) as pool:
        for start in range(0, len(paths), batch_size):
            good = []
            for path, result in pool.map(attempt, paths[start : start + batch_size]):
                if isinstance(result, str):
                    report(path, result if str(path) in result else f"{path}: {result}")
                else:
                    good.append((path, result))
            for _, group in groupby(good, key=lambda item: item[1][0].shape):
                yield list(group)

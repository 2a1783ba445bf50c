"""Photographs: any image that Pillow reads → what the networks take; the images of a folder."""

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
from task_configs import LARGEST, READ_ERRORS
from utils import UserError

MARK = "XTConsistency"  # the "Software" of every PNG written here: such a one is no input


class BrokenImage(UserError):
    """An image file that cannot be used; the others of its folder still can."""


# ---- one image ----------------------------------------------------------------------


def open_image(path: str | Path) -> Image.Image:
    """The image upright (EXIF) in mode RGB or RGBA. Raises BrokenImage naming the file."""
    try:
        with Image.open(path) as file:
            file.load()
            return as_colour(file)
    except UnidentifiedImageError:
        raise BrokenImage(f"{path} is not an image that Pillow knows, or is broken") from None
    except READ_ERRORS as error:
        raise BrokenImage(f"cannot read {path}: {reason_of_file(error, path)}") from None


def as_colour(image: Image.Image) -> Image.Image:
    """The image upright (EXIF), in 8-bit RGB, or RGBA where it has transparent parts.

    16-bit grey is divided by 257; floats are taken as [0, 1], or where one exceeds 1 as
    [0, 255]. The published demo takes RGB and RGBA alone.
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


def square(image: Image.Image, size: int) -> Tensor:
    """Shorter side resized to `size` (bilinear, antialiased), centre cut out: (3, S, S) in [0, 1].

    Transparent parts go dark, as Pillow resizes premultiplied (published).
    """
    if max(image.size) * size**2 <= LARGEST * min(image.size):
        small = TF.center_crop(TF.resize(image, [size]), [size, size])
    else:  # 20000 × 1 would become 5 million pixels long: compute only what is kept
        small = _resized_centre(image, size)
    return TF.to_tensor(small)[:3].contiguous()


def _resized_centre(image: Image.Image, size: int) -> Image.Image:
    """What cropping after resizing gives, up to the rounding of the box's borders."""
    short = min(image.size)
    borders = [((side - short) / 2, (side + short) / 2) for side in image.size]
    (left, right), (top, bottom) = borders
    how = Image.Resampling.BILINEAR
    return image.resize((size, size), how, box=(left, top, right, bottom))


def whole(image: Image.Image, size: int, multiple: int) -> Tensor:
    """The whole image in its own aspect, each side the nearest `multiple`: (3, H, W) in [0, 1].

    The shorter side becomes `size`. Raises BrokenImage for an image so long that the
    result would have more than `LARGEST` pixels.
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


# ---- many images --------------------------------------------------------------------


def find_images(path: str | Path) -> tuple[list[Path], list[str]]:
    """The images of a folder by name, or the file itself; and what was skipped, with why.

    Broken files with the ending of an image count as images: they are for `open_image`
    to report. Raises UserError where there is nothing to look at.
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
    endings = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    try:
        with Image.open(entry) as file:
            return "written by this program" if file.info.get("Software") == MARK else ""
    except READ_ERRORS:
        return "" if entry.suffix.lower() in endings else "not an image"


def unique_names(
    paths: Sequence[Path], taken: Callable[[str], bool] = lambda _: False
) -> list[str]:
    """A name for the results of each file: its stem, or where two files share one, its name.

    Two names never differ in case alone, and none is too long to append something to.
    `taken` tells which names are not to be used.
    """
    stems = [_shortened(path.stem) for path in paths]
    counts = Counter(stem.casefold() for stem in stems)
    used = {stem for stem, count in counts.items() if count == 1}
    names = []
    for path, stem in zip(paths, stems, strict=True):
        unshared = stem.casefold() in used and counts[stem.casefold()] == 1
        wish = name = stem if unshared else _shortened(path.name)
        number = 1
        while taken(name) or (name.casefold() in used and not (unshared and number == 1)):
            number += 1
            name = f"{wish}_{number}"
        used.add(name.casefold())
        names.append(name)
    return names


def _shortened(name: str, limit: int = 150) -> str:
    """At most that many bytes of the name: file systems take 255 with what is appended."""
    return os.fsdecode(os.fsencode(name)[:limit])


def read_batches(
    paths: Sequence[Path],
    read: Callable[[Path], tuple[Tensor, ...]],
    batch_size: int,
    report: Callable[[Path, str], None],
) -> Iterator[list[tuple[Path, tuple[Tensor, ...]]]]:
    """The files read, in order, in batches whose first tensors are of one shape.

    A BrokenImage goes to `report` and leaves no gap. Files are decoded by threads, as
    many at a time as a batch has.
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

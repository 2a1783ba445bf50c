"""A contact sheet: one row per view, one column per domain, decoded for viewing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from files import write_atomically

# Value of the 16-bit files that the sheet shows as white.
FULL_SCALE = {"depth_zbuffer": 4096, "edge_occlusion": 2500, "keypoints2d": 1500,
              "keypoints3d": 40000}  # fmt: skip


def decode(domain: str, path: Path, size: int) -> Image.Image:
    """Read a file as an 8-bit RGB image of ``size`` x ``size`` px."""
    image = np.asarray(Image.open(path, formats=("PNG",)))
    if domain in FULL_SCALE:
        grey = np.clip(image.astype(np.float32) * (255 / FULL_SCALE[domain]), 0, 255)
        image = np.repeat(grey.astype(np.uint8)[..., None], 3, -1)
    elif domain == "segment_semantic":
        hue = (np.arange(16) * 0.618 % 1)[image] * 2 * np.pi
        tint = np.stack([np.cos(hue + shift) for shift in (0, 2.1, 4.2)], -1) * 100 + 128
        image = np.where((image == 0)[..., None], 0, tint)
        image = image.astype(np.uint8)
    return Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)


def write_sheet(path, views: list[dict[str, Path]], size: int = 160) -> None:
    """Write the sheet of ``views``, {domain: file} each, as a PNG.

    Raises UserError if it cannot be written.
    """
    domains, band = list(views[0]), 14
    width = len(domains) * (size + 2)
    sheet = Image.new("RGB", (width, band + len(views) * (size + 2)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, domain in enumerate(domains):
        draw.text((column * (size + 2) + 3, 1), domain, fill="black")
        for row, view in enumerate(views):
            tile = decode(domain, view[domain], size)
            sheet.paste(tile, (column * (size + 2), band + row * (size + 2)))
    write_atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))

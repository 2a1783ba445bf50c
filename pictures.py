"""Tensors as pictures: montages, error maps, PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms import functional as TF
from torchvision.utils import make_grid

from files import write_atomically
from loading.photographs import MARK

# ---- single pictures ----------------------------------------------------------------


def to_image(values: Tensor) -> Image.Image:
    """Convert (C, H, W) to a grey or RGB image: clamp to [0, 1], × 255, truncate (published)."""
    return TF.to_pil_image(values.detach().float().cpu().clamp(0, 1).mul(255).byte())


def write_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG atomically, marked as output of this project. Raises UserError on failure."""
    mark = PngInfo()
    mark.add_text("Software", MARK)
    write_atomically(path, lambda name: picture.save(name, format="png", pnginfo=mark))


def error_map(prediction: Tensor, target: Tensor, mask: Tensor, variance: float) -> Tensor:
    """Draw the squared error e in the colour map "jet": (B, C, H, W) → (B, 3, H, W).

    The colour encodes log(1 + clamp(3 e / variance, 0, 1)), where e is the mean over channels,
    divided by the maximum of the batch. Invalid pixels are grey.
    """
    from matplotlib import colormaps

    squared = (prediction - target).square().mean(dim=1)
    shade = torch.log1p((3 * squared / variance).clamp(0, 1))
    shade = shade / shade.amax().clamp_min(torch.finfo(shade.dtype).tiny)
    colours = torch.from_numpy(colormaps["jet"](shade.detach().cpu().numpy()))[..., :3]
    colours = colours.permute(0, 3, 1, 2).to(prediction)
    return torch.where(mask[:, :1], colours, 0.505)


# ---- montages -----------------------------------------------------------------------

PADDING = 2  # pixels of black between cells (as published)


def montage(columns: Mapping[str, Tensor], cell: int = 256) -> Image.Image:
    """Draw labelled columns of images, with one row per sample.

    Each column is (B, C, H, W), clamped to [0, 1]. The first three channels are shown as RGB,
    or else the first one as grey. The shorter side of each cell is resized to `cell` pixels.
    """
    cells = [_cells(values, cell) for values in columns.values()]
    rows = max(len(column) for column in cells)
    black = torch.zeros_like(cells[0][0])
    flat = [column[y] if y < len(column) else black for y in range(rows) for column in cells]
    # the black one more keeps a single cell from losing its padding
    grid = make_grid([*flat, black], nrow=len(cells), padding=PADDING)
    width, header = cells[0].shape[-1], max(18, cell // 10)
    below = rows * (cells[0].shape[-2] + PADDING) + PADDING
    picture = Image.new("RGB", (len(cells) * (width + PADDING) + PADDING, header + below))
    picture.paste(to_image(grid[:, :below, : picture.width]), (0, header))
    draw = ImageDraw.Draw(picture)
    for x, name in enumerate(columns):
        middle = PADDING + x * (width + PADDING) + width / 2
        font = _font(name, width, header)
        draw.text((middle, header / 2), name, fill="white", font=font, anchor="mm")
    return picture


def _cells(values: Tensor, cell: int) -> Tensor:
    values = values.detach().float().cpu().clamp(0, 1)[:, :3]
    if values.shape[1] != 3:
        values = values[:, :1].expand(-1, 3, -1, -1)
    height, width = values.shape[-2:]
    factor = cell / min(height, width)
    size = (round(height * factor), round(width * factor))
    return F.interpolate(values, size=size, mode="nearest" if factor >= 1 else "area")


def _font(text: str, width: int, height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's default font in the largest size in which the text fits."""
    for size in range(int(height * 0.7), 6, -1):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            break
    return font


def in_order(paths: Sequence[str], error_after: str = "n(x)") -> list[str]:
    """Return the columns of a plot: its paths, with "error" after the path `error_after`."""
    columns = []
    for path in paths:
        columns += [path, "error"] if path == error_after else [path]
    return columns

"""Tensors as pictures: montages, the error map, PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms import functional as TF

from files import write_atomically
from loading.photographs import MARK

# ---- one picture --------------------------------------------------------------------


def to_image(values: Tensor) -> Image.Image:
    """(C, H, W) → grey or RGB: clamped to [0, 1], × 255, truncated (as published)."""
    return TF.to_pil_image(values.detach().float().cpu().clamp(0, 1).mul(255).byte())


def write_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG, atomically, marked as written here. UserError where that is impossible."""
    mark = PngInfo()
    mark.add_text("Software", MARK)
    write_atomically(path, lambda name: picture.save(name, format="png", pnginfo=mark))


def error_map(prediction: Tensor, target: Tensor, mask: Tensor, variance: float) -> Tensor:
    """Where the prediction is wrong, in the colours of "jet": (B, C, H, W) → (B, 3, H, W).

    log(1 + clamp(3 e / variance, 0, 1)) of the squared error e, over the largest value
    of the batch; invalid pixels are grey.
    """
    from matplotlib import colormaps

    squared = (prediction - target).square().mean(dim=1)
    shade = torch.log1p((3 * squared / variance).clamp(0, 1))
    shade = shade / shade.amax().clamp_min(torch.finfo(shade.dtype).tiny)
    colours = torch.from_numpy(colormaps["jet"](shade.detach().cpu().numpy()))[..., :3]
    colours = colours.permute(0, 3, 1, 2).to(prediction)
    return torch.where(mask[:, :1], colours, 0.505)


# ---- montages -----------------------------------------------------------------------

PADDING = 2  # black pixels between cells, as published


def montage(columns: Mapping[str, Tensor], cell: int = 256) -> Image.Image:
    """A picture of labelled columns, one row a sample.

    Each column is (B, C, H, W) in [0, 1] (clamped); one channel is shown as grey. Cells
    are resized to `cell` pixels on the shorter side.
    """
    cells = [_cells(values, cell) for values in columns.values()]
    rows = max(len(column) for column in cells)
    height, width = cells[0].shape[-2:]
    header = max(18, cell // 10)
    picture = Image.new(
        "RGB",
        (len(cells) * (width + PADDING) + PADDING, header + rows * (height + PADDING) + PADDING),
    )
    draw = ImageDraw.Draw(picture)
    for x, (name, column) in enumerate(zip(columns, cells, strict=True)):
        left = PADDING + x * (width + PADDING)
        font = _font(name, width, header)
        draw.text((left + width / 2, header / 2), name, fill="white", font=font, anchor="mm")
        for y, values in enumerate(column):
            picture.paste(to_image(values), (left, header + PADDING + y * (height + PADDING)))
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
    """The largest font, from what Pillow brings, in which the text fits."""
    for size in range(int(height * 0.7), 6, -1):
        font = ImageFont.load_default(size)
        if font.getlength(text) <= width:
            break
    return font


def in_order(paths: Sequence[str], error_after: str = "n(x)") -> list[str]:
    """The columns of a plot: its paths, and the error map right after the prediction."""
    columns = []
    for path in paths:
        columns += [path, "error"] if path == error_after else [path]
    return columns

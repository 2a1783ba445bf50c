"""Tensors as pictures: pages with headings and colour bars, montages, error maps, PNG files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.transforms import functional as TF
from torchvision.utils import make_grid

from colouring import ball, ramp
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

    shade = _logarithmic(prediction, target, variance)
    shade = shade / shade.amax().clamp_min(torch.finfo(shade.dtype).tiny)
    colours = torch.from_numpy(colormaps["jet"](shade.detach().cpu().numpy()))[..., :3]
    colours = colours.permute(0, 3, 1, 2).to(prediction)
    return torch.where(mask[:, :1], colours, 0.505)


def error_bar(prediction: Tensor, target: Tensor, variance: float) -> "Bar":
    """Return the colour bar of their error map, with the squared errors at its ends."""
    top = float(_logarithmic(prediction, target, variance).amax().expm1()) * variance / 3
    return Bar("jet", ["0", "log scale", f"{top:.2g}"])


def _logarithmic(prediction: Tensor, target: Tensor, variance: float) -> Tensor:
    """Return log(1 + clamp(3 e / variance, 0, 1)) of the squared error e: (B, H, W)."""
    squared = (prediction - target).square().mean(dim=1)
    return torch.log1p((3 * squared / variance).clamp(0, 1))


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
    # the additional black cell keeps a single cell from losing its padding
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


# ---- pages --------------------------------------------------------------------------

ACROSS = 13  # columns beside each other; a page with more has several bands
INK, FAINT = (20, 20, 20), (120, 120, 120)


@dataclass(frozen=True)
class Bar:
    """A colour bar below columns: a colour map of matplotlib and the texts below it."""

    colours: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Ball:
    """The legend of normals: a ball in the colours of the side that faces the camera."""


@dataclass(frozen=True)
class Column:
    """A column of a page.

    `cells` is (B, 3, H, W) in [0, 1], a cell for each row. `letters`, those of the path, stand
    below the heading. `legend` stands below the column and the `span` − 1 columns to its left.
    """

    heading: str
    cells: Tensor
    letters: str = ""
    legend: Bar | Ball | None = None
    span: int = 1


def page(
    groups: Sequence[Sequence[Column]],
    cell: int = 256,
    title: str = "",
    rows: Sequence[str] = (),
    note: str = "",
    across: int = ACROSS,
) -> Image.Image:
    """Draw columns with their headings, legends and row names, on white.

    Columns of a group stand close together. Groups follow one another in bands of at most
    `across` columns, or of a single group. The shorter side of each cell has `cell` pixels.
    `title` stands on top and `note` at the bottom.
    """
    drawn = [_band(band, cell, rows) for band in _bands(groups, across)]
    size, gap = _text_size(cell), max(6, cell // 10)
    width = max(band.width for band in drawn)
    head = [title] if title else []
    foot = note.splitlines()
    line = round(1.5 * size)
    height = gap + len(head) * 2 * line + sum(b.height + gap for b in drawn) + len(foot) * line
    picture = Image.new("RGB", (width + 2 * gap, height), "white")
    draw = ImageDraw.Draw(picture)
    top = gap
    if title:
        draw.text((gap, top), title, fill=INK, font=_fitting(title, width, round(1.5 * size)))
        top += 2 * line
    for band in drawn:
        picture.paste(band, (gap, top))
        top += band.height + gap
    for text in foot:
        draw.text((gap, top - gap // 2), text, fill=FAINT, font=_fitting(text, width, size))
        top += line
    return picture


@cache
def _words(size: int) -> ImageFont.FreeTypeFont:
    """Return a font with all characters of headings and numbers. It comes with matplotlib."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _fitting(text: str, width: float, size: int) -> ImageFont.FreeTypeFont:
    """Return the font in that size, or in the largest smaller one in which the text fits."""
    sizes = range(size, 6, -1)
    return next((f for s in sizes if (f := _words(s)).getlength(text) <= width), _words(7))


def _text_size(cell: int) -> int:
    return max(12, cell // 15)


def _bands(groups: Sequence[Sequence[Column]], across: int) -> list[list[Sequence[Column]]]:
    """Divide the groups into bands of at most `across` columns, or of a single group."""
    bands: list[list[Sequence[Column]]] = [[]]
    for group in groups:
        taken = sum(len(g) for g in bands[-1])
        if taken and taken + len(group) > across:
            bands.append([])
        bands[-1].append(group)
    return bands


def _band(groups: Sequence[Sequence[Column]], cell: int, rows: Sequence[str]) -> Image.Image:
    """Draw one band: headings, cells and legends of its groups."""
    size = _text_size(cell)
    small = round(0.8 * size)
    cells = {id(c): _cells(c.cells, cell) for group in groups for c in group}
    count = max(len(values) for values in cells.values())
    height, width = next(iter(cells.values())).shape[-2:]
    lines = max(len(_wrapped(c.heading)) for group in groups for c in group)
    letters = any(c.letters for group in groups for c in group)
    legends = [c.legend for group in groups for c in group if c.legend]
    left = round(2 * small) if rows else 0
    top = round(1.25 * size * lines + (1.4 * small if letters else 0)) + 4
    bottom = top + count * (height + PADDING)
    foot = 0
    if legends:
        foot = max(_ball_size(cell) if isinstance(x, Ball) else 3 * small for x in legends) + 4
    between = max(6, cell // 12)
    total = sum(len(g) * (width + PADDING) for g in groups) + between * (len(groups) - 1)
    picture = Image.new("RGB", (left + total, bottom + foot), "white")
    draw = ImageDraw.Draw(picture)
    for y, name in enumerate(rows[:count]):
        _turned(picture, name, (0, top + y * (height + PADDING)), height, small)
    x = left
    for group in groups:
        for column in group:
            _heading(draw, column, x + width / 2, top, size, width)
            for y, values in enumerate(cells[id(column)]):
                corner = (x, top + y * (height + PADDING))
                picture.paste(to_image(values), corner)
                end = (x + width - 1, corner[1] + height - 1)
                draw.rectangle((*corner, *end), outline=(205, 205, 205))
            if column.legend:
                start = x - (column.span - 1) * (width + PADDING)
                _legend(picture, column.legend, (start, bottom + 4), x + width - start, cell)
            x += width + PADDING
        x += between
    return picture


def _wrapped(heading: str) -> list[str]:
    """Break a heading into lines: "curvature", "of prediction"."""
    for word in ("of", "from"):
        first, found, rest = heading.partition(f" {word} ")
        if found:
            return [first, f"{word} {rest}"]
    return [heading]


def _heading(
    draw: ImageDraw.ImageDraw, column: Column, middle: float, bottom: int, size: int, width: int
) -> None:
    """Write a column's heading, and its letters below, just above `bottom`."""
    small = round(0.8 * size)
    y = bottom - 5.0
    if column.letters:
        font = _fitting(column.letters, width, small)
        draw.text((middle, y), column.letters, fill=FAINT, font=font, anchor="ms")
        y -= 1.4 * small
    for text in reversed(_wrapped(column.heading)):
        font = _fitting(text, width, size)
        draw.text((middle, y), text, fill=INK, font=font, anchor="ms")
        y -= 1.2 * size


def _turned(
    picture: Image.Image, text: str, corner: tuple[int, int], height: int, size: int
) -> None:
    """Write the name of a row from bottom to top."""
    line = Image.new("RGB", (height, round(1.5 * size)), "white")
    draw = ImageDraw.Draw(line)
    font = _fitting(text, height, size)
    draw.text((height / 2, line.height / 2), text, fill=FAINT, font=font, anchor="mm")
    picture.paste(line.rotate(90, expand=True), corner)


def _ball_size(cell: int) -> int:
    return max(4 * round(0.8 * _text_size(cell)), cell // 3)  # three lines stand beside it


def _legend(
    picture: Image.Image, legend: Bar | Ball, corner: tuple[int, int], width: int, cell: int
) -> None:
    """Draw a legend below columns of that width in all."""
    draw = ImageDraw.Draw(picture)
    small = round(0.8 * _text_size(cell))
    x, y = corner
    if isinstance(legend, Ball):
        size = _ball_size(cell)
        inside = ball(size)
        shape = to_image((inside.amax(dim=0, keepdim=True) > 0).float())
        picture.paste(to_image(inside), corner, shape)
        text = "normals of a ball\nin front of the\ncamera"
        draw.text((x + size + 6, y + size / 2), text, fill=FAINT,
                  font=_words(small), anchor="lm")  # fmt: skip
        return
    inset = cell // 24  # keeps the numbers of neighbouring bars apart
    x, width = x + inset, width - 2 * inset
    picture.paste(to_image(ramp(legend.colours, width, small)), (x, y))
    draw.rectangle((x, y, x + width - 1, y + small - 1), outline=(205, 205, 205))
    texts = list(legend.texts)
    lengths = [_words(small).getlength(text) for text in texts]
    if len(texts) == 3 and lengths[1] + 2 * max(lengths[0], lengths[2]) + small > width:
        texts[1] = ""  # there is no room between the ends
    font = _fitting("  ".join(texts), width, small)
    last = max(len(texts) - 1, 1)
    for number, text in enumerate(texts):
        anchor = "l" if number == 0 else "r" if number == last else "m"
        place = (x + width * number / last, y + small + 2)
        draw.text(place, text, fill=INK, font=font, anchor=f"{anchor}a")


def in_order(paths: Sequence[str], error_after: str = "n(x)") -> list[str]:
    """Return the columns of a plot: its paths, with "error" after the path `error_after`."""
    columns = []
    for path in paths:
        columns += [path, "error"] if path == error_after else [path]
    return columns

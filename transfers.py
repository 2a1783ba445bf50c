"""The table of transfers, `TRANSFERS`: networks that map one domain to another.

It lists the networks of the published system. The numbers of channels follow from the tasks.
A row's checkpoint is `{source}2{target}.pth` unless the row names another file.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

import modules
from task_configs import LARGEST, get_task
from utils import UserError, check_positive, nearest

Edge = tuple[str, str]

FULL_SIZE, FULL_WIDTH, FULL_LEVELS = 256, 16, 6  # scale of the published networks
LARGEST_SIZE, LARGEST_WIDTH = math.isqrt(LARGEST), 1024


@dataclass(frozen=True)
class Scale:
    """The image size, and the width and depth of all networks in the table.

    (256, 16, 6) gives the published networks. `levels` is the number of times the deepest
    network halves the image. If it is 6 − n, every network has n levels fewer than published.
    By default, n is the number of times the image size was halved from 256, so the bottleneck
    keeps its size in pixels. Larger images keep the published depth. Raises UserError for a scale
    that the networks cannot have.
    """

    image_size: int = FULL_SIZE
    width: int = FULL_WIDTH
    levels: int = 0  # 0 stands for the default

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8 or self.width > LARGEST_WIDTH:
            raise UserError(
                f"`width` is a multiple of 8 (GroupNorm's groups) up to {LARGEST_WIDTH}, "
                f"not {self.width}"
            )
        if self.image_size > LARGEST_SIZE:
            raise UserError(f"`image_size` is at most {LARGEST_SIZE}, not {self.image_size}")
        if self.levels == 0:
            smaller = max(0, math.floor(math.log2(FULL_SIZE / max(1, self.image_size))))
            object.__setattr__(self, "levels", max(1, FULL_LEVELS - smaller))
        if not 1 <= self.levels <= FULL_LEVELS:
            raise UserError(f"`levels` is 1 to {FULL_LEVELS}, not {self.levels}")
        step = 2**self.levels
        if self.image_size < 16 or self.image_size % step:
            raise UserError(
                f"`image_size` {self.image_size} does not suit the networks: "
                f"give 16 or more, here a multiple of {step}"
            )

    def depth(self, published: int) -> int:
        """Return the number of halvings at this scale for a network with `published` ones."""
        return max(1, published - (FULL_LEVELS - self.levels))

    def fits(self, other: "Scale") -> bool:
        """Whether networks of both scales have weights of the same shapes.

        The image size is not compared.
        """
        return (self.width, self.levels) == (other.width, other.levels)

    def with_overrides(
        self, image_size: int | None = None, width: int | None = None, levels: int | None = None
    ) -> "Scale":
        """Return this scale with the given values replaced.

        Another image size has its own default depth, unless `levels` is given.
        """
        size = self.image_size if image_size is None else image_size
        check_positive(image_size=image_size, width=width, levels=levels)
        if levels is None and size == self.image_size:
            levels = self.levels
        return Scale(size, self.width if width is None else width, levels or 0)

    @classmethod
    def of(cls, record: Mapping) -> "Scale":
        """Read the scale from a checkpoint's record; by default, the published scale.

        Numbers that are not recorded have their defaults. Raises UserError for invalid ones.
        """
        defaults = {"image_size": FULL_SIZE, "width": FULL_WIDTH, "levels": 0}
        values = [record.get(name, default) for name, default in defaults.items()]
        for name, value in zip(defaults, values, strict=True):
            if type(value) is not int:
                raise UserError(f"`{name}` is a whole number, not a {type(value).__name__}")
            if not 0 <= value < 2**20:  # too long a number could not even be shown
                raise UserError(f"`{name}` is out of bounds")
        return cls(*values)

    def as_parameters(self) -> str:
        """Return the parameters that select this scale, for messages."""
        return f"`image_size` {self.image_size} `width` {self.width} `levels` {self.levels}"

    def record(self) -> dict[str, int]:
        """Return the entries stored in checkpoints and result files, which `of` reads."""
        return {"image_size": self.image_size, "width": self.width, "levels": self.levels}

    def __str__(self) -> str:
        default = Scale(self.image_size, self.width)
        depth = "" if self == default else f", levels {self.levels}"
        return f"image size {self.image_size}, width {self.width}{depth}"


@dataclass(frozen=True)
class Transfer:
    """An edge of the graph: one row of the table.

    `network` builds an `nn.Module` (B, in_channels, H, W) → (B, out_channels, H, W). It is
    called with the keywords in_channels, out_channels, downsample (number of times the image
    is halved) and width (channels of the first level). It may ignore any of them.
    `downsample` is the depth at 256 pixels. `file` is the checkpoint's name if it is not
    {source}2{target}.pth. `trainable` is False for formulas and for the ImageNet network.
    """

    source: str
    target: str
    network: Callable[..., nn.Module] = modules.UNet
    downsample: int = 6
    file: str = ""
    trainable: bool = True

    @property
    def edge(self) -> Edge:
        return self.source, self.target

    @cached_property
    def name(self) -> str:
        """The transfer's name on the command line, e.g. "normal2principal_curvature"."""
        return f"{self.source}2{self.target}"

    @property
    def checkpoint(self) -> str:
        """The file name of its weights in the models folder; "" for a formula."""
        return self.file or (f"{self.name}.pth" if self.trainable else "")

    def build(self, scale: Scale) -> nn.Module:
        """Build the network at this scale with randomly initialised weights."""
        return self.network(
            in_channels=get_task(self.source).channels,
            out_channels=get_task(self.target).channels,
            downsample=scale.depth(self.downsample),
            width=scale.width,
        )


def _table(*rows: Transfer) -> dict[Edge, Transfer]:
    return {row.edge: row for row in rows}


_UNet, _Reshade = modules.UNet, modules.UNetReshade


def _imagenet(source: str) -> Transfer:
    """Return the row of the ImageNet network; its file has torchvision's name."""
    file = "resnet50-0676ba61.pth"
    return Transfer(source, "imagenet", modules.ResNetClass, file=file, trainable=False)


TRANSFERS = _table(
    Transfer("normal", "principal_curvature", modules.Dense1by1Net, file="normal2curvature.pth"),
    Transfer("normal", "depth_zbuffer", modules.UNetDepth, file="normal2zdepth_zbuffer.pth"),
    Transfer("normal", "sobel_edges", _UNet, 4, "normal2edges2d.pth"),
    Transfer("normal", "reshading", _Reshade, 5, "normal2reshade.pth"),
    Transfer("normal", "keypoints3d", _UNet, 5),
    Transfer("normal", "keypoints2d", _UNet, 5, "normal2keypoints2d_new.pth"),
    Transfer("normal", "edge_occlusion", _UNet, 5),
    Transfer("depth_zbuffer", "normal", _UNet, 6, "depth2normal.pth"),
    Transfer("depth_zbuffer", "sobel_edges", _UNet, 4),
    Transfer("depth_zbuffer", "principal_curvature", _UNet, 4),
    Transfer("depth_zbuffer", "reshading", _Reshade, 5),
    Transfer("depth_zbuffer", "keypoints3d", _UNet, 5),
    Transfer("depth_zbuffer", "keypoints2d", _UNet, 5),
    Transfer("depth_zbuffer", "edge_occlusion", _UNet, 5),
    Transfer("reshading", "depth_zbuffer", _Reshade, 5),
    Transfer("reshading", "keypoints2d", _UNet, 5, "reshading2keypoints2d_new.pth"),
    Transfer("reshading", "edge_occlusion", _UNet, 5),
    Transfer("reshading", "normal", _UNet, 4),
    Transfer("reshading", "keypoints3d", _UNet, 5),
    Transfer("reshading", "sobel_edges", _UNet, 5),
    Transfer("reshading", "principal_curvature", _UNet, 5),
    Transfer("rgb", "sobel_edges", modules.SobelKernel, trainable=False),
    Transfer("rgb", "principal_curvature", _UNet, 5),
    Transfer("rgb", "keypoints2d", _UNet, 3, "rgb2keypoints2d_new.pth"),
    Transfer("rgb", "keypoints3d", _UNet, 5),
    Transfer("rgb", "edge_occlusion", _UNet, 5),
    Transfer("rgb", "normal", _UNet, 6, "rgb2normal_baseline.pth"),
    Transfer("rgb", "reshading", _Reshade, 5, "rgb2reshading_baseline.pth"),
    Transfer("rgb", "depth_zbuffer", _UNet, 6, "rgb2zdepth_baseline.pth"),
    _imagenet("normal"),
    _imagenet("depth_zbuffer"),
    _imagenet("reshading"),
    Transfer("principal_curvature", "sobel_edges", _UNet, 4),
    Transfer("sobel_edges", "depth_zbuffer", _UNet, 6),
    Transfer("keypoints2d", "normal", _UNet, 5, "keypoints2d2normal_new.pth"),
    Transfer("keypoints3d", "normal", _UNet, 5),
    Transfer("principal_curvature", "normal", modules.UNetOld2),
    Transfer("sobel_edges", "normal", _UNet, 5),
    Transfer("edge_occlusion", "normal", _UNet, 5),
)


# Rows that the published system does not have, for methods that need them (docs/methods.md).
# Those to rgb equal what `generic_transfer` returns for these edges.
OWN_TRANSFERS = _table(
    Transfer("rgb", "corners", modules.ShiTomasi, trainable=False),
    Transfer("normal", "corners", _UNet, 5),
    Transfer("depth_zbuffer", "corners", _UNet, 5),
    Transfer("reshading", "corners", _UNet, 5),
    Transfer("normal", "rgb", _UNet, 5),
    Transfer("depth_zbuffer", "rgb", _UNet, 5),
    Transfer("reshading", "rgb", _UNet, 5),
)


def get_transfer(source: str, target: str, models_dir: str | Path | None = None) -> Transfer:
    """Return the edge's row, or a generic UNet if `models_dir` holds a checkpoint for it.

    Raises UserError otherwise, which lists the known targets of `source`.
    """
    if (source, target) in TRANSFERS:
        return TRANSFERS[source, target]
    for task in (source, target):
        get_task(task)
    generic = generic_transfer(source, target)
    if models_dir and (Path(models_dir) / generic.checkpoint).is_file():
        return generic
    targets = [t for s, t in TRANSFERS if s == source]
    known = f"from {source} there are: {', '.join(targets)}" if targets else "there is none from it"
    raise UserError(f"no transfer {source} → {target}{nearest(target, targets)} ({known})")


def any_transfer(source: str, target: str, models_dir: str | Path | None = None) -> Transfer:
    """Return the edge's row of `OWN_TRANSFERS`, or else that of `get_transfer`, with its errors."""
    return OWN_TRANSFERS.get((source, target)) or get_transfer(source, target, models_dir)


def generic_transfer(source: str, target: str) -> Transfer:
    """Return the UNet that the published code uses for an edge without a row."""
    file = f"{source}2{target}_new.pth" if "keypoints2d" in (source, target) else ""
    deep = (source, target) == ("principal_curvature", "depth_zbuffer")
    return Transfer(source, target, modules.UNet, 6 if deep else 5, file)


def transfer_by_name(name: str) -> Transfer | None:
    """Return the row with a name such as "normal2principal_curvature", or None."""
    return {row.name: row for row in (*TRANSFERS.values(), *OWN_TRANSFERS.values())}.get(name)

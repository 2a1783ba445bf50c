"""The transfers: one row each, which network carries one domain into another.

`TRANSFERS` is the table of the published system. Channels follow from the tasks; a
row's checkpoint is `{source}2{target}.pth` unless it names another file.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

import modules
from task_configs import get_task
from utils import UserError, nearest

Edge = tuple[str, str]

FULL_SIZE, FULL_WIDTH, FULL_LEVELS = 256, 16, 6  # the published networks


@dataclass(frozen=True)
class Scale:
    """The size of images, and the width and depth of networks, for all of the table.

    At (256, 16, 6) the networks are the published ones. `levels` is how often the deepest
    of them halves the image; where it is less than 6, each loses as many levels as that.
    By default it is 6 less the image's halvings from 256, so the bottleneck keeps its size
    in pixels; larger images keep the published depth.
    """

    image_size: int = FULL_SIZE
    width: int = FULL_WIDTH
    levels: int = 0  # 0 stands for the default

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise UserError(f"`width` is a multiple of 8 (GroupNorm's groups), not {self.width}")
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
        """How often a network halves the image that halves it `published` times at 256."""
        return max(1, published - (FULL_LEVELS - self.levels))

    def fits(self, other: "Scale") -> bool:
        """Whether networks of the two have the same weights, whatever the images' size."""
        return (self.width, self.levels) == (other.width, other.levels)

    def with_overrides(
        self, image_size: int | None = None, width: int | None = None, levels: int | None = None
    ) -> "Scale":
        """This scale with what is given in its place; another size has its own default depth."""
        size = self.image_size if image_size is None else image_size
        if levels is None and size == self.image_size:
            levels = self.levels
        return Scale(size, self.width if width is None else width, levels or 0)

    @classmethod
    def of(cls, record: Mapping) -> "Scale":
        """The scale that a checkpoint records; the published one where it records none.

        Raises UserError for numbers that no scale has.
        """
        if "image_size" not in record or "width" not in record:
            return cls()
        values = record["image_size"], record["width"], record.get("levels", 0)
        if not all(isinstance(v, int) and 0 <= v < 2**20 for v in values):
            raise UserError(f"image size, width and levels are whole numbers, not {values}")
        return cls(*values)

    def as_parameters(self) -> str:
        """The parameters that choose it."""
        return f"`image_size` {self.image_size} `width` {self.width} `levels` {self.levels}"

    def record(self) -> dict[str, int]:
        """What a checkpoint or a table records of it; `of` reads it."""
        return {"image_size": self.image_size, "width": self.width, "levels": self.levels}

    def __str__(self) -> str:
        default = Scale(self.image_size, self.width)
        depth = "" if self == default else f", levels {self.levels}"
        return f"image size {self.image_size}, width {self.width}{depth}"


@dataclass(frozen=True)
class Transfer:
    """One edge of the graph: a row of the table.

    `network` makes an `nn.Module` (B, in_channels, H, W) → (B, out_channels, H, W); it is
    called with the keywords in_channels, out_channels, downsample (how often to halve the
    image) and width (channels of the first level), and may ignore those that say nothing to
    it. `downsample` is the depth at 256 pixels, `file` the checkpoint's name where it is not
    {source}2{target}.pth. `trainable`: whether it has weights that training here can make.
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
        """How the command line calls it: "normal2principal_curvature"."""
        return f"{self.source}2{self.target}"

    @property
    def checkpoint(self) -> str:
        """The file of its weights in the models folder; "" for a formula."""
        return self.file or (f"{self.name}.pth" if self.trainable else "")

    def build(self, scale: Scale) -> nn.Module:
        """The network at this scale, with fresh weights."""
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
    """The row of ImageNet's network, whose file is called as torchvision calls it."""
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


def get_transfer(source: str, target: str, models_dir: str | Path | None = None) -> Transfer:
    """The row of the edge; else, where `models_dir` has its default file, a generic UNet.

    Raises UserError naming the targets that `source` has.
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


def generic_transfer(source: str, target: str) -> Transfer:
    """The published fallback for an edge without a row, used where its file exists."""
    file = f"{source}2{target}_new.pth" if "keypoints2d" in (source, target) else ""
    deep = (source, target) == ("principal_curvature", "depth_zbuffer")
    return Transfer(source, target, modules.UNet, 6 if deep else 5, file)


def transfer_by_name(name: str) -> Transfer | None:
    """The row that the command line calls "normal2principal_curvature", if there is one."""
    return {row.name: row for row in TRANSFERS.values()}.get(name)

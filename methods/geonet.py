"""The method `geonet`: normals and depth that refine each other (GeoNet, Qi et al., CVPR 2018)."""

from pathlib import Path
from typing import Any

from torch import Tensor

from methods.direct import DirectStep
from methods.interface import Beginning, Setup
from models import load_network, unwrapped
from modules.geonet import GeoNet
from rooms.variants import VIEW_ANGLES
from sources import Sources
from transfers import TRANSFERS, Scale, Transfer
from utils import UserError

DOMAINS = "normal", "depth_zbuffer"
# Each view of the rooms has its own angle; the network is given the middle of their range.
ROOMS_ANGLE = sum(VIEW_ANGLES) / 2
LIMITS = 10.0, 150.0  # degrees


def geonet(row: Transfer, scale: Scale) -> GeoNet:
    """Build the network of the row's target from the table's networks rgb → normal and → depth.

    Its field of view is that of the rooms, until weights or `geonet_step` set another.
    """
    normal, depth = (TRANSFERS["rgb", domain].build(scale) for domain in DOMAINS)
    radius = max(2, scale.image_size // 64)  # from 192 pixels on, the same share of the image
    return GeoNet(normal, depth, row.target, ROOMS_ANGLE, radius)


def from_baselines(network: GeoNet, sources: Sources) -> dict[str, Path]:
    """Load the baselines of normals and depth into the network's two parts.

    Returns the files, {transfer: file}. Raises UserError if there is none, or it does not fit.
    """
    files = {}
    for domain, part in zip(DOMAINS, (network.normal, network.depth), strict=True):
        row = TRANSFERS["rgb", domain]
        files[row.name] = sources.checkpoint(row)
        load_network(part, files[row.name], sources.scale)
    return files


def begin_geonet(run: Beginning) -> tuple[dict[str, Any], str]:
    """Give the network the cameras' field of view. Raises UserError as `field_of_view` does.

    A network that starts from a checkpoint of geonet keeps that one's, unless asked for another.
    """
    assert isinstance(run.network, GeoNet)
    angle = run.options.field_of_view
    if angle is not None or run.init in ("baseline", "scratch"):
        run.network.field_of_view.fill_(field_of_view(angle, run.sources))
    angle = float(run.network.field_of_view)
    return {"field_of_view": angle}, f"field of view {angle:g}°"


def field_of_view(asked: float | None, sources: Sources) -> float:
    """Return the angle in degrees between the images' left and right border.

    That is the `asked` one or, for rooms, the middle of their cameras' angles. Raises UserError
    if it is not known, or not between 10 and 150 degrees.
    """
    if asked is not None:
        if not LIMITS[0] <= asked <= LIMITS[1]:
            raise UserError(
                f"`field_of_view` is from {LIMITS[0]:g} to {LIMITS[1]:g} degrees, not {asked:g}"
            )
        return float(asked)
    if all((Path(folder) / "rooms.json").is_file() for folder in sources.data_dirs):
        return ROOMS_ANGLE
    raise UserError(
        "geonet computes with the cameras' angle, which these data do not state: give "
        "`field_of_view`, the degrees between the left and the right border of the square images"
    )


def geonet_step(setup: Setup) -> DirectStep:
    """Return the step that trains the first and the refined predictions of both domains."""
    network = unwrapped(setup.graph.target)
    assert isinstance(network, GeoNet)

    def predictions(image: Tensor) -> dict[str, tuple[str, Tensor]]:
        named = {}
        for domain, (first, refined) in network.predictions(image).items():
            named["mae" if domain == setup.target else domain] = domain, refined
            named[f"first {domain}"] = domain, first
        return named

    return DirectStep(setup, predictions)

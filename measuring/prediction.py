"""Prediction of normals, depth or reshading from any image."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from backbones import Backbone, backbone, recorded_code
from devices import choose_device
from loading.photographs import as_image, open_image, square, whole
from measuring.demo_networks import TARGETS, Choice, choose_networks
from models import load_network, read_record, recorded_scale
from precision import forward_only
from sources import VARIANTS
from transfers import FULL_SIZE, TRANSFERS, Scale, Transfer
from utils import UserError, check_one_of


def predict(
    image: Image.Image | str | Path | np.ndarray | Tensor,
    task: str = "normal",
    *,
    variant: str = "consistency",
    size: int | None = None,
    checkpoint: str | Path | None = None,
    model: str | None = None,
    models_dir: str | None = None,
    network: str | None = None,
) -> Tensor:
    """Predict one image: (C, H, W) float32 in [0, 1] on the CPU.

    `image` is a file, a Pillow image, an array (H, W, 3) or (H, W), or a tensor (3, H, W) or
    (1, H, W); arrays and tensors hold uint8, or floats in [0, 1]. `task` is normal (3
    channels), depth (1) or reshading (3). `variant` is "consistency" or "baseline";
    `checkpoint`, a file or a run's folder, takes its place. The other parameters are those of
    demo.py. Networks are cached between calls. Warns if the small rooms networks are used
    because no others were found. Raises UserError if the image cannot be read, or the networks
    are missing.
    """
    check_one_of("task", task, tuple(TARGETS))
    check_one_of("variant", variant, VARIANTS)
    predictor = _kept_predictor(task, variant, checkpoint, model, models_dir, network)
    check_size(predictor, size)
    colour = open_image(image) if isinstance(image, str | Path) else as_image(image)
    with forward_only(predictor.device):
        inputs = [values[None] for values in predictor.prepare(colour, size)]
        values = next(iter(predictor.predict(inputs, size).values()))
    return values[0].float().cpu().clone()


@lru_cache(maxsize=6)
def _kept_predictor(
    task: str,
    variant: str,
    checkpoint: str | Path | None,
    model: str | None,
    models_dir: str | None,
    network: str | None,
) -> "Predictor":
    given = None if checkpoint is None else [checkpoint]
    chosen = choose_networks(
        task, checkpoint=given, model=model, models_dir=models_dir, variants=(variant,)
    )
    if len(chosen.paths) > 1:
        names = ", ".join(path.name for path in chosen.paths.values())
        raise UserError(f"`checkpoint` {checkpoint} holds several networks ({names}): name a file")
    if chosen.stands_in:
        warnings.warn(chosen.note, stacklevel=3)
    return load_predictor(task, chosen, choose_device(), network)


# ---- networks -----------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """The networks of one task, {label: network}, with their pre- and postprocessing.

    `own` are the rows of those networks that are a user's own.
    """

    networks: dict[str, nn.Module]
    scales: dict[str, Scale]
    multiple: int  # image sides must be multiples of this
    device: torch.device
    own: dict[str, Backbone] = field(default_factory=dict)

    @property
    def input_sizes(self) -> list[int]:
        """The image sizes of the networks, each once."""
        return list(dict.fromkeys(scale.image_size for scale in self.scales.values()))

    def prepare(self, image: Image.Image, size: int | None) -> tuple[Tensor, ...]:
        """Convert an image to the networks' inputs, (3, H, W) each.

        These are the centre square at each of `input_sizes`; with `size`, the whole image.
        """
        if size:
            return (whole(image, size, self.multiple),)
        return tuple(square(image, input_size) for input_size in self.input_sizes)

    def shown(self, image: Image.Image, size: int | None) -> Tensor:
        """Convert an image for display beside the predictions, in the same size."""
        return whole(image, size, self.multiple) if size else square(image, FULL_SIZE)

    def predict(self, inputs: Sequence[Tensor], size: int | None) -> dict[str, Tensor]:
        """Predict from inputs (B, 3, H, W) of `prepare`: {label: (B, C, H, W)} in [0, 1].

        Without `size`, predictions are resized to 256 × 256 pixels. Raises UserError if a network
        of the user's own does not take such inputs.
        """
        batches = [values.to(self.device) for values in inputs]
        by_size = dict.fromkeys(self.input_sizes, batches[0])
        if not size:
            by_size = dict(zip(self.input_sizes, batches, strict=True))
        predictions = {}
        for label, network in self.networks.items():
            images, own = by_size[self.scales[label].image_size], self.own.get(label)
            values = (own.run(network, images) if own else network(images)).float().clamp(0, 1)
            if not size and values.shape[-1] != FULL_SIZE:
                values = F.interpolate(values, size=(FULL_SIZE, FULL_SIZE), mode="bilinear")
            predictions[label] = values
        return predictions


def load_predictor(
    task: str, chosen: Choice, device: torch.device, network: str | None = None
) -> Predictor:
    """Load the chosen networks of a task.

    `network`, FILE.py:FUNCTION, builds those that record a network of the user's own; the table
    builds the others. Raises UserError if one does not fit, or if none needs `network`.
    """
    table = TRANSFERS["rgb", TARGETS[task]]
    given = backbone(network, table) if network else None
    networks, scales, own, multiples = {}, {}, {}, []
    for label, path in chosen.paths.items():
        if given and recorded_code(read_record(path)):
            own[label] = given
        transfer = own.get(label, table)
        networks[label], scales[label] = loaded(path, transfer)
        networks[label].to(device).eval()
        multiples.append(side_multiple(transfer, networks[label], scales[label]))
    if given and not own:
        files = ", ".join(map(str, chosen.paths.values()))
        raise UserError(f"`network` {network}: {files} holds no network of one's own")
    return Predictor(networks, scales, math.lcm(*multiples), device, own)


def loaded(path: Path, transfer: Transfer) -> tuple[nn.Module, Scale]:
    """Build the network of a checkpoint at the scale that it records, with its weights.

    Raises UserError if it does not fit.
    """
    is_own = isinstance(transfer, Backbone)
    scale = recorded_scale(path, None if is_own else transfer.build)
    network = transfer.build(scale)
    load_network(network, path, scale, transfer=transfer)
    return network, scale


def side_multiple(transfer: Transfer, network: nn.Module, scale: Scale) -> int:
    """Return what the sides of a network's images have to be multiples of."""
    if isinstance(transfer, Backbone):
        return transfer.multiple(network)
    return 2 ** scale.depth(transfer.downsample)


def check_size(predictor: Predictor, size: int | None) -> None:
    """Raise UserError for a size that the networks cannot take."""
    if size is not None and size < predictor.multiple:
        raise UserError(f"`size` is {predictor.multiple} or more for these networks, not {size}")

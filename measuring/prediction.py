"""Prediction of normals, depth or reshading from any image."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from devices import choose_device
from loading.photographs import as_image, open_image, square, whole
from measuring.demo_networks import TARGETS, Choice, choose_networks
from models import load_network, recorded_scale
from other_networks import PUBLISHERS, load_published, recognised
from precision import forward_only
from sources import VARIANTS
from transfers import FULL_SIZE, TRANSFERS, Scale
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
) -> Tensor:
    """Predict one image: (C, H, W) float32 in [0, 1] on the CPU.

    `image` is a file, a Pillow image, an array (H, W, 3) or (H, W), or a tensor (3, H, W) or
    (1, H, W); arrays and tensors hold uint8, or floats in [0, 1]. `task` is normal (3
    channels), depth (1) or reshading (3). `variant` is "consistency", "baseline", or
    another publisher's network in the models folder, "omnidata" or "taskonomy"; `checkpoint`, a
    file or a run's folder, takes its place. The other parameters are those of
    demo.py. Networks are cached between calls. Warns if the small rooms networks are used
    because no others were found. Raises UserError if the image cannot be read, or the networks
    are missing.
    """
    check_one_of("task", task, tuple(TARGETS))
    check_one_of("variant", variant, (*VARIANTS, *PUBLISHERS))
    predictor = _kept_predictor(task, variant, checkpoint, model, models_dir)
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
    return load_predictor(task, chosen, choose_device())


# ---- networks -----------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """The networks of one task, {label: network}, with their pre- and postprocessing."""

    networks: dict[str, nn.Module]
    scales: dict[str, Scale]
    multiple: int  # image sides must be multiples of this
    device: torch.device

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

        Without `size`, predictions are resized to 256 × 256 pixels.
        """
        batches = [values.to(self.device) for values in inputs]
        by_size = dict.fromkeys(self.input_sizes, batches[0])
        if not size:
            by_size = dict(zip(self.input_sizes, batches, strict=True))
        predictions = {}
        for label, network in self.networks.items():
            values = network(by_size[self.scales[label].image_size]).float().clamp(0, 1)
            if not size and values.shape[-1] != FULL_SIZE:
                values = _resized(values)
            predictions[label] = values
        return predictions


def _resized(values: Tensor) -> Tensor:
    """Resize to 256 × 256 pixels; larger predictions with antialiasing."""
    size, larger = (FULL_SIZE, FULL_SIZE), values.shape[-1] > FULL_SIZE
    return F.interpolate(values, size=size, mode="bilinear", antialias=larger)


def load_predictor(task: str, chosen: Choice, device: torch.device) -> Predictor:
    """Load the chosen networks of a task. Raises UserError if one does not fit."""
    transfer = TRANSFERS["rgb", TARGETS[task]]
    networks, scales = {}, {}
    for label, path in chosen.paths.items():
        if recognised(path):
            network, scales[label] = load_published(path)
            networks[label] = network.to(device).eval()
            continue
        scales[label] = recorded_scale(path, transfer.build)
        networks[label] = transfer.build(scales[label]).to(device).eval()
        load_network(networks[label], path, scales[label])
    multiple = max(2 ** scale.depth(transfer.downsample) for scale in scales.values())
    return Predictor(networks, scales, multiple, device)


def check_size(predictor: Predictor, size: int | None) -> None:
    """Raise UserError for a size that the networks cannot take."""
    if size is not None and size < predictor.multiple:
        raise UserError(f"`size` is {predictor.multiple} or more for these networks, not {size}")

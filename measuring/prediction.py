"""Prediction of normals, depth or reshading from any image."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from devices import choose_device
from loading.photographs import as_colour, open_image, square, whole
from models import load_network, recorded_scale
from pictures import montage
from precision import forward_only
from sources import DEMO_MODELS, VARIANTS, checkpoint_names, find_variant
from transfers import FULL_SIZE, TRANSFERS, Scale
from utils import UserError, check_one_of, read_job

TARGETS = {"normal": "normal", "depth": "depth_zbuffer", "reshading": "reshading"}


def predict(
    image: Image.Image | str | Path,
    task: str = "normal",
    *,
    variant: str = "consistency",
    size: int | None = None,
    model: str | None = None,
    models_dir: str | None = None,
) -> Tensor:
    """Predict one image: (C, H, W) float32 in [0, 1] on the CPU.

    `task` is normal (3 channels), depth (1) or reshading (3). `variant` is "consistency" or
    "baseline". The other parameters are those of demo.py. Networks are cached between calls.
    Warns if the small rooms networks are used because no others were found. Raises UserError
    if the image cannot be read or the networks are missing.
    """
    check_one_of("task", task, tuple(TARGETS))
    check_one_of("variant", variant, VARIANTS)
    predictor = _kept_predictor(task, variant, model, models_dir)
    check_size(predictor, size)
    colour = as_colour(image) if isinstance(image, Image.Image) else open_image(image)
    with forward_only(predictor.device):
        inputs = predictor.prepare(colour, size)[None].to(predictor.device)
        values = predictor.predict(inputs, size)[variant]
    return values[0].float().cpu().clone()


@lru_cache(maxsize=6)
def _kept_predictor(
    task: str, variant: str, model: str | None, models_dir: str | None
) -> "Predictor":
    predictor = load_predictor(task, (variant,), model, models_dir, choose_device())
    if predictor.stands_in:
        warnings.warn(predictor.note, stacklevel=3)
    return predictor


# ---- networks -----------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """The networks of one task, {variant: network}, with their pre- and postprocessing."""

    networks: dict[str, nn.Module]
    scale: Scale
    multiple: int  # image sides must be multiples of this
    device: torch.device
    note: str  # one line that describes the networks
    stands_in: bool  # whether these are the rooms networks because no others were found

    def prepare(self, image: Image.Image, size: int | None) -> Tensor:
        """Convert an image to the network's input (3, H, W)."""
        if size:
            return whole(image, size, self.multiple)
        return square(image, self.scale.image_size)

    def shown(self, image: Image.Image, size: int | None) -> Tensor:
        """Convert an image for display beside the predictions, in the same size."""
        return whole(image, size, self.multiple) if size else square(image, FULL_SIZE)

    def predict(self, images: Tensor, size: int | None) -> dict[str, Tensor]:
        """Predict (B, 3, H, W) → {variant: (B, C, H, W)} in [0, 1].

        Without `size`, predictions are resized to 256 × 256 pixels.
        """
        predictions = {name: net(images).float().clamp(0, 1) for name, net in self.networks.items()}
        if size or images.shape[-1] == FULL_SIZE:
            return predictions
        return {
            name: F.interpolate(values, size=(FULL_SIZE, FULL_SIZE), mode="bilinear")
            for name, values in predictions.items()
        }


def load_predictor(
    task: str,
    variants: Sequence[str],
    model: str | None,
    models_dir: str | None,
    device: torch.device,
) -> Predictor:
    """Load the networks of a task. Raises UserError if some are missing or do not fit."""
    check_one_of("model", model or "rooms", ("published", "rooms"))
    if model == "rooms" and models_dir is not None:
        raise UserError("`model` rooms are those shipped with the project: no `models_dir`")
    folder = Path(models_dir) if models_dir is not None else read_job().models_dir
    target = TARGETS[task]
    paths = _checkpoints(folder, target, variants)
    missing = _names_of_missing(paths, target, variants)
    stands_in = model is None and models_dir is None and bool(missing)
    if stands_in or model == "rooms":
        folder = DEMO_MODELS
        paths = _checkpoints(folder, target, variants)
    if still_missing := _names_of_missing(paths, target, variants):
        raise UserError(f"no {still_missing} in {folder}: {_ways(task)}")
    transfer = TRANSFERS["rgb", target]
    scales = {recorded_scale(path, transfer.build) for path in paths.values()}
    if len(scales) > 1:
        raise UserError(f"{', '.join(map(str, paths.values()))} are of different scales")
    scale = scales.pop()
    networks = {}
    for variant, path in paths.items():
        networks[variant] = transfer.build(scale).to(device).eval()
        load_network(networks[variant], path, scale)
    note = f"networks: {folder} ({scale})"
    if folder == DEMO_MODELS:
        reason = f", as models/ lacks {missing}" if stands_in else ""
        note = (
            f"networks: the small rooms networks shipped with the project ({scale}; results are "
            f"enlarged to {FULL_SIZE}){reason}; for better ones {_ways(task)}"
        )
    multiple = 2 ** scale.depth(transfer.downsample)
    return Predictor(networks, scale, multiple, device, note, stands_in)


def _checkpoints(folder: Path, target: str, variants: Sequence[str]) -> dict[str, Path]:
    """Return the variants' checkpoints that exist in the folder."""
    return {v: path for v in variants if (path := find_variant([folder], target, v))}


def _names_of_missing(paths: dict[str, Path], target: str, variants: Sequence[str]) -> str:
    return ", ".join(checkpoint_names(target, v)[0] for v in variants if v not in paths)


def _ways(task: str) -> str:
    train = f"python -m train multiperceptual_{task}"
    return f"fetch the published ones with tools/download_models.sh, or train: {train}"


def check_size(predictor: Predictor, size: int | None) -> None:
    """Raise UserError for a size that the networks cannot take."""
    if size is not None and size < predictor.multiple:
        raise UserError(f"`size` is {predictor.multiple} or more for these networks, not {size}")


def side_by_side(image: Tensor, predictions: dict[str, Tensor]) -> Image.Image:
    """Draw input and predictions (C, H, W), all of the same size, as one labelled picture."""
    columns = {"input": image, **predictions}
    cell = min(image.shape[-2:])
    return montage({name: values[None] for name, values in columns.items()}, cell)

"""Prediction of normals, depth or reshading from any image."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from backbones import Backbone, backbone, recorded_code
from devices import as_device
from loading.photographs import as_image, open_image, square, unchanged, whole
from losses import at_least_float32
from measuring.demo_networks import TARGETS, Choice, choose_networks
from methods.table import recorded_row
from models import load_network, read_record, recorded_scale
from other_networks import PUBLISHERS, load_published, recognised
from precision import forward_only
from sources import VARIANTS
from transfers import FULL_SIZE, TRANSFERS, Scale, Transfer
from utils import UserError, check_one_of

OWN_SIZE = "own"  # the value of `size` for predictions of the size of the image itself


def predict(
    image: Image.Image | str | Path | np.ndarray | Tensor,
    task: str = "normal",
    *,
    variant: str = "consistency",
    size: int | str | None = None,
    checkpoint: str | Path | None = None,
    model: str | None = None,
    models_dir: str | None = None,
    device: str | torch.device | None = None,
    network: str | None = None,
) -> Tensor:
    """Predict one image: (C, H, W) float32 in [0, 1]; or a batch of tensors: (B, C, H, W).

    `image` is a file, a Pillow image, an array (H, W, 3) or (H, W), or a tensor (3, H, W),
    (1, H, W) or, for a batch, (B, 3, H, W) or (B, 1, H, W). Arrays and tensors hold uint8, or
    floats in [0, 1]. `task` is normal (3 channels), depth (1) or reshading (3). `variant` is
    "consistency", "baseline", or another publisher's network in the models folder, "omnidata"
    or "taskonomy"; `checkpoint`, a file or a run's folder, takes its place.

    By default, the result is of the image's centre square, 256 × 256. With a number as `size`,
    it is of the whole image, its shorter side of about that many pixels. With "own", it is of
    the whole image, at the image's own size.

    The networks run on `device` (default: the first GPU if there is one, else the CPU), and are
    kept between calls. The result is on the CPU, or on `device` if it is given. The other
    parameters are those of demo.py. Warns if the small rooms networks are used because no
    others were found. Raises UserError if the image cannot be read, or the networks are missing.
    """
    check_one_of("task", task, tuple(TARGETS))
    check_one_of("variant", variant, (*VARIANTS, *PUBLISHERS))
    wanted = as_device(device)
    predictor = _kept_predictor(task, variant, checkpoint, model, models_dir, wanted, network)
    check_size(predictor, size)
    is_batch = isinstance(image, Tensor) and image.dim() == 4 and len(image) > 0
    images = [_colour_image(one) for one in (image if is_batch else [image])]  # type: ignore[union-attr]
    with forward_only(predictor.device):
        prepared = zip(*(predictor.prepare(one, size) for one in images), strict=True)
        inputs = [torch.stack(values) for values in prepared]
        values = next(iter(predictor.predict(inputs, size).values())).float()
    values = values.to("cpu" if device is None else wanted).clone()
    return values if is_batch else values[0]


def _colour_image(image: Image.Image | str | Path | np.ndarray | Tensor) -> Image.Image:
    return open_image(image) if isinstance(image, str | Path) else as_image(image)


def pretrained(
    task: str = "normal",
    *,
    variant: str = "consistency",
    checkpoint: str | Path | None = None,
    model: str | None = None,
    models_dir: str | None = None,
) -> "AnySize":
    """Return the network by which `predict` predicts, a new copy of it in eval mode on the CPU.

    It maps images (B, 3, H, W) in [0, 1] of any size to (B, C, H, W) in [0, 1]. The arguments,
    the warning and the errors are those of `predict`, but `variant` is "consistency" or "baseline".
    """
    check_one_of("task", task, tuple(TARGETS))
    check_one_of("variant", variant, VARIANTS)
    chosen = choose_one(task, variant, checkpoint, model, models_dir)
    if chosen.stands_in:
        warnings.warn(chosen.note, stacklevel=2)
    predictor = load_predictor(task, chosen, torch.device("cpu"))
    return AnySize(next(iter(predictor.networks.values())), predictor.multiple).eval()


@lru_cache(maxsize=6)
def _kept_predictor(
    task: str,
    variant: str,
    checkpoint: str | Path | None,
    model: str | None,
    models_dir: str | None,
    device: torch.device,
    network: str | None,
) -> "Predictor":
    chosen = choose_one(task, variant, checkpoint, model, models_dir)
    if chosen.stands_in:
        warnings.warn(chosen.note, stacklevel=3)
    return load_predictor(task, chosen, device, network)


def choose_one(
    task: str,
    variant: str = "consistency",
    checkpoint: str | Path | None = None,
    model: str | None = None,
    models_dir: str | None = None,
) -> Choice:
    """Choose one network. Raises UserError if `checkpoint` names several."""
    given = None if checkpoint is None else [checkpoint]
    chosen = choose_networks(
        task, checkpoint=given, model=model, models_dir=models_dir, variants=(variant,)
    )
    if len(chosen.paths) > 1:
        names = ", ".join(path.name for path in chosen.paths.values())
        raise UserError(f"`checkpoint` {checkpoint} holds several networks ({names}): name a file")
    return chosen


# ---- networks -----------------------------------------------------------------------


def resized(values: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, H, W) bilinearly to size (H, W), with antialiasing, if it differs."""
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return F.interpolate(values, size=tuple(size), mode="bilinear", antialias=True)


class AnySize(nn.Module):
    """A network for images of any size: (B, 3, H, W) → (B, C, H, W), both in [0, 1].

    The network itself takes images whose sides are multiples of `multiple`. Others are resized
    to the nearest such sides, and the prediction is resized back.
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        sides = [max(1, round(side / self.multiple)) * self.multiple for side in size]
        values = at_least_float32(self.network(resized(images, sides)))
        return resized(values, size).clamp(0, 1)


@dataclass(frozen=True)
class Predictor:
    """The networks of one task, {label: network}, with their pre- and postprocessing.

    `own` are the rows of the user-defined networks.
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

    def prepare(self, image: Image.Image, size: int | str | None) -> tuple[Tensor, ...]:
        """Convert an image to the networks' inputs, (3, H, W) each.

        These are the centre square at each of `input_sizes`; with `size`, the whole image, and
        with the size "own", the image as it is.
        """
        if isinstance(size, str):
            return (unchanged(image),)
        if size:
            return (whole(image, size, self.multiple),)
        return tuple(square(image, input_size) for input_size in self.input_sizes)

    def shown(self, image: Image.Image, size: int | None) -> Tensor:
        """Convert an image for display beside the predictions, in the same size."""
        return whole(image, size, self.multiple) if size else square(image, FULL_SIZE)

    def predict(self, inputs: Sequence[Tensor], size: int | str | None) -> dict[str, Tensor]:
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
            if isinstance(size, str):
                predictions[label] = AnySize(network, self.multiple)(batches[0])
                continue
            values = (own.run(network, images) if own else network(images)).float().clamp(0, 1)
            if not size and values.shape[-1] != FULL_SIZE:
                values = _resized(values)
            predictions[label] = values
        return predictions


def _resized(values: Tensor) -> Tensor:
    """Resize to 256 × 256 pixels; larger predictions with antialiasing."""
    size, larger = (FULL_SIZE, FULL_SIZE), values.shape[-1] > FULL_SIZE
    return F.interpolate(values, size=size, mode="bilinear", antialias=larger)


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
        if recognised(path):
            networks[label], scales[label] = load_published(path)
            networks[label].to(device).eval()
            multiples.append(2 ** scales[label].depth(table.downsample))
            continue
        if given and recorded_code(read_record(path)):
            own[label] = given
        transfer = own.get(label) or recorded_row(path, table)
        networks[label], scales[label] = loaded(path, transfer)
        networks[label].to(device).eval()
        multiples.append(side_multiple(transfer, networks[label], scales[label]))
    check_built(network, bool(own), list(chosen.paths.values()))
    return Predictor(networks, scales, math.lcm(*multiples), device, own)


def check_built(network: str | None, built: bool, files: Sequence[Path]) -> None:
    """Raise UserError if the user names a `network` that none of the checkpoints needs."""
    if network and not built:
        places = ", ".join(map(str, files)) or "the models folder"
        raise UserError(
            f"`network` {network}: {places} holds no network that was trained with `network`"
        )


def together(predictors: Mapping[str, Predictor]) -> Predictor:
    """Combine predictors of one task, {label: predictor}, with one network each, into one.

    All are on the same device.
    """
    networks = {label: next(iter(p.networks.values())) for label, p in predictors.items()}
    scales = {label: next(iter(p.scales.values())) for label, p in predictors.items()}
    own = {label: next(iter(p.own.values())) for label, p in predictors.items() if p.own}
    multiple = math.lcm(*(predictor.multiple for predictor in predictors.values()))
    device = next(iter(predictors.values())).device
    return Predictor(networks, scales, multiple, device, own)


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


def check_size(predictor: Predictor, size: int | str | None) -> None:
    """Raise UserError for a size that the networks cannot take."""
    if isinstance(size, str):
        if size != OWN_SIZE:
            raise UserError(f"`size` is a number of pixels or {OWN_SIZE}, not {size}")
    elif size is not None and size < predictor.multiple:
        raise UserError(f"`size` is {predictor.multiple} or more for these networks, not {size}")

"""Predict normals, depth or reshading of any image, by the baseline and the consistent network.

python demo.py --task normal --img_path assets/room.png --output_path results/demo
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from logger import montage
from models import load_network, recorded_scale
from scripts.images import (
    as_colour,
    find_images,
    open_image,
    read_batches,
    square,
    to_image,
    unique_names,
    whole,
    write_png,
)
from scripts.measuring import (
    VARIANTS,
    checkpoint_names,
    choose_device,
    find_checkpoint,
    forward_only,
)
from scripts.precision import check_precision
from scripts.setting import one_of
from transfers import FULL_SIZE, TRANSFERS, Scale
from utils import ROOT, UserError, command_line, read_job

DEMO_MODELS = ROOT / "assets" / "demo_models"  # trained on rooms, shipped
TARGETS = {"normal": "normal", "depth": "depth_zbuffer", "reshading": "reshading"}


def main(
    *,
    task: str | None = None,
    img_path: str | None = None,
    output_path: str | None = None,
    compare: bool = False,
    size: int | None = None,
    model: str | None = None,
    models_dir: str | None = None,
    batch_size: int | None = None,
    precision: str = "fp32",
    quiet: bool = False,
) -> None:
    """Predict normals, depth or reshading of images with two networks: baseline, consistency.

    Example: python demo.py --task normal --img_path assets/room.png --output_path results/demo

    Writes {name}_{task}_baseline.png and {name}_{task}_consistency.png. Exit status: 0 when
    every image was done, 1 when some could not be read (the others are done), 2 when
    nothing could be.

    Args:
        task: normal, depth or reshading.
        img_path: an image, or a folder of images; what is no image is skipped.
        output_path: the folder for the results (default: results/demo).
        compare: write {name}_{task}_compare.png too: input, baseline, consistency.
        size: predict the whole image in its own aspect, its shorter side that many pixels
            (each side is rounded to a multiple that the network takes), instead of the
            centre square at the size of the network's training.
        model: published (from the models folder) or rooms (the small networks shipped with
            this project). Default: published where its files are there, else rooms.
        models_dir: the folder of the checkpoints (default: models/ of the job's base folder).
        batch_size: images at a time (default: 16 on a GPU, else 2); results do not depend on it.
        precision: fp32, tf32, bf16 or fp16.
        quiet: no progress bar.
    """
    # ---- what was asked for ----
    if task is None:
        raise UserError(f"--task is {' or '.join(TARGETS)}")
    one_of("--task", task, tuple(TARGETS))
    if img_path is None:
        raise UserError("--img_path names an image, or a folder of images")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size has to be more than 0, not {batch_size}")
    check_precision(precision)
    paths, skipped = find_images(img_path)
    for text in skipped:
        print(f"skipped: {text}", file=sys.stderr)

    # ---- networks ----
    device = choose_device()
    predictor = load_predictor(task, VARIANTS, model, models_dir, device)
    check_size(predictor, size)
    print(predictor.note)

    # ---- images, in batches ----
    folder = Path(output_path) if output_path else read_job().results_dir / "demo"
    names = dict(zip(paths, result_names(paths, task, folder), strict=True))
    failed: list[Path] = []
    bar = tqdm(total=len(paths), desc=task, unit="image", disable=quiet or len(paths) == 1 or None)

    def report(path: Path, sentence: str) -> None:
        failed.append(path)
        bar.update()
        tqdm.write(f"failed: {sentence}", file=sys.stderr)

    def read(path: Path) -> tuple[Tensor, ...]:
        image = open_image(path)
        return predictor.prepare(image, size), predictor.shown(image, size)

    batch_size = batch_size or (16 if device.type == "cuda" else 2)
    for batch in read_batches(paths, read, batch_size, report):
        inputs = torch.stack([tensors[0] for _, tensors in batch])
        with forward_only(device, precision):
            predictions = predictor.predict(inputs.to(device), size)
        for i, (path, (_, shown)) in enumerate(batch):
            stem = f"{names[path]}_{task}"
            columns = {variant: values[i] for variant, values in predictions.items()}
            for variant, values in columns.items():
                write_png(to_image(values), folder / f"{stem}_{variant}.png")
            if compare:
                write_png(side_by_side(shown, columns), folder / f"{stem}_compare.png")
            bar.update()
    bar.close()

    # ---- what came of it ----
    print(f"{len(paths) - len(failed)} of {len(paths)} images → {folder}")
    if failed:
        print(f"{len(failed)} could not be read", file=sys.stderr)
        sys.exit(1)


# ---- for other people's code --------------------------------------------------------


def predict(
    image: Image.Image | str | Path,
    task: str = "normal",
    *,
    variant: str = "consistency",
    size: int | None = None,
    model: str | None = None,
    models_dir: str | None = None,
) -> Tensor:
    """The prediction for one image, as (C, H, W) float32 in [0, 1] on the CPU.

    `task` is normal (3 channels), depth (1) or reshading (3), `variant` "consistency" or
    "baseline"; the rest as on the command line. Networks are loaded once. Warns where the
    small rooms networks stand in; raises UserError for what cannot be read or found.
    """
    one_of("task", task, tuple(TARGETS))
    one_of("variant", variant, VARIANTS)
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
    """The networks of one task, {variant: network}, and how images go in and out of them."""

    networks: dict[str, nn.Module]
    scale: Scale
    multiple: int  # of the sides that the networks take
    device: torch.device
    note: str  # which networks these are, in a line
    stands_in: bool  # whether they are the rooms networks for want of others

    def prepare(self, image: Image.Image, size: int | None) -> Tensor:
        """The network's input (3, H, W)."""
        if size:
            return whole(image, size, self.multiple)
        return square(image, self.scale.image_size)

    def shown(self, image: Image.Image, size: int | None) -> Tensor:
        """The input as it is shown beside predictions, and of their size."""
        return whole(image, size, self.multiple) if size else square(image, FULL_SIZE)

    def predict(self, images: Tensor, size: int | None) -> dict[str, Tensor]:
        """(B, 3, H, W) → {variant: (B, C, H, W)} in [0, 1]; without `size` 256 pixels square."""
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
    """The networks for a task. Raises UserError where some are missing or do not fit."""
    one_of("--model", model or "rooms", ("published", "rooms"))
    if model == "rooms" and models_dir is not None:
        raise UserError("--model rooms are those shipped with the project: no --models-dir")
    folder = Path(models_dir) if models_dir is not None else read_job().models_dir
    target = TARGETS[task]
    paths = _checkpoints(folder, target, variants)
    missing = _names_of_missing(paths, target, variants)
    stands_in = model is None and models_dir is None and bool(missing)
    if stands_in or model == "rooms":
        folder = DEMO_MODELS
        paths = _checkpoints(folder, target, variants)
    if lacking := _names_of_missing(paths, target, variants):
        raise UserError(f"no {lacking} in {folder}: {_ways(task)}")
    scales = {recorded_scale(path) for path in paths.values()}
    if len(scales) > 1:
        raise UserError(f"{', '.join(map(str, paths.values()))} are of different scales")
    scale, transfer = scales.pop(), TRANSFERS["rgb", target]
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
    """Those of the variants' checkpoints that the folder has."""
    return {v: path for v in variants if (path := find_checkpoint([folder], target, v))}


def _names_of_missing(paths: dict[str, Path], target: str, variants: Sequence[str]) -> str:
    return ", ".join(checkpoint_names(target, v)[0] for v in variants if v not in paths)


def _ways(task: str) -> str:
    train = f"python -m train multiperceptual_{task}"
    return f"fetch the published ones with tools/download_models.sh, or train: {train}"


def check_size(predictor: Predictor, size: int | None) -> None:
    if size is not None and size < predictor.multiple:
        raise UserError(f"--size is {predictor.multiple} or more for these networks, not {size}")


# ---- files --------------------------------------------------------------------------


def result_names(paths: Sequence[Path], task: str, folder: Path) -> list[str]:
    """A name for each image's results, such that none overwrites another's, or an input."""
    inputs = {path.resolve() for path in paths}

    def taken(name: str) -> bool:
        kinds = (*VARIANTS, "compare")
        return any((folder / f"{name}_{task}_{kind}.png").resolve() in inputs for kind in kinds)

    return unique_names(paths, taken)


def side_by_side(image: Tensor, predictions: dict[str, Tensor]) -> Image.Image:
    """Input and predictions (C, H, W), each of the same size, as one labelled picture."""
    columns = {"input": image, **predictions}
    cell = min(image.shape[-2:])
    return montage({name: values[None] for name, values in columns.items()}, cell)


if __name__ == "__main__":
    command_line(main)

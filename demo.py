"""Predict normals, depth or reshading of images, with one network or several side by side.

python demo.py --task normal --img-path assets/room.png --output-dir results/demo
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from consistency import Energy
from devices import choose_device, default_forward_batch
from flags import also_called, command_line, folding_flags
from loading.photographs import open_image
from loading.video_files import VideoFrames
from measuring.demo_networks import TARGETS, Choice, choose_methods, choose_networks
from measuring.image_files import ImageFiles
from measuring.prediction import (
    Predictor,
    check_size,
    load_predictor,
    predict,
)
from measuring.result_files import endings, has_colours, write_results
from measuring.videos import Comparison, VideoOptions, write_video
from precision import check_precision, forward_only
from utils import UserError, check_one_of, check_positive, counted, log, read_job

__all__ = ["main", "predict"]


@dataclass(frozen=True)
class NetworkFlags:
    """Networks.

    Args:
        checkpoint: the networks, comma-separated: files, runs' folders, omnidata or taskonomy.
        method: the networks of these methods, comma-separated (baseline,pix2pix,…;
            docs/methods.md): those in the models folder, then those shipped with this project.
        model: published (those in the models folder) or rooms (the small networks shipped with
            this project). Default: published where at least one is there, else rooms.
        models_dir: the folder of the checkpoints (default: models/, then models/trained).
        network: FILE.py:FUNCTION, for checkpoints that were trained with `train --network`.
    """

    checkpoint: list | None = None
    method: list | None = None
    model: str | None = None
    models_dir: str | None = None
    network: str | None = None

    def chosen(self, task: str) -> Choice:
        """Return the checkpoints to load. Raises UserError if the flags exclude each other."""
        if self.method is None:
            return choose_networks(
                task, checkpoint=self.checkpoint, model=self.model, models_dir=self.models_dir
            )
        if self.checkpoint is not None or self.model is not None:
            raise UserError("`method` names the networks: give no `checkpoint` and no `model`")
        return choose_methods(task, self.method, self.models_dir)


@also_called(output_path="output_dir")
@folding_flags
def main(
    *,
    task: str | None = None,
    img_path: str | None = None,
    output_dir: str | None = None,
    compare: bool = False,
    size: int | None = None,
    batch_size: int | None = None,
    precision: str = "fp32",
    quiet: bool = False,
    networks: NetworkFlags,
    videos: VideoOptions,
) -> None:
    """Predict normals, depth or reshading of images, with one network or several.

    Example: python demo.py --task normal --img-path assets/room.png --output-dir results/demo
    Your own: python demo.py --task normal --img-path photos --checkpoint results/RUN

    Writes {name}_{task}_{network}.png for each network (baseline, consistency, or what the name
    of its checkpoint says), with the values as published: grey or colour levels 0 … 255. For
    depth, these are nearly black (white is 15.6 m), so each comes with {…}_colour.png to look at,
    with a scale in metres. To work with there are {…}_16bit.png (steps of 1/512 m) and {…}.npy
    (metres, float32). Normals come with {…}.npy too: unit vectors (H, W, 3), x to the right, y
    down, z away from the camera.

    Exit status: 0 when every image was done, 1 when some could not be read (the others are
    done), 2 when none could be.

    Args:
        task: normal, depth or reshading.
        img_path: an image, or a folder of images; other files are skipped.
        output_dir: the folder for the results (default: results/demo).
        compare: write {name}_{task}_compare.png too: the input and all predictions.
        size: predict the whole image in its own aspect, its shorter side about that many
            pixels, instead of the centre square at the size of the network's training.
        batch_size: images at a time (default: 16 on a GPU, else 2); results do not depend on it.
        precision: fp32, tf32, bf16 or fp16.
        quiet: no progress bar.
    """
    task = check_one_of("task", task, tuple(TARGETS))
    check_positive(batch_size=batch_size)
    check_precision(precision)
    source = open_video(videos, img_path) if videos.video is not None else ImageFiles(img_path)
    chosen = networks.chosen(task)
    check_size(predictor := load_predictor(task, chosen, choose_device(), networks.network), size)
    log.info("%s", chosen.note)
    folder = Path(output_dir) if output_dir else read_job().results_dir / "demo"
    batch_size = batch_size or default_forward_batch(predictor.device)
    if isinstance(source, VideoFrames):
        energy = energy_networks(networks.models_dir, predictor.device) if compare else None
        work = Comparison(task, predictor, energy, size, batch_size, precision)
        return write_frames(source, work, folder, compare, chosen, quiet)
    write_predictions(
        source, predictor, task, folder, size=size, compare=compare, precision=precision,
        batch_size=batch_size, quiet=quiet,
    )  # fmt: skip
    if status := source.summary(folder):
        sys.exit(status)


def write_predictions(
    images: ImageFiles,
    predictor: Predictor,
    task: str,
    folder: Path,
    *,
    size: int | None,
    compare: bool,
    precision: str,
    batch_size: int,
    quiet: bool,
) -> None:
    """Write the result files of each image; `compare` adds a page of all side by side."""
    names = images.result_names(folder, endings(task, list(predictor.networks)))

    def read(path: Path) -> tuple[Tensor, ...]:
        image = open_image(path)
        return *predictor.prepare(image, size), predictor.shown(image, size)

    for batch in images.batches(read, batch_size, task, quiet):
        inputs = [torch.stack(values) for values in zip(*(t[:-1] for _, t in batch), strict=True)]
        with forward_only(predictor.device, precision):
            predictions = predictor.predict(inputs, size)
        for i, (path, (*_, display)) in enumerate(batch):
            columns = {network: values[i] for network, values in predictions.items()}
            write_results(folder / names[path], task, columns, display if compare else None)
    if has_colours(task) and len(images.failed) < len(images.paths):
        print(f"to look at: {folder}/*_{task}_*_colour.png")


def open_video(videos: VideoOptions, img_path: str | None) -> VideoFrames:
    """Open the video of the flags. Raises UserError if there is an `img_path` too."""
    if img_path is not None:
        raise UserError("`video` takes the place of `img_path`: give one of the two")
    return VideoFrames(str(videos.video), videos.fps, videos.max_frames, videos.max_side)


def energy_networks(models_dir: str | None, device: torch.device) -> Energy:
    """Load the energy of a models folder that has all of its networks, else the shipped one."""
    folder = Path(models_dir) if models_dir else read_job().models_dir
    try:
        energy = Energy(models_dir=folder)
        log.info("energy: the networks in %s", folder)
    except UserError:
        energy = Energy()
        log.info("energy: the small networks shipped with the project, trained on rendered rooms")
    return energy.to(device)


def write_frames(
    frames: VideoFrames,
    comparison: Comparison,
    folder: Path,
    compare: bool,
    chosen: Choice,
    quiet: bool,
) -> None:
    """Write the results of a video, with a progress bar."""
    started, progress = time.monotonic(), None
    with tqdm(desc=comparison.task, unit="frame", disable=quiet or None) as bar:
        for progress in write_video(frames, comparison, folder, compare, chosen.paths):
            bar.total = progress.total
            bar.update()
    done = progress.total if progress else 0
    rate = done / (time.monotonic() - started)
    log.info("%s, %.1f a second → %s", counted(done, "frame"), rate, folder)


if __name__ == "__main__":
    command_line(main)

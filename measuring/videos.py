"""Videos: predictions of several networks side by side, frame by frame, and their energy."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from colouring import Limits, limits_of, mapped, numbers
from files import write_json
from loading.photographs import square, whole
from loading.video_files import LARGEST_SIDE, MOST_FRAMES, VideoFrames, written_video
from measuring.demo_networks import TARGETS
from measuring.energy_maps import COLOURS, common_limits
from measuring.plots import BLUE, RED
from measuring.prediction import Predictor, resized
from measuring.result_files import columns_of, with_one_legend
from pictures import Bar, Column, page, to_image, write_png
from precision import forward_only
from tables import write_csv
from task_configs import TASKS
from transfers import Scale

SAMPLE = 8  # frames, at most, from which the limits of the colours of all frames are taken


@dataclass(frozen=True)
class VideoOptions:
    """Videos.

    Args:
        video: a video, or a folder of its frames in the order of their names, in place of
            img_path. Writes {name}_{task}_{network}.mp4 for each network; `compare` adds a grid
            of all with the energy of each pixel, and the energy of each frame as a table, as
            JSON and as a curve.
        fps: frames per second of a folder of frames (default: 25).
        max_frames: a video with more frames is refused.
        max_side: a video with frames of longer sides, in pixels, is refused.
    """

    video: str | None = None
    fps: float | None = None
    max_frames: int = MOST_FRAMES
    max_side: int = LARGEST_SIDE


class PixelEnergy(Protocol):
    """What is used of `consistency.Energy`, which this module may not import."""

    scale: Scale
    statistics: dict | None

    def pixels(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Comparison:
    """What is computed for each frame: `task` by the predictor's networks, and the energy.

    If `energy` is None, the energy is left out. `size` is that of demo.py: None for the centre
    square, or the shorter side of the whole frame.
    """

    task: str
    predictor: Predictor
    energy: PixelEnergy | None = None
    size: int | None = None
    batch_size: int = 2
    precision: str = "fp32"

    def of(self, frames: Iterable[Image.Image]) -> Iterator["Frame"]:
        """Yield the results of frames of one size, in order. Holds one batch at a time."""
        frames = iter(frames)
        while batch := list(islice(frames, self.batch_size)):
            inputs = [
                torch.stack(values)
                for values in zip(
                    *(self.predictor.prepare(image, self.size) for image in batch), strict=True
                )
            ]
            with forward_only(self.predictor.device, self.precision):
                predictions = self.predictor.predict(inputs, self.size)
                energies = self._energies(batch)
            for i, image in enumerate(batch):
                yield Frame(
                    self.predictor.shown(image, self.size),
                    {label: values[i].float().cpu() for label, values in predictions.items()},
                    None if energies is None else energies[i].float().cpu(),
                )

    def _energies(self, batch: Sequence[Image.Image]) -> Tensor | None:
        """Return the energy of each pixel at the size of its networks: (B, 1, H, W)."""
        if self.energy is None:
            return None
        side, step = self.energy.scale.image_size, 2**self.energy.scale.levels
        images = [whole(i, side, step) if self.size else square(i, side) for i in batch]
        return self.energy.pixels(torch.stack(images).to(self.predictor.device))


@dataclass(frozen=True)
class Frame:
    """The results of a frame, on the CPU, in [0, 1].

    `image` is (3, H, W), `predictions` {label: (C, H, W)}. `energy` (1, h, w) is None where it was
    not asked for; it is not limited to [0, 1], and its mean is the frame's energy.
    """

    image: Tensor
    predictions: Mapping[str, Tensor]
    energy: Tensor | None


class Drawing:
    """Draws frames with headings and legends. The colours mean the same in all frames.

    Their limits come from `sample`, frames of the whole video.
    """

    def __init__(self, comparison: Comparison, sample: Sequence[Frame]) -> None:
        self.task = comparison.task
        values = [v[None] for frame in sample for v in frame.predictions.values()]
        self.limits = limits_of(TASKS[TARGETS[self.task]], *values)
        energies = [frame.energy for frame in sample if frame.energy is not None]
        standardised = comparison.energy is not None and comparison.energy.statistics is not None
        self.unit = "mean deviations" if standardised else ""
        self.energy_limits: Limits | None = None
        if energies:
            self.energy_limits = common_limits(energies, None, standardised)

    def predictions(self, frame: Frame) -> dict[str, Image.Image]:
        """Draw each network's prediction alone: {label: picture}. Depth is in colour."""
        columns = columns_of(self.task, frame.predictions, self.limits)
        return {label: to_image(column.cells[0]) for label, column in columns.items()}

    def grid(self, frame: Frame) -> Image.Image:
        """Draw the input, the predictions and the energy of each pixel beside each other."""
        columns = columns_of(self.task, frame.predictions, self.limits)
        groups = [[Column("input", frame.image[None])], with_one_legend(list(columns.values()))]
        if frame.energy is not None and self.energy_limits is not None:
            low, high = self.energy_limits
            energy = resized(frame.energy[None], frame.image.shape[-2:])
            bar = Bar(COLOURS, numbers([low, (low + high) / 2, high], self.unit))
            cells = mapped(energy[:, 0], COLOURS, self.energy_limits)
            groups.append([Column("energy", cells, legend=bar)])
        return page(groups, min(frame.image.shape[-2:]))


@dataclass(frozen=True)
class Progress:
    """A frame that has been written: its number from 0, of how many, its grid and its energy."""

    number: int
    total: int
    grid: Image.Image | None
    energy: float | None


def write_video(
    frames: VideoFrames,
    comparison: Comparison,
    folder: Path,
    compare: bool = True,
    networks: Mapping[str, object] = {},
) -> Iterator[Progress]:
    """Write the predictions of a video's frames into `folder`; yields after each frame.

    There is {name}_{task}_{network}.mp4 for each network. With `compare` there are also
    {name}_{task}_compare.mp4, a grid of the input, the predictions and, if `comparison` has it, the
    energy; and {name}_{task}_energy.csv, .json and .png with the energy of each frame. `networks`
    are recorded in the JSON. Memory does not grow with the number of frames.

    The video is decoded twice: first to see that it can be, to count its frames, and to choose the
    limits of the colours. All files get their names at the end. To stop earlier, close the
    generator, as leaving a loop over it does: then there is no file. Raises UserError if frames
    cannot be read, or files cannot be written.
    """
    stem = folder / f"{frames.name}_{comparison.task}"
    total, sample = frames.survey(SAMPLE)
    drawing = Drawing(comparison, list(comparison.of(sample)))
    energies: list[float] = []
    with ExitStack() as stack:

        def opened(ending: str):
            path = stem.with_name(f"{stem.name}_{ending}.mp4")
            return stack.enter_context(written_video(path, frames.rate))

        writers = {label: opened(label) for label in comparison.predictor.networks}
        together = opened("compare") if compare else None
        for number, frame in enumerate(comparison.of(frames)):
            for label, picture in drawing.predictions(frame).items():
                writers[label].add(picture)
            grid = drawing.grid(frame) if together else None
            if together and grid:
                together.add(grid)
            if frame.energy is not None:
                energies.append(float(frame.energy.mean()))
            yield Progress(number, total, grid, energies[-1] if energies else None)
    if compare and energies:
        _write_energies(stem, frames, drawing, energies, networks)


def _write_energies(
    stem: Path,
    frames: VideoFrames,
    drawing: Drawing,
    energies: Sequence[float],
    networks: Mapping[str, object],
) -> None:
    """Write {stem}_energy.csv, .json and .png."""
    seconds = [float(number / frames.rate) for number in range(len(energies))]
    path = stem.with_name(f"{stem.name}_energy")
    write_csv(path.with_name(f"{path.name}.csv"), {"seconds": seconds, "energy": energies})
    record = {
        "video": str(frames.path),
        "task": drawing.task,
        "networks": {label: str(file) for label, file in networks.items()},
        "frames_per_second": float(frames.rate),
        "standardised": bool(drawing.unit),
        "energy": list(energies),
    }
    write_json(path.with_name(f"{path.name}.json"), record)
    curve = energy_curve(energies, float(frames.rate), unit=drawing.unit)
    write_png(curve, path.with_name(f"{path.name}.png"))


def energy_curve(
    energies: Sequence[float], rate: float, marked: int | None = None, unit: str = ""
) -> Image.Image:
    """Draw the energy of each frame over time; the frame `marked`, from 0, has a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2), layout="constrained")
    axes = figure.add_subplot()
    seconds = [number / rate for number in range(len(energies))]
    axes.plot(seconds, energies, color=BLUE, marker="." if len(energies) < 60 else "")
    if marked is not None:
        axes.axvline(marked / rate, color=RED, linewidth=1)
        axes.plot(marked / rate, energies[marked], "o", color=RED)
    axes.set_xlabel("seconds")
    axes.set_ylabel(f"energy\n({unit})" if unit else "energy")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer, formats=["PNG"])

"""The files of a prediction: pictures to look at, and values to work with."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from colouring import DEPTH_RANGE, DEPTH_UNIT, Limits, coloured, ends, limits_of, look_of
from files import write_atomically
from measuring.demo_networks import TARGETS
from pictures import Ball, Bar, Column, page, to_image, write_png
from task_configs import TASKS

# ---- predictions → physical values -----------------------------------------------------


def in_metres(depth: Tensor) -> Tensor:
    """Convert predicted depth in [0, 1], of any shape, to metres along the optical axis.

    The largest value, 15.625 m, also stands for everything beyond it.
    """
    return depth * DEPTH_RANGE


def unit_vectors(normals: Tensor) -> Tensor:
    """Convert predicted normals (…, 3, H, W) in [0, 1] to vectors of length 1.

    The components are x to the right, y down, and z away from the camera: a wall that faces the
    camera has the normal (0, 0, −1). A pixel of exactly 0.5 in all channels has no direction and
    stays 0.
    """
    return F.normalize(2 * normals - 1, dim=-3)


def in_file_encoding(depth: Tensor) -> Image.Image:
    """Convert predicted depth (1, H, W) to a 16-bit picture, encoded as in Taskonomy's files.

    A step is 1/512 m.
    """
    steps = in_metres(depth.detach().float().cpu())[0] / DEPTH_UNIT
    return Image.fromarray(steps.round().numpy().astype(np.uint16))


# ---- files -----------------------------------------------------------------------------

# The files of a task besides the published ones, {ending: how the prediction (C, H, W) is
# written}. Where values have a unit, there is a picture in colour too.
MORE_FILES: dict[str, dict[str, Callable[[Tensor, Path], None]]] = {
    "normal": {
        ".npy": lambda values, path: write_array(unit_vectors(values).movedim(0, -1), path),
    },
    "depth": {
        "_16bit.png": lambda values, path: write_png(in_file_encoding(values), path),
        ".npy": lambda values, path: write_array(in_metres(values)[0], path),
    },
}
PUBLISHED, COLOUR = ".png", "_colour.png"


def endings(task: str, variants: Iterable[str]) -> list[str]:
    """Return the endings of all result files of an image: "_depth_baseline.npy" and so on."""
    kinds = [PUBLISHED, *MORE_FILES.get(task, {})]
    if has_colours(task):
        kinds.append(COLOUR)
    return [f"_{task}_{v}{kind}" for v in variants for kind in kinds] + [f"_{task}_compare.png"]


def has_colours(task: str) -> bool:
    """Whether a task's predictions are also written in colour: where the values have a unit."""
    return look_of(TASKS[TARGETS[task]]).unit != ""


def write_results(
    stem: Path, task: str, predictions: Mapping[str, Tensor], image: Tensor | None
) -> None:
    """Write the files of one image's predictions, {variant: (C, H, W)}: {stem}_{task}_….

    The pictures in colour of all variants have the same limits. With an `image` (3, H, W) there
    is also a page of the image and all predictions.
    """
    columns = columns_of(task, predictions)
    for variant, values in predictions.items():
        start = f"{stem.name}_{task}_{variant}"
        write_png(to_image(values), stem.with_name(start + PUBLISHED))
        for ending, write in MORE_FILES.get(task, {}).items():
            write(values, stem.with_name(start + ending))
        if has_colours(task):
            picture = page([[columns[variant]]], _cell(values))
            write_png(picture, stem.with_name(start + COLOUR))
    if image is not None:
        groups = [[Column("input", image[None])], with_one_legend(list(columns.values()))]
        write_png(page(groups, _cell(image)), stem.with_name(f"{stem.name}_{task}_compare.png"))


def columns_of(
    task: str, predictions: Mapping[str, Tensor], limits: Limits | None = None
) -> dict[str, Column]:
    """Return a column of each prediction {label: (C, H, W)}; all of them have the same limits.

    The limits are by default those of the predictions themselves.
    """
    domain = TASKS[TARGETS[task]]
    look = look_of(domain)
    limits = limits or limits_of(domain, *(v[None] for v in predictions.values()))
    legend = Bar(look.colours, ends(look, limits)) if look.colours else Ball()
    return {
        variant: Column(
            f"{look.name}, {variant}", coloured(domain, values[None], limits, mark=False),
            legend=legend,
        )
        for variant, values in predictions.items()
    }  # fmt: skip


def with_one_legend(columns: Sequence[Column]) -> list[Column]:
    """Return the columns with one legend for all: a bar spans them, a ball is below the first."""
    bar = isinstance(columns[-1].legend, Bar)
    plain = [replace(column, legend=None) for column in columns]
    if bar:
        return [*plain[:-1], replace(columns[-1], span=len(columns))]
    return [columns[0], *plain[1:]]


def _cell(values: Tensor) -> int:
    return min(values.shape[-2:])


def write_array(values: Tensor, path: Path) -> None:
    """Write a NumPy file of float32. Raises UserError on failure."""

    def save(name: Path) -> None:
        with open(name, "wb") as file:
            np.save(file, values.detach().float().cpu().numpy())

    write_atomically(path, save)

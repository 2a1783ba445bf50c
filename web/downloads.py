"""The values of predictions as files to download: 16-bit PNG and NumPy."""

import importlib
import re
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from files import write_atomically
from measuring.result_files import in_file_encoding, in_metres, unit_vectors, write_array
from pictures import write_png


def write_values(folder: Path, stem: str, task: str, predictions: Mapping[str, Tensor]) -> list:
    """Write the values of predictions, {name: (C, H, W) in [0, 1]}; return the files.

    For each, a PNG of 16 bits and a NumPy file of float32 are written, whose names begin with
    `stem`. Depth: steps of 1/512 m, and metres (H, W). Normals: the values · 65535 in three
    channels, and unit vectors (H, W, 3). Shading: the values · 65535, and the values (H, W, 3).
    """
    files = []
    for name, values in predictions.items():
        start = folder / f"{plain(stem)}_{task}_{plain(name)}"
        deep = start.with_name(f"{start.name}_16bit.png")
        if task == "depth":
            write_png(in_file_encoding(values), deep)
        else:
            write_atomically(deep, partial(Path.write_bytes, data=deep_png(values)))
        array = start.with_name(f"{start.name}.npy")
        write_array(_array(task, values), array)
        files += [deep, array]
    return files


def _array(task: str, values: Tensor) -> Tensor:
    if task == "depth":
        return in_metres(values)[0]
    return (unit_vectors(values) if task == "normal" else values).movedim(0, -1)


def deep_png(values: Tensor) -> bytes:
    """Encode values (3, H, W) in [0, 1] as a PNG of 16 bits for each of three channels."""
    av = importlib.import_module("av")  # of the extra `web`; Pillow writes 8 bits per channel
    steps = (values.detach().float().cpu() * 65535).round().numpy().astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(np.moveaxis(steps, 0, -1)), format="rgb48be"
    )
    frame.pts, encoder = 0, av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "rgb48be"
    encoder.time_base = Fraction(1)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def plain(name: str, longest: int = 60) -> str:
    """Return a name with only letters, digits, dots, hyphens and underscores, for a file."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_.")[:longest] or "image"

"""The consistency energy under domain shift, i.e. of images with increasing corruption."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import functional as TF

from datasets import Reality, TaskDataset
from graph import TaskGraph
from measuring.consistency_energy import ERROR, LABELLED, centre_square, joined, measure_batch
from measuring.image_files import ImageFiles
from measuring.statistics import Table, make_table, roc_auc, standardised, statistics
from pictures import to_image
from precision import forward_only
from utils import UserError, nearest

CLEAN = ("clean", 0.0)
Shift = tuple[str, float]  # (kind of corruption, its level)
Batch = tuple[list[str], dict[str, Tensor]]  # (names of images, {task: (B, C, S, S)} on the CPU)

# ---- the shifts ---------------------------------------------------------------------
#
# Each function takes an 8-bit RGB image, a level and the image's own random generator, and
# returns an image of the same size.


def blurred(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """Apply a Gaussian blur with σ = `level` pixels."""
    return image.filter(ImageFilter.GaussianBlur(level))


def compressed(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """Compress as JPEG of quality `level`."""
    file = io.BytesIO()
    image.save(file, format="jpeg", quality=int(level))
    return Image.open(file, formats=("JPEG",)).convert("RGB")


def noisy(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """Add Gaussian noise with σ = `level` × the full range."""
    pixels = np.asarray(image) + 255 * level * rng.standard_normal((*image.size[::-1], 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def darkened(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """Multiply all values by `level`."""
    return image.point(lambda value: value * level)


SHIFTS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "blur (σ)": (blurred, (0.5, 1, 1.5, 2, 4)),
    "JPEG (quality)": (compressed, (95, 50, 20, 10, 5)),
    "noise (σ)": (noisy, (0.025, 0.05, 0.1, 0.15, 0.2)),
    "darkening (factor)": (darkened, (0.8, 0.6, 0.35, 0.2, 0.1)),
}
# the least and the largest level of each
BOUNDS = {
    "blur (σ)": (0.0, 64.0), "JPEG (quality)": (1.0, 100.0), "noise (σ)": (0.0, 1.0),
    "darkening (factor)": (0.0, 1.0),
}  # fmt: skip


def parse_shift(text: str) -> Shift:
    """Return the shift that a text such as "blur:2" names, its kind and its level.

    The kinds are blur, jpeg, noise and darkening. Raises UserError for anything else.
    """
    kinds = {kind.split()[0].lower(): kind for kind in SHIFTS}
    name, _, number = text.partition(":")
    known = ", ".join(f"{short}:{SHIFTS[kind][1][2]:g}" for short, kind in kinds.items())
    if name.lower() not in kinds:
        raise UserError(f"`shift` is a kind and a level, such as {known}, not {text!r}"
                        f"{nearest(name, kinds)}")  # fmt: skip
    kind = kinds[name.lower()]
    low, high = BOUNDS[kind]
    try:
        level = float(number)
    except ValueError:
        level = float("nan")
    if not low <= level <= high:
        raise UserError(f"`shift` {name} has a level from {low:g} to {high:g}, not {number!r}")
    return kind, level


def shifted(images: Tensor, shift: Shift, first: int) -> Tensor:
    """Apply a shift to images (B, 3, S, S) in [0, 1]. `first` is the first image's number.

    An image's noise depends only on its number, so it is independent of the batch size.
    """
    if shift == CLEAN:
        return images
    kind, level = shift
    result = []
    for number, image in enumerate(images, start=first):
        rng = np.random.default_rng(number)
        # Values are n / 255. Adding half a step keeps truncation from yielding n − 1.
        picture = to_image(image + 0.5 / 255)
        result.append(TF.to_tensor(SHIFTS[kind][0](picture, level, rng)))
    return torch.stack(result)


# ---- measuring ----------------------------------------------------------------------


def view_batches(data: TaskDataset, batch_size: int) -> Iterator[Batch]:
    """Yield batches of labelled views, in order."""
    names = [f"{view.building}/{view.name}" for view in data.views]
    for number, batch in enumerate(Reality("test", data, batch_size)):
        yield names[number * batch_size :][: len(batch["rgb"])], batch


def image_batches(images: ImageFiles, image_size: int, batch_size: int) -> Iterator[Batch]:
    """Yield batches of image files, in order."""
    for batch in images.batches(centre_square(image_size), batch_size, "", quiet=True):
        inputs = torch.stack([tensors[0] for _, tensors in batch])
        yield [str(path) for path, _ in batch], {"rgb": inputs}


def measure_shifts(
    graph: TaskGraph,
    config: str,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str = "fp32",
) -> tuple[list[str], dict[Shift, Table]]:
    """Measure all images, clean and with each shift. Returns their names, and the tables."""
    shifts = [CLEAN, *((kind, level) for kind, (_, levels) in SHIFTS.items() for level in levels)]
    names: list[str] = []
    parts: dict[Shift, list] = {shift: [] for shift in shifts}
    for batch_names, batch in batches:
        for shift in shifts:
            corrupted = batch | {"rgb": shifted(batch["rgb"], shift, len(names))}
            inputs = {task: values.to(device) for task, values in corrupted.items()}
            with forward_only(device, precision):
                parts[shift].append(measure_batch(graph, config, inputs))
        names += batch_names
    if not names:
        return [], {}
    error = ERROR if config == LABELLED else None
    return names, {shift: make_table(joined(losses), error) for shift, losses in parts.items()}


def summary(tables: Mapping[Shift, Table]) -> dict[str, list]:
    """Summarise the tables, with one row for clean and one for each level of each shift.

    The result is {column: values}. "energy" is the mean standardised energy and "energy_se"
    its standard error. "error" is the mean L1 × 100, if there are labels. "auc" is the ROC-AUC
    for distinguishing this level from clean.
    """
    clean = statistics(tables[CLEAN])
    energies = {shift: standardised(t, clean)["normalized_energy"] for shift, t in tables.items()}
    count = len(energies[CLEAN])
    rows: dict[str, list] = {
        "shift": [kind for kind, _ in tables],
        "level": [level for _, level in tables],
        "images": [count for _ in tables],
        "energy": [float(e.mean()) for e in energies.values()],
        "energy_se": [
            float(e.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
            for e in energies.values()
        ],
    }
    if "error" in tables[CLEAN]:
        rows["error"] = [float(100 * table["error"].mean()) for table in tables.values()]
    rows["auc"] = [
        float("nan") if shift == CLEAN else roc_auc(energies[CLEAN], e)
        for shift, e in energies.items()
    ]
    return rows


def per_image(names: Sequence[str], tables: Mapping[Shift, Table]) -> dict[str, list]:
    """Return {column: values} with one row for each image and level."""
    clean = statistics(tables[CLEAN])
    rows: dict[str, list] = {"image": [], "shift": [], "level": []}
    for (kind, level), table in tables.items():
        rows["image"] += names
        rows["shift"] += [kind] * len(names)
        rows["level"] += [level] * len(names)
        columns = {n: table[n] for n in ("energy", "error") if n in table}
        for name, values in (columns | standardised(table, clean)).items():
            rows.setdefault(name, []).extend(values)
    return rows

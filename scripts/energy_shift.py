"""The consistency energy as images move away from the training domain.

python -m scripts.energy_shift --save_dir results/shift
"""

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import functional as TF
from tqdm import tqdm

from datasets import Reality, TaskDataset
from graph import TaskGraph
from scripts.energy_calc import (
    ERROR,
    LABELLED,
    UNLABELLED,
    joined,
    labelled_views,
    spaced,
)
from scripts.energy_plots import plot_shifts
from scripts.energy_statistics import Table, make_table, roc_auc, standardised, statistics
from scripts.images import exit_if, find_images, open_image, read_reporting, square, to_image
from scripts.measuring import (
    choose_device,
    energy_graph,
    forward_only,
    measure_batch,
    settle_measuring,
)
from scripts.precision import check_precision
from scripts.tables import check_folder, write_csv
from utils import UserError, command_line, read_job

CLEAN = ("clean", 0.0)
Shift = tuple[str, float]  # a kind and a level of it
Batch = tuple[list[str], dict[str, Tensor]]  # the images' names; {task: (B, C, S, S)} on the CPU


def main(
    *,
    batch_size: int = 16,
    subset_size: int | None = None,
    save_dir: str | None = None,
    data_dir: str | None = None,
    data_dirs: list | None = None,
    split: str | None = None,
    buildings: list | None = None,
    allow_missing: bool = False,
    models_dir: str | None = None,
    image_size: int | None = None,
    width: int | None = None,
    precision: str = "fp32",
    quiet: bool = False,
) -> None:
    """Measure the consistency energy, and the error, of images that are more and more spoilt.

    Blurred, compressed, noisy and dark versions of each image, at the size the networks
    take; energies are standardised by those of the clean images. Prints, and writes into
    shift.csv, for each level the mean energy, the mean error (labelled views only) and the
    area under the ROC curve of telling spoilt from clean images by their energy. Writes
    shift_images.csv (a row an image and level), shift.pdf and shift.png too.

    Example: python -m scripts.energy_shift --subset_size 64

    Args:
        batch_size: images at a time; results do not depend on it.
        subset_size: measure that many of the views (or images), evenly spaced.
        save_dir: the folder for results (default: results/energy_shift).
        data_dir: an image, or a folder of images, to spoil instead of labelled views.
        data_dirs: folders with labelled data, comma-separated (default: data/ of the job's
            base folder, else the embedded rooms).
        split: a split file, whose test buildings are measured.
        buildings: the buildings to measure (default: as in scripts.energy_calc).
        allow_missing: go on where more than a tenth of the views lack a domain.
        models_dir: the folder of the checkpoints (default: models/ of the job's base folder,
            then the shipped rooms networks).
        image_size: pixels of the images' side (default: what the checkpoints record).
        width: channels of the networks' first level (default: what the checkpoints record).
        precision: fp32, tf32, bf16 or fp16.
        quiet: no progress bar.
    """
    # ---- what was asked for ----
    for flag, value in (("--batch-size", batch_size), ("--subset-size", subset_size)):
        if value is not None and value < 1:
            raise UserError(f"{flag} has to be more than 0, not {value}")
    if data_dir is not None and data_dirs is not None:
        raise UserError("--data-dir names images, --data-dirs labelled data: give one of them")
    check_precision(precision)
    labelled = data_dir is None
    found = find_images(data_dir) if data_dir is not None else None
    job = read_job()
    folder = check_folder(Path(save_dir) if save_dir else job.results_dir / "energy_shift")

    # ---- networks, images ----
    setting = settle_measuring(job, data_dirs, models_dir, image_size, width, labelled, quiet)
    device = choose_device()
    config = LABELLED if labelled else UNLABELLED
    graph = energy_graph(config, setting, device)
    failed: list[Path] = []
    if found is None:
        data = labelled_views(setting, split, buildings, allow_missing, subset_size)
        batches, count = view_batches(data, batch_size), len(data)
    else:
        paths, skipped = found
        for text in skipped:
            print(f"skipped: {text}", file=sys.stderr)
        paths = spaced(paths, subset_size)
        batches = image_batches(paths, setting.scale.image_size, batch_size, failed)
        count = len(paths)

    # ---- measure ----
    bar = tqdm(batches, total=-(-count // batch_size), unit="batch", disable=quiet or None)
    names, tables = measure_shifts(graph, config, bar, device, precision)

    # ---- results ----
    if names:
        rows = summary(tables)
        write_csv(folder / "shift.csv", rows)
        write_csv(folder / "shift_images.csv", per_image(names, tables))
        plot_shifts(folder / "shift", rows, f"{len(names)} images")
        print(as_text(rows))
        print(f"{len(names)} images → {folder}: shift.csv, shift_images.csv, shift.pdf, shift.png")
    exit_if(failed)


# ---- the shifts ---------------------------------------------------------------------
#
# Each takes an 8-bit RGB image, a level and a random generator of the image's own, and
# gives an image of the same size.


def blurred(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur, σ = `level` pixels."""
    return image.filter(ImageFilter.GaussianBlur(level))


def compressed(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """Through JPEG of quality `level`."""
    file = io.BytesIO()
    image.save(file, format="jpeg", quality=int(level))
    return Image.open(file).convert("RGB")


def noisy(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise, σ = `level` of the full range."""
    pixels = np.asarray(image) + 255 * level * rng.standard_normal((*image.size[::-1], 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def darkened(image: Image.Image, level: float, rng: np.random.Generator) -> Image.Image:
    """All values times `level`."""
    return image.point(lambda value: value * level)


SHIFTS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "blur (σ)": (blurred, (1, 2, 4)),
    "JPEG (quality)": (compressed, (95, 50, 20, 8)),
    "noise (σ)": (noisy, (0.05, 0.1, 0.2)),
    "darkening (factor)": (darkened, (0.6, 0.35, 0.15)),
}


def shifted(images: Tensor, shift: Shift, first: int) -> Tensor:
    """The images (B, 3, S, S) in [0, 1], each spoilt. `first` is the number of the first.

    An image's noise follows from its number, so that no batch size changes it.
    """
    if shift == CLEAN:
        return images
    kind, level = shift
    result = []
    for number, image in enumerate(images, start=first):
        rng = np.random.default_rng(number)
        # the values are 8-bit ones over 255; half a step keeps truncation from losing one
        picture = to_image(image + 0.5 / 255)
        result.append(TF.to_tensor(SHIFTS[kind][0](picture, level, rng)))
    return torch.stack(result)


# ---- measuring ----------------------------------------------------------------------


def view_batches(data: TaskDataset, batch_size: int) -> Iterator[Batch]:
    """Labelled views in order."""
    names = [f"{view.building}/{view.name}" for view in data.views]
    for number, batch in enumerate(Reality("test", data, batch_size)):
        yield names[number * batch_size :][: len(batch["rgb"])], batch


def image_batches(
    paths: Sequence[Path], image_size: int, batch_size: int, failed: list[Path]
) -> Iterator[Batch]:
    """Image files in order; what cannot be read is reported, and added to `failed`."""

    def read(path: Path) -> tuple[Tensor, ...]:
        return (square(open_image(path), image_size),)

    for batch in read_reporting(paths, read, batch_size, "", True, failed):
        images = torch.stack([tensors[0] for _, tensors in batch])
        yield [str(path) for path, _ in batch], {"rgb": images}


def measure_shifts(
    graph: TaskGraph,
    config: str,
    batches: Iterable[Batch],
    device: torch.device,
    precision: str = "fp32",
) -> tuple[list[str], dict[Shift, Table]]:
    """The images' names, and the table of all of them for clean and each shift."""
    wanted = [CLEAN, *((kind, level) for kind, (_, levels) in SHIFTS.items() for level in levels)]
    names: list[str] = []
    parts: dict[Shift, list] = {shift: [] for shift in wanted}
    for some, batch in batches:
        for shift in wanted:
            spoilt = batch | {"rgb": shifted(batch["rgb"], shift, len(names))}
            moved = {task: values.to(device) for task, values in spoilt.items()}
            with forward_only(device, precision):
                parts[shift].append(measure_batch(graph, config, moved))
        names += some
    if not names:
        return [], {}
    error = ERROR if config == LABELLED else None
    return names, {shift: make_table(joined(found), error) for shift, found in parts.items()}


def summary(tables: Mapping[Shift, Table]) -> dict[str, list]:
    """A row for clean and for each level, as columns: shift, level, images, energy, … , auc.

    "energy" is the mean standardised energy, "energy_se" its standard error, "error" the
    mean L1 × 100 where there are labels, "auc" that of telling this level from clean.
    """
    by = statistics(tables[CLEAN])
    energies = {shift: standardised(t, by)["normalized_energy"] for shift, t in tables.items()}
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
    """A row for each image and level."""
    by = statistics(tables[CLEAN])
    rows: dict[str, list] = {"image": [], "shift": [], "level": []}
    for (kind, level), table in tables.items():
        rows["image"] += names
        rows["shift"] += [kind] * len(names)
        rows["level"] += [level] * len(names)
        columns = {n: table[n] for n in ("energy", "error") if n in table}
        for name, values in (columns | standardised(table, by)).items():
            rows.setdefault(name, []).extend(values)
    return rows


def as_text(rows: Mapping[str, list]) -> str:
    """The summary to print."""
    head = f"{'shift':<20}{'level':>7}{'energy':>10}{'± se':>8}"
    head += f"{'error × 100':>13}" * ("error" in rows) + f"{'ROC-AUC':>10}"
    lines = [head, "-" * len(head)]
    for i, kind in enumerate(rows["shift"]):
        line = f"{kind:<20}{rows['level'][i]:>7g}{rows['energy'][i]:>+10.3f}"
        line += f"{rows['energy_se'][i]:>8.3f}"
        line += f"{rows['error'][i]:>13.3f}" if "error" in rows else ""
        lines.append(line + (f"{rows['auc'][i]:>10.3f}" if i else f"{'':>10}"))
    return "\n".join(lines)


if __name__ == "__main__":
    command_line(main)

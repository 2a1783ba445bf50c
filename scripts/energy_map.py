"""Where in an image the paths disagree: the consistency energy of each pixel.

python -m scripts.energy_map --img_path assets/room.png --output_path results/energy_map
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from energy import ENERGY_DOMAINS, energy_configs, paths_for
from logger import montage
from scripts.energy_calc import UNLABELLED, read_statistics
from scripts.images import (
    exit_if,
    find_images,
    open_image,
    read_reporting,
    square,
    unique_names,
    write_png,
)
from scripts.measuring import (
    choose_device,
    energy_graph,
    forward_only,
    settle_measuring,
)
from scripts.precision import check_precision
from scripts.tables import check_folder
from task_configs import TASKS
from transfers import FULL_SIZE
from utils import UserError, command_line, read_job

LOSSES = [f"percep__{domain}" for domain in ENERGY_DOMAINS]  # straight against via the domain
DIRECT = "n((x))"
WHITE = 0.99  # this quantile of an image's pixels, and all above it, is white


def main(
    *,
    img_path: str | None = None,
    output_path: str | None = None,
    per_path: bool = False,
    white: float | None = None,
    statistics: str | None = None,
    models_dir: str | None = None,
    image_size: int | None = None,
    width: int | None = None,
    batch_size: int | None = None,
    precision: str = "fp32",
    quiet: bool = False,
) -> None:
    """Draw the consistency energy of each pixel beside the predicted normals: white = distrust.

    A pixel's energy is the mean, over the domains, of how far normals predicted straight
    from the image are from those predicted through the domain. Writes {name}_energy.png.
    Exit status as of demo.py.

    Example: python -m scripts.energy_map --img_path assets/room.png

    Args:
        img_path: an image, or a folder of images; what is no image is skipped.
        output_path: the folder for the results (default: results/energy_map).
        per_path: draw the disagreement through each domain too.
        white: the energy that is drawn white, so that pictures compare (default: the 99 %
            quantile of each image's own, which is printed).
        statistics: the save_dir of a labelled run of scripts.energy_calc: each domain's
            disagreement is standardised by it before the mean, as the energy of images is.
        models_dir: the folder of the checkpoints (default: models/ of the job's base folder,
            then the shipped rooms networks).
        image_size: pixels of the images' side (default: what the checkpoints record).
        width: channels of the networks' first level (default: what the checkpoints record).
        batch_size: images at a time (default: 16 on a GPU, else 2); results do not depend on it.
        precision: fp32, tf32, bf16 or fp16.
        quiet: no progress bar.
    """
    # ---- what was asked for ----
    if img_path is None:
        raise UserError("--img_path names an image, or a folder of images")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size has to be more than 0, not {batch_size}")
    if white is not None and white <= 0:
        raise UserError(f"--white has to be more than 0, not {white}")
    check_precision(precision)
    by = read_statistics(Path(statistics)) if statistics else None
    paths, skipped = find_images(img_path)
    for text in skipped:
        print(f"skipped: {text}", file=sys.stderr)
    job = read_job()
    folder = check_folder(Path(output_path) if output_path else job.results_dir / "energy_map")

    # ---- networks ----
    setting = settle_measuring(job, None, models_dir, image_size, width, labelled=False)
    device = choose_device()
    graph = energy_graph(UNLABELLED, setting, device, LOSSES)
    needed = paths_for(energy_configs[UNLABELLED], LOSSES)

    # ---- images, in batches ----
    inputs = {path.resolve() for path in paths}
    stems = unique_names(paths, lambda n: (folder / f"{n}_energy.png").resolve() in inputs)
    names = dict(zip(paths, stems, strict=True))
    failed: list[Path] = []

    def read(path: Path) -> tuple[Tensor, ...]:
        image = open_image(path)
        return square(image, setting.scale.image_size), square(image, FULL_SIZE)

    batch_size = batch_size or (16 if device.type == "cuda" else 2)
    for batch in read_reporting(paths, read, batch_size, "energy", quiet, failed):
        images = torch.stack([tensors[0] for _, tensors in batch]).to(device)
        with forward_only(device, precision):
            values = graph.sample(needed, {"rgb": images})
            values = {name: value.float() for name, value in values.items()}
            parts = {domain: m.cpu() for domain, m in disagreements(values).items()}
            energies = pixel_energy(parts, by)
        for i, (path, (_, shown)) in enumerate(batch):
            low, high = limits(energies[i], white, standardise=by is not None)
            columns = {"input": shown, "normal": values[DIRECT][i].cpu()}
            columns["energy"] = shaded(energies[i], low, high)
            if per_path:
                columns |= {name: shaded(m[i], 0, _top(m[i], white)) for name, m in parts.items()}
            write_png(drawn(columns), folder / f"{names[path]}_energy.png")
            name = path.name.encode(errors="backslashreplace").decode()
            tqdm.write(f"{name}: mean {energies[i].mean():.4f}, white from {high:.4f}")

    # ---- what came of it ----
    print(f"{len(paths) - len(failed)} of {len(paths)} images → {folder}")
    exit_if(failed)


def disagreements(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|straight − via the domain| of each pixel, the mean of channels: {domain: (B, 1, H, W)}.

    Zero where the path through the domain has no valid normal, as in the loss; the mean
    over the pixels is the image's loss "percep__{domain}".
    """
    direct = values[DIRECT]
    result = {}
    for domain in ENERGY_DOMAINS:
        through = values[f"n({domain}(x))"]
        difference = (direct - through).abs() * TASKS["normal"].mask(through)
        result[domain] = difference.mean(dim=1, keepdim=True)
    return result


def pixel_energy(parts: Mapping[str, Tensor], by: Mapping | None = None) -> Tensor:
    """The mean over domains of the disagreements: (B, 1, H, W).

    `by`, the statistics of a labelled run, standardises each first: (d − mean) / mean
    absolute deviation, both of images.
    """
    if by is None:
        return torch.stack(list(parts.values())).mean(dim=0)
    known = {domain: by["columns"][f"percep__{domain}"] for domain in parts}
    terms = [(m - known[d]["mean"]) / known[d]["deviation"] for d, m in parts.items()]
    return torch.stack(terms).mean(dim=0)


def limits(energy: Tensor, white: float | None, standardise: bool) -> tuple[float, float]:
    """The energies drawn black and white, of one image's (1, H, W)."""
    low = float(energy.quantile(1 - WHITE)) if standardise else 0.0
    return low, max(_top(energy, white), low + 1e-6)


def _top(energy: Tensor, white: float | None) -> float:
    return max(float(energy.quantile(WHITE)), 1e-6) if white is None else white


def shaded(energy: Tensor, low: float, high: float) -> Tensor:
    """Energies as grey values in [0, 1], white from `high` on."""
    return ((energy - low) / (high - low)).clamp(0, 1)


def drawn(columns: Mapping[str, Tensor]) -> Image.Image:
    """The columns (C, H, W), whatever their sizes, as one labelled picture."""
    return montage({name: values[None] for name, values in columns.items()}, FULL_SIZE)


if __name__ == "__main__":
    command_line(main)

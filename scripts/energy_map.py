"""The consistency energy of each pixel: maps of where the paths disagree.

python -m scripts.energy_map --img_path assets/room.png --output_path results/energy_map
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from devices import choose_device, default_forward_batch
from energy import get_config, paths_for
from files import make_folder
from graph import TaskGraph
from loading.photographs import open_image, square
from measuring.consistency_energy import UNLABELLED, energy_graph, read_statistics
from measuring.energy_maps import (
    STRAIGHT,
    STRAIGHT_LOSSES,
    disagreements,
    drawn,
    limits,
    pixel_energy,
    shaded,
    top_of,
)
from measuring.image_files import ImageFiles
from measuring.options import NetworkOptions
from pictures import write_png
from precision import check_precision, forward_only
from sources import settle_measuring
from transfers import FULL_SIZE
from utils import check_positive, command_line, folding_flags, read_job


@folding_flags
def main(
    *,
    img_path: str | None = None,
    output_path: str | None = None,
    per_path: bool = False,
    white: float | None = None,
    statistics: str | None = None,
    networks: NetworkOptions,
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
            quantile of each image's own, printed).
        statistics: the save_dir of a labelled run of scripts.energy_calc: each domain's
            disagreement is standardised by it before the mean, as the energy of images is.
    """
    images = ImageFiles(img_path)
    check_positive(batch_size=networks.batch_size, white=white)
    check_precision(networks.precision)
    reference = read_statistics(Path(statistics)) if statistics else None
    folder = make_folder(Path(output_path or read_job().results_dir / "energy_map"))
    sources = settle_measuring(
        read_job(), None, networks.models_dir, networks.scale, labelled=False
    )
    device = choose_device()
    graph = energy_graph(UNLABELLED, sources, device, STRAIGHT_LOSSES)

    def read(path: Path) -> tuple[Tensor, ...]:
        image = open_image(path)
        return square(image, sources.scale.image_size), square(image, FULL_SIZE)

    names = images.result_names(folder, ["_energy.png"])
    batch_size = networks.batch_size or default_forward_batch(device)
    for batch in images.batches(read, batch_size, "energy", networks.quiet):
        inputs = torch.stack([tensors[0] for _, tensors in batch]).to(device)
        with forward_only(device, networks.precision):
            normals, parts = predict(graph, inputs)
            energies = pixel_energy(parts, reference)
        for i, (path, (_, display)) in enumerate(batch):
            low, high = limits(energies[i], white, standardise=reference is not None)
            energy = shaded(energies[i], low, high)
            columns = {"input": display, "normal": normals[i], "energy": energy}
            if per_path:
                columns |= {d: shaded(m[i], 0, top_of(m[i], white)) for d, m in parts.items()}
            write_png(drawn(columns), folder / f"{names[path]}_energy.png")
            tqdm.write(
                f"{printable(path.name)}: mean {energies[i].mean():.4f}, white from {high:.4f}"
            )
    if status := images.summary(folder):
        sys.exit(status)


def printable(name: str) -> str:
    """Return the name of a file with its undecodable bytes escaped."""
    return name.encode(errors="backslashreplace").decode()


def predict(graph: TaskGraph, images: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Predict normals directly from the images, and the disagreement with each domain's path.

    Returns normals (B, 3, H, W) and {domain: (B, 1, H, W)}, on the CPU.
    """
    values = graph.sample(paths_for(get_config(UNLABELLED), STRAIGHT_LOSSES), {"rgb": images})
    values = {name: value.float() for name, value in values.items()}
    parts = {domain: part.cpu() for domain, part in disagreements(values).items()}
    return values[STRAIGHT].cpu(), parts


if __name__ == "__main__":
    command_line(main)

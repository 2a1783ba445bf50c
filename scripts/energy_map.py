"""The consistency energy of each pixel: maps of where the paths disagree.

python -m scripts.energy_map --img-path assets/room.png --output-dir results/energy_map
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from devices import choose_device, default_forward_batch
from files import make_folder
from flags import also_called, command_line, folding_flags
from graph import TaskGraph
from loading.photographs import open_image, square
from measuring.consistency_energy import check_networks, read_statistics
from measuring.energy_maps import (
    STRAIGHT,
    Maps,
    common_limits,
    disagreements,
    drawn,
    map_graph,
    pixel_energy,
    shown_networks,
    straight_values,
)
from measuring.given_networks import files_of, given_networks, modules_of
from measuring.image_files import ImageFiles
from measuring.options import GivenOptions, NetworkOptions
from pictures import write_png
from precision import check_precision, forward_only
from sources import Sources, settle_measuring
from transfers import FULL_SIZE
from utils import check_positive, evenly_spaced, read_job

SAMPLE = 64  # images, at most, that set the common scale


@also_called(output_path="output_dir")
@folding_flags
def main(
    *,
    img_path: str | None = None,
    output_dir: str | None = None,
    per_path: bool = False,
    white: float | None = None,
    statistics: str | None = None,
    given: GivenOptions,
    networks: NetworkOptions,
) -> None:
    """Draw the consistency energy of each pixel, and lay it over the image: bright = distrust.

    A pixel's energy is the mean, over the domains, of how far normals predicted straight
    from the image are from those predicted through the domain. Writes {name}_energy.png, all
    in the same colours. The exit status is as for demo.py.

    The networks that predict normals, depth and reshading are those that demo.py shows; the
    paths go on from their predictions. Where `image_size`, `width`, `levels` or `statistics`
    are given, all networks are those of scripts.energy_calc instead, except those in `checkpoint`.

    Example: python -m scripts.energy_map --img-path assets/room.png

    Args:
        img_path: an image, or a folder of images; other files are skipped.
        output_dir: the folder for the results (default: results/energy_map).
        per_path: draw the disagreement through each domain too.
        white: the energy at the bright end of the scale, so that the pictures of several
            calls can be compared (default: the 99 % quantile of this call's images, of 64
            where there are more; printed).
        statistics: the output_dir of a labelled run of scripts.energy_calc: each domain's
            disagreement is standardised by it before the mean, as the energy of images is.
    """
    images = ImageFiles(img_path)
    check_positive(batch_size=networks.batch_size, white=white)
    check_precision(networks.precision)
    reference = read_statistics(Path(statistics)) if statistics else None
    folder = make_folder(Path(output_dir or read_job().results_dir / "energy_map"))
    sources = settle_measuring(
        read_job(), None, networks.models_dir, networks.scale, labelled=False
    )
    graph, size = graph_of(sources, given, networks, statistics, reference)
    measured = partial(measure, graph, size, images, networks, per_path, reference)
    write_maps(images, measured, folder, white, per_path, reference is not None)
    if status := images.summary(folder):
        sys.exit(status)


def graph_of(
    sources: Sources,
    given: GivenOptions,
    networks: NetworkOptions,
    statistics: str | None,
    reference: Mapping | None,
) -> tuple[TaskGraph, int]:
    """Return the graph of the networks that the flags ask for, and the size of its images.

    `reference` are the statistics of the labelled run in the folder `statistics`.
    """
    device = choose_device()
    if reference is None and not any(networks.scale):
        shown = shown_networks(networks.models_dir, given.checkpoint, device, given.network)
        return map_graph(sources, shown, device)
    named = given_networks(sources, given.checkpoint, given.network, device)
    if reference is not None:
        check_networks(reference, sources, Path(str(statistics)), files_of(named))
    return map_graph(sources, {}, device, modules_of(named))


def write_maps(
    images: ImageFiles,
    measured: Callable[[Sequence[Path]], Iterator[tuple[Path, Maps]]],
    folder: Path,
    white: float | None,
    per_path: bool,
    standardised: bool,
) -> None:
    """Write {name}_energy.png for each image. At most `SAMPLE` of them set the common scale."""
    names = images.result_names(folder, ["_energy.png"])
    sample = evenly_spaced(images.paths, SAMPLE)
    others = [path for path in images.paths if path not in set(sample)]
    kept = dict(measured(sample))
    if not kept:
        kept, others = dict(measured(others)), []
    if not kept:
        return
    limits = common_limits([maps.energy for maps in kept.values()], white, standardised)
    parts = [part for maps in kept.values() for part in maps.parts.values()]
    part_limits = common_limits(parts, white, standardised=False) if per_path else None
    print(f"scale: {limits[0]:.4f} … {limits[1]:.4f}, the same in all pictures")
    unit = "mean deviations" if standardised else ""
    for path, maps in chain(kept.items(), measured(others)):
        write_png(drawn(maps, limits, part_limits, unit), folder / f"{names[path]}_energy.png")
        tqdm.write(f"{printable(path.name)}: mean {maps.energy.mean():.4f}")


def measure(
    graph: TaskGraph,
    size: int,
    images: ImageFiles,
    networks: NetworkOptions,
    per_path: bool,
    reference: Mapping | None,
    paths: Sequence[Path],
) -> Iterator[tuple[Path, Maps]]:
    """Yield the energies of some of the images, with those of each path if `per_path`."""

    def read(path: Path) -> tuple[Tensor, ...]:
        image = open_image(path)
        return square(image, size), square(image, FULL_SIZE)

    device = next(graph.parameters()).device
    batch_size = networks.batch_size or default_forward_batch(device)
    for batch in images.batches(read, batch_size, "energy", networks.quiet, paths):
        inputs = torch.stack([tensors[0] for _, tensors in batch]).to(device)
        with forward_only(device, networks.precision):
            normals, parts = predict(graph, inputs)
            energies = pixel_energy(parts, reference)
        for i, (path, (_, display)) in enumerate(batch):
            own = {domain: part[i].clone() for domain, part in parts.items() if per_path}
            yield path, Maps(display, normals[i].clone(), energies[i].clone(), own)


def printable(name: str) -> str:
    """Return the name of a file with its undecodable bytes escaped."""
    return name.encode(errors="backslashreplace").decode()


def predict(graph: TaskGraph, images: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Predict normals directly from the images, and the disagreement with each domain's path.

    Returns normals (B, 3, H, W) and {domain: (B, 1, H, W)}, on the CPU.
    """
    values = straight_values(graph, images)
    parts = {domain: part.cpu() for domain, part in disagreements(values).items()}
    return values[STRAIGHT].cpu(), parts


if __name__ == "__main__":
    command_line(main)

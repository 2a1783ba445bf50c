"""The consistency energy under domain shift, i.e. of images with increasing corruption.

python -m scripts.energy_shift --output-dir results/shift
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from degradations import Shift
from devices import choose_device
from files import make_folder
from flags import also_called, command_line, folding_flags
from measuring.consistency_energy import LABELLED, UNLABELLED, energy_graph, labelled_views
from measuring.given_networks import given_networks, modules_of
from measuring.image_files import ImageFiles
from measuring.options import GivenOptions, LabelledOptions, NetworkOptions, check_unused
from measuring.plots import plot_shifts
from measuring.shifts import (
    image_batches,
    measure_shifts,
    per_image,
    summary,
    view_batches,
)
from measuring.statistics import Table
from precision import check_precision
from sources import settle_measuring
from tables import text_table, write_csv
from utils import check_positive, read_job


@also_called(save_dir="output_dir", data_dir="img_path")
@folding_flags
def main(
    *,
    output_dir: str | None = None,
    img_path: str | None = None,
    subset_size: int | None = None,
    labelled: LabelledOptions,
    given: GivenOptions,
    networks: NetworkOptions,
) -> None:
    """Measure the consistency energy, and the error, of increasingly degraded images.

    These are blurred, compressed, noisy and dark versions of each image, at the size that the
    networks take; energies are standardised by those of the clean images. Prints, and writes
    into shift.csv, for each level the mean energy, the mean error (labelled views only) and the
    area under the ROC curve for telling degraded from clean images by their energy. Writes
    shift_images.csv (a row per image and level), shift.pdf and shift.png too.

    Example: python -m scripts.energy_shift --subset_size 64

    Args:
        output_dir: the folder for results (default: results/energy_shift).
        img_path: an image, or a folder of images, to degrade instead of labelled views.
        subset_size: measure that many of the views (or images), evenly spaced.
    """
    check_positive(batch_size=networks.batch_size, subset_size=subset_size)
    if img_path is not None:
        check_unused("`img_path`", labelled)
    labelled.prepare()
    check_precision(networks.precision)
    images = ImageFiles(img_path) if img_path is not None else None
    job = read_job()
    folder = make_folder(Path(output_dir) if output_dir else job.results_dir / "energy_shift")

    # ---- networks, images ----
    sources = settle_measuring(
        job, labelled.data_dirs, networks.models_dir, networks.scale, images is None, networks.quiet
    )
    device, batch_size = choose_device(), networks.batch_size or 16
    config = LABELLED if images is None else UNLABELLED
    named = given_networks(sources, given.checkpoint, given.network, device)
    graph = energy_graph(config, sources, device, given=modules_of(named))
    if images is None:
        data = labelled_views(
            sources, labelled.split, labelled.buildings, labelled.allow_missing, subset_size
        )
        batches, count = view_batches(data, batch_size), len(data)
    else:
        images.keep(subset_size)
        batches = image_batches(images, sources.scale.image_size, batch_size)
        count = len(images.paths)

    # ---- measure ----
    bar = tqdm(batches, total=-(-count // batch_size), unit="batch", disable=networks.quiet or None)
    names, tables = measure_shifts(graph, config, bar, device, networks.precision)

    # ---- results ----
    if names:
        report(folder, names, tables)
    if images is not None and (status := images.summary(folder)):
        sys.exit(status)


def report(folder: Path, names: Sequence[str], tables: Mapping[Shift, Table]) -> None:
    """Write the tables and the plot; print the summary."""
    rows = summary(tables)
    write_csv(folder / "shift.csv", rows)
    write_csv(folder / "shift_images.csv", per_image(names, tables))
    plot_shifts(folder / "shift", rows, f"{len(names)} images")
    print(as_text(rows))
    print(f"{len(names)} images → {folder}: shift.csv, shift_images.csv, shift.pdf, shift.png")


def as_text(rows: Mapping[str, list]) -> str:
    """Format the summary for printing."""
    errors = rows.get("error")
    head = ["shift", "level", "energy", "± se", *(["error × 100"] if errors else []), "ROC-AUC"]
    cells = []
    for i, kind in enumerate(rows["shift"]):
        error = [f"{errors[i]:.3f}"] if errors else []
        auc = f"{rows['auc'][i]:.3f}" if i else ""
        cells.append([kind, f"{rows['level'][i]:g}", f"{rows['energy'][i]:+.3f}",
                      f"{rows['energy_se'][i]:.3f}", *error, auc])  # fmt: skip
    return text_table(head, cells)


if __name__ == "__main__":
    command_line(main)

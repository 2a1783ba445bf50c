"""The consistency energy of images, and its correlation with the error of labelled views.

python -m scripts.energy_calc energy_calc --output-dir results/energy
python -m scripts.energy_calc energy_calc_nogt --img-path photos --output-dir results/energy
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets import Reality, check_loading
from devices import choose_device
from files import make_folder, write_json
from flags import also_called, command_line, folding_flags
from loading.layouts import View
from measuring.consistency_energy import (
    LABELLED,
    UNLABELLED,
    check_networks,
    energy_graph,
    labelled_views,
    measure_images,
    measure_views,
    network_digests,
    read_reference,
)
from measuring.given_networks import files_of, given_networks, modules_of
from measuring.image_files import ImageFiles
from measuring.options import GivenOptions, LabelledOptions, NetworkOptions, check_unused
from measuring.plots import plot_energy
from measuring.statistics import (
    Correlation,
    Table,
    over_buildings,
    pearson,
    spearman,
    standardised,
)
from measuring.statistics import statistics as statistics_of
from precision import check_precision
from sources import settle_measuring
from tables import write_csv
from utils import UserError, check_one_of, check_positive, log, read_job


@also_called(save_dir="output_dir", data_dir="img_path")
@folding_flags
def main(
    config: str | None = None,
    *,
    output_dir: str | None = None,
    img_path: str | None = None,
    subset_size: int | None = None,
    num_workers: int = 0,
    labelled: LabelledOptions,
    given: GivenOptions,
    networks: NetworkOptions,
) -> None:
    """Measure the consistency energy: how much the paths from an image to normals disagree.

    energy_calc measures labelled views, writes data.csv (a row per view), energy.pdf and .png
    (error over energy) and statistics.json, and prints their correlation.
    energy_calc_nogt --img-path DIR measures any images with those statistics, which it reads
    from the same --output-dir, and writes energy_query.csv, .pdf and .png.

    Example: python -m scripts.energy_calc energy_calc --output-dir results/energy

    Args:
        config: energy_calc (the default) or energy_calc_nogt.
        output_dir: the folder for results (default: results/energy).
        img_path: energy_calc_nogt: an image, or a folder of images.
        subset_size: measure that many of the views (or images), evenly spaced.
        num_workers: processes that load labelled views.
    """
    if config is None:
        print(
            f"{LABELLED} measures labelled views, {UNLABELLED} --img-path DIR any images "
            f"(--help says more). Running {LABELLED} on the data that are there."
        )
        config = LABELLED
    check_one_of("config", config, (LABELLED, UNLABELLED))
    check_precision(networks.precision)
    check_positive(batch_size=networks.batch_size, subset_size=subset_size)
    check_loading(num_workers)
    folder = Path(output_dir) if output_dir else read_job().results_dir / "energy"
    if config == UNLABELLED:
        if img_path is None:
            raise UserError(f"{UNLABELLED} needs `img_path`: an image, or a folder of images")
        check_unused(UNLABELLED, labelled, num_workers=num_workers)
        if status := measure_queries(folder, img_path, subset_size, given, networks):
            sys.exit(status)
        return
    if img_path is not None:
        raise UserError(f"`img_path` is for {UNLABELLED}; labelled data are named by `data_dirs`")
    measure_labelled(folder, subset_size, num_workers, labelled, given, networks)


def measure_labelled(
    folder: Path,
    subset_size: int | None,
    num_workers: int,
    labelled: LabelledOptions,
    given: GivenOptions,
    networks: NetworkOptions,
) -> None:
    """Measure labelled views, and write their results into `folder`."""
    labelled.prepare()
    make_folder(folder)
    sources = settle_measuring(
        read_job(), labelled.data_dirs, networks.models_dir, networks.scale, quiet=networks.quiet
    )
    device = choose_device()
    named = given_networks(sources, given.checkpoint, given.network, device)
    graph = energy_graph(LABELLED, sources, device, given=modules_of(named))
    data = labelled_views(
        sources, labelled.split, labelled.buildings, labelled.allow_missing, subset_size
    )
    reality = Reality("test", data, networks.batch_size or 16, device, num_workers)
    table = measure_views(graph, reality, networks.precision, networks.quiet)
    digests = network_digests(LABELLED, sources, files_of(named))
    made_by = sources.scale.record() | {"networks": digests}
    report_labelled(folder, data.views, table, made_by)


def measure_queries(
    folder: Path,
    img_path: str,
    subset_size: int | None,
    given: GivenOptions,
    networks: NetworkOptions,
) -> int:
    """Measure any images, standardised by the labelled run in `folder`.

    Returns the exit status.
    """
    reference = read_reference(folder)
    images = ImageFiles(img_path)
    images.keep(subset_size)
    sources = settle_measuring(
        read_job(), None, networks.models_dir, networks.scale, labelled=False
    )
    device = choose_device()
    named = given_networks(sources, given.checkpoint, given.network, device)
    check_networks(reference[0], sources, folder, files_of(named))
    graph = energy_graph(UNLABELLED, sources, device, given=modules_of(named))
    good, table = measure_images(
        graph, images, sources.scale.image_size, networks.batch_size or 16,
        networks.precision, networks.quiet,
    )  # fmt: skip
    if good:
        report_queries(folder, good, table, reference)
    return images.summary(folder)


# ---- results ------------------------------------------------------------------------


def report_labelled(
    folder: Path, views: Sequence[View], table: Table, made_by: Mapping[str, object]
) -> None:
    """Write data.csv, statistics.json and the plot of a labelled run. Print the correlations.

    `made_by` is what statistics.json records about the networks.
    """
    statistics = statistics_of(table)
    z = standardised(table, statistics)
    x, y = z["normalized_energy"], z["normalized_error"]
    for name, values in statistics["columns"].items():
        if values["deviation"] == 0:
            log.warning("%s is the same for all views: no standardised energy", name)
    r, rho = pearson(x, y), spearman(x, y)
    labels = {"building": [v.building for v in views], "view": [v.name for v in views]}
    write_csv(folder / "data.csv", {**labels, **table, **z})
    record = {"config": LABELLED, "views": len(views), **made_by, **statistics}
    record |= {"pearson": r._asdict(), "spearman": rho._asdict()}
    record["over_buildings"] = resampled = over_buildings(x, y, labels["building"])
    record["energies"] = sorted(x[np.isfinite(x)].tolist())
    write_json(folder / "statistics.json", record)
    plot_energy(folder / "energy", x, y, _title(r, rho, len(views)))
    print(f"pairwise disagreement × 100: {100 * table['energy'].mean():.3f}")
    print(f"L1 error of normals × 100:   {100 * table['error'].mean():.3f}")
    print("Correlation of the standardised energy with the error, over views:")
    print(f"Pearson  r = {_with_interval(r)} (interval: Fisher's z)")
    print(f"Spearman ρ = {_with_interval(rho)} (interval: Fisher's z, variance (1 + ρ²/2)/(n − 3))")
    if resampled["buildings"] > 1:
        low_high = "r in [{:+.3f}, {:+.3f}], ρ in [{:+.3f}, {:+.3f}]"
        text = low_high.format(*resampled["pearson"], *resampled["spearman"])
        print(f"Resampling the {resampled['buildings']} buildings, not single views: {text}")
    print(f"{len(views)} views → {folder}: data.csv, statistics.json, energy.pdf, energy.png")


def report_queries(folder: Path, paths: Sequence[Path], table: Table, reference: tuple) -> None:
    """Write energy_query.csv and the plot. Print each image's energy and its rank.

    The rank is the share of the labelled views with less energy.
    """
    statistics, labelled = reference
    z = standardised(table, statistics)
    write_csv(folder / "energy_query.csv", {"image": [str(p) for p in paths], **table, **z})
    x, y = labelled["normalized_energy"], labelled["normalized_error"]
    energies = z["normalized_energy"]
    queries = {str(p): e for p, e in zip(paths, energies, strict=True)}
    r, rho = pearson(x, y), spearman(x, y)
    plot_energy(folder / "energy_query", x, y, _title(r, rho, len(x)), queries)
    print("standardised energy, and how many of the labelled views have less:")
    for path, energy in queries.items():
        name = Path(path).name.encode(errors="backslashreplace").decode()
        print(f"{energy:+8.3f}  {(x < energy).mean():4.0%}  {name}")
    print(f"written: {folder / 'energy_query.csv'}, .pdf, .png")


def _with_interval(c: Correlation) -> str:
    return f"{c.value:+.3f}, 95 % in [{c.low:+.3f}, {c.high:+.3f}], p = {c.p:.2g}"


def _title(r: Correlation, rho: Correlation, count: int) -> str:
    return f"Pearson r = {r.value:.3f}, Spearman ρ = {rho.value:.3f}, {count} views"


if __name__ == "__main__":
    command_line(main)

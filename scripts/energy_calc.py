"""The consistency energy of images, and how well it tells the error that labels show.

python -m scripts.energy_calc energy_calc --save_dir results/energy
python -m scripts.energy_calc energy_calc_nogt --data-dir photos --save_dir results/energy
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets import Reality, TaskDataset
from energy import ENERGY_DOMAINS, energy_configs
from graph import TaskGraph
from scripts.energy_plots import plot_energy
from scripts.energy_statistics import (
    Correlation,
    Table,
    make_table,
    pearson,
    spearman,
    standardised,
    statistics,
)
from scripts.images import exit_if, find_images, open_image, read_reporting, square
from scripts.measuring import (
    choose_device,
    energy_graph,
    forward_only,
    measure_batch,
    settle_measuring,
)
from scripts.precision import check_precision
from scripts.setting import Setting, one_of
from scripts.tables import check_folder, read_table, write_csv, write_json
from scripts.views import View, find_buildings, find_views, split_buildings
from task_configs import get_task
from utils import UserError, command_line, read_job

LABELLED, UNLABELLED = "energy_calc", "energy_calc_nogt"
PUBLISHED_BUILDINGS = ("almena", "albertville")
ERROR = "direct_normal"  # the loss against the truth


def main(
    config: str | None = None,
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
    num_workers: int = 0,
    quiet: bool = False,
) -> None:
    """Measure the consistency energy: how much the paths from an image to normals disagree.

    energy_calc measures labelled views, writes data.csv (a row a view), energy.pdf and .png
    (error over energy) and statistics.json, and prints their correlation.
    energy_calc_nogt --data-dir DIR measures any images by those statistics, which it reads
    from the same --save_dir, and writes energy_query.csv, .pdf and .png.

    Example: python -m scripts.energy_calc energy_calc --save_dir results/energy

    Args:
        config: energy_calc (the default) or energy_calc_nogt.
        batch_size: images at a time; results do not depend on it.
        subset_size: measure that many of the views (or images), evenly spaced.
        save_dir: the folder for results (default: results/energy).
        data_dir: energy_calc_nogt: an image, or a folder of images.
        data_dirs: energy_calc: folders with labelled data, comma-separated (default: data/ of
            the job's base folder, else the embedded rooms).
        split: a split file, whose test buildings are measured.
        buildings: the buildings to measure, comma-separated (default: the published almena and
            albertville where they are at hand, else the test buildings).
        allow_missing: go on where more than a tenth of the views lack a domain.
        models_dir: the folder of the checkpoints (default: models/ of the job's base folder,
            then the shipped rooms networks).
        image_size: pixels of the images' side (default: what the checkpoints record).
        width: channels of the networks' first level (default: what the checkpoints record).
        precision: fp32, tf32, bf16 or fp16.
        num_workers: processes that load labelled views.
        quiet: no progress bar.
    """
    # ---- what was asked for ----
    if config is None:
        print(
            f"{LABELLED} measures labelled views, {UNLABELLED} --data-dir DIR any images "
            f"(--help says more). Now: {LABELLED}, on what is there."
        )
        config = LABELLED
    one_of("the configuration", config, tuple(n for n in energy_configs if n.startswith(LABELLED)))
    check_precision(precision)
    labelled = config == LABELLED
    for flag, value in (("--batch-size", batch_size), ("--subset-size", subset_size)):
        if value is not None and value < 1:
            raise UserError(f"{flag} has to be more than 0, not {value}")
    if labelled and data_dir is not None:
        raise UserError(f"--data-dir is for {UNLABELLED}; labelled data are named by --data-dirs")
    if not labelled and data_dir is None:
        raise UserError(f"{UNLABELLED} needs --data-dir: an image, or a folder of images")
    job = read_job()
    folder = check_folder(Path(save_dir) if save_dir else job.results_dir / "energy")
    if data_dir is not None:
        reference = read_reference(folder)
        found = find_images(data_dir)

    # ---- networks ----
    setting = settle_measuring(job, data_dirs, models_dir, image_size, width, labelled, quiet)
    scale = {"image_size": setting.scale.image_size, "width": setting.scale.width}
    if not labelled and scale != {key: reference[0].get(key) for key in scale}:
        raise UserError(f"the labelled run in {folder} had other networks: not {setting.scale}")
    device = choose_device()
    graph = energy_graph(config, setting, device)

    # ---- labelled views ----
    if labelled:
        data = labelled_views(setting, split, buildings, allow_missing, subset_size)
        reality = Reality("test", data, batch_size, device, num_workers)
        table = measure_views(graph, reality, precision, quiet)
        report_labelled(folder, data.views, table, scale)
        return

    # ---- any images ----
    paths, skipped = found
    for text in skipped:
        print(f"skipped: {text}", file=sys.stderr)
    paths = spaced(paths, subset_size)
    failed: list[Path] = []
    good, table = measure_images(
        graph, paths, setting.scale.image_size, batch_size, failed, precision, quiet
    )
    if good:
        report_queries(folder, good, table, reference)
    exit_if(failed)


# ---- what to measure ----------------------------------------------------------------


def choose_buildings(
    data_dirs: Sequence[Path], split: str | None, named: Sequence[str] | None
) -> list[str]:
    """The buildings to measure: those named; the published ones; the split's test buildings."""
    found = find_buildings(data_dirs)
    if named:
        if missing := [building for building in named if building not in found]:
            raise UserError(f"no building {', '.join(missing)} (there are: {', '.join(found)})")
        return list(named)
    published = [building for building in PUBLISHED_BUILDINGS if building in found]
    if published and not split:
        return published
    return split_buildings(data_dirs, split)["test"]


def labelled_views(
    setting: Setting,
    split: str | None,
    buildings: Sequence[str] | None,
    allow_missing: bool,
    subset_size: int | None,
) -> TaskDataset:
    """The views to measure, rgb and normals; prints how many, and of which buildings."""
    chosen = choose_buildings(setting.data_dirs, split, buildings)
    tasks = [get_task("rgb"), get_task("normal")]
    views = spaced(find_views(tasks, setting.data_dirs, chosen, allow_missing), subset_size)
    print(f"views: {len(views)}, of {', '.join(dict.fromkeys(v.building for v in views))}")
    return TaskDataset(tasks, views, setting.scale.image_size)


def spaced(items: Sequence, count: int | None) -> list:
    """At most `count` of the items, evenly spaced; all where it is None."""
    count = min(count or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]


# ---- measuring ----------------------------------------------------------------------


def measure_views(
    graph: TaskGraph, reality: Reality, precision: str = "fp32", quiet: bool = False
) -> Table:
    """The table of labelled views, each once, in the order of the reality's data set."""
    parts = []
    bar = tqdm(total=len(reality.dataset), desc="energy", unit="view", disable=quiet or None)
    with forward_only(reality.device, precision):
        for batch in reality:
            parts.append(measure_batch(graph, LABELLED, batch))
            bar.update(len(batch["rgb"]))
    bar.close()
    return make_table(joined(parts), ERROR)


def measure_images(
    graph: TaskGraph,
    paths: Sequence[Path],
    image_size: int,
    batch_size: int,
    failed: list[Path],
    precision: str = "fp32",
    quiet: bool = False,
) -> tuple[list[Path], Table]:
    """The files that could be read, and their table, without an error. Others: to `failed`."""
    good, parts = [], []
    device = next(graph.parameters()).device

    def read(path: Path):
        return (square(open_image(path), image_size),)

    for batch in read_reporting(paths, read, batch_size, "energy", quiet, failed):
        images = torch.stack([tensors[0] for _, tensors in batch]).to(device)
        with forward_only(device, precision):
            parts.append(measure_batch(graph, UNLABELLED, {"rgb": images}))
        good += [path for path, _ in batch]
    return good, make_table(joined(parts)) if parts else {}


def joined(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """The losses of batches, one after the other: {name: (N,) float64}."""
    return {name: torch.cat([p[name] for p in parts]).double().numpy() for name in parts[0]}


# ---- results ------------------------------------------------------------------------


def report_labelled(folder: Path, views: Sequence[View], table: Table, scale: Mapping) -> None:
    """Write data.csv, statistics.json and the plot of a labelled run; print the correlations."""
    by = statistics(table)
    z = standardised(table, by)
    x, y = z["normalized_energy"], z["normalized_error"]
    for name, values in by["columns"].items():
        if values["deviation"] == 0:
            print(f"warning: {name} is the same for all views: no standardised energy")
    r, rho = pearson(x, y), spearman(x, y)
    labels = {"building": [v.building for v in views], "view": [v.name for v in views]}
    write_csv(folder / "data.csv", {**labels, **table, **z})
    record = {"config": LABELLED, "views": len(views), **scale, **by}
    record |= {"pearson": r._asdict(), "spearman": rho._asdict()}
    write_json(folder / "statistics.json", record)
    plot_energy(folder / "energy", x, y, _title(r, rho, len(views)))
    print(f"energy (mean disagreement × 100): {100 * table['energy'].mean():.3f}")
    print(f"error (L1 of normals × 100):      {100 * table['error'].mean():.3f}")
    print(f"Pearson  r = {_said(r)} (interval: Fisher's z)")
    print(f"Spearman ρ = {_said(rho)} (interval: Fisher's z, variance (1 + ρ²/2)/(n − 3))")
    print(f"{len(views)} views → {folder}: data.csv, statistics.json, energy.pdf, energy.png")


def report_queries(folder: Path, paths: Sequence[Path], table: Table, reference: tuple) -> None:
    """Write energy_query.csv and the plot; print each image's energy among the labelled views'."""
    by, known = reference
    z = standardised(table, by)
    write_csv(folder / "energy_query.csv", {"image": [str(p) for p in paths], **table, **z})
    x, y = known["normalized_energy"], known["normalized_error"]
    energies = z["normalized_energy"]
    queries = {str(p): e for p, e in zip(paths, energies, strict=True)}
    r, rho = pearson(x, y), spearman(x, y)
    plot_energy(folder / "energy_query", x, y, _title(r, rho, len(x)), queries)
    print("standardised energy, and how many of the labelled views have less:")
    for path, energy in queries.items():
        name = Path(path).name.encode(errors="backslashreplace").decode()
        print(f"{energy:+8.3f}  {(x < energy).mean():4.0%}  {name}")
    print(f"{len(paths)} images → {folder}: energy_query.csv, .pdf, .png")


def read_reference(folder: Path) -> tuple[dict, Table]:
    """statistics.json and data.csv of a labelled run. UserError saying how to make them."""
    by = read_statistics(folder)
    return by, read_table(folder / "data.csv", ("normalized_energy", "normalized_error"))


def read_statistics(folder: Path) -> dict:
    """What a labelled run wrote into statistics.json. UserError saying how to make it."""
    path = folder / "statistics.json"
    if not path.is_file():
        raise UserError(
            f"no {path}, by which to standardise: first run "
            f"python -m scripts.energy_calc {LABELLED} --save_dir {folder}"
        )
    try:
        by = json.loads(path.read_text())
        values = {n: (s["mean"], s["deviation"]) for n, s in by["columns"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        values = {}
    domains = {f"percep__{domain}" for domain in ENERGY_DOMAINS}
    numbers = all(isinstance(v, float | int) for pair in values.values() for v in pair)
    if set(values) != domains or not numbers:
        raise UserError(f"{path} is not what a labelled run writes")
    return by


def _said(c: Correlation) -> str:
    return f"{c.value:+.3f}, 95 % in [{c.low:+.3f}, {c.high:+.3f}], p = {c.p:.2g}"


def _title(r: Correlation, rho: Correlation, count: int) -> str:
    return f"Pearson r = {r.value:.3f}, Spearman ρ = {rho.value:.3f}, {count} views"


if __name__ == "__main__":
    command_line(main)

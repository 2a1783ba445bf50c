"""Errors of checkpoints on labelled views, and how they differ, with intervals.

python -m scripts.evaluate results/FOLDER results/OTHER
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from backbones import backbone, recorded_code
from datasets import Reality, TaskDataset, check_loading
from degradations import CLEAN, Shift, parse_shift
from devices import choose_device
from energy import get_config, loss_of, paths_for
from files import make_folder, sha256, write_atomically, write_json
from flags import command_line, folding_flags
from graph import edges_of
from loading.layouts import View, find_views_and_tasks
from measuring.consistency_energy import choose_buildings
from measuring.demo_networks import TARGETS, choose_networks, for_task
from measuring.evaluation import (
    Measured,
    draw_images,
    image_columns,
    measure_networks,
    summarise,
    summary_columns,
    table_rows,
)
from measuring.options import LabelledOptions, NetworkOptions
from methods.table import recorded_row
from models import load_network, read_record
from precision import check_precision
from sources import VARIANTS, Sources, checkpoint_names, find_variant, settle_measuring
from tables import markdown_table, text_table, write_csv
from task_configs import TASKS, get_task
from training.objective import restricted
from transfers import Edge, get_transfer
from utils import (
    UserError,
    check_one_of,
    check_positive,
    counted,
    evenly_spaced,
    log,
    read_job,
)

FEW = 10  # buildings: intervals from fewer are too narrow


@dataclass(frozen=True)
class ComparisonOptions:
    """What is measured.

    Args:
        task: normal, depth or reshading (default: the first that all of the checkpoints have).
        labels: a name for each network, comma-separated (default: the files' or folders' names).
        perceptual: the perceptual errors, comma-separated (curv,edge,…), or none (default: all
            but imagenet).
        shift: degrade the images first: blur:SIGMA, jpeg:QUALITY, noise:SIGMA or
            darkening:FACTOR, at the networks' image size.
        resamples: draws of the bootstrap.
        seed: seed of the bootstrap.
        network: FILE.py:FUNCTION, the function that builds a checkpoint's network, if that is a
            network of your own (docs/extending.md).
    """

    task: str | None = None
    labels: list | None = None
    perceptual: list | None = None
    shift: str | None = None
    resamples: int = 10_000
    seed: int = 0
    network: str | None = None


@folding_flags
def main(
    checkpoint: list | None = None,
    *,
    output_dir: str | None = None,
    subset_size: int | None = None,
    num_workers: int = 0,
    comparison: ComparisonOptions,
    labelled: LabelledOptions,
    networks: NetworkOptions,
) -> None:
    """Measure the errors of one or several networks on labelled views, and how they differ.

    These are the direct error, the measures of the literature, and the perceptual errors: the
    prediction mapped to another domain by a frozen network, against the truth mapped there
    ("predicted") and against that domain's own labels ("true"). Each network is compared with the
    first; intervals (95 %) are from a paired bootstrap over buildings. Writes evaluation.json,
    .csv and .md, images.csv (a row per network and image), and for each network a picture of the
    best, the median and the worst images.

    Example: python -m scripts.evaluate baseline results/FOLDER --data-dirs data_rooms

    Args:
        checkpoint: files, runs' folders, or baseline and consistency, those in the models
            folder (default: both).
        output_dir: the folder for results (default: results/evaluation).
        subset_size: measure that many of the views, evenly spaced.
        num_workers: processes that load views.
    """
    # ---- options ----
    check_precision(networks.precision)
    check_positive(batch_size=networks.batch_size, subset_size=subset_size,
                   resamples=comparison.resamples)  # fmt: skip
    check_loading(num_workers)
    if comparison.seed < 0:
        raise UserError(f"`seed` has to be 0 or more, not {comparison.seed}")
    shift = parse_shift(comparison.shift) if comparison.shift else CLEAN
    job, entries = read_job(), [str(entry) for entry in checkpoint or VARIANTS]
    labelled.prepare()
    task = chosen_task(comparison.task, entries)
    config = get_config(f"multiperceptual_{task}")
    losses = perceptual_of(config, comparison.perceptual)

    sources = settle_measuring(
        job, labelled.data_dirs, networks.models_dir, networks.scale, quiet=networks.quiet
    )
    files = find_files(entries, comparison.labels, TARGETS[task], sources)
    folder = make_folder(Path(output_dir) if output_dir else job.results_dir / "evaluation")
    data = find_data(labelled, sources, config, losses, subset_size)
    reality = Reality("test", data, networks.batch_size or 16, choose_device(), num_workers)
    found = load_all(files, TARGETS[task], sources, comparison.network, reality.device)
    frozen = frozen_networks(config, losses, sources, reality.device)
    bar = tqdm(reality, desc="measuring", unit="batch", disable=networks.quiet or None)
    measured = measure_networks(found, frozen, config, losses, bar, reality.device, shift,
                                networks.precision)  # fmt: skip
    if not measured.views:
        raise UserError("no view could be read")
    views = [data.views[number] for number in measured.views]
    record = describe(comparison, TARGETS[task], files, sources, views, losses, shift)
    report(folder, measured, views, record)
    draw(folder, found, config, reality, measured, shift)


# ---- what is measured ---------------------------------------------------------------


def chosen_task(task: str | None, entries: Sequence[str]) -> str:
    """Return the task: the given one, or the first for which every entry has a network."""
    if task is not None:
        return check_one_of("task", task, tuple(TARGETS))
    named = [entry for entry in entries if entry not in VARIANTS]
    for name in TARGETS:
        if len(for_task(name, named)) == len(named):
            return name
    raise UserError(
        f"which `task` do {', '.join(named)} have? By their names, they have none in common: "
        f"give {', '.join(TARGETS)}"
    )


def perceptual_of(config: Mapping, given: Sequence[str] | None) -> list[str]:
    """Return the perceptual losses to measure."""
    return [] if given == ["none"] else restricted(config, given, no_imagenet=not given)


def find_files(
    entries: Sequence[str], labels: Sequence[str] | None, target: str, sources: Sources
) -> dict[str, Path]:
    """Return the checkpoints, {label: file}. Raises UserError if one is missing."""
    task = next(task for task, domain in TARGETS.items() if domain == target)
    files: list[tuple[str, Path]] = []
    for entry in entries:
        if entry in VARIANTS:
            file = find_variant(sources.models_dirs, target, entry)
            if file is None:
                wanted = " or ".join(checkpoint_names(target, entry))
                places = " and ".join(map(str, sources.models_dirs))
                raise UserError(f"no {wanted} in {places}: `checkpoint` names a file or a run's "
                                f"folder, `models_dir` another models folder")  # fmt: skip
            files.append((entry, file))
            continue
        paths = choose_networks(task, checkpoint=[entry]).paths
        name = Path(entry).resolve().name if Path(entry).is_dir() else Path(entry).stem
        files += [(f"{name} {label}" if len(paths) > 1 else name, file)
                  for label, file in paths.items()]  # fmt: skip
    names = list(labels) if labels else [name for name, _ in files]
    if len(names) != len(files):
        raise UserError(f"`labels` names {counted(len(names), 'network')}, and there are "
                        f"{len(files)}: {', '.join(str(file) for _, file in files)}")  # fmt: skip
    if not labels:  # a run's folder has the configuration's name and time; files of the same name
        counts = Counter(names)
        names = [f"{file.parent.name}/{name}" if counts[name] > 1 else name
                 for name, (_, file) in zip(names, files, strict=True)]  # fmt: skip
    if double := [name for name, count in Counter(map(file_name, names)).items() if count > 1]:
        raise UserError(f"two networks are called {double[0]}: give each its own of the `labels`")
    return dict(zip(names, (file for _, file in files), strict=True))


def load_all(
    files: Mapping[str, Path], target: str, sources: Sources, own: str | None, device: torch.device
) -> dict[str, nn.Module]:
    """Load networks rgb → target, {label: network}, at the scale of the frozen networks."""
    networks: dict[str, nn.Module] = {}
    for label, file in files.items():
        row = recorded_row(file, get_transfer("rgb", target, sources.models_dirs[0]))
        if own and recorded_code(read_record(file)):
            row = backbone(own, row)
        networks[label] = row.build(sources.scale)
        load_network(networks[label], file, sources.scale, row.edge, transfer=row)
        networks[label].to(device).eval()
    return networks


def frozen_networks(
    config: Mapping, losses: Sequence[str], sources: Sources, device: torch.device
) -> dict[Edge, nn.Module]:
    """Load the networks from the target to the domains of the perceptual errors."""
    start = tuple(config["paths"]["n(x)"])
    edges = [edge for edge in edges_of(paths_for(config, losses)) if edge != start]
    rows = [get_transfer(*edge, sources.models_dirs[0]) for edge in edges]
    return {row.edge: sources.network(row).to(device) for row in rows}


def find_data(
    labelled: LabelledOptions,
    sources: Sources,
    config: Mapping,
    losses: Sequence[str],
    subset_size: int | None,
) -> TaskDataset:
    """Return the views to measure, with the labels of the perceptual errors that are there."""
    buildings = choose_buildings(sources.data_dirs, labelled.split, labelled.buildings)
    needed = [get_task("rgb"), get_task(config["paths"]["y^"][-1])]
    domains = dict.fromkeys(loss_of(config, name).domain for name in losses)
    wanted = [TASKS[domain] for domain in domains if domain != "imagenet"]
    views, tasks = find_views_and_tasks(
        needed, wanted, sources.data_dirs, buildings, labelled.allow_missing
    )
    if missing := [task.name for task in wanted if task not in tasks]:
        log.warning("no labels of %s: no errors against them", ", ".join(missing))
    views = evenly_spaced(views, subset_size)
    log.info("views: %s, of %s", len(views), ", ".join(dict.fromkeys(v.building for v in views)))
    return TaskDataset(tasks, views, sources.scale.image_size)


# ---- results ------------------------------------------------------------------------


def describe(
    comparison: ComparisonOptions,
    target: str,
    files: Mapping[str, Path],
    sources: Sources,
    views: Sequence[View],
    losses: Sequence[str],
    shift: Shift,
) -> dict:
    """Return what evaluation.json records besides the errors."""
    return {
        "target": target,
        "networks": {n: {"file": str(p), "sha256": sha256(p)} for n, p in files.items()},
        "models": [str(folder) for folder in sources.models_dirs],
        **sources.scale.record(),
        "data": [str(folder) for folder in sources.data_dirs],
        "buildings": list(dict.fromkeys(view.building for view in views)),
        "views": len(views),
        "perceptual": list(losses),
        "shift": shift_text(shift, start=""),
        "resamples": comparison.resamples,
        "seed": comparison.seed,
    }


def shift_text(shift: Shift, start: str = ", ") -> str:
    """Return a shift in words; "" for clean images."""
    return "" if shift == CLEAN else f"{start}{shift[0]} {shift[1]:g}"


def file_name(label: str) -> str:
    """Return a label as part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in label).lstrip(".") or "network"


def report(folder: Path, measured: Measured, views: Sequence[View], record: dict) -> None:
    """Write the tables and print the summary."""
    buildings = [view.building for view in views]
    summary = summarise(measured.errors, buildings, record["resamples"], record["seed"])
    differences = {label: {row: change._asdict() for row, change in rows.items()}
                   for label, rows in summary.differences.items()}  # fmt: skip
    write_csv(folder / "images.csv",
              image_columns(measured, buildings, [view.name for view in views]))  # fmt: skip
    write_csv(folder / "evaluation.csv", summary_columns(summary))
    head, rows = table_rows(summary)
    note = note_on(record)
    text = f"{markdown_table(head, rows)}\n\n{note}\n"
    write_atomically(folder / "evaluation.md", lambda name: name.write_text(text, "utf-8"))
    write_json(folder / "evaluation.json",
               record | {"errors": summary.means, "differences": differences})  # fmt: skip
    print(f"\n{text_table(head, rows)}\n\n{note}")


def draw(
    folder: Path,
    networks: Mapping[str, nn.Module],
    config: Mapping,
    reality: Reality,
    measured: Measured,
    shift: Shift,
) -> None:
    """Draw the best, the median and the worst images of each network; print the files' names."""
    files = [f"{file_name(label)}.png" for label in networks]
    for file, (label, network) in zip(files, networks.items(), strict=True):
        title = f"{label}: {counted(len(measured.views), 'view')}{shift_text(shift)}"
        draw_images(folder / file, title, network, config, reality.dataset, measured, label,
                    reality.device, shift)  # fmt: skip
    print(f"{folder}: evaluation.json, .csv, .md, images.csv, {', '.join(files)}")


def note_on(record: Mapping) -> str:
    """Return the sentences below a table: what was measured and how the intervals were made."""
    count = len(record["buildings"])
    text = f"{counted(record['views'], 'view')} of {counted(count, 'building')}"
    text += f", {record['shift']}" if record["shift"] else ""
    if len(record["networks"]) == 1:
        return f"{text}."
    if count == 1:
        return f"{text}. With one building there are no intervals."
    text += (
        f". In brackets: the change from the first network, with the 95 % interval of a paired "
        f"bootstrap over buildings ({record['resamples']} draws, seed {record['seed']})."
    )
    if count < FEW:
        text += f" With only {count} buildings, the intervals are too narrow."
    return text


if __name__ == "__main__":
    command_line(main)

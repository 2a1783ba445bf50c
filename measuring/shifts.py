"""The consistency energy under domain shift, i.e. of images with increasing corruption."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from datasets import Reality, TaskDataset
from degradations import CLEAN, SHIFTS, Shift, shifted
from graph import TaskGraph
from measuring.consistency_energy import ERROR, LABELLED, centre_square, joined, measure_batch
from measuring.image_files import ImageFiles
from measuring.statistics import Table, make_table, roc_auc, standardised, statistics
from precision import forward_only

Batch = tuple[list[str], dict[str, Tensor]]  # (names of images, {task: (B, C, S, S)} on the CPU)

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
            numbers = range(len(names), len(names) + len(batch_names))
            corrupted = batch | {"rgb": shifted(batch["rgb"], shift, numbers)}
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

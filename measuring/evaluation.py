"""The errors of several networks rgb → target on the same views, and how they differ."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from colouring import DIFFERENCE, coloured, difference, difference_ends, limits_of, look_of
from colouring import top_difference as top_of
from datasets import Batch, TaskDataset
from degradations import CLEAN, Shift, shifted
from energy import paths_for
from graph import Path as GraphPath
from graph import TaskGraph
from measuring.closing_table import DIRECT, image_errors
from measuring.statistics import Difference, Values, paired_difference
from pictures import Bar, Column, page, write_png
from precision import forward_only
from task_configs import TASKS
from transfers import Edge

Errors = dict[str, Values]  # {row: (N,)}, an entry for each image
SHOWN = 2  # images of each kind: best, median, worst


@dataclass(frozen=True)
class Measured:
    """The errors of networks, {label: {row: (N,)}}, on the views with these numbers."""

    views: list[int]
    errors: dict[str, Errors]


@dataclass(frozen=True)
class Summary:
    """The mean of each row, {label: {row: mean}}, and each network's differences from the first.

    `differences` are {label: {row: Difference}}, without the first network.
    """

    means: dict[str, dict[str, float]]
    differences: dict[str, dict[str, Difference]]


def measure_networks(
    networks: Mapping[str, nn.Module],
    frozen: Mapping[Edge, nn.Module],
    config: Mapping,
    perceptual: Sequence[str],
    batches: Iterable[Batch],
    device: torch.device,
    shift: Shift = CLEAN,
    precision: str = "fp32",
) -> Measured:
    """Measure `networks`, {label: rgb → target}, on labelled batches.

    `frozen` are the networks from the target to other domains. What they compute from the labels
    is computed once for all networks. `shift` degrades the images that the networks see; labels
    stay as they are. The rows are those of `closing_table.image_errors`, detailed. A network of
    several outputs has more rows than others, which have NaN there.
    """
    start: Edge = tuple(config["paths"]["n(x)"])
    graphs = {label: TaskGraph({**frozen, start: net}).to(device) for label, net in
              networks.items()}  # fmt: skip
    frozen_graph = TaskGraph(frozen).to(device)
    on_labels = {name: tuple(path) for name, path in paths_for(config, perceptual).items()
                 if tuple(path[:2]) != start}  # fmt: skip
    views: list[int] = []
    parts: dict[str, dict[str, list[Tensor]]] = {label: {} for label in networks}
    for batch in batches:
        numbers = range(len(views), len(views) + len(batch.views))
        images = shifted(batch["rgb"].cpu(), shift, numbers).to(device)
        spoilt = Batch({**batch, "rgb": images}, batch.views)
        with forward_only(device, precision):
            values = frozen_graph.sample(on_labels, spoilt)
            known: dict[GraphPath, Tensor] = {on_labels[name]: v for name, v in values.items()}
            for label, graph in graphs.items():
                errors = image_errors(graph, config, perceptual, spoilt, known, detailed=True)
                for row, found in errors.items():
                    parts[label].setdefault(row, []).append(found.double().cpu())
        views += batch.views
    all_rows = dict.fromkeys(row for rows in parts.values() for row in rows)
    none = np.full(len(views), np.nan)
    errors_of = {
        label: {row: torch.cat(rows[row]).numpy() if row in rows else none for row in all_rows}
        for label, rows in parts.items()
    }
    return Measured(views, errors_of)


def summarise(
    errors: Mapping[str, Errors], buildings: Sequence[str], resamples: int, seed: int
) -> Summary:
    """Return means over images, and paired differences from the first network.

    `buildings` names the building of each image (see `statistics.paired_difference`).
    """
    first, *others = errors
    means = {label: {row: _mean(values) for row, values in rows.items()}
             for label, rows in errors.items()}  # fmt: skip
    differences = {
        label: {
            row: paired_difference(errors[first][row], values, buildings, resamples, seed)
            for row, values in errors[label].items()
        }
        for label in others
    }
    return Summary(means, differences)


def _mean(values: Values) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


# ---- tables -------------------------------------------------------------------------


def table_rows(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Return a header and rows for the screen and for Markdown.

    For all networks but the first, a cell also has the change in per cent, with its interval.
    """
    labels = list(summary.means)
    first = summary.means[labels[0]]
    rows = []
    for row, value in first.items():
        cells = [row, _number(value)]
        for label in labels[1:]:
            mean, change = summary.means[label][row], summary.differences[label][row]
            cells.append(f"{_number(mean)} ({_percent(change)})" if np.isfinite(mean) else "–")
        rows.append(cells)
    return ["error", *labels], rows


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"


def _percent(change: Difference) -> str:
    if not np.isfinite(change.percent):
        return "–"
    if not np.isfinite(change.percent_low):
        return f"{change.percent:+.2f} %"
    return f"{change.percent:+.2f} % [{change.percent_low:+.2f}, {change.percent_high:+.2f}]"


def summary_columns(summary: Summary) -> dict[str, list]:
    """Return the summary as columns of a CSV file, with a row for each network and error."""
    columns: dict[str, list] = {name: [] for name in ("network", "error", "mean")}
    columns |= {name: [] for name in Difference._fields}
    nothing = Difference(*[float("nan")] * len(Difference._fields))
    for label, means in summary.means.items():
        for row, mean in means.items():
            change = summary.differences.get(label, {}).get(row, nothing)
            values = {"network": label, "error": row, "mean": mean, **change._asdict()}
            for name, column in columns.items():
                column.append(values[name])
    return columns


def image_columns(
    measured: Measured, buildings: Sequence[str], names: Sequence[str]
) -> dict[str, list]:
    """Return the errors as columns of a CSV file, with a row for each network and image."""
    columns: dict[str, list] = {"network": [], "building": [], "view": []}
    for label, rows in measured.errors.items():
        columns["network"] += [label] * len(names)
        columns["building"] += buildings
        columns["view"] += names
        for row, values in rows.items():
            columns.setdefault(row, []).extend(values)
    return columns


# ---- pictures -----------------------------------------------------------------------


def chosen_images(direct: Values, count: int = SHOWN) -> dict[str, list[int]]:
    """Return which images are the best, the median and the worst by their error, by position.

    Images without an error (NaN) are never chosen, and none is chosen twice.
    """
    order = [int(i) for i in np.argsort(direct, kind="stable") if np.isfinite(direct[i])]
    best, worst = order[:count], order[count:][-count:]
    rest = [i for i in order if i not in best and i not in worst]
    start = max(0, (len(rest) - count) // 2)
    return {"best": best, "median": rest[start : start + count], "worst": worst}


@torch.no_grad()
def draw_images(
    path: Path,
    title: str,
    network: nn.Module,
    config: Mapping,
    data: TaskDataset,
    measured: Measured,
    label: str,
    device: torch.device,
    shift: Shift = CLEAN,
) -> None:
    """Draw the best, the median and the worst images of one of the measured networks.

    The columns are the image as the network sees it, the truth, the prediction, and their
    difference.
    """
    task = TASKS[config["paths"]["y^"][-1]]
    direct = measured.errors[label][DIRECT]
    kinds = chosen_images(direct)
    positions = [i for chosen in kinds.values() for i in chosen]
    rows = [f"{kind} {direct[i]:.1f}" for kind, chosen in kinds.items() for i in chosen]
    if not positions:
        return
    samples = [dict(zip((t.name for t in data.tasks), data.load(data.views[measured.views[i]]),
                        strict=True)) for i in positions]  # fmt: skip
    images = torch.cat([shifted(sample["rgb"][None], shift, [i]) for sample, i in
                        zip(samples, positions, strict=True)])  # fmt: skip
    truth = torch.stack([sample[task.name] for sample in samples])
    prediction = network(images.to(device)).float().cpu()
    limits, look = limits_of(task, truth, prediction), look_of(task)
    top = top_of(task, limits)
    columns = [
        Column("image", images), Column("true", coloured(task, truth, limits)),
        Column("predicted", coloured(task, prediction, limits, mark=False)),
        Column("difference", difference(task, prediction, truth, top),
               legend=Bar(DIFFERENCE, difference_ends(look, top))),
    ]  # fmt: skip
    write_png(page([columns], cell=128, title=title, rows=rows,
                   note="beside the rows: direct L1 × 100"), path)  # fmt: skip

"""How right and how consistent a target network is: the numbers of the closing table."""

from collections.abc import Mapping, Sequence

import torch

from datasets import Reality
from devices import Ranks
from energy import angular_error, evaluate_losses, loss_of, paths_for, valid_error
from graph import TaskGraph
from tables import text_table
from task_configs import TASKS


@torch.no_grad()
def measure(
    graph: TaskGraph,
    config: Mapping,
    perceptual: Sequence[str],
    reality: Reality,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Errors over all views of a reality, {row: value}, in this order:

    "direct L1 × 100" and, for normals, "angular error (°)" of n(x) against y^, over valid
    pixels; "… × 100, predicted" of each perceptual loss: the second domain made from the
    prediction against that made from the truth (what training lowers); "… × 100, true":
    against the second domain's own ground truth (the paper's evaluation), where it has one.
    Each of `ranks` measures its share of the views, and gets the means over all of them.
    """
    graph.eval()
    target = config["paths"]["y^"][-1]
    sums: dict[str, list] = {}

    def take(row: str, values) -> None:
        sums.setdefault(row, []).append(values)

    paths = {"y^": config["paths"]["y^"], "n(x)": config["paths"]["n(x)"]}
    paths |= paths_for(config, perceptual)
    for batch in reality:
        values = graph.sample(paths, batch)
        prediction, truth = values["n(x)"], values["y^"]
        mask = TASKS[target].mask(truth)
        take("direct L1 × 100", 100 * valid_error(prediction, truth, mask))
        if target == "normal":
            take("angular error (°)", angular_error(prediction, truth, mask))
        for name, loss in evaluate_losses(config, perceptual, values).items():
            take(f"{name} × 100, predicted", 100 * loss)
        for name in perceptual:
            domain, pairs = loss_of(config, name)[2:]
            if domain in batch:
                carried, second = values[pairs[0][0]], batch[domain]
                error = valid_error(carried, second, TASKS[domain].mask(second))
                take(f"{name} × 100, true", 100 * error)
    local = {row: torch.cat(values).cpu() for row, values in sums.items()}
    per_rank = (ranks or Ranks()).gathered(local)
    rows = dict.fromkeys(row for part in per_rank for row in part)
    return {
        row: float(torch.cat([part[row] for part in per_rank if row in part]).nanmean())
        for row in rows
    }


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """The measurements side by side, with the change against the first column in per cent."""
    (first, start), *others = columns.items()
    rows = []
    for name, value in start.items():
        cells = [name, f"{value:.3f}"]
        for _, column in others:
            change = f"{100 * (column[name] / value - 1):+6.2f} %" if value else f"{'–':>8}"
            cells.append(f"{column[name]:.3f} ({change})")
        rows.append(cells)
    return text_table(["held-out views", first, *(name for name, _ in others)], rows)

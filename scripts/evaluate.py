"""How right and how consistent a target network is: the numbers of the closing table."""

from collections.abc import Mapping, Sequence

import torch

from datasets import Reality
from energy import angular_error, evaluate_losses, loss_pairs, paths_for, valid_error
from graph import TaskGraph
from scripts.ranks import Ranks
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
            (first, _), *_ = loss_pairs(config, name)
            domain = TASKS[config["paths"][first][-1]]
            if domain.name in batch:
                second = batch[domain.name]
                error = valid_error(values[first], second, domain.mask(second))
                take(f"{name} × 100, true", 100 * error)
    mine = {row: torch.cat(values).cpu() for row, values in sums.items()}
    parts = (ranks or Ranks()).gathered(mine)
    rows = dict.fromkeys(row for part in parts for row in part)
    return {
        row: float(torch.cat([part[row] for part in parts if row in part]).nanmean())
        for row in rows
    }


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """The measurements side by side, with the change against the first column in per cent."""
    (first, start), *others = columns.items()
    wide = max(map(len, start)) + 2
    head = f"{'held-out views':<{wide}}{first:>10}" + "".join(f"{name:>24}" for name, _ in others)
    lines = [head, "-" * len(head)]
    for row, value in start.items():
        line = f"{row:<{wide}}{value:>10.3f}"
        for _, column in others:
            change = f"{100 * (column[row] / value - 1):+6.2f} %" if value else f"{'–':>8}"
            line += f"{column[row]:>14.3f} ({change})"
        lines.append(line)
    return "\n".join(lines)

"""Ten steps in float64 on batches of four views; of several processes, each takes its share.

torchrun --standalone --nproc-per-node 2 tests/ten_steps.py FILE
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import Batch  # noqa: E402
from devices import start_ranks, stop_ranks  # noqa: E402
from energy import energy_configs, paths_for, perceptual_losses  # noqa: E402
from graph import TaskGraph, edges_of  # noqa: E402
from models import make_optimizer  # noqa: E402
from task_configs import TASKS  # noqa: E402
from training.step import Step  # noqa: E402
from transfers import TRANSFERS, Scale  # noqa: E402

CONFIG = energy_configs["multiperceptual_normal"]
CHOSEN = perceptual_losses(CONFIG)[:2]


def main(file: str) -> None:
    ranks, device = start_ranks()
    torch.manual_seed(0)
    edges = edges_of(paths_for(CONFIG, ["mae", *CHOSEN]))
    networks = {edge: TRANSFERS[edge].build(Scale(16, 8, 1)) for edge in edges}
    graph = TaskGraph(networks, CONFIG["paths"]["n(x)"]).double()
    optimizer = make_optimizer(graph.target.parameters(), 1e-3)
    step = Step(graph, CONFIG, optimizer, device, ranks=ranks)
    names = sorted({path[0] for path in CONFIG["paths"].values()})
    mine = range(4)[ranks.rank :: ranks.count]
    found = []
    for _ in range(10):
        whole = {n: torch.rand(4, TASKS[n].channels, 16, 16).double() for n in names}
        batch = Batch({name: values[list(mine)] for name, values in whole.items()}, mine)
        losses = step(batch, CHOSEN)
        found.append({"losses": losses, "coefficients": dict(step.weights)})
    if ranks.first:
        torch.save({"steps": found, "target": graph.target.state_dict()}, file)
    stop_ranks()


if __name__ == "__main__":
    main(sys.argv[1])

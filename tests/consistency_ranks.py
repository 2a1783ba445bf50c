"""Losses, weights and gradients of one step, by the public API with DDP and by the trainer.

torchrun --standalone --nproc-per-node 2 tests/consistency_ranks.py MODELS FOLDER
"""

import copy
import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from consistency import ConsistencyLoss, balance_gradients  # noqa: E402
from datasets import Batch  # noqa: E402
from devices import start_ranks, stop_ranks  # noqa: E402
from graph import TaskGraph  # noqa: E402
from models import make_optimizer  # noqa: E402
from sources import sources_in  # noqa: E402
from training.step import Step  # noqa: E402
from transfers import TRANSFERS  # noqa: E402


def compared(target: str, models: str, batch: Batch, ranks, device) -> dict:
    edge = ("rgb", target)
    network = sources_in(models).network(TRANSFERS[edge])
    consistent = ConsistencyLoss(target, models_dir=models)
    frozen = {e: consistent.graph.network(e) for e in TRANSFERS if consistent.graph.has(e)}
    graph = TaskGraph({**frozen, edge: copy.deepcopy(network)}, edge)
    optimizer = make_optimizer(graph.target.parameters())
    step = Step(graph, consistent.config, optimizer, device, ranks=ranks)
    wanted = step(batch, list(consistent.losses.values()))

    wrapped = DistributedDataParallel(network)
    for _ in range(2):  # also a second time
        network.zero_grad()
        losses = consistent(wrapped(batch["rgb"]), batch[target])
        weights = balance_gradients(losses, wrapped.parameters())
    means = ranks.average(torch.stack([loss.detach().mean() for loss in losses.values()]))
    return {
        "losses_equal": torch.equal(means, torch.stack([wanted[name] for name in losses])),
        "weights": {name: float(value) for name, value in weights.items()},
        "trainer_weights": {name: float(value) for name, value in step.weights.items()},
        "gradient": [p.grad for p in network.parameters()],
        "trainer_gradient": [p.grad for p in graph.target.parameters()],
    }


def main(models: str, folder: str) -> None:
    ranks, device = start_ranks()
    results = {}
    for file in sorted(Path(folder).glob("*.pt")):
        mine = slice(ranks.rank, None, ranks.count)
        batch = Batch({name: values[mine] for name, values in torch.load(file).items()}, [0, 1])
        results[file.stem] = compared(file.stem, models, batch, ranks, device)
    ranks.wait()
    torch.save(results, Path(folder) / f"rank{ranks.rank}.pt")
    stop_ranks()


if __name__ == "__main__":
    main(*sys.argv[1:])

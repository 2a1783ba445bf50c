"""Several processes that train as one: what `torchrun` starts, on any number of machines.

Each process ("rank") computes its share of a batch; gradients are averaged before their
sizes are measured, so weights, choices and updates are those of one process with the
whole batch. A process on its own is the only rank of one.
"""

import datetime
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils import UserError

WAIT = datetime.timedelta(minutes=30)  # for the first rank to render rooms, say


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are. `hosts` carries messages between CPUs."""

    rank: int = 0
    count: int = 1
    hosts: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and prints."""
        return self.rank == 0

    def averaged(
        self, gradients: Iterable[tuple[str, list[Tensor]]]
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """Each named gradient, averaged over the ranks, in turn.

        One travels while the next is computed.
        """
        if self.count == 1:
            yield from gradients
            return
        travelling = None
        for name, gradient in gradients:
            flat = torch.cat([g.reshape(-1) for g in gradient]).div_(self.count)
            sent = name, gradient, flat, dist.all_reduce(flat, async_op=True)
            if travelling:
                yield _arrived(*travelling)
            travelling = sent
        if travelling:
            yield _arrived(*travelling)

    def average(self, value: Tensor) -> Tensor:
        """The mean of the ranks' tensors, on every rank."""
        ((_, (mean,)),) = self.averaged([("", [value])])
        return mean

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers. Waits for the other ranks, not for a GPU."""
        if self.count == 1:
            return number
        said = torch.tensor([number])
        dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self.hosts)
        return int(said)

    def gathered(self, value: object) -> list:
        """Every rank's value, on every rank, in order of rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.hosts)
        return values

    def from_first(self, value: object) -> Any:
        """The first rank's value, on every rank."""
        return self.gathered(value if self.first else None)[0]

    def wait(self) -> None:
        """Until every rank is here."""
        self.gathered(None)

    def share(self, batches: list) -> list:
        """This rank's part of a list."""
        return batches[self.rank :: self.count]


def _arrived(name: str, gradient: list[Tensor], flat: Tensor, work: Any) -> tuple:
    work.wait()
    parts = flat.split([g.numel() for g in gradient])
    return name, [part.view_as(g) for part, g in zip(parts, gradient, strict=True)]


def start_ranks() -> tuple[Ranks, torch.device]:
    """The ranks that torchrun's environment names, and this one's device.

    NCCL between GPUs, gloo between CPUs. Only the first rank prints.
    """
    cuda = torch.cuda.is_available()
    if "RANK" not in os.environ or not dist.is_torchelastic_launched():
        return Ranks(), torch.device("cuda" if cuda else "cpu")
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = int(os.environ["LOCAL_RANK"])
    if cuda and local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} of this machine has no GPU of its own: torchrun "
            f"--nproc-per-node is at most {torch.cuda.device_count()} here"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=WAIT)
    if rank:
        sys.stdout = open(os.devnull, "w")
    hosts = dist.new_group(backend="gloo", timeout=WAIT) if cuda else None
    return Ranks(rank, count, hosts), device


def stop_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()

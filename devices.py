"""Where and how networks compute: device, precision, compilation, several processes.

Several processes that train as one are what `torchrun` starts, on any number of machines.
Each process ("rank") computes its share of a batch; gradients are averaged before their
sizes are measured, so weights, choices and updates are those of one process with the
whole batch. A process on its own is the only rank of one.
"""

import datetime
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils import UserError, check_one_of

WAIT = datetime.timedelta(minutes=30)  # for the first rank to render rooms, say

# ---- one device ---------------------------------------------------------------------


def choose_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_forward_batch(device: torch.device) -> int:
    """Images at a time where nothing is trained."""
    return 16 if device.type == "cuda" else 2


def free_memory(device: torch.device) -> float:
    """Bytes that are free on the device for this process; 0 where that cannot be told.

    Processes of one machine that train together share its memory equally.
    """
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _first_number("/proc/meminfo", r"MemAvailable:\s+(\d+) kB") * 2**10
    limit = _first_number("/sys/fs/cgroup/memory.max", r"^(\d+)$")  # of a container
    if limit:
        free = min(free, limit - _first_number("/sys/fs/cgroup/memory.current", r"^(\d+)$"))
    return max(0.0, free) / sharing


def _first_number(file: str, pattern: str) -> int:
    """The number that the pattern finds in a file of the system; 0 where there is none."""
    try:
        found = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


# ---- precision ----------------------------------------------------------------------

PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# In training, float16 would lose small gradients.
TRAINING_PRECISIONS = ("fp32", "tf32", "bf16")


def check_precision(precision: str, known: Sequence[str] = tuple(PRECISIONS)) -> None:
    """Raise UserError for an unknown precision."""
    check_one_of("precision", precision, known)


@contextmanager
def numerical_precision(device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Numerical precision of the forward and backward pass, one of `PRECISIONS`.

    fp32 is exact on every device: on a GPU cuDNN would otherwise round its inputs to
    TensorFloat-32. bf16 and fp16 keep weights, norms and sums in float32 (autocast).
    """
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    dtype = PRECISIONS[precision]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


@contextmanager
def forward_only(device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Inference mode at that precision, one of `PRECISIONS`."""
    with torch.inference_mode(), numerical_precision(device, precision):
        yield


# ---- how networks are run -----------------------------------------------------------


def parallelised(network: nn.Module) -> nn.Module:
    """The network on all of the machine's GPUs, where there are several and one process."""
    if torch.cuda.device_count() > 1 and not dist.is_initialized():
        return nn.DataParallel(network)
    return network


def compile_networks(networks: Iterable[nn.Module]) -> None:
    """Compile the networks in place (torch.compile), such that several backward passes can
    follow one forward pass.

    Raises UserError where one process has several GPUs.
    """
    if torch.cuda.device_count() > 1 and not dist.is_initialized():
        raise UserError(
            "`compile` takes one GPU a process: CUDA_VISIBLE_DEVICES=0, or torchrun for several"
        )
    # A donated buffer is freed by the first backward pass.
    torch._functorch.config.donated_buffer = False
    for network in networks:
        network.compile()


# ---- several processes --------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are. `hosts` carries messages between CPUs."""

    rank: int = 0
    count: int = 1
    hosts: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def averaged(
        self, gradients: Iterable[tuple[str, list[Tensor]]]
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """Each named gradient, averaged over the ranks, in turn.

        One is sent while the next is computed.
        """
        if self.count == 1:
            yield from gradients
            return
        in_flight = None
        for name, gradient in gradients:
            flat = torch.cat([g.reshape(-1) for g in gradient]).div_(self.count)
            sent = name, gradient, flat, dist.all_reduce(flat, async_op=True)
            if in_flight:
                yield _received(*in_flight)
            in_flight = sent
        if in_flight:
            yield _received(*in_flight)

    def average(self, value: Tensor) -> Tensor:
        """The mean of the ranks' tensors, on every rank."""
        ((_, (mean,)),) = self.averaged([("", [value])])
        return mean

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers. Waits for the other ranks, not for a GPU."""
        if self.count == 1:
            return number
        largest = torch.tensor([number])
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.hosts)
        return int(largest)

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
        """Wait until every rank is here."""
        self.gathered(None)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first rank runs the block; the others run it when the first is done."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


def _received(name: str, gradient: list[Tensor], flat: Tensor, work: Any) -> tuple:
    work.wait()
    parts = flat.split([g.numel() for g in gradient])
    return name, [part.view_as(g) for part, g in zip(parts, gradient, strict=True)]


def start_ranks() -> tuple[Ranks, torch.device]:
    """The ranks that torchrun's environment names, and this one's device.

    NCCL between GPUs, gloo between CPUs. Only the first rank prints to standard output.
    """
    if "RANK" not in os.environ or not dist.is_torchelastic_launched():
        return Ranks(), choose_device()
    cuda = torch.cuda.is_available()
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
    """End the connection between the ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()

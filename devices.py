"""Device, compilation and distributed training.

`torchrun` starts the processes ("ranks") of distributed training, on one or more machines.
Each rank computes its share of a batch. Gradients are averaged over the ranks before their
norms are measured. So loss weights, choices and updates equal those of a single process with
the whole batch. Without `torchrun`, there is one process, with rank 0 of 1.
"""

import datetime
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils import UserError, reason_of

FAILED = "xtconsistency/failed"  # key of the ranks' store: how many ranks have failed
LOOK, GRACE = 2.0, 10.0  # seconds between checks of it, and before a rank that goes on is ended
REACHED = datetime.timedelta(seconds=60)  # timeout for connecting to the store
# What communication raises if another rank has ended.
LOST = re.compile(r"closed by peer|reset by peer|Broken pipe|Connection refused|remote process")
WAIT = datetime.timedelta(minutes=30)  # timeout; long enough for rank 0 to render the rooms

# ---- one device ---------------------------------------------------------------------


def choose_device() -> torch.device:
    """Return the first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_device(device: str | torch.device | None) -> torch.device:
    """Return the device of that name, or by default the one of `choose_device`.

    Raises UserError if there is no such device.
    """
    if device is None:
        return choose_device()
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise UserError(f"`device` {device} cannot be used here: {reason_of(error)}") from None
    return found


def default_forward_batch(device: torch.device) -> int:
    """Return the default batch size for inference."""
    return 16 if device.type == "cuda" else 2


def free_memory(device: torch.device) -> float:
    """Return the free memory of the device in bytes; 0 if unknown.

    For the CPU, this is an equal share for each process that torchrun started on this machine.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _first_number("/proc/meminfo", r"MemAvailable:\s+(\d+) kB") * 2**10
    limit = _first_number("/sys/fs/cgroup/memory.max", r"^(\d+)$")  # limit of a container
    if limit:
        free = min(free, limit - _first_number("/sys/fs/cgroup/memory.current", r"^(\d+)$"))
    return max(0.0, free) / processes


def _first_number(file: str, pattern: str) -> int:
    """Return the number matched by the pattern in a system file; 0 if there is none."""
    try:
        match = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


def processor_name() -> str:
    """Return the name of the processor, or of its architecture if the system does not tell more."""
    try:
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.machine()


def peak_memory(device: torch.device) -> float | None:
    """Return the peak memory of this process so far in MiB: of the GPU, or of the whole process.

    None if the system does not report it. On the CPU everything counts, also views kept in memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # VmHWM is reset when a program starts, unlike the value of getrusage
    kibibytes = _first_number("/proc/self/status", r"^VmHWM:\s+(\d+) kB")
    return kibibytes / 2**10 if kibibytes else None


# ---- how networks are run -----------------------------------------------------------


def parallelised(network: nn.Module) -> nn.Module:
    """Wrap the network in DataParallel if a single process has several GPUs."""
    if torch.cuda.device_count() > 1 and not dist.is_initialized():
        return nn.DataParallel(network)
    return network


def compile_networks(networks: Iterable[nn.Module]) -> None:
    """Compile the networks in place (torch.compile).

    Several backward passes through one forward pass remain possible. Raises UserError if
    one process has several GPUs.
    """
    if torch.cuda.device_count() > 1 and not dist.is_initialized():
        raise UserError(
            "`compile` takes one GPU per process: set CUDA_VISIBLE_DEVICES=0, or use torchrun"
        )
    allow_several_backward_passes()
    for network in networks:
        network.compile()


def allow_several_backward_passes() -> None:
    """Let torch.compile make networks that several losses can be differentiated through.

    By default, the first backward pass through a compiled network frees buffers ("donated"),
    so that a second one fails. Holds for what is compiled after this call.
    """
    from torch._functorch import config  # `import torch` alone does not import it

    config.donated_buffer = False


# ---- distributed training -----------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """This process's rank and the number of processes.

    `hosts` is the process group for communication between CPUs (None: the default group).
    """

    rank: int = 0
    count: int = 1
    hosts: Any = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def averaged(
        self, gradients: Iterable[tuple[str, list[Tensor]]]
    ) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield each named gradient, averaged over the ranks.

        Communication of one gradient overlaps with the computation of the next.
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
        """Return the mean of the ranks' tensors, on every rank."""
        ((_, (mean,)),) = self.averaged([("", [value])])
        return mean

    def share_buffers(self, network: nn.Module) -> None:
        """Give the network's buffers (batch normalisation's averages) rank 0's values."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def largest(self, number: int) -> int:
        """Return the maximum of the ranks' numbers, without synchronising a GPU."""
        if self.count == 1:
            return number
        largest = torch.tensor([number])
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.hosts)
        return int(largest)

    def gathered(self, value: object) -> list:
        """Return the list of all ranks' values, on every rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.hosts)
        return values

    def from_first(self, value: object) -> Any:
        """Return rank 0's value, on every rank."""
        return self.gathered(value if self.first else None)[0]

    def wait(self) -> None:
        """Wait until all ranks have called this method."""
        self.gathered(None)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Run the block on rank 0 first, then on the other ranks."""
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
    """Initialise distributed training if torchrun started this process.

    Returns the ranks and this rank's device. The backend is NCCL for GPUs and gloo for CPUs.
    Standard output is disabled on all ranks but rank 0. Raises UserError if there are more
    processes than GPUs.
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


class FailureWatch(threading.Thread):
    """Ends this process when another rank has failed and this one does not notice by itself.

    A rank may spend a long time in a step or waiting for data. `store` is shared by all ranks;
    `end` is called `GRACE` seconds after one of them has failed or the store became unreachable.
    """

    def __init__(self, store: Any, end: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._store, self._end = store, end
        self._over = threading.Event()

    def run(self) -> None:
        """Look into the store every `LOOK` seconds."""
        while not self._over.wait(LOOK):
            try:
                failed = self._store.check([FAILED])
            except RuntimeError:
                failed = True
            if failed:
                if not self._over.wait(GRACE):
                    self._end()
                return

    def stop(self) -> None:
        """Stop watching."""
        self._over.set()


@contextmanager
def failing_together(ranks: Ranks) -> Iterator[None]:
    """Within the block, the failure of one rank ends all of them, with one message.

    The rank that fails first tells the others through the ranks' store, and its exception
    propagates. The others end with status 1 and print nothing. If a rank was killed and could not
    tell the others, the first one that misses it raises UserError.
    """
    if ranks.count == 1:
        yield
        return
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*address, is_master=False, timeout=REACHED)  # a connection of its own
    watch = FailureWatch(store, lambda: os._exit(1))
    watch.start()
    try:
        yield
    except Exception as error:
        try:
            is_first = store.add(FAILED, 1) == 1
        except RuntimeError:  # the process with the store has failed
            is_first = False
        if not is_first:
            raise SystemExit(1) from None
        if isinstance(error, RuntimeError) and LOST.search(str(error)):
            raise UserError(
                f"rank {ranks.rank} has lost another process of this training, which was ended "
                f"from outside, often for lack of memory: all processes end (`resume` continues)"
            ) from error
        raise
    finally:
        watch.stop()


def stop_ranks() -> None:
    """Shut down distributed training."""
    if dist.is_initialized():
        dist.destroy_process_group()

"""Two ranks, of which the second one fails in the way named while the first waits for it.

torchrun --standalone --nproc-per-node 2 tests/failing_rank.py user|raise|kill|hang
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from devices import failing_together, start_ranks, stop_ranks  # noqa: E402
from flags import command_line  # noqa: E402
from training.stopping import stoppable  # noqa: E402
from utils import UserError  # noqa: E402


def main(how: str) -> None:
    ranks, _ = start_ranks()
    try:
        with failing_together(ranks), stoppable():
            ranks.average(torch.ones(3))
            if ranks.rank == 1:
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "raise":
                    raise ZeroDivisionError("a defect")
                raise UserError("the disk of rank 1 is full")
            if how == "hang":
                time.sleep(1000)  # as in a step that takes long
            ranks.average(torch.ones(3))
    finally:
        stop_ranks()


if __name__ == "__main__":
    command_line(main)

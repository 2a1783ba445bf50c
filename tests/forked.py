"""Programs in processes of their own that need not import torch again.

A fork of the test process runs `command_line` like `python -m` does, with signals, exit
status and output of a real process: without the seconds that importing torch takes.
"""

import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from flags import command_line


class Program:
    """`python -m module arguments` in a fork, from now on. Its output goes to a file.

    `prepare` is called in the new process first.
    """

    def __init__(
        self,
        *arguments: str,
        output: Path,
        module: str = "train",
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        main = importlib.import_module(module).main
        self.output = output
        self.status: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.setsid()
            tqdm.set_lock(threading.RLock())  # not the test's own, which a killed one leaves locked
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout = open(1, "w", buffering=1, closefd=False)
            sys.stderr = open(2, "w", buffering=1, closefd=False)
            sys.argv = [module, *arguments]
            prepare()
            command_line(main)
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def ended(self) -> bool:
        """Whether it has ended by now."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """SIGKILL to it and to the processes that it has started."""
        os.killpg(self.pid, signal.SIGKILL)

    def finish(self) -> tuple[int, str]:
        """Wait for its end: (exit status, −n for signal n; its output)."""
        if self.status is None:
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        return self.status, self.output.read_text()

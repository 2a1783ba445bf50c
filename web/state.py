"""What the tabs of the page share: networks by name, limits, temporary files, messages."""

import functools
import html
import importlib
import inspect
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from devices import choose_device
from measuring.demo_networks import Choice, choose_methods, choose_networks
from measuring.prediction import Predictor, load_predictor
from methods.table import METHODS
from other_networks import is_publisher
from sources import SHIPPED
from utils import UserError, log, read_job

PREFIX = "xtconsistency_web_"
QUEUE = "networks"  # the `concurrency_id` of answers that take about a second


def gradio() -> Any:
    """Import Gradio. Raises UserError, which names the command, if it is not installed."""
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError(
            "the page needs Gradio, which is not installed: `make demo` installs it (the extra "
            "`web` of uv and pip)"
        ) from None


@dataclass(frozen=True)
class Limits:
    """What one user may ask of the page.

    Args:
        keep_minutes: how long uploads and results are kept.
        max_upload_mb: the largest file that can be uploaded, in megabytes.
        max_waiting: how many answers may be waited for at a time; more are refused.
        kept_networks: the number of networks that are kept in memory.
    """

    keep_minutes: float = 15.0
    max_upload_mb: int = 64
    max_waiting: int = 100
    kept_networks: int = 8


class Shared:
    """The networks that the page can show, its limits, and its folder of temporary files.

    `models_dir` and `checkpoint` are those of demo.py: what the page shows first. The networks
    shipped with the project, those of the models folder and the runs under results/ can always
    be chosen. `folder` is removed by `close`. Raises UserError if a given path does not exist.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        models_dir: str | Path | None = None,
        checkpoint: Sequence[str | Path] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.models_dir, self.checkpoint = models_dir, checkpoint
        if models_dir is not None and not Path(models_dir).is_dir():
            raise UserError(f"no models folder {models_dir}")
        for entry in checkpoint or ():
            if not is_publisher(entry) and not Path(entry).exists():
                raise UserError(f"no checkpoint {entry}")
        self.device = device or choose_device()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        self.kept: set[Path] = set()
        self._closed = threading.Event()
        self._loading = threading.Lock()
        self.predictor = functools.lru_cache(self.limits.kept_networks)(self._load)

    # ---- networks ----------------------------------------------------------------------

    def networks(self, task: str) -> dict[str, Path]:
        """Return the networks rgb → `task` that are at hand: {name: checkpoint}.

        The first choice comes first. `task` is normal, depth or reshading. A name tells the kind
        and the place: "consistency (assets/demo_models)". Each call looks at the disk again.
        """
        runs = sorted(read_job().results_dir.glob("*/rgb2*.pth"), reverse=True)
        folders = dict.fromkeys(file.parent for file in runs)
        places: list[dict[str, Any]] = [
            {"checkpoint": self.checkpoint} if self.checkpoint else {"models_dir": self.models_dir},
            {"model": "published"},
            {"model": "rooms"},
            {"models_dir": SHIPPED},
            *({"checkpoint": [folder]} for folder in folders),
        ]
        choices = [functools.partial(choose_networks, task, **place) for place in places]
        choices += [functools.partial(choose_methods, task, [name]) for name in METHODS]
        found: dict[str, Path] = {}
        for choose in choices:
            with suppress(UserError):
                for label, path in choose().paths.items():
                    if path.resolve() not in {other.resolve() for other in found.values()}:
                        found[f"{label} ({_place(path)})"] = path
        return found

    def configurations(self, task: str) -> list[str]:
        """Return the names of the networks at hand, first choice first."""
        return list(self.networks(task))

    def pair(self, task: str) -> tuple[str, str]:
        """Return the two that are shown first: the baseline and the one with consistency, or what
        there is. Raises UserError if there is none.
        """
        names = self.configurations(task)
        if not names:
            raise UserError(f"no network rgb → {task} is at hand")
        second = next(
            (n for n in names if n.startswith("consistency")), names[min(1, len(names) - 1)]
        )
        first = next((n for n in names if n.startswith("baseline")), names[0])
        return first, second

    def checkpoint_of(self, task: str, name: str) -> Path:
        """Return the checkpoint of a configuration. Raises UserError if there is none any more."""
        networks = self.networks(task)
        if name not in networks:
            raise UserError(f"no network {name} for {task} is at hand: choose another")
        return networks[name]

    def _load(self, task: str, name: str) -> Predictor:
        """Load a configuration: a predictor with this one network, whose label is `name`."""
        path = self.checkpoint_of(task, name)
        with self._loading:
            return load_predictor(task, Choice({name: path}, ""), self.device)

    # ---- temporary files ---------------------------------------------------------------

    def new_folder(self) -> Path:
        """Make a folder for the files of one answer. It is removed when they have expired."""
        return Path(tempfile.mkdtemp(prefix="answer_", dir=self.folder))

    def start_sweeping(self) -> None:
        """From now on, remove what has expired. What is in the folder now stays."""
        self.kept = set(self.folder.rglob("*"))
        threading.Thread(target=self._sweep_for_ever, daemon=True, name="sweep").start()

    def _sweep_for_ever(self) -> None:
        while not self._closed.wait(min(60.0, 30 * self.limits.keep_minutes)):
            self.sweep()

    def sweep(self) -> None:
        """Remove files older than `keep_minutes`, and folders that have been empty as long."""
        latest = time.time() - 60 * self.limits.keep_minutes
        for path in sorted(self.folder.rglob("*"), reverse=True):  # files before their folders
            with suppress(OSError):  # it is gone, or not empty
                if path in self.kept or path.lstat().st_mtime > latest:
                    continue
                path.rmdir() if path.is_dir() else path.unlink()

    def close(self) -> None:
        """Remove the folder of temporary files."""
        self._closed.set()
        shutil.rmtree(self.folder, ignore_errors=True)


def _place(path: Path) -> str:
    """Return where a checkpoint lies, short enough for a list."""
    folder, base = path.parent.resolve(), read_job().base_dir.resolve()
    for root in (Path(SHIPPED).parents[1], base):
        if folder.is_relative_to(root):
            return str(folder.relative_to(root))
    return folder.name


# ---- messages ---------------------------------------------------------------------------


def one_sentence(handler: Callable) -> Callable:
    """Decorate an event handler, plain or a generator: what goes wrong is one sentence on the page.

    A UserError is shown as it is. Anything else is logged with its traceback.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generate(*args, **kwargs):
            try:
                yield from handler(*args, **kwargs)
            except Exception as error:
                raise _shown(error) from None

        return generate

    @functools.wraps(handler)
    def answer(*args, **kwargs):
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            raise _shown(error) from None

    return answer


def _shown(error: Exception) -> Exception:
    """Return the error as Gradio's, with one sentence of plain text."""
    gr = gradio()
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, UserError):
        text = re.sub(r"`(\w+)`", r"\1", str(error))
    elif isinstance(error, MemoryError | torch.OutOfMemoryError):
        text = "there is not enough memory for this now: try again, or use a smaller file"
    else:
        log.error("an answer of the page failed", exc_info=error)
        text = "this failed for an unexpected reason, which is in the log of the server"
    return gr.Error(html.escape(text, quote=False), print_exception=False)

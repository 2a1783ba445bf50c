"""Train the networks that a configuration needs and a models folder lacks.

python -m scripts.train_edges multiperceptual_normal
"""

import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from energy import energy_configs, get_config
from graph import edges_of
from loading.layouts import add_layouts, find_places
from methods.table import find_method
from sources import SHIPPED, settle
from task_configs import get_task
from transfers import TRANSFERS, Transfer, any_transfer, get_transfer, transfer_by_name
from utils import (
    ROOT,
    UserError,
    as_arguments,
    command_line,
    counted,
    folding_flags,
    nearest,
    read_job,
)


@dataclass(frozen=True)
class TrainerOptions:
    """Each training.

    Args:
        max_epochs: epochs of each network (default: as python -m train).
        steps_per_epoch: steps of an epoch.
        batch_size: views a step.
        lr: learning rate.
        dataaug: the published augmentation.
        data_dirs: folders with data, or lists of views (docs/data.md), comma-separated.
        layouts: Python files of your own that add layouts of folders (docs/extending.md).
        split: a split file.
        models_dir: where networks are looked for and installed (default: installed into
            models/trained of the job's base folder; those in models/ and the shipped ones
            count as there).
        image_size: pixels of the images' side.
        width: channels of the networks' first level.
        levels: halvings of the image in the deepest networks (see python -m train --help).
        results_dir: where each network's run folder is made.
        seed: of each training.
    """

    max_epochs: int | None = None
    steps_per_epoch: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    dataaug: bool = False
    data_dirs: list | None = None
    layouts: list | None = None
    split: str | None = None
    models_dir: str | None = None
    image_size: int | None = None
    width: int | None = None
    levels: int | None = None
    results_dir: str | None = None
    seed: int = 0


@folding_flags
def main(
    config: str | None = None,
    *,
    again: bool = False,
    trainer: str = "train",
    options: TrainerOptions,
) -> None:
    """Train the networks that a configuration needs and the models folder lacks.

    Networks between domains first, then those from rgb, each on its ground truth alone
    (python -m train TRANSFER --install). What is there already is left as it is, so an
    interrupted run goes on where it stopped.

    Example: python -m scripts.train_edges multiperceptual_normal

    Args:
        config: an energy configuration, a method (unsupervised_normal), a transfer
            (normal2reshading), or all: every row of the published system.
        again: train what is there already as well; a network that is replaced is kept under
            another name.
        trainer: the module that trains, or a file of your own that adds rows to the tables
            and starts the trainer (my_domain.py).
    """
    if trainer.endswith(".py"):  # adds its rows to the tables of domains and transfers
        runpy.run_path(trainer)
    add_layouts(options.layouts)
    needed = [row for row in _needed(config) if row.trainable]
    needed.sort(key=lambda row: row.source == "rgb")
    scale = options.image_size, options.width, options.levels
    sources = settle(read_job(), options.data_dirs, options.models_dir, scale, installs=True)
    missing = [row for row in needed if again or sources.find(row) is None]
    print(f"{len(needed)} networks needed, {len(needed) - len(missing)} there, "
          f"{len(missing)} to train", flush=True)  # fmt: skip
    _check_domains(missing, sources.data_dirs)
    start = time.monotonic()
    flags = asdict(options) | sources.scale.record() | {"quiet": True, "install": True}
    flags |= {"force": again, "models_dir": str(sources.install_dir)}
    for row in tqdm(missing, desc="networks", unit="network", disable=not missing or None):
        tqdm.write(f"\n==== {row.name} → {sources.install_dir / row.checkpoint}")
        if status := _run(trainer, row.name, flags):
            sys.exit(status)  # the trainer has printed the error
    print(
        f"trained {len(missing)} networks in {time.monotonic() - start:.0f} s"
        + (f"; they are in {sources.install_dir}" if missing else "")
    )


def _check_domains(rows: Sequence[Transfer], data_dirs: Sequence[Path]) -> None:
    """Raise UserError, before anything is trained, if the data lack a domain of a network."""
    places = [place for folder in data_dirs for place in find_places(folder)]
    domains = dict.fromkeys(name for row in rows for name in row.edge)
    absent = [n for n in domains if not any(p.view_files(get_task(n)) for p in places if
                                            p.has(get_task(n)))]  # fmt: skip
    stopped = [row.name for row in rows if set(row.edge) & set(absent)]
    if stopped:
        raise UserError(
            f"{', '.join(map(str, data_dirs))} has no {', '.join(absent)}, which "
            f"{counted(len(stopped), 'network')} of the {len(rows)} to train need "
            f"({', '.join(stopped[:3])}{', …' if len(stopped) > 3 else ''}): train them on other "
            f"data, or name a folder that has them with `models_dir` (the networks shipped with "
            f"the project, trained on rendered rooms, are in {SHIPPED.relative_to(ROOT)})"
        )


def _run(trainer: str, transfer: str, flags: Mapping[str, object]) -> int:
    """Train one network in a child process. Returns its exit status.

    SIGTERM is forwarded to the child, which saves its state before it exits.
    """
    command = [sys.executable, *([trainer] if trainer.endswith(".py") else ["-m", trainer])]
    process = subprocess.Popen([*command, transfer, *as_arguments(flags)])
    handlers: dict[int, Any] = {
        signal.SIGINT: signal.SIG_IGN,  # a terminal sends it to the child as well
        signal.SIGTERM: lambda number, frame: process.send_signal(number),
    }
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _needed(name: str | None) -> list[Transfer]:
    """Return the transfers of a configuration, in order of first use, or all for `all`."""
    if name == "all":
        return list(TRANSFERS.values())
    row = transfer_by_name(name or "")
    if row:
        return [row]
    if found := find_method(name or ""):
        method, target = found
        return [any_transfer(*edge) for edge in edges_of(method.config(target)["paths"])]
    if name not in energy_configs:
        known = [*energy_configs, "all"]
        choices = f"there are: {', '.join(known)}, and the transfers"
        if name is None:
            raise UserError(f"which networks? Those of a configuration ({choices})")
        raise UserError(f"no configuration or transfer {name!r}{nearest(name, known)} ({choices})")
    return [get_transfer(*edge) for edge in edges_of(get_config(name)["paths"])]


if __name__ == "__main__":
    command_line(main)

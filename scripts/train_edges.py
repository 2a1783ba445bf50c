"""Train the networks that a configuration needs and a models folder lacks.

python -m scripts.train_edges multiperceptual_normal
python -m scripts.train_edges energy_calc --on-predictions
"""

import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from energy import energy_configs, get_config
from files import check_writable, sha256, write_atomically
from flags import as_arguments, command_line, folding_flags
from graph import edges_of
from loading.layouts import add_layouts, find_places
from methods.table import find_method
from sources import REFITS, SHIPPED, Sources, settle
from task_configs import get_task
from transfers import TRANSFERS, Transfer, any_transfer, get_transfer, transfer_by_name
from utils import ROOT, UserError, counted, nearest, read_job


@dataclass(frozen=True)
class TrainerOptions:
    """Each training.

    Args:
        max_epochs: epochs of each network (default: as python -m train).
        steps_per_epoch: steps of an epoch.
        batch_size: views per step.
        lr: learning rate.
        dataaug: the published augmentation.
        augment_rgb: strong changes of rgb's look (see python -m train --help).
        data_dirs: folders with data, or lists of views (docs/data.md), comma-separated.
        layouts: Python files of your own that add layouts of folders (docs/extending.md).
        index_dir: folder in which the views of large data folders are listed, for later runs
            (docs/scale.md; default: xtconsistency in the user's cache folder), or none.
        split: a split file.
        models_dir: where networks are looked for and installed (default: installed into
            models/trained of the job's base folder; those in models/ and the shipped ones
            count as there).
        image_size: pixels of the images' side.
        width: channels of the networks' first level.
        levels: halvings of the image in the deepest networks (see python -m train --help).
        results_dir: where each network's run folder is made.
        seed: seed of each training.
    """

    max_epochs: int | None = None
    steps_per_epoch: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    dataaug: bool = False
    augment_rgb: str | None = None
    data_dirs: list | None = None
    layouts: list | None = None
    index_dir: str | None = None
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
    on_predictions: bool = False,
    output_dir: str | None = None,
    trainer: str = "train",
    options: TrainerOptions,
) -> None:
    """Train the networks that a configuration needs and the models folder lacks.

    Those between domains are trained first, then those from rgb, each on its ground truth alone
    (python -m train TRANSFER --install). What is there already is left as it is, so an
    interrupted run continues where it stopped.

    --on-predictions trains the networks between domains further, each on what rgb → its first
    domain predicts instead of on that domain's labels, because the consistency energy gives them
    such inputs. --split may name buildings that the networks from rgb were not trained on.

    Example: python -m scripts.train_edges multiperceptual_normal

    Args:
        config: an energy configuration, a method (unsupervised_normal), a transfer
            (normal2reshading), or all: every row of the published system.
        again: train what is there already as well; a network that is replaced is kept under
            another name.
        on_predictions: refit the networks between domains on predictions (default
            configuration: energy_calc).
        output_dir: with --on-predictions, the folder for the refitted networks, and for copies
            of the networks from rgb that they belong to (default: on_predictions in the models
            folder).
        trainer: the module that trains, or a file of your own that adds rows to the tables
            and starts the trainer (my_domain.py).
    """
    if trainer.endswith(".py"):  # adds its rows to the tables of domains and transfers
        runpy.run_path(trainer)
    add_layouts(options.layouts)
    if on_predictions:
        _refit(config or "energy_calc", again, output_dir, trainer, options)
        return
    if output_dir is not None:
        raise UserError("`output_dir` is for `on_predictions`: `models_dir` is meant")
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
    _run_each(trainer, {row: flags for row in missing}, sources.install_dir)
    print(
        f"trained {len(missing)} networks in {time.monotonic() - start:.0f} s"
        + (f"; they are in {sources.install_dir}" if missing else "")
    )


def _refit(
    config: str, again: bool, output_dir: str | None, trainer: str, options: TrainerOptions
) -> None:
    """Train the configuration's networks between domains on predictions, into a folder of theirs.

    Raises UserError if a network is missing, or if that folder has other networks from rgb.
    """
    rows = [row for row in _needed(config) if row.trainable and row.source != "rgb"]
    rows = [row for row in rows if ("rgb", row.source) in TRANSFERS]
    if not rows:
        raise UserError(f"`on_predictions`: {config} has no network between domains that are "
                        f"predicted from rgb")  # fmt: skip
    scale = options.image_size, options.width, options.levels
    sources = settle(read_job(), options.data_dirs, options.models_dir, scale)
    starts = {row: sources.checkpoint(row, config) for row in rows}
    folder = Path(output_dir) if output_dir else sources.install_dir / REFITS
    if any(folder.resolve() == other.resolve() for other in sources.models_dirs):
        raise UserError(f"`output_dir` {folder} has the networks that are refitted: name another")
    _copy_predictors(_predictors(config, rows, sources), check_writable(folder), again)
    missing = [row for row in rows if again or not (folder / row.checkpoint).is_file()]
    print(f"{len(rows)} networks to refit on predictions, {len(rows) - len(missing)} there",
          flush=True)  # fmt: skip
    _check_domains(missing, sources.data_dirs, on_predictions=True)
    flags = asdict(options) | sources.scale.record() | {"quiet": True, "install": True}
    flags |= {"force": again, "models_dir": str(folder), "on_predictions": True}
    _run_each(trainer, {row: flags | {"init": str(starts[row])} for row in missing}, folder)
    print(f"refitted {len(missing)} networks; with those from rgb they are in {folder}")


def _predictors(config: str, rows: Sequence[Transfer], sources: Sources) -> list[Path]:
    """Return the files of all networks from rgb that the configuration or the refits use."""
    edges = [row.edge for row in _needed(config) if row.source == "rgb" and row.trainable]
    edges += [("rgb", row.source) for row in rows if TRANSFERS["rgb", row.source].trainable]
    files = []
    for edge in dict.fromkeys(edges):
        transfer = get_transfer(*edge, sources.models_dirs[0])
        found = [sources.consistent(transfer), sources.find(transfer)]
        if not any(found):
            sources.checkpoint(transfer, config)  # says how to get it
        files += [file for file in found if file]
    return files


def _copy_predictors(files: Sequence[Path], folder: Path, again: bool) -> None:
    """Copy networks into the folder. Raises UserError if it has others of the same names."""
    for file in files:
        copy = folder / file.name
        if not copy.is_file() or again and sha256(copy) != sha256(file):
            write_atomically(copy, partial(shutil.copyfile, file))
        elif sha256(copy) != sha256(file):
            raise UserError(
                f"{copy} is not {file}: the networks in {folder} were refitted on the predictions "
                f"of others; `again` replaces them, `output_dir` names another folder"
            )


def _check_domains(
    rows: Sequence[Transfer], data_dirs: Sequence[Path], on_predictions: bool = False
) -> None:
    """Raise UserError, before anything is trained, if the data lack a domain of a network."""
    places = [place for folder in data_dirs for place in find_places(folder)]
    read = {row: ("rgb", row.target) if on_predictions else row.edge for row in rows}
    domains = dict.fromkeys(name for row in rows for name in read[row])
    absent = [n for n in domains if not any(p.view_files(get_task(n)) for p in places if
                                            p.has(get_task(n)))]  # fmt: skip
    stopped = [row.name for row in rows if set(read[row]) & set(absent)]
    if stopped:
        raise UserError(
            f"{', '.join(map(str, data_dirs))} has no {', '.join(absent)}, which "
            f"{counted(len(stopped), 'network')} of the {len(rows)} to train need "
            f"({', '.join(stopped[:3])}{', …' if len(stopped) > 3 else ''}): train them on other "
            f"data, or name a folder that has them with `models_dir` (the networks shipped with "
            f"the project, trained on rendered rooms, are in {SHIPPED.relative_to(ROOT)})"
        )


def _run_each(trainer: str, flags: Mapping[Transfer, Mapping], folder: Path) -> None:
    """Train networks one after the other, {row: flags}. Exits with the trainer's error status."""
    for row in tqdm(flags, desc="networks", unit="network", disable=not flags or None):
        tqdm.write(f"\n==== {row.name} → {folder / row.checkpoint}")
        if status := _run(trainer, row.name, flags[row]):
            sys.exit(status)  # the trainer has printed the error


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

"""Which data, which networks, at which scale: what the entry points settle first.

What a flag names is used as named. Otherwise the data are those of the job's `data`
folder, or else the embedded rooms, rendered on first use; the networks are those of
its `models` folder, and what is not there comes from the shipped rooms networks where
their scale is the run's.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from datasets import Reality, TaskDataset, TrainTaskDataset
from energy import (
    direct_only,
    energy_configs,
    get_config,
    loss_pairs,
    paths_for,
    perceptual_losses,
    yardstick_of,
)
from graph import TaskGraph, edges_of
from models import find_scale, imagenet_weights, load_network
from modules import ResNetClass
from scripts.make_rooms import make_rooms
from scripts.ranks import Ranks
from scripts.views import View, find_buildings, find_views, split_buildings
from task_configs import TASKS, ImageTask, get_task
from transfers import TRANSFERS, Edge, Scale, Transfer, get_transfer, transfer_by_name
from utils import ROOT, Job, UserError, nearest

HELD_OUT = 256  # views of val and of test, evenly spaced where there are more
KEEP_BYTES = 2 * 2**30  # data sets up to this size stay in memory once loaded
SHIPPED = ROOT / "assets" / "rooms_models"


@dataclass(frozen=True)
class Setting:
    """`models_dirs` are searched in order. `embedded`: on rooms, nothing having been named."""

    data_dirs: list[Path]
    models_dirs: list[Path]
    scale: Scale
    embedded: bool

    def find(self, file: str) -> Path | None:
        """The checkpoint of that name, in the first models folder that has it."""
        paths = (folder / file for folder in self.models_dirs)
        return next((path for path in paths if path.is_file()), None)

    def checkpoint(self, transfer: Transfer, needed_by: str = "") -> Path:
        """The transfer's checkpoint; UserError naming the ways to one where there is none."""
        path = self.find(transfer.checkpoint)
        if path is None:
            places = " and ".join(map(str, self.models_dirs))
            raise UserError(
                f"no checkpoint {transfer.checkpoint} ({transfer.source} → {transfer.target}) in "
                f"{places}: train it with `python -m scripts.train_edges "
                f"{needed_by or transfer.name}`, fetch it with tools/download_models.sh, "
                f"or name its folder with --models-dir"
            )
        return path

    def network(self, transfer: Transfer, needed_by: str = "") -> nn.Module:
        """The transfer's network with its weights. OSError where ImageNet's can't be had."""
        network = transfer.build(self.scale)
        if isinstance(network, ResNetClass):
            found = self.find(transfer.checkpoint) or self.models_dirs[0] / transfer.checkpoint
            network.load_state_dict(imagenet_weights(found.parent, transfer))
        elif transfer.checkpoint:
            load_network(network, self.checkpoint(transfer, needed_by), self.scale)
        return network


def settle(
    job: Job,
    data_dirs: Sequence[str] | None = None,
    models_dir: str | None = None,
    image_size: int | None = None,
    width: int | None = None,
    levels: int | None = None,
    quiet: bool = False,
    new_models: bool = False,
) -> Setting:
    """The setting of a run; prints what was chosen and how to choose otherwise.

    `new_models`: the run makes networks, so its models folder need not be there yet.
    """
    named = data_dirs is not None
    folders = [Path(d) for d in data_dirs or ()]
    if not named and job.data_dir.is_dir() and find_buildings([job.data_dir]):
        folders, named = [job.data_dir], True
    if not named:
        try:
            make_rooms(job.rooms_dir, quiet=quiet)
        except UserError as error:
            text = f"{error} (--data-dirs {job.rooms_dir} takes what is there)"
            raise UserError(text) from None
        folders = [job.rooms_dir]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no data folder {folder}")
    if models_dir is not None and not new_models and not Path(models_dir).is_dir():
        raise UserError(f"no models folder {models_dir}")
    models = [Path(models_dir) if models_dir is not None else job.models_dir]
    if new_models:  # better now than after hours of training
        try:
            models[0].mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=models[0]).close()
        except OSError as error:
            raise UserError(f"cannot write into {models[0]}: {error.strerror}") from None
    shipped = find_scale(SHIPPED, TRANSFERS.values())
    default = find_scale(models[0], TRANSFERS.values())
    if default is None:
        default = shipped if shipped and not named else Scale()
    scale = default.but(image_size, width, levels)
    if models_dir is None and scale == shipped:
        models.append(SHIPPED)
    print(
        f"data: {', '.join(map(str, folders))}"
        f"{'' if named else ' (the embedded rooms; --data-dirs DIR names other data)'}\n"
        f"networks: {scale}, weights from {', then '.join(map(str, models))} "
        f"(--image-size, --width, --levels, --models-dir choose others)"
    )
    return Setting(folders, models, scale, embedded=not named)


def configuration(name: str | None) -> Mapping:
    """The energy configuration, or the direct one of a transfer."""
    trainable = [n for n, c in energy_configs.items() if "mae" in c["losses"]]
    rows = [row.name for row in TRANSFERS.values() if row.trainable]
    if name is None:
        raise UserError(
            f"what to train? A configuration ({', '.join(trainable)}) or a transfer "
            f"({', '.join(rows[:3])}, …): python -m train multiperceptual_normal"
        )
    row = transfer_by_name(name)
    if row:
        if not row.trainable:
            raise UserError(f"{name} has nothing to train: it is a formula or ImageNet's network")
        return direct_only(*row.edge)
    if name not in energy_configs:
        hint = nearest(name, [*trainable, *rows])
        raise UserError(
            f"no configuration or transfer {name!r}{hint} (configurations: {', '.join(trainable)})"
        )
    if name not in trainable:
        raise UserError(f"{name} measures and does not train: see python -m scripts.energy_calc")
    return get_config(name)


def one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{flag} is {' or '.join(known)}, not {value}{nearest(value, known)}")


def restricted(config: Mapping, perceptual: list[str] | None) -> list[str]:
    """The configuration's perceptual losses, or those of them that were named."""
    known = [name.removeprefix("percep_") for name in perceptual_losses(config)]
    asked = [name.removeprefix("percep_") for name in perceptual or known]
    for name in asked:
        if name not in known:
            raise UserError(
                f"no perceptual loss {name}{nearest(name, known)} (there are: {', '.join(known)})"
            )
    return [f"percep_{name}" for name in known if name in asked]


def checked_k(k: int | None, losses: list[str], mode: str) -> int:
    """The number of perceptual losses in use at a time."""
    if mode == "standard":
        if k not in (None, len(losses)):
            raise UserError(f"--mode standard uses all {len(losses)} perceptual losses: no --k")
        return len(losses)
    if k is None:
        return min(3, len(losses))
    if not 0 <= k <= len(losses):
        names = ", ".join(name.removeprefix("percep_") for name in losses)
        raise UserError(f"--k {k}: there are {len(losses)} perceptual losses ({names})")
    return k


def build_graph(
    name: str,
    config: Mapping,
    wanted: list[str],
    by_win_rate: bool,
    setting: Setting,
    init: str,
    strict: bool,
    parallel: bool = True,
) -> tuple[TaskGraph, list[str]]:
    """The graph with all weights loaded, and the perceptual losses that it can serve.

    `parallel`: over all of the machine's GPUs, where there are several.
    """
    target = config["paths"]["n(x)"]
    losses = list(wanted)
    networks: dict[Edge, nn.Module] = {}
    for edge in edges_of(paths_for(config, _names(losses, by_win_rate))):
        transfer = get_transfer(*edge, setting.models_dirs[0])
        if edge == target and init != "baseline":
            networks[edge] = transfer.build(setting.scale)
            if init != "scratch":
                load_network(networks[edge], init, setting.scale, edge, any_size=True)
            continue
        try:
            networks[edge] = setting.network(transfer, name)
        except OSError as error:
            text = f"no ImageNet weights: {transfer.checkpoint} is not in a models folder and "
            text += f"torchvision's download failed ({error})"
            if strict:
                raise UserError(text) from None
            left_out = [n for n in losses if edge in edges_of(paths_for(config, [n]))]
            losses = [n for n in losses if n not in left_out]
            print(f"WARNING: {text}; LEFT OUT: {', '.join(left_out)} (--strict stops here)")
    if parallel and torch.cuda.device_count() > 1:
        networks = {edge: nn.DataParallel(network) for edge, network in networks.items()}
    return TaskGraph(networks, target), losses


def _names(losses: list[str], by_win_rate: bool) -> list[str]:
    """All losses that a run computes."""
    return ["mae", *losses, *(yardstick_of(name) for name in losses if by_win_rate)]


def tasks_of(config: Mapping, losses: list[str], by_win_rate: bool) -> list[ImageTask]:
    """The tasks whose files the run reads: for its losses, its pictures, its measures."""
    paths = list(paths_for(config, _names(losses, by_win_rate)).values())
    paths += [config["paths"][p] for plot in config["plots"].values() for p in plot["paths"]]
    names = {path[0] for path in paths}
    for name in losses:
        names.add(config["paths"][loss_pairs(config, name)[0][0]][-1])
    return [get_task(name) for name in TASKS if name in names and name != "imagenet"]


def views_of(
    tasks: list[ImageTask],
    setting: Setting,
    split: str | None,
    allow_missing: bool,
    fast: bool,
    subset_size: int | None,
) -> dict[str, list[View]]:
    """The views of train, val and test; prints their counts.

    With `fast`, val is train as well, and there is no test.
    """
    buildings = split_buildings(setting.data_dirs, split)
    parts = ("val",) if fast else ("train", "val", "test")
    views = {p: find_views(tasks, setting.data_dirs, buildings[p], allow_missing) for p in parts}
    views["val"] = _spaced(views["val"], HELD_OUT)
    if fast:
        views["train"] = views["val"]
    else:
        views["test"] = _spaced(views["test"], HELD_OUT)
    if subset_size:
        if subset_size > len(views["train"]):
            raise UserError(f"--subset-size {subset_size}: {len(views['train'])} training views")
        views["train"] = _spaced(views["train"], subset_size)
    print("views: " + ", ".join(f"{part} {len(found)}" for part, found in views.items()))
    return views


def _spaced(views: list[View], count: int) -> list[View]:
    """At most `count` of the views, evenly spaced."""
    count = min(count, len(views))
    return [views[i * len(views) // count] for i in range(count)]


def make_realities(
    tasks: list[ImageTask],
    parts: Mapping[str, list[View]],
    setting: Setting,
    dataaug: bool,
    batch_size: int,
    device: torch.device,
    num_workers: int | None,
    seed: int,
    ranks: Ranks,
    max_bad_fraction: float,
) -> dict[str, Reality]:
    """The realities of the parts, each rank's share of them."""
    realities = {}
    for part, views in parts.items():
        size = setting.scale.image_size
        augment = dataaug and part == "train"
        keep = num_workers in (None, 0) and not augment
        keep = keep and TaskDataset(tasks, views, size).bytes < KEEP_BYTES
        workers = 0 if keep else min(8, os.cpu_count() or 1) if num_workers is None else num_workers
        data: TaskDataset
        if part == "train":
            data = TrainTaskDataset(tasks, views, size, augment, seed, keep)
        else:
            data = TaskDataset(tasks, views, size, keep)
        realities[part] = Reality(
            part, data, batch_size, device, workers, endless=part == "train", seed=seed,
            max_bad_fraction=max_bad_fraction, rank=ranks.rank, count=ranks.count,
        )  # fmt: skip
    return realities


def default_steps(views: int, batch_size: int) -> int:
    """A 400th of the data, as published; on small data up to 100 steps, or one pass."""
    return max(views // (400 * batch_size), min(100, -(-views // batch_size)))

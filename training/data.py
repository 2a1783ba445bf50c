"""The views that a run reads, of which domains, and the realities that load them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from datasets import Reality, TaskDataset, TrainTaskDataset
from devices import Ranks
from energy import loss_of, paths_for, yardstick_of
from loading.layouts import View, find_views_and_tasks
from loading.splits import split_buildings
from sources import Sources
from task_configs import TASKS, ImageTask, get_task
from training.options import DataOptions
from utils import UserError, evenly_spaced, log

HELD_OUT = 256  # views of val and of test, evenly spaced where there are more
KEEP_BYTES = 2 * 2**30  # data sets up to this size stay in memory once loaded


@dataclass(frozen=True)
class Reads:
    """The domains that a reality has to read, and those it reads where they are there."""

    needed: tuple[ImageTask, ...]
    wanted: tuple[ImageTask, ...] = ()


def reads_of(config: Mapping, losses: Sequence[str], by_win_rate: bool) -> dict[str, Reads]:
    """What each reality of a run reads.

    train and val: the starts of the losses' paths; val also those of the yardsticks, by
    which win rates are measured, where they are there. test: the same losses, and for the
    closing table each perceptual loss's domain where it is there. Each reality: its plots'
    paths. (A run's pictures are of test where a plot names no reality of the run.)
    """
    trained = _starts(paths_for(config, ["mae", *losses]))
    yardsticks = [yardstick_of(name) for name in losses if by_win_rate]
    wanted = {
        "train": set(),
        "val": _starts(paths_for(config, yardsticks, "val")),
        "test": {loss_of(config, name).domain for name in losses},
    }
    needed = {part: set(trained) for part in wanted}
    for plot in config["plots"].values():
        shown = _starts({path: config["paths"][path] for path in plot["paths"]})
        for part in [r for r in plot["realities"] if r in needed] or ["val"]:
            needed[part] |= shown
    return {p: Reads(_tasks(needed[p]), _tasks(wanted[p] - needed[p])) for p in wanted}


def _starts(paths: Mapping[str, Sequence[str]]) -> set[str]:
    return {path[0] for path in paths.values()}


def _tasks(names: set[str]) -> tuple[ImageTask, ...]:
    """The named tasks that have files, in the order of the table."""
    return tuple(get_task(name) for name in TASKS if name in names and name != "imagenet")


@dataclass(frozen=True)
class Part:
    """The views of a part of the data, and the domains that are read of them."""

    views: list[View]
    tasks: tuple[ImageTask, ...]


def find_parts(reads: Mapping[str, Reads], sources: Sources, data: DataOptions) -> dict[str, Part]:
    """The parts train, val and test; logs their counts, and wanted domains that are not there.

    With `fast`, val is train as well, and there is no test. Raises UserError where a needed
    domain is not there.
    """
    buildings = split_buildings(sources.data_dirs, data.split)
    if data.fast:
        both = Reads(*(_union(reads, kind) for kind in ("needed", "wanted")))
        reads = {"val": both}
    parts = {}
    for name, wish in reads.items():
        views, tasks = find_views_and_tasks(
            wish.needed, wish.wanted, sources.data_dirs, buildings[name], data.allow_missing
        )
        if absent := [str(task) for task in wish.wanted if task not in tasks]:
            log.warning(
                "no %s for %s views: what only %s needed is left out",
                ", ".join(absent), name, "them" if len(absent) > 1 else "it",
            )  # fmt: skip
        parts[name] = Part(evenly_spaced(views, HELD_OUT) if name != "train" else views, tasks)
    train = parts["val" if data.fast else "train"]
    if data.subset_size:
        if data.subset_size > len(train.views):
            raise UserError(f"`subset_size` {data.subset_size}: {len(train.views)} training views")
        train = Part(evenly_spaced(train.views, data.subset_size), train.tasks)
    parts = {"train": train} | {name: part for name, part in parts.items() if name != "train"}
    log.info("views: %s", ", ".join(f"{name} {len(part.views)}" for name, part in parts.items()))
    return parts


def _union(reads: Mapping[str, Reads], kind: str) -> tuple[ImageTask, ...]:
    return tuple(dict.fromkeys(task for wish in reads.values() for task in getattr(wish, kind)))


def make_realities(
    parts: Mapping[str, Part],
    image_size: int,
    data: DataOptions,
    batch_size: int,
    seed: int,
    device: torch.device,
    ranks: Ranks,
) -> dict[str, Reality]:
    """The realities of the parts, each rank's share of them."""
    realities = {}
    for name, part in parts.items():
        augment = data.dataaug and name == "train"
        keep = data.num_workers in (None, 0) and not augment
        keep = keep and TaskDataset(part.tasks, part.views, image_size).bytes < KEEP_BYTES
        dataset: TaskDataset
        if name == "train":
            dataset = TrainTaskDataset(part.tasks, part.views, image_size, augment, seed, keep)
        else:
            dataset = TaskDataset(part.tasks, part.views, image_size, keep)
        realities[name] = Reality(
            name, dataset, batch_size, device, 0 if keep else _workers(data.num_workers),
            endless=name == "train", seed=seed, max_bad_fraction=data.max_bad_fraction,
            rank=ranks.rank, count=ranks.count,
        )  # fmt: skip
    return realities


def _workers(asked_for: int | None) -> int:
    return min(8, os.cpu_count() or 1) if asked_for is None else asked_for


def default_steps(views: int, batch_size: int) -> int:
    """A 400th of the data, as published; on small data up to 100 steps, or one pass."""
    return max(views // (400 * batch_size), min(100, -(-views // batch_size)))

"""The views and domains that a run reads, and the realities that load them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from datasets import Reality, TaskDataset, TrainTaskDataset
from degradations import Shift, parse_shift, shifted
from devices import Ranks
from energy import loss_of, paths_for, yardstick_of
from loading.layouts import View, find_views_and_tasks, what_lies_there
from loading.splits import split_buildings
from loading.view_sequence import Views
from sources import Sources
from streams import ShardReality, is_sharded
from task_configs import OWN_TASKS, TASKS, ImageTask, get_task
from training.objective import Objective
from training.options import DataOptions
from utils import UserError, evenly_spaced, log

HELD_OUT = 256  # the most views in val and in test, evenly spaced
KEEP_BYTES = 2 * 2**30  # smaller data sets stay in memory once loaded


@dataclass(frozen=True)
class Reads:
    """The domains that a reality must read, and those that it reads if available."""

    needed: tuple[ImageTask, ...]
    wanted: tuple[ImageTask, ...] = ()


def reads_of(objective: Objective) -> dict[str, Reads]:
    """Return the domains that each reality of a run reads.

    Every reality needs the first domain of each path in the losses and in its plots, and what
    the method's own step reads. A plot that names none of the realities is drawn from val. Some
    domains are read only if available: in val those of the yardsticks, for the win rates, in
    test those of the perceptual losses, for the closing table, and what the method wants.
    """
    config, losses = objective.config, objective.perceptual
    trained = _first_domains(paths_for(config, ["mae", *losses]))
    yardsticks = [yardstick_of(name) for name in objective.trained if objective.by_win_rate]
    wanted = {
        "train": set(),
        "val": _first_domains(paths_for(config, yardsticks, "val")),
        "test": {loss_of(config, name).domain for name in losses},
    }
    needed = {name: set(trained) for name in wanted}
    if objective.method:
        method, target = objective.method, objective.transfer.target
        needed = {
            name: {"rgb", *domains, *method.reads(target)} for name, domains in needed.items()
        }
        for name in ("train", "test"):
            wanted[name] |= set(method.wants(target))
    for plot in config["plots"].values():
        shown = _first_domains({path: config["paths"][path] for path in plot["paths"]})
        for name in [r for r in plot["realities"] if r in needed] or ["val"]:
            needed[name] |= shown
    return {n: Reads(_tasks(needed[n]), _tasks(wanted[n] - needed[n])) for n in wanted}


def _first_domains(paths: Mapping[str, Sequence[str]]) -> set[str]:
    return {path[0] for path in paths.values()}


def _tasks(names: set[str]) -> tuple[ImageTask, ...]:
    """Return the named tasks that are read from files, in the order of the tables."""
    known = (name for name in (*TASKS, *OWN_TASKS) if name != "imagenet")
    return tuple(get_task(name) for name in known if name in names)


@dataclass(frozen=True)
class Part:
    """The views of one part of the data, and the domains to read from each view."""

    views: Sequence[View]
    tasks: tuple[ImageTask, ...]


def find_parts(reads: Mapping[str, Reads], sources: Sources, data: DataOptions) -> dict[str, Part]:
    """Return the parts train, val and test, and log their sizes.

    With `fast`, training uses the views of val, and there is no test. Logs a warning for
    missing wanted domains. Raises UserError if a needed domain is missing, or if
    `subset_size` is larger than the number of training views.
    """
    buildings = split_buildings(sources.data_dirs, data.split)
    if data.fast:
        reads = {"val": Reads(_union(reads, "needed"), _union(reads, "wanted"))}
    parts = {}
    for name, domains in reads.items():
        part = _find_part(name, domains, sources, buildings[name], data.allow_missing)
        parts[name] = part if name == "train" else _held_out(part)
    train = parts["val" if data.fast else "train"]
    if data.subset_size:
        if data.subset_size > len(train.views):
            raise UserError(
                f"`subset_size` is {data.subset_size}, and there are {len(train.views)} "
                f"training views"
            )
        train = Part(evenly_spaced(train.views, data.subset_size), train.tasks)
    parts = {"train": train} | {name: part for name, part in parts.items() if name != "train"}
    if "test" in parts and parts["test"].views == parts["val"].views:
        log.info("no test views: the closing table is measured on the validation views")
    if trained_on(parts):
        log.warning(
            "the closing table has no held-out views: %s",
            "`fast` trains on the validation views" if data.fast else
            "training and validation share their views, as there is one building only",
        )  # fmt: skip
    return parts


def _find_part(
    name: str, domains: Reads, sources: Sources, buildings: Sequence[str], allow_missing: bool
) -> Part:
    """Return the part of the data in these buildings. Logs missing wanted domains."""
    views, tasks = find_views_and_tasks(
        domains.needed, domains.wanted, sources.data_dirs, buildings, allow_missing
    )
    if missing := [str(task) for task in domains.wanted if task not in tasks]:
        hint = what_lies_there(sources.data_dirs, [get_task(task) for task in missing])
        log.warning(
            "no %s for %s views: what only %s needed is left out%s",
            ", ".join(missing), name, "them" if len(missing) > 1 else "it",
            f" ({hint})" if "did you mean" in hint else "",
        )  # fmt: skip
    return Part(views, tasks)


def _held_out(part: Part) -> Part:
    return Part(evenly_spaced(part.views, HELD_OUT), part.tasks)


def held_out_views(
    reads: Reads, sources: Sources, data: DataOptions, subset_size: int | None = None
) -> Part:
    """Return the views on which a training run measures its closing table, or some of them.

    Training views are not looked for. Raises UserError if a needed domain is missing.
    """
    buildings = split_buildings(sources.data_dirs, data.split)["test"]
    part = _held_out(_find_part("test", reads, sources, buildings, data.allow_missing))
    return Part(evenly_spaced(part.views, subset_size), part.tasks)


def held_out_part(parts: Mapping[str, Part | Reality]) -> str:
    """Return the part that the closing table is measured on: test, or else val."""
    return "test" if "test" in parts else "val"


def trained_on(parts: Mapping[str, Part]) -> int:
    """Return the number of the closing table's views that the network is trained on too."""
    held_out, train = parts[held_out_part(parts)].views, parts["train"].views
    known = train if isinstance(train, Views) else set(train)
    return sum(view in known for view in set(held_out))


def kind_of_views(parts: Mapping[str, Part]) -> str:
    """Describe the views of the closing table in a few words."""
    part = held_out_part(parts)
    count, known = len(parts[part].views), trained_on(parts)
    if known:
        return f"{count} views, {'all' if known == count else known} trained on"
    same = part == "test" and parts["test"].views == parts["val"].views
    return f"{count} {'validation' if part == 'val' or same else 'held-out'} views"


def _union(reads: Mapping[str, Reads], kind: str) -> tuple[ImageTask, ...]:
    return tuple(
        dict.fromkeys(task for domains in reads.values() for task in getattr(domains, kind))
    )


def make_realities(
    parts: Mapping[str, Part],
    image_size: int,
    data: DataOptions,
    batch_size: int,
    seed: int,
    device: torch.device,
    ranks: Ranks,
) -> dict[str, Reality]:
    """Return a reality for each part, which loads this rank's share of the batches."""
    realities = {}
    for name, part in parts.items():
        augment = data.dataaug and name == "train"
        # Loading processes have their own memory, and an augmented view differs each time.
        keep = data.num_workers in (None, 0) and not augment
        plain = TaskDataset(part.tasks, part.views, image_size)
        kind = ShardReality if is_sharded(plain) else Reality
        keep = keep and plain.bytes < KEEP_BYTES and kind is Reality
        dataset: TaskDataset
        if name == "train":
            dataset = TrainTaskDataset(part.tasks, part.views, image_size, augment, seed, keep,
                                       strong_rgb=data.augment_rgb is not None)  # fmt: skip
        else:
            dataset = TaskDataset(part.tasks, part.views, image_size, keep)
        realities[name] = kind(
            name, dataset, batch_size, device, 0 if keep else _workers(data.num_workers),
            endless=name == "train", seed=seed, max_bad_fraction=data.max_bad_fraction,
            rank=ranks.rank, count=ranks.count,
        )  # fmt: skip
        if data.shift:
            realities[name].degrade = partial(_degraded, parse_shift(data.shift))
    return realities


def _degraded(shift: Shift, images: Tensor, numbers: Sequence[int]) -> Tensor:
    return shifted(images, shift, numbers)


def _workers(requested: int | None) -> int:
    return min(8, os.cpu_count() or 1) if requested is None else requested


def default_steps(views: int, batch_size: int) -> int:
    """Return the steps of an epoch: a 400th of a pass over the views, as published.

    On small data it is at least 100 steps, or one pass if that is shorter.
    """
    return max(views // (400 * batch_size), min(100, -(-views // batch_size)))

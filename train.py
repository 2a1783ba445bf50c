"""Train one network of the graph: rgb → target with cross-task consistency, or any other edge.

python -m train multiperceptual_normal --k 2 --random-select
python -m train normal2principal_curvature
torchrun --nproc-per-node 8 -m train multiperceptual_normal --k 2 --random-select
"""

import platform
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torchvision

from datasets import Reality
from devices import Ranks, free_memory, start_ranks, stop_ranks
from label_cache import Budget, LabelCache
from loading.layouts import add_layouts
from logger import VisdomWindows
from measuring.closing_table import measure, table
from models import load_network, save_network
from sources import Sources, settle
from training.data import Part, default_steps, find_parts, make_realities, reads_of
from training.loop import NotFinite, Plan, Trainer
from training.networks import build_graph, prepare_graph
from training.options import (
    ComputeOptions,
    DataOptions,
    Defaults,
    LossOptions,
    NetworkOptions,
    Objective,
    Options,
    RunOptions,
    check_options,
    checked_k,
    defaults_for,
    objective_of,
)
from training.output import RunOutput
from training.run_folder import find_folder, new_folder, recorded_options
from training.stopping import Stop, Stopped, stoppable
from transfers import Scale
from utils import UserError, command_line, folding_flags, log, read_job, seed_everything

GIB = 2**30


@folding_flags
def main(
    config: str | None = None,
    *,
    data: DataOptions,
    networks: NetworkOptions,
    losses: LossOptions,
    compute: ComputeOptions,
    run: RunOptions,
) -> dict[str, dict[str, float]]:
    """Train rgb → target by an energy configuration, or any row of the transfer table.

    Example: python -m train multiperceptual_normal --k 2 --random-select

    Args:
        config: an energy configuration (multiperceptual_normal, …) or a transfer
            (normal2principal_curvature, …), which trains on its ground truth alone: L1
            from rgb, L2 between other domains.
    """
    options = Options(config, data, networks, losses, compute, run)
    ranks, device = start_ranks()
    try:
        folder = None
        if run.resume:
            folder = find_folder(run.resume, results_dir(options), config)
            options = recorded_options(folder, options, ranks.count)
        return train(options, folder, ranks, device)
    finally:
        stop_ranks()


def train(
    options: Options, resumed: Path | None, ranks: Ranks, device: torch.device
) -> dict[str, dict[str, float]]:
    """Train a new run, or resume the one in the folder `resumed`.

    Returns the closing table, {column: {row: value}}.
    """
    # ---- objective ----
    objective = objective_of(options)
    check_options(options, objective)
    seed_everything(options.run.seed)

    # ---- data and networks ----
    with ranks.first_before_others():  # the first rank may have to render the embedded rooms
        sources = find_sources(options, objective)
    graph, losses = build_graph(objective, sources, options.networks)
    graph = prepare_graph(graph, options.compute, device)
    reads = reads_of(objective.config, losses, objective.by_win_rate)
    parts = find_parts(reads, sources, options.data)
    defaults = defaults_for(objective, sources.embedded, options.data.fast)
    batch_size = options.run.batch_size or defaults.batch_size
    realities = make_realities(
        parts, sources.scale.image_size, options.data, batch_size, options.run.seed, device, ranks
    )

    # ---- plan, folder and record of the run ----
    plan = make_plan(options, objective, losses, defaults, realities, ranks)
    folder = resumed or ranks.from_first(new_run(options) if ranks.first else None)
    windows = VisdomWindows(read_job().name, options.run.visdom_server, options.run.visdom_port)
    record = plan.record() | describe(options, objective, sources, parts, ranks.count, losses)
    record |= {"device": str(device), "batch_size": batch_size}
    output = RunOutput(
        folder, record, graph, objective.config, realities, ranks, windows, resumed is not None
    )
    checkpoint = folder / f"{objective.transfer.name}{'' if objective.row else '_consistency'}.pth"

    # ---- measure, train, measure again ----
    labels = label_caches(options, realities)
    held_out = "test" if "test" in realities else "val"

    measure_held_out = partial(
        measure, graph, objective.config, losses, realities[held_out], ranks, labels[held_out]
    )
    if not output.resumed:
        output.begin(measure_held_out(), keep_start=options.losses.compare_direct)
    with stoppable() as stop:
        for column, phase in phases(options, plan).items():
            if column in output.columns:  # finished before the run was resumed
                continue
            if phase is not plan and not output.training:
                graph.target.load_state_dict(output.start)  # the same initial weights
            trainer = Trainer(
                phase, graph, realities, output.logger, ranks, labels, options.run.quiet
            )
            fit(trainer, output, stop, checkpoint if phase is plan else None, sources.scale)
            output.end_phase(column, measure_held_out())

    # ---- results ----
    conclude(options, objective, sources, output, checkpoint)
    return output.columns


def fit(
    trainer: Trainer, output: RunOutput, stop: Stop, checkpoint: Path | None, scale: Scale
) -> None:
    """Run the epochs of one training phase, from its last saved state if there is one.

    Saves the network to `checkpoint`, if given, after each epoch. On SIGTERM or SIGINT, saves
    the state, prints how to resume and exits. Raises UserError if a loss or gradient is not
    finite.
    """
    plan = trainer.plan
    earlier_phases = len(output.columns) - 1
    earlier_steps = earlier_phases * plan.epochs * plan.steps_per_epoch

    def save() -> None:
        output.training = trainer.state_dict()
        output.save_state(earlier_steps + trainer.global_step)

    try:
        # ---- resume, or validate the initial network ----
        if output.training:
            trainer.load_state_dict(output.training)
        else:
            trainer.validate()
        # ---- epochs ----
        while not trainer.done:
            for step in trainer.steps():
                signal = trainer.ranks.largest(stop())  # a signal to one rank stops all ranks
                save_due = plan.save_every and step % plan.save_every == 0
                if signal or (save_due and not trainer.epoch_is_over):
                    save()
                if signal:
                    raise Stopped(signal)
            trainer.validate()
            if checkpoint:
                output.save_epoch(trainer, checkpoint, scale)
            trainer.end_epoch()
            save()
            if signal := trainer.ranks.largest(stop()):
                raise Stopped(signal)
    except Stopped as stopped:
        output.logger.close()
        print(
            f"stopped after step {trainer.global_step}; "
            f"python -m train --resume {output.folder} goes on"
        )
        sys.exit(128 + stopped.signal)  # the usual exit status after a signal
    except NotFinite as error:
        output.logger.close()
        raise UserError(output.keep_for_replay(error, trainer)) from None
    finally:
        trainer.close()


# ---- helpers of `train`, in order of use --------------------------------------------


def results_dir(options: Options) -> Path:
    """Return the folder in which each run makes its own folder."""
    results = options.run.results_dir
    return Path(results) if results else read_job().results_dir


def new_run(options: Options) -> Path:
    """Make the folder of a new run."""
    return new_folder(results_dir(options), str(options.config))


def find_sources(options: Options, objective: Objective) -> Sources:
    """Return the data folders, model folders and network scale of the run."""
    add_layouts(options.data.layouts)
    networks = options.networks
    scale = networks.image_size, networks.width, networks.levels
    return settle(
        read_job(), options.data.data_dirs, networks.models_dir, scale, options.run.quiet,
        new_models=objective.row is not None,
    )  # fmt: skip


def make_plan(
    options: Options,
    objective: Objective,
    losses: list[str],
    defaults: Defaults,
    realities: Mapping[str, Reality],
    ranks: Ranks,
) -> Plan:
    """Return the training plan: the options, with defaults that depend on the data."""
    run, train_views = options.run, realities["train"]
    steps = defaults.steps_per_epoch or default_steps(
        len(train_views.dataset), train_views.batch_size * ranks.count
    )
    return Plan(
        objective.config, losses, checked_k(options.losses.k, losses, options.losses.mode),
        mode=options.losses.mode, at_random=not objective.by_win_rate, squared=objective.squared,
        lr=run.lr or defaults.lr,
        schedule=run.schedule or defaults.schedule,
        epochs=run.max_epochs or defaults.epochs, steps_per_epoch=run.steps_per_epoch or steps,
        seed=run.seed, balance_every=options.losses.balance_every,
        precision=options.compute.precision,
        save_every=run.save_every or 0,
    )  # fmt: skip


def label_caches(options: Options, realities: Mapping[str, Reality]) -> dict[str, LabelCache]:
    """Return a cache of the frozen networks' outputs on labels for each reality."""
    budget = Budget(label_bytes(options, realities["train"]))
    return {name: LabelCache(budget) for name in realities}


def label_bytes(options: Options, reality: Reality) -> float:
    """Return the bytes for caching the frozen networks' outputs on ground-truth labels.

    The default is a quarter of the free memory if the views are kept in memory, else 0.
    """
    if options.compute.cache_labels is not None:
        return options.compute.cache_labels * GIB
    return free_memory(reality.device) / 4 if reality.dataset.keeps else 0.0


def phases(options: Options, plan: Plan) -> dict[str, Plan]:
    """Return the plans to train in turn, {column of the closing table: plan}."""
    plans = {} if options.run.visualize else {"trained": plan}
    if options.losses.compare_direct:
        plans["without consistency"] = plan.without_consistency()
    return plans


def describe(
    options: Options,
    objective: Objective,
    sources: Sources,
    parts: Mapping[str, Part],
    processes: int,
    losses: list[str],
) -> dict:
    """Return what run.json records besides the plan: options, data, networks and versions."""
    return {
        "config": objective.name,
        "init": objective.init,
        "processes": processes,
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "arguments": options.flags() | {"resume": False},
        "data": [str(folder) for folder in sources.data_dirs],
        "models": [str(folder) for folder in sources.models_dirs],
        **sources.scale.record(),
        "left_out": [name for name in objective.perceptual if name not in losses],
        "views": {name: len(part.views) for name, part in parts.items()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def conclude(
    options: Options,
    objective: Objective,
    sources: Sources,
    output: RunOutput,
    checkpoint: Path,
) -> None:
    """Report bad files, write and print the closing table, and save a transfer's network.

    The network goes into the models folder, in float16. Only the first rank writes and prints.
    """
    for reality in output.realities.values():
        if reality.bad.files:
            log.warning("%s", reality.bad.summary())
    output.logger.close()
    if not output.ranks.first:
        return
    output.save_table()
    print("\n" + table(output.columns))
    if objective.row and not options.run.visualize:
        network = output.graph.target
        saved = sources.models_dirs[0] / objective.row.checkpoint
        load_network(network, checkpoint)
        save_network(saved, network, sources.scale, half=True, **output.made_by)
        print(f"network:    {saved}")
    elif not options.run.visualize:
        print(f"checkpoint: {checkpoint}")
    print(f"pictures:   {output.folder}")


if __name__ == "__main__":
    command_line(main)

"""Train one network of the graph: rgb → target with cross-task consistency, or any other edge.

python -m train multiperceptual_normal --k 2 --random-select
python -m train normal2principal_curvature
torchrun --nproc-per-node 8 -m train multiperceptual_normal --k 2 --random-select
"""

import platform
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torchvision

from datasets import Reality
from devices import Ranks, failing_together, free_memory, start_ranks, stop_ranks
from label_cache import Budget, LabelCache
from loading.layouts import add_layouts
from loading.view_index import keep_indexes_in
from logger import VisdomWindows
from measuring.closing_table import measure, table
from measuring.demo_networks import TARGETS
from sources import Sources, settle
from training.announcement import announcement
from training.data import (
    Part,
    default_steps,
    find_parts,
    held_out_part,
    kind_of_views,
    make_realities,
    reads_of,
)
from training.inputs import inputs_of
from training.installing import install, installed_file
from training.loop import NotFinite, Plan, Trainer
from training.networks import build_graph
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
from training.run_folder import (
    begun,
    check_unchanged,
    claimed,
    find_folder,
    new_folder,
    record_installed,
    recorded_options,
)
from training.stopping import Stop, Stopped, stoppable
from transfers import Scale
from utils import (
    UserError,
    as_arguments,
    command_line,
    folding_flags,
    log,
    read_job,
    seed_everything,
)

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
        with failing_together(ranks):
            resumed = None
            if run.resume:
                resumed = find_folder(run.resume, results_dir(options), config)
                options = recorded_options(resumed, options, ranks.count)
            objective = objective_of(options)
            check_options(options, objective)
            seed_everything(options.run.seed)
            folder = resumed or ranks.from_first(new_run(options, ranks) if ranks.first else None)
            with claimed(folder, is_new=not resumed) if ranks.first else nullcontext():
                return train(options, objective, folder, resumed is not None, ranks, device)
    finally:
        stop_ranks()


def train(
    options: Options,
    objective: Objective,
    folder: Path,
    resumed: bool,
    ranks: Ranks,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Train a new run in its folder, or resume the one that is there.

    Returns the closing table, {column: {row: value}}.
    """
    # ---- data and networks ----
    with ranks.first_before_others():  # the first rank may have to render the embedded rooms
        sources = find_sources(options, objective)
        parts = find_parts(reads_of(objective), sources, options.data)  # it may write an index
    graph, losses, files = build_graph(objective, sources, options, device)
    defaults = defaults_for(objective, sources.embedded, options.data.fast)
    batch_size = options.run.batch_size or defaults.batch_size
    realities = make_realities(
        parts, sources.scale.image_size, options.data, batch_size, options.run.seed, device, ranks
    )

    # ---- plan, folder and record of the run ----
    plan = make_plan(options, objective, losses, defaults, realities, ranks)
    record = plan.record() | describe(options, objective, sources, parts, files, losses, ranks)
    record |= {"device": str(device), "batch_size": batch_size}
    if resumed:
        check_unchanged(folder, record, parts, options.run.resume_anyway)
    if ranks.first:
        log.info("%s", announcement(options, objective, plan, sources, parts, record, folder))
    windows = visdom_windows(options, objective) if ranks.first else None
    output = RunOutput(folder, record, graph, objective.config, realities, ranks, windows, resumed)
    checkpoint = folder / f"{objective.transfer.name}{'' if objective.row else '_consistency'}.pth"

    # ---- measure, train, measure again ----
    labels = label_caches(options, realities)
    held_out = held_out_part(parts)
    measure_held_out = partial(
        measure, graph, objective.config, losses, realities[held_out], ranks, labels[held_out],
        quiet=options.run.quiet or not ranks.first,
    )  # fmt: skip
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
    conclude(options, objective, sources, output, checkpoint, kind_of_views(parts))
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
            output.restore(trainer)
            if trainer.done:
                log.info("the run in %s has already taken all its steps", output.folder)
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
            output.draw_curves()
            if checkpoint:
                output.save_epoch(trainer, checkpoint, scale)
            trainer.end_epoch()
            save()
            if signal := trainer.ranks.largest(stop()):
                raise Stopped(signal)
    except Stopped as stopped:
        output.logger.close()
        again = shlex.join(as_arguments({"network": output.record["arguments"]["network"]}))
        print(
            f"stopped after step {trainer.global_step}; "
            f"python -m train --resume {output.folder}{again and f' {again}'} goes on"
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


def new_run(options: Options, ranks: Ranks) -> Path:
    """Make the folder of a new run."""
    return new_folder(results_dir(options), options, ranks.count)


def find_sources(options: Options, objective: Objective) -> Sources:
    """Return the data folders, model folders and network scale of the run."""
    add_layouts(options.data.layouts)
    if options.data.index_dir is not None:
        keep_indexes_in(None if options.data.index_dir == "none" else options.data.index_dir)
    networks = options.networks
    scale = networks.image_size, networks.width, networks.levels
    sources = settle(
        read_job(), options.data.data_dirs, networks.models_dir, scale, options.run.quiet,
        installs=networks.install,
    )  # fmt: skip
    if networks.install:  # fail now rather than after hours of training
        installed_file(objective, sources, networks.force)
    return sources


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


def visdom_windows(options: Options, objective: Objective) -> VisdomWindows | None:
    """Return the run's Visdom windows, or None if the run is to leave Visdom alone."""
    run = options.run
    if run.visdom_server == "none":
        return None
    env = run.visdom_env or f"{read_job().name}_{objective.name}"
    return VisdomWindows(env, run.visdom_server, run.visdom_port)


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
    files: Mapping[str, Path],
    losses: list[str],
    ranks: Ranks,
) -> dict:
    """Return what run.json records besides the plan: options, data, networks and versions."""
    own = objective.backbone
    return {
        **begun(options, ranks.count),
        "init": objective.init,
        "trains": objective.transfer.name,
        "data": [str(folder) for folder in sources.data_dirs],
        "models": [str(folder) for folder in sources.models_dirs],
        **sources.scale.record(),
        **(own.record() if own else {}),
        "left_out": [name for name in objective.perceptual if name not in losses],
        "views": {name: len(part.views) for name, part in parts.items()},
        "inputs": ranks.from_first(inputs_of(files, parts, own) if ranks.first else None),
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
    views: str,
) -> None:
    """Report bad files, write and print the closing table, and install the network if asked.

    `views` describes the views of the table. Only the first rank writes and prints.
    """
    for reality in output.realities.values():
        if reality.bad.files:
            log.warning("%s", reality.bad.summary())
    output.logger.close()
    if not output.ranks.first:
        return
    output.save_table()
    installed = replaced = None
    if options.networks.install:  # before anything is printed: the terminal may be gone
        installed = installed_file(objective, sources, options.networks.force)
        replaced = install(checkpoint, installed, objective, sources)
        record_installed(output.folder, installed)
    print("\n" + table(output.columns, views))
    if not options.run.visualize:
        print(f"checkpoint: {checkpoint}")
    if installed:
        print(f"installed:  {installed}{f' (the one before: {replaced})' if replaced else ''}")
    print(f"pictures:   {output.folder}")
    task = next((t for t, name in TARGETS.items() if name == objective.transfer.target), None)
    if task and objective.transfer.source == "rgb" and not options.run.visualize:
        shown = f"--task {task} --checkpoint {shlex.quote(str(output.folder))}"
        if objective.backbone:
            shown += f" --network {shlex.quote(objective.backbone.code)}"
        print(f"try it:     python demo.py {shown} --img-path IMAGE")


if __name__ == "__main__":
    command_line(main)

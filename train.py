"""Train one network of the graph: rgb → target with cross-task consistency, or any other edge.

python -m train multiperceptual_normal --k 2 --random-select
python -m train pix2pix_normal
python -m train normal2principal_curvature
torchrun --nproc-per-node 8 -m train multiperceptual_normal --k 2 --random-select
"""

import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torchvision

from datasets import Reality
from devices import Ranks, failing_together, free_memory, start_ranks, stop_ranks
from files import sha256
from flags import as_arguments, command_line, folding_flags
from graph import TaskGraph
from label_cache import Budget, LabelCache
from loading.layouts import add_layouts
from loading.view_index import choose_index_dir
from logger import VisdomWindows
from measuring.closing_table import measure, table
from measuring.demo_networks import TARGETS
from methods.interface import Beginning, MethodOptions, Reporting, Setup, TrainingStep
from models import unwrapped
from sources import Sources, settle
from training.announcement import announcement
from training.checks import check_options
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
from training.loop import NotFinite, Plan, Trainer, usual_step
from training.networks import build_graph, prepare_another
from training.objective import Defaults, Objective, checked_k, defaults_for, objective_of
from training.options import (
    ComputeOptions,
    DataOptions,
    LossOptions,
    NetworkOptions,
    Options,
    RunOptions,
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
    run_by,
)
from training.stopping import Stop, Stopped, stoppable
from transfers import Scale
from utils import UserError, log, read_job, seed_everything

GIB = 2**30


@folding_flags
def main(
    config: str | None = None,
    *,
    data: DataOptions,
    networks: NetworkOptions,
    losses: LossOptions,
    methods: MethodOptions,
    compute: ComputeOptions,
    run: RunOptions,
) -> dict[str, dict[str, float]]:
    """Train rgb → target by an energy configuration or another method, or train another transfer.

    Example: python -m train multiperceptual_normal --k 2 --random-select

    Args:
        config: an energy configuration (multiperceptual_normal, …), a method and its target
            (baseline_normal, …; docs/methods.md) or a transfer (normal2principal_curvature, …),
            which trains on its ground truth alone: L1 from rgb, L2 between other domains.
    """
    options = Options(config, data, networks, losses, methods, compute, run)
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
    of_method, told = begin_method(options, objective, plan, sources, parts, graph)
    record |= {"device": str(device), "batch_size": batch_size, **of_method}
    if resumed:
        check_unchanged(folder, record, parts, options.run.resume_anyway)
    if ranks.first:
        log.info("%s", announcement(options, objective, plan, sources, parts, record, folder, told))
    windows = visdom_windows(options, objective) if ranks.first else None
    output = RunOutput(folder, record, graph, objective.config, realities, ranks, windows, resumed)
    checkpoint = folder / f"{objective.transfer.name}{objective.ending}.pth"

    # ---- measure, train, measure again ----
    labels = label_caches(options, realities)
    measure_held_out = measuring(options, graph, objective.config, losses, realities, labels, ranks)
    if not output.resumed:
        output.begin(measure_held_out(), keep_start=options.losses.compare_direct)
    with stoppable() as stop:
        for column, phase in phases(options, plan).items():
            if column in output.columns:  # finished before the run was resumed
                continue
            if phase is not plan and not output.training:
                graph.target.load_state_dict(output.start)  # the same initial weights
            trainer = Trainer(
                phase, graph, realities, output.logger, ranks, labels, options.run.quiet,
                step_maker(options, objective, sources, output) if phase is plan else None,
            )  # fmt: skip
            fit(trainer, output, stop, checkpoint if phase is plan else None, sources.scale)
            output.end_phase(column, measure_held_out(), trainer.taken)

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
            if trainer.validation_is_due():
                trainer.validate()
                output.draw_curves()
            if checkpoint:
                output.save_epoch(trainer, checkpoint, scale)
            trainer.end_epoch()
            save()
            if signal := trainer.ranks.largest(stop()):
                raise Stopped(signal)
        if isinstance(trainer.step, Reporting):
            output.report = trainer.step.report()
    except Stopped as stopped:
        output.logger.close()
        again = shlex.join(as_arguments(run_by(output.record["arguments"])))
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
    choose_index_dir(options.data.index_dir)
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
    trained = [name for name in losses if name in objective.trained]
    steps = defaults.steps_per_epoch or default_steps(
        len(train_views.dataset), train_views.batch_size * ranks.count
    )
    return Plan(
        objective.config, losses, checked_k(options.losses.k, trained, options.losses.mode),
        mode=options.losses.mode, at_random=not objective.by_win_rate, squared=objective.squared,
        lr=run.lr or defaults.lr,
        schedule=run.schedule or defaults.schedule,
        epochs=run.max_epochs or defaults.epochs, steps_per_epoch=run.steps_per_epoch or steps,
        seed=run.seed, balance_every=options.losses.balance_every,
        precision=options.compute.precision,
        validate_every=run.validate_every, save_every=run.save_every or 0,
        trains_on=trained if objective.method else None,
        max_seconds=run.max_seconds,
    )  # fmt: skip


def begin_method(
    options: Options,
    objective: Objective,
    plan: Plan,
    sources: Sources,
    parts: Mapping[str, Part],
    graph: TaskGraph,
) -> tuple[dict, str]:
    """Let the run's method set up its network and check its options.

    Returns what it records in run.json, and what it adds to the announcement.
    """
    if objective.method is None or objective.method.begin is None:
        return {}, ""
    return objective.method.begin(Beginning(
        unwrapped(graph.target), options.methods, sources,
        tuple(task.name for task in parts["train"].tasks), objective.init,
        plan.epochs * plan.steps_per_epoch,
    ))  # fmt: skip


def step_maker(
    options: Options, objective: Objective, sources: Sources, output: RunOutput
) -> Callable[[Plan, LabelCache], TrainingStep] | None:
    """Return the function that makes the step of the run's method; None for the usual `Step`."""
    make = objective.method.step if objective.method else None
    if make is None:
        return None
    realities = output.realities
    device, held_out = realities["train"].device, held_out_part(realities)
    prepare = partial(prepare_another, compute=options.compute, device=device)

    def made(plan: Plan, labels: LabelCache) -> TrainingStep:
        ranks = output.ranks
        return make(Setup(
            output.graph, plan.config, plan.losses, sources, realities["train"], realities["val"],
            realities[held_out], labels, output.logger, output.folder, device,
            partial(usual_step, plan=plan, labels=labels, device=device, ranks=ranks),
            plan.lr, plan.epochs * plan.steps_per_epoch, options.methods, objective.init, prepare,
            plan.seed, plan.precision, ranks,
        ))  # fmt: skip

    return made


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
    changing = {"train": ["rgb"]} if options.data.augment_rgb else {}
    return {name: LabelCache(budget, changing.get(name, ())) for name in realities}


def label_bytes(options: Options, reality: Reality) -> float:
    """Return the bytes for caching the frozen networks' outputs on ground-truth labels.

    The default is a quarter of the free memory if the views are kept in memory, else 0.
    """
    if options.compute.cache_labels is not None:
        return options.compute.cache_labels * GIB
    return free_memory(reality.device) / 4 if reality.dataset.keeps else 0.0


def measuring(
    options: Options,
    graph: TaskGraph,
    config: Mapping,
    losses: list[str],
    realities: Mapping[str, Reality],
    labels: Mapping[str, LabelCache],
    ranks: Ranks,
) -> Callable[[], dict[str, float]]:
    """Return the function that measures a column of the closing table."""
    part = held_out_part(realities)
    return partial(
        measure, graph, config, losses, realities[part], ranks, labels[part],
        quiet=options.run.quiet or not ranks.first,
    )  # fmt: skip


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
        **({"shift": options.data.shift} if options.data.shift else {}),
        "trains": objective.transfer.name,
        **({"method": objective.method.name} if objective.method else {}),
        "data": [str(folder) for folder in sources.data_dirs],
        "models": [str(folder) for folder in sources.models_dirs],
        **sources.scale.record(),
        **(own.record() if own else {}),
        **on_predictions_of(objective, files),
        "left_out": [name for name in objective.perceptual if name not in losses],
        "views": {name: len(part.views) for name, part in parts.items()},
        "inputs": ranks.from_first(inputs_of(files, parts, own) if ranks.first else None),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def on_predictions_of(objective: Objective, files: Mapping[str, Path]) -> dict[str, str]:
    """Return the record of whose predictions a network is trained on, for its checkpoint too."""
    if objective.predictor is None:
        return {}
    file = files.get(objective.predictor.name)
    name = objective.predictor.name
    return {"on_predictions": f"{name}, {file.name}, SHA-256 {sha256(file)}" if file else name}


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
    if output.report:
        print("\n" + output.report + "\n")
    for column, taken in output.taken.items():
        print(f"{column}: {taken['steps']:.0f} steps in {taken['seconds']:.4g} s")
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

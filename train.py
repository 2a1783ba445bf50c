"""Train one network of the graph: rgb → target with cross-task consistency, or any edge.

python -m train multiperceptual_normal --k 2 --random-select
python -m train normal2principal_curvature
torchrun --nproc-per-node 8 -m train multiperceptual_normal --k 2 --random-select
"""

import math
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
import torchvision

from datasets import Reality
from graph import TaskGraph
from logger import Logger, VisdomWindows
from models import load_network, save_atomically, save_network
from modules.unet import recompute_activations
from scripts.evaluate import measure, table
from scripts.pictures import Pictures
from scripts.precision import TRAINING_PRECISIONS, check_precision
from scripts.ranks import Ranks, start_ranks, stop_ranks
from scripts.run_folder import (
    Stop,
    find_folder,
    load_state,
    new_folder,
    recorded_flags,
    save_state,
    stoppable,
    write_record,
)
from scripts.setting import (
    build_graph,
    checked_k,
    configuration,
    default_steps,
    make_realities,
    one_of,
    restricted,
    settle,
    tasks_of,
    views_of,
)
from scripts.tables import write_json
from scripts.training import NotFinite, Stopped, Training
from transfers import TRANSFERS, transfer_by_name
from utils import UserError, command_line, read_job, seed_everything

GIB = 2**30


def main(
    config: str | None = None,
    *,
    k: int | None = None,
    random_select: bool = False,
    winrate: bool = False,
    mode: str = "winrate",
    perceptual: list | None = None,
    init: str | None = None,
    lr: float | None = None,
    schedule: str | None = None,
    batch_size: int | None = None,
    max_epochs: int | None = None,
    steps_per_epoch: int | None = None,
    subset_size: int | None = None,
    dataaug: bool = False,
    fast: bool = False,
    compare_direct: bool = False,
    visualize: bool = False,
    data_dirs: list | None = None,
    split: str | None = None,
    allow_missing: bool = False,
    max_bad_fraction: float = 0.01,
    models_dir: str | None = None,
    image_size: int | None = None,
    width: int | None = None,
    levels: int | None = None,
    strict: bool = False,
    resume: bool | str = False,
    save_every: int | None = None,
    precision: str = "fp32",
    compile: bool = False,
    channels_last: bool = False,
    checkpoint_activations: bool = False,
    balance_every: int = 1,
    cache_labels: float | None = None,
    results_dir: str | None = None,
    visdom_server: str = "localhost",
    visdom_port: int = 8097,
    num_workers: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, dict[str, float]]:
    """Train rgb → target by an energy configuration, or any row of the transfer table.

    Example: python -m train multiperceptual_normal --k 2 --random-select

    Args:
        config: an energy configuration (multiperceptual_normal, …) or a transfer
            (normal2principal_curvature, …), which trains on its ground truth alone: L1
            from rgb, L2 between other domains.
        k: perceptual losses in use at a time (default: 3, or all where there are fewer).
            0 trains on the ground truth alone.
        random_select: choose the k anew at random each epoch.
        winrate: choose the k that most often exceed their direct loss on the validation
            views (the default).
        mode: winrate weighs the losses by the sizes of their gradients; standard adds all
            perceptual losses with weight 1.
        perceptual: restrict the perceptual losses to these, comma-separated (curv,edge,…).
        init: baseline (the transfer's own checkpoint; the default for configurations),
            scratch (the default for transfers) or the path of a checkpoint.
        lr: learning rate (default: 3e-5, from scratch 4e-4; on the embedded rooms 3e-4
            and 2e-3).
        schedule: constant (the default for configurations) or cosine (for transfers).
        batch_size: views a step, of each process (default: 64, with --fast 4, on the embedded
            rooms 16).
        max_epochs: epochs (default: 800; on the embedded rooms 10, for a transfer 40).
        steps_per_epoch: steps of an epoch (default: a 400th of the data, as published,
            or, where that is less than 100 steps, 100 steps or one pass).
        subset_size: use that many training views, evenly spaced.
        dataaug: the published augmentation: centre crops, colour jitter of rgb.
        fast: train on the validation views, without a test set: a quick trial.
        compare_direct: train the same start without perceptual losses as well, on the same
            batches, for the closing table.
        visualize: measure, draw the pictures and stop before training.
        data_dirs: folders with data in Taskonomy's layout, comma-separated (default: data/
            of the job's base folder, else the embedded rooms).
        split: a split file (default: the first of config/split*.txt that fits the data).
        allow_missing: go on where more than a tenth of the views lack a domain.
        max_bad_fraction: stop where more than this share of the views cannot be loaded; up to
            it they are replaced (in training) or left out, and listed.
        models_dir: the folder of the checkpoints (default: models/ of the job's base folder,
            then the shipped rooms networks). A transfer's result is saved there.
        image_size: pixels of the images' side (default: what the checkpoints record).
        width: channels of the networks' first level (default: what the checkpoints record).
        levels: how often the deepest networks halve the image; the others lose as many levels
            as these (default: what the checkpoints record, or 6 at 256 pixels, 5 at 128, …).
        strict: an error where the ImageNet network's weights can't be had, instead of
            leaving its loss out.
        resume: go on with the last run of this configuration, or with the run in the folder
            named, exactly where its last state stood; the other flags are that run's.
        save_every: save a state to go on from every so many steps (default: every epoch).
        precision: fp32, tf32 (on NVIDIA GPUs) or bf16.
        compile: compile the networks (torch.compile): slow to start, faster on GPUs.
        channels_last: keep images channels last in memory: faster on some GPUs in bf16.
        checkpoint_activations: compute activations again for the backward pass instead of
            keeping them: less memory, more time.
        balance_every: measure the sizes of the gradients every so many steps, with one pass
            for all losses in between.
        cache_labels: GiB of memory for what frozen networks make of the ground truths, which
            need not be computed again then (default: none).
        results_dir: where the run's folder is made (default: results/ of the base folder).
        visdom_server: host of the Visdom server.
        visdom_port: its port.
        num_workers: loading processes (default: one a core, 8 at most; none for data that
            fits into memory).
        seed: of the data's order, the choice of losses, fresh weights and augmentation.
        quiet: plain lines instead of a progress bar.
    """
    asked = dict(locals())
    ranks, device = start_ranks()
    try:
        folder = None
        if resume:
            results = Path(results_dir) if results_dir else read_job().results_dir
            folder = find_folder(resume, results, config)
            asked = recorded_flags(folder, asked, main, ranks.count)
        return _train(SimpleNamespace(**asked), folder, ranks, device)
    finally:
        stop_ranks()


def _train(
    asked: SimpleNamespace, resumed: Path | None, ranks: Ranks, device: torch.device
) -> dict[str, dict[str, float]]:
    # ---- what was asked for ----
    row = transfer_by_name(asked.config) if asked.config else None
    settings = configuration(asked.config)
    transfer = TRANSFERS[settings["paths"]["n(x)"]]
    init = asked.init or ("scratch" if row else "baseline")
    wanted = restricted(settings, asked.perceptual)
    _check(asked, wanted)
    seed_everything(asked.seed)

    # ---- data, networks ----
    job = read_job()
    if not ranks.first:
        ranks.wait()  # the first one renders the rooms, where they are needed
    setting = settle(
        job, asked.data_dirs, asked.models_dir, asked.image_size, asked.width, asked.levels,
        asked.quiet, new_models=row is not None,
    )  # fmt: skip
    if ranks.first:
        ranks.wait()
    by_win_rate = not asked.random_select and asked.mode == "winrate" and asked.k != 0
    graph, losses = build_graph(
        asked.config, settings, wanted, by_win_rate, setting, init, asked.strict, ranks.count == 1
    )
    graph = _prepared(graph, asked, device)
    k = checked_k(asked.k, losses, asked.mode)

    # ---- realities ----
    small = setting.embedded
    batch_size = asked.batch_size or (16 if small else 4 if asked.fast else 64)
    tasks = tasks_of(settings, losses, by_win_rate)
    parts = views_of(
        tasks, setting, asked.split, asked.allow_missing, asked.fast, asked.subset_size
    )
    realities = make_realities(
        tasks, parts, setting, asked.dataaug, batch_size, device, asked.num_workers, asked.seed,
        ranks, asked.max_bad_fraction,
    )  # fmt: skip
    steps = asked.steps_per_epoch or default_steps(len(parts["train"]), batch_size * ranks.count)

    # ---- how it trains ----
    rates = {"baseline": 3e-4, "scratch": 2e-3} if small else {"baseline": 3e-5, "scratch": 4e-4}
    epochs = (40 if row else 10) if small else 800
    training = Training(
        settings, losses, k, mode=asked.mode, at_random=not by_win_rate,
        squared=row is not None and row.source != "rgb",
        lr=asked.lr or rates.get(init, rates["baseline"]),
        schedule=asked.schedule or ("cosine" if row else "constant"),
        epochs=asked.max_epochs or epochs, steps=steps, seed=asked.seed,
        balance_every=asked.balance_every, precision=asked.precision,
        cache_labels=(asked.cache_labels or 0) * GIB, save_every=asked.save_every or 0,
        ranks=ranks, quiet=asked.quiet,
    )  # fmt: skip

    # ---- the run's folder, logs, pictures ----
    results = Path(asked.results_dir) if asked.results_dir else job.results_dir
    new = new_folder(results, asked.config) if ranks.first and not resumed else None
    folder: Path = resumed or ranks.from_first(new)
    record = training.record() | {
        "config": asked.config, "init": init, "batch_size": batch_size, "processes": ranks.count,
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "arguments": vars(asked) | {"resume": False}, "device": str(device),
        "left_out": [name for name in wanted if name not in losses],
        "data": [str(d) for d in setting.data_dirs],
        "models": [str(d) for d in setting.models_dirs],
        "image_size": setting.scale.image_size, "width": setting.scale.width,
        "levels": setting.scale.levels,
        "views": {part: len(views) for part, views in parts.items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__},
    }  # fmt: skip
    state = ranks.from_first(load_state(folder) if ranks.first and resumed else None)
    if ranks.first:
        record = write_record(folder, record)
    if ranks.first and not state:
        (folder / "log.jsonl").unlink(missing_ok=True)
    logger = Logger(asked.config)
    pictures = None
    if ranks.first:
        visdom = VisdomWindows(job.name, asked.visdom_server, asked.visdom_port)
        logger = Logger(asked.config, folder / "log.jsonl", visdom)
        pictures = Pictures(settings, realities, graph, logger, folder)

    if state:
        logger.load_state_dict(state["logger"])
    for name, reality in realities.items():
        reality.record = logger.record
        if state:
            reality.set_bad(state["bad"][name])

    # ---- measure, train, measure ----
    def evaluated() -> dict[str, float]:
        return measure(graph, settings, losses, realities.get("test", realities["val"]), ranks)

    checkpoint = folder / f"{transfer.name}{'' if row else '_consistency'}.pth"
    made_by = {key: record[key] for key in ("command", "config", "seed", "epochs", "steps", "lr")}

    def after_epoch() -> None:
        if pictures:
            save_network(checkpoint, graph.target, setting.scale, **made_by)
            if training.improved:
                best = checkpoint.with_stem(f"{checkpoint.stem}_best")
                save_network(best, graph.target, setting.scale, **made_by)
            pictures.draw(graph, "", "latest")

    if state is None:
        weights = {name: value.clone() for name, value in graph.target.state_dict().items()}
        start = weights if asked.compare_direct else {}
        state = {"columns": {"before": evaluated()}, "start": start, "training": None}
        if pictures:
            pictures.draw(graph, "start", "start")
            save_state(folder, 0, state | _said(logger, realities))
    phases = {} if asked.visualize else {"trained": (training, after_epoch)}
    if asked.compare_direct:
        phases["without consistency"] = training.without_consistency(), lambda: None
    with stoppable() as stop:
        for column, (phase, after) in phases.items():
            if column not in state["columns"]:
                if column != "trained" and not state["training"]:
                    graph.target.load_state_dict(state["start"])
                _fit(phase, graph, realities, logger, after, state, folder, stop)
                state["columns"][column] = evaluated()
                state["training"] = None
    columns = state["columns"]

    # ---- what came of it ----
    for reality in realities.values():
        if reality.bad_files:
            print(f"warning: {reality.bad_summary()}", file=sys.stderr)
    logger.close()
    if not ranks.first:
        return columns
    write_json(folder / "evaluation.json", columns)
    print("\n" + table(columns))
    if row and not asked.visualize:
        load_network(graph.target, checkpoint)
        saved = setting.models_dirs[0] / transfer.checkpoint
        save_network(saved, graph.target, setting.scale, half=True, **made_by)
        print(f"network:    {saved}")
    elif not asked.visualize:
        print(f"checkpoint: {checkpoint}")
    print(f"pictures:   {folder}")
    return columns


def _fit(
    training: Training,
    graph: TaskGraph,
    realities: Mapping[str, Reality],
    logger: Logger,
    after_epoch: Callable[[], None],
    state: Mapping,
    folder: Path,
    stop: Stop,
) -> None:
    """Train, saving states; where it is stopped or goes wrong, say what to do next."""
    before = len(state["columns"]) - 1  # phases done
    ranks = training.ranks

    def save(reached: dict) -> None:
        if ranks.first:
            number = before * training.epochs * training.steps + training.done
            said = _said(logger, realities)
            save_state(folder, number, {**state, "training": reached, **said})

    try:
        training.fit(graph, realities, logger, after_epoch, state["training"], save, stop)
    except Stopped as stopped:
        logger.close()
        print(f"stopped after step {training.done}; python -m train --resume {folder} goes on")
        sys.exit(128 + stopped.signal)  # by which shells and schedulers know a signal
    except NotFinite as error:
        logger.close()
        raise UserError(_keep_for_replay(error, graph, realities["train"], folder, ranks)) from None


def _said(logger: Logger, realities: Mapping[str, Reality]) -> dict[str, dict]:
    """What a state holds so that a resumed run says nothing twice."""
    bad = {name: reality.bad() for name, reality in realities.items()}
    return {"logger": logger.state_dict(), "bad": bad}


def _keep_for_replay(
    error: NotFinite, graph: TaskGraph, reality: Reality, folder: Path, ranks: Ranks
) -> str:
    """Save what a step that went wrong was to train on; returns the sentence that says so."""
    views = [str(reality.dataset.views[number]) for number in error.batch.views]
    file = folder / f"not_finite{f'_{ranks.rank}' if ranks.count > 1 else ''}.pt"
    batch = {name: values.cpu() for name, values in error.batch.items()}
    save_atomically(file, {"step": error.step, "losses": error.losses, "views": views,
                           "batch": batch, "target": graph.target.state_dict()})  # fmt: skip
    bad = [n for n, value in error.losses.items() if n != "loss" and not math.isfinite(value)]
    what = f"the loss {', '.join(bad)} is" if bad else "a gradient is"
    return (
        f"step {error.step}: {what} not finite; its batch, the names of its views and the network "
        f"as it was before it are in {file}; a smaller --lr or --precision fp32 may help"
    )


def _check(asked: SimpleNamespace, wanted: list[str]) -> None:
    """Raises UserError for flags that exclude each other or have no such value."""
    one_of("--mode", asked.mode, ("winrate", "standard"))
    one_of("--schedule", asked.schedule or "constant", ("constant", "cosine"))
    check_precision(asked.precision, TRAINING_PRECISIONS)
    if asked.winrate and (asked.random_select or asked.mode == "standard"):
        raise UserError("--winrate excludes --random-select and --mode standard")
    if asked.mode == "standard" and asked.random_select:
        raise UserError("--mode standard uses all perceptual losses: no --random-select")
    for name in ("batch_size", "steps_per_epoch", "lr", "subset_size", "max_epochs", "save_every",
                 "balance_every", "cache_labels"):  # fmt: skip
        value = getattr(asked, name)
        if value is not None and value <= 0:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} has to be more than 0, not {value}")
    if asked.num_workers is not None and asked.num_workers < 0:
        raise UserError(f"--num-workers has to be 0 or more, not {asked.num_workers}")
    if not 0 <= asked.max_bad_fraction <= 1:
        raise UserError(f"--max-bad-fraction is between 0 and 1, not {asked.max_bad_fraction}")
    none = not checked_k(asked.k, wanted, asked.mode)
    if none and (asked.compare_direct or asked.random_select or asked.winrate):
        raise UserError(
            "without perceptual losses there is nothing for --compare-direct, --random-select "
            "or --winrate to do"
        )
    if asked.mode == "standard" and asked.balance_every > 1:
        raise UserError("--mode standard balances nothing: no --balance-every")
    if asked.cache_labels and (asked.dataaug or none):
        why = "--dataaug changes a view each time" if asked.dataaug else "no loss uses labels so"
        raise UserError(f"--cache-labels keeps what is made of a view's ground truth, but {why}")
    if asked.compare_direct and asked.visualize:
        raise UserError("--visualize stops before training: no --compare-direct")


def _prepared(graph: TaskGraph, asked: SimpleNamespace, device: torch.device) -> TaskGraph:
    """The graph on its device, its networks as the flags want them."""
    graph = graph.to(device)
    if asked.channels_last:
        graph = graph.to(memory_format=torch.channels_last)
    if asked.checkpoint_activations:
        recompute_activations(graph)
    if asked.compile:
        if torch.cuda.device_count() > 1 and not torch.distributed.is_initialized():
            raise UserError("--compile takes one GPU a process: CUDA_VISIBLE_DEVICES=0, or torchrun"
                            " for several")  # fmt: skip
        # one forward pass serves several backward passes, so none may free what it holds
        torch._functorch.config.donated_buffer = False
        for network in graph.networks.values():
            network.compile()
    return graph


if __name__ == "__main__":
    command_line(main)

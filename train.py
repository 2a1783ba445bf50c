"""Train one network of the graph: rgb → target with cross-task consistency, or any edge.

python -m train multiperceptual_normal --k 2 --random-select
python -m train normal2principal_curvature
"""

import json
import platform
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from datasets import Reality
from energy import (
    balanced_gradient,
    choose_losses,
    evaluate_losses,
    loss_title,
    paths_for,
    win_rate,
    yardstick_of,
)
from graph import TaskGraph
from logger import Logger, connect_visdom
from models import load_network, make_optimizer, save_network
from scripts.evaluate import measure, table
from scripts.pictures import Pictures
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
from transfers import TRANSFERS, transfer_by_name
from utils import UserError, command_line, read_job, seed_everything, write_atomically

LOG_EVERY = 20  # steps between two lines of the log


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
    models_dir: str | None = None,
    image_size: int | None = None,
    width: int | None = None,
    strict: bool = False,
    results_dir: str | None = None,
    visdom_server: str = "localhost",
    visdom_port: int = 8097,
    num_workers: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> dict:
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
        batch_size: views a step (default: 64, with --fast 4, on the embedded rooms 16).
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
        models_dir: the folder of the checkpoints (default: models/ of the job's base folder,
            then the shipped rooms networks). A transfer's result is saved there.
        image_size: pixels of the images' side (default: what the checkpoints record).
        width: channels of the networks' first level (default: what the checkpoints record).
        strict: an error where the ImageNet network's weights can't be had, instead of
            leaving its loss out.
        results_dir: where the run's folder is made (default: results/ of the base folder).
        visdom_server: host of the Visdom server.
        visdom_port: its port.
        num_workers: loading processes (default: one a core, 8 at most; none for data that
            fits into memory).
        seed: of the data's order, the choice of losses, fresh weights and augmentation.
        quiet: plain lines instead of a progress bar.
    """
    # ---- what was asked for ----
    row = transfer_by_name(config) if config else None
    settings = configuration(config)
    assert config is not None  # configuration() has refused that
    transfer = TRANSFERS[settings["paths"]["n(x)"]]
    init = init or ("scratch" if row else "baseline")
    one_of("--mode", mode, ("winrate", "standard"))
    one_of("--schedule", schedule or "constant", ("constant", "cosine"))
    if winrate and (random_select or mode == "standard"):
        raise UserError("--winrate excludes --random-select and --mode standard")
    if mode == "standard" and random_select:
        raise UserError("--mode standard uses all perceptual losses: no --random-select")
    positive = {"--batch-size": batch_size, "--steps-per-epoch": steps_per_epoch, "--lr": lr,
                "--subset-size": subset_size, "--max-epochs": max_epochs}  # fmt: skip
    for flag, value in positive.items():
        if value is not None and value <= 0:
            raise UserError(f"{flag} has to be more than 0, not {value}")
    if num_workers is not None and num_workers < 0:
        raise UserError(f"--num-workers has to be 0 or more, not {num_workers}")
    wanted = restricted(settings, perceptual)
    if not checked_k(k, wanted, mode) and (compare_direct or random_select or winrate):
        raise UserError(
            "without perceptual losses there is nothing for --compare-direct, --random-select "
            "or --winrate to do"
        )
    if compare_direct and visualize:
        raise UserError("--visualize stops before training: no --compare-direct")
    seed_everything(seed)

    # ---- data, networks ----
    job = read_job()
    setting = settle(job, data_dirs, models_dir, image_size, width, quiet, row is not None)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    by_win_rate = not random_select and mode == "winrate" and k != 0
    graph, losses = build_graph(config, settings, wanted, by_win_rate, setting, init, strict)
    graph = graph.to(device)
    k = checked_k(k, losses, mode)

    # ---- realities ----
    small = setting.embedded
    batch_size = batch_size or (16 if small else 4 if fast else 64)
    tasks = tasks_of(settings, losses, by_win_rate)
    parts = views_of(tasks, setting, split, allow_missing, fast, subset_size)
    realities = make_realities(
        tasks, parts, setting, dataaug, batch_size, device, num_workers, seed
    )
    steps = steps_per_epoch or default_steps(len(parts["train"]), batch_size)

    # ---- the run's folder, logs, pictures ----
    rates = {"baseline": 3e-4, "scratch": 2e-3} if small else {"baseline": 3e-5, "scratch": 4e-4}
    epochs = (40 if row else 10) if small else 800
    training = Training(
        settings, losses, k, mode=mode, at_random=not by_win_rate,
        squared=row is not None and row.source != "rgb",
        lr=lr or rates.get(init, rates["baseline"]),
        schedule=schedule or ("cosine" if row else "constant"),
        epochs=max_epochs or epochs,
        steps=steps, seed=seed, quiet=quiet,
    )  # fmt: skip
    run = _make_run_folder(Path(results_dir) if results_dir else job.results_dir, config)
    record = training.record() | {
        "config": config, "init": init, "batch_size": batch_size,
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "dataaug": dataaug, "fast": fast, "device": str(device),
        "left_out": [name for name in wanted if name not in losses],
        "data": [str(d) for d in setting.data_dirs],
        "models": [str(d) for d in setting.models_dirs],
        "image_size": setting.scale.image_size, "width": setting.scale.width,
        "views": {part: len(views) for part, views in parts.items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__},
    }  # fmt: skip
    _write_json(run / "run.json", record)
    logger = Logger(config, run / "log.jsonl", connect_visdom(job.name, visdom_server, visdom_port))
    pictures = Pictures(settings, realities, graph, logger, run)

    # ---- measure, train, measure ----
    def measured() -> dict[str, float]:
        return measure(graph, settings, losses, realities.get("test", realities["val"]))

    start = {name: value.clone() for name, value in graph.target.state_dict().items()}
    columns = {"before": measured()}
    pictures.draw(graph, "start", "start")
    checkpoint = run / f"{transfer.name}{'' if row else '_consistency'}.pth"
    made_by = {key: record[key] for key in ("command", "config", "seed", "epochs", "steps", "lr")}

    def keep() -> None:
        save_network(checkpoint, graph.target, setting.scale, **made_by)

    if not visualize:
        training.fit(graph, realities, logger, after_epoch=lambda: (
            keep(), pictures.draw(graph, "", "latest")))  # type: ignore[func-returns-value]  # fmt: skip
        columns["trained"] = measured()
        if compare_direct:
            graph.target.load_state_dict(start)
            training.without_consistency().fit(graph, realities, logger, lambda: None)
            columns["without consistency"] = measured()
    _write_json(run / "evaluation.json", columns)
    logger.close()
    print("\n" + table(columns))
    if row and not visualize:
        load_network(graph.target, checkpoint)
        saved = setting.models_dirs[0] / transfer.checkpoint
        save_network(saved, graph.target, setting.scale, half=True, **made_by)
        print(f"network:    {saved}")
    elif not visualize:
        print(f"checkpoint: {checkpoint}")
    print(f"pictures:   {run}")
    return columns


# ---- the loop -----------------------------------------------------------------------


@dataclass
class Training:
    """How to train the target network of a graph. `losses` are perceptual, k in use at a time."""

    config: Mapping
    losses: list[str]
    k: int
    mode: str = "winrate"
    at_random: bool = False
    squared: bool = False
    lr: float = 3e-5
    schedule: str = "constant"
    epochs: int = 800
    steps: int = 100
    seed: int = 0
    quiet: bool = False
    label: str = "train"
    win_rates: dict[str, float] = field(default_factory=dict)
    val_error: float = float("nan")

    def record(self) -> dict:
        """Its settings as plain values."""
        names = ("losses", "k", "mode", "at_random", "squared", "lr", "schedule", "epochs",
                 "steps", "seed")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def without_consistency(self) -> "Training":
        """The same on the ground truth alone."""
        how = self.record() | {"losses": [], "k": 0}
        return Training(self.config, quiet=self.quiet, label="direct", **how)

    def fit(
        self,
        graph: TaskGraph,
        realities: Mapping[str, Reality],
        logger: Logger,
        after_epoch: Callable[[], object],
    ) -> None:
        """Train for `epochs` × `steps`; call `after_epoch` at the end of each."""
        optimizer = make_optimizer(graph.target.parameters(), self.lr)
        total = max(1, self.epochs * self.steps)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        rng = random.Random(self.seed)
        batches = iter(realities["train"])
        self._validate(graph, realities["val"], logger, 0)
        size = realities["train"].batch_size
        silent = self.quiet or not sys.stderr.isatty()
        bar = tqdm(total=total * size, unit="img", desc=self.label, disable=silent)
        for epoch in range(self.epochs):
            chosen = choose_losses(self.losses, self.k, self.win_rates, rng, self.at_random)
            if self.losses:
                logger.text("chosen losses", f"epoch {epoch}: {', '.join(chosen) or 'none'}")
            graph.train()
            for step in range(1, self.steps + 1):
                self._step(graph, next(batches), chosen, optimizer, logger)
                if self.schedule == "cosine":
                    decay.step()
                bar.update(size)
                if step % LOG_EVERY == 0 or step == self.steps:
                    logger.step(epoch * self.steps + step, self.label)
                    bar.set_postfix_str(f"epoch {epoch + 1}/{self.epochs}, {self._shown(logger)}")
            self._validate(graph, realities["val"], logger, (epoch + 1) * self.steps)
            after_epoch()
            if silent:
                line = f"{self.label} epoch {epoch + 1}/{self.epochs}: {self._shown(logger)}"
                print(line, flush=True)
        bar.close()

    def _step(
        self,
        graph: TaskGraph,
        batch: Mapping[str, Tensor],
        chosen: list[str],
        optimizer: torch.optim.Optimizer,
        logger: Logger,
    ) -> None:
        names = ["mae", *chosen]
        values = graph.sample(paths_for(self.config, names), batch)
        per_sample = evaluate_losses(self.config, names, values, squared=self.squared)
        losses = {name: loss.mean() for name, loss in per_sample.items()}
        parameters = list(graph.target.parameters())
        if self.mode == "winrate":
            gradients, weights, _ = balanced_gradient(losses, parameters)
        else:
            total: Tensor = sum(losses.values())  # type: ignore[assignment]
            gradients = list(torch.autograd.grad(total, parameters))
            weights = dict.fromkeys(losses, torch.ones(()))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        logger.update("loss", sum(weights[name] * loss.detach() for name, loss in losses.items()))
        for name, loss in losses.items():
            logger.update(self._title(name), loss)

    @torch.no_grad()
    def _validate(self, graph: TaskGraph, reality: Reality, logger: Logger, at: int) -> None:
        """Log all losses over all validation views, and take the win rates from them."""
        graph.eval()
        yardsticks = {} if self.at_random else {name: yardstick_of(name) for name in self.losses}
        names = ["mae", *self.losses, *yardsticks.values()]
        won: dict[str, list[Tensor]] = {name: [] for name in yardsticks}
        for batch in reality:
            values = graph.sample(paths_for(self.config, names, "val"), batch)
            losses = evaluate_losses(self.config, names, values, "val", self.squared)
            for name, loss in losses.items():
                logger.update(self._title(name), loss)
            for name, yardstick in yardsticks.items():
                won[name].append(win_rate(losses[name], losses[yardstick]) * len(losses[name]))
        views = len(reality.dataset)
        self.win_rates = {name: float(sum(parts)) / views for name, parts in won.items()}
        if self.win_rates:
            logger.record({"win rates": self.win_rates, "step": at})
        logger.step(at, "val" if self.label == "train" else f"{self.label}_val")
        self.val_error = logger.means[self._title("mae")]

    def _title(self, name: str) -> str:
        return loss_title(self.config, name, "mse" if self.squared else "mae")

    def _shown(self, logger: Logger) -> str:
        return f"loss {logger.means['loss']:.4f}, val {self._title('mae')} {self.val_error:.4f}"


# ---- the run's folder --------------------------------------------------------------


def _make_run_folder(results_dir: Path, name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        folder = results_dir / f"{name}_{stamp}{f'-{number}' if number else ''}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from None
        return folder
    raise UserError(f"cannot make a new folder in {results_dir}")


def _write_json(path: Path, values: object) -> None:
    write_atomically(path, lambda p: p.write_text(json.dumps(values, indent=1) + "\n"))


if __name__ == "__main__":
    command_line(main)

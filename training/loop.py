"""Training by epochs: steps on the reality "train", validation on the reality "val"."""

import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from choosing import choose_losses, wins
from datasets import Batch, Reality
from devices import Ranks, peak_memory
from energy import loss_title, paths_for, yardstick_of
from graph import TaskGraph
from label_cache import Budget, LabelCache
from logger import Logger
from losses import evaluate_losses
from methods.interface import TrainingStep
from models import make_optimizer
from precision import numerical_precision
from training.step import Step
from utils import duration, log

LOG_EVERY = 20  # steps between log lines


class NotFinite(Exception):
    """A loss or gradient was infinite or NaN. The network is as it was before that step.

    `step` counts from 1. `losses` are the step's loss values, and `batch` is its data.
    """

    def __init__(self, step: int, losses: dict[str, float], batch: Batch) -> None:
        super().__init__(f"step {step}")
        self.step, self.losses, self.batch = step, losses, batch


@dataclass(frozen=True)
class Plan:
    """How to train the target network of a graph.

    `losses` are the perceptual losses that validation measures. Each epoch trains on k of those
    in `trains_on` (None: all): those with the highest win rates or, with `at_random`, a random
    choice. `mode` sets the weights of all losses: "winrate" balances the sizes of their
    gradients, "standard" adds them. `squared` uses squared instead of absolute errors.
    `max_seconds` ends training at the end of the epoch in which its steps have taken that long.
    `validate_every` is the number of epochs between validations; the last epoch always ends with
    one. `save_every` is the number of steps between saved states (0: only at the end of each
    epoch). `label` names the training in the log.
    """

    config: Mapping
    losses: list[str]
    k: int
    lr: float
    epochs: int
    steps_per_epoch: int
    schedule: str = "constant"
    mode: str = "winrate"
    at_random: bool = False
    squared: bool = False
    seed: int = 0
    balance_every: int = 1
    precision: str = "fp32"
    validate_every: int = 1
    save_every: int = 0
    trains_on: list[str] | None = None
    max_seconds: float | None = None
    label: str = "train"

    @property
    def trained(self) -> list[str]:
        """The perceptual losses among which training chooses."""
        return [n for n in self.losses if self.trains_on is None or n in self.trains_on]

    def record(self) -> dict:
        """Return the settings as plain values."""
        left_out = ("config", "label")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}

    def without_consistency(self) -> "Plan":
        """Return the same plan without perceptual losses."""
        record = self.record() | {"losses": [], "k": 0, "trains_on": None}
        return Plan(self.config, label="direct", **record)


@dataclass
class Progress:
    """How far training has come.

    `step` counts within the epoch. `improved` tells whether the epoch's validation error is the
    lowest so far.
    """

    epoch: int = 0
    step: int = 0
    chosen: list[str] = field(default_factory=list)
    win_rates: dict[str, float] = field(default_factory=dict)
    val_error: float = float("nan")
    best_error: float = float("inf")  # over all epochs
    improved: bool = False


def usual_step(
    graph: TaskGraph, plan: Plan, labels: LabelCache, device: torch.device, ranks: Ranks
) -> Step:
    """Return the step that trains a graph's target network by a plan: direct and perceptual."""
    return Step(
        graph, plan.config, make_optimizer(graph.trained_parameters, plan.lr), device, plan.mode,
        plan.squared, plan.balance_every, plan.precision, ranks, labels,
        steps=plan.epochs * plan.steps_per_epoch,
    )  # fmt: skip


class Trainer:
    """Trains the target network of a graph by a plan.

    An epoch runs `steps()` to its end, then `validate()` if `validation_is_due()`, then
    `end_epoch()`. `progress` tells how far training has come. `realities` must hold "train", which
    is endless, and "val"; `labels` are their caches. `make_step` makes the step from the plan and
    the cache of "train"; by default it is a `Step`. `seconds` is the time that the steps have
    taken.
    """

    def __init__(
        self,
        plan: Plan,
        graph: TaskGraph,
        realities: Mapping[str, Reality],
        logger: Logger,
        ranks: Ranks | None = None,
        labels: Mapping[str, LabelCache] | None = None,
        quiet: bool = False,
        make_step: Callable[[Plan, LabelCache], TrainingStep] | None = None,
    ) -> None:
        self.plan, self.progress, self.seconds = plan, Progress(), 0.0
        self.is_validated = False  # whether the epoch that ends has been
        self.graph, self.logger, self.ranks = graph, logger, ranks or Ranks()
        self._train, self._val = realities["train"], realities["val"]
        self._labels = labels or {name: LabelCache(Budget(0)) for name in realities}
        usual = partial(usual_step, graph, device=self._train.device, ranks=self.ranks)
        self.step: TrainingStep = (make_step or usual)(plan, self._labels["train"])
        self._rng = random.Random(plan.seed)
        self._unchecked: list[tuple[int, dict[str, Tensor], Tensor]] = []  # step, losses, bad
        self._yardsticks: dict[tuple, Tensor] = {}  # (loss, views) → (B,)
        self._batches: Iterator[Batch] | None = None
        self._first: tuple[int, float] | None = None  # step and time at which this process began
        self._told = False
        self._plain_lines = quiet or not sys.stderr.isatty()
        self._bar: tqdm | None = None

    @property
    def global_step(self) -> int:
        """The number of steps since training began."""
        return self.progress.epoch * self.plan.steps_per_epoch + self.progress.step

    @property
    def taken(self) -> dict[str, Any]:
        """What training took: steps and their seconds, and this process's peak memory in MiB."""
        peak = peak_memory(self._train.device)
        return {"steps": self.global_step, "seconds": self.seconds, "peak_mib": peak}

    @property
    def done(self) -> bool:
        """Whether all epochs are over, or an epoch is over and `max_seconds` have passed."""
        limit = self.plan.max_seconds
        in_time = limit is None or self.seconds < limit or self.progress.step > 0
        return self.progress.epoch >= self.plan.epochs or not in_time

    @property
    def epoch_is_over(self) -> bool:
        """Whether all steps of the epoch are taken."""
        return self.progress.step >= self.plan.steps_per_epoch

    # ---- states -------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """Return all that the remaining training depends on, except the log's state.

        To be called on all ranks. Raises NotFinite if an unchecked step was bad.
        """
        self.check()
        for network in (self.graph.target, *self.step.networks.values()):
            self.ranks.share_buffers(network)
        return {
            **self.step.state_dict(),
            "progress": dict(vars(self.progress)),
            "rng": self._rng.getstate(),
            "target": self.graph.target.state_dict(),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Restore what `state_dict()` returned, to continue exactly from there."""
        self.progress = Progress(**state["progress"])
        self._rng.setstate(_tuples(state["rng"]))
        self.graph.target.load_state_dict(state["target"])
        self.seconds = state.get("seconds", 0.0)  # earlier versions did not count them
        self.step.load_state_dict(state)

    # ---- an epoch -----------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """Take the epoch's remaining steps; yield the global step number after each.

        Chooses the losses before the first step of the epoch. Raises NotFinite if a step was
        bad.
        """
        if self._batches is None:
            self._train.begin(self.global_step)
            self._batches = iter(self._train)
        if self.progress.step == 0:
            self.progress.improved = False
            self._choose_losses()
        self.graph.train()
        waited, started = 0.0, time.monotonic()
        self._first = self._first or (self.global_step, started)
        while not self.epoch_is_over:
            requested = time.monotonic()
            batch = next(self._batches)
            waited += time.monotonic() - requested
            self._take_step(batch)
            self.seconds += time.monotonic() - requested
            yield self.global_step
        self.logger.record({
            "epoch": self.progress.epoch, "seconds": time.monotonic() - started,
            "seconds waiting for data": waited,
        })  # fmt: skip

    def _choose_losses(self) -> None:
        plan, progress = self.plan, self.progress
        progress.chosen = choose_losses(
            plan.trained, plan.k, progress.win_rates, self._rng, plan.at_random
        )
        if plan.trained:
            names = ", ".join(progress.chosen) or "none"
            self.logger.text("chosen losses", f"epoch {progress.epoch}: {names}")

    def _take_step(self, batch: Batch) -> None:
        """Take one step: losses, gradients, update, log."""
        # Layers that draw random numbers (dropout) draw the same after a run was resumed.
        draw = f"{self.plan.seed}/{self.global_step}/{self.ranks.rank}"
        torch.manual_seed(random.Random(draw).getrandbits(63))
        losses = self.step(batch, self.progress.chosen)
        if self.plan.schedule == "cosine":
            self.step.decay()
        self.progress.step += 1
        self._unchecked.append((self.global_step, losses, self.step.bad))
        for name, loss in losses.items():
            self.logger.update("loss" if name == "loss" else self._title(name), loss)
        if self.progress.step % LOG_EVERY == 0 or self.epoch_is_over:
            self.check()
            self.logger.step(self.global_step, self.plan.label)
            self._log_time_left()
        self._advance_bar()

    def _log_time_left(self) -> None:
        """Log, once in this process, how long the remaining steps will take."""
        if self._told or self._first is None:
            return
        self._told = True
        begun, since = self._first
        each = (time.monotonic() - since) / (self.global_step - begun)
        left = self.plan.epochs * self.plan.steps_per_epoch - self.global_step
        if self.ranks.first and left:
            log.info(
                "%s: %.2g s per step, so about %s for the %s steps left, validation not counted",
                self.plan.label, each, duration(each * left), left,
            )  # fmt: skip

    def check(self) -> None:
        """Raise NotFinite if a step since the last check was bad.

        The flags stay on the device until then, so that no step waits for its flag.
        """
        if not self._unchecked:
            return
        flags = torch.stack([bad for _, _, bad in self._unchecked]).tolist()
        steps, self._unchecked = self._unchecked, []
        for flag, (number, losses, _) in zip(flags, steps, strict=True):
            if flag:
                values = {name: float(loss) for name, loss in losses.items()}
                self._train.begin(number - 1)  # to load the same batch again
                raise NotFinite(number, values, next(iter(self._train)))

    def end_epoch(self) -> None:
        """Move on to the next epoch."""
        self.seconds = max(self.ranks.gathered(self.seconds))  # so that all ranks stop together
        progress = self.progress
        progress.epoch, progress.step = progress.epoch + 1, 0
        if self._plain_lines and self.ranks.first:
            log.info(
                "%s epoch %s/%s: %s", self.plan.label, progress.epoch, self.plan.epochs,
                self._summary(with_validation=self.is_validated),
            )  # fmt: skip
        self.is_validated = False

    # ---- validation -----------------------------------------------------------------------

    def validation_is_due(self) -> bool:
        """Whether the epoch, whose steps are over, ends with validation: see `Plan`.

        To be called on all ranks.
        """
        plan, epoch = self.plan, self.progress.epoch + 1
        if epoch % plan.validate_every == 0 or epoch >= plan.epochs:
            return True
        limit = plan.max_seconds
        return limit is not None and max(self.ranks.gathered(self.seconds)) >= limit

    @torch.no_grad()
    def validate(self) -> None:
        """Measure and log all losses on all validation views; set the win rates and val error."""
        self.graph.eval()
        self.ranks.share_buffers(self.graph.target)
        yardsticks = {} if self.plan.at_random else self._measurable_yardsticks()
        per_view: dict[str, list[Tensor]] = {}
        for batch in self._val:
            losses = self._validation_losses(batch, list(yardsticks.values()))
            for name, yardstick in yardsticks.items():
                won = wins(losses[name], losses[yardstick])
                per_view.setdefault(f"won {name}", []).append(won)
            for name, loss in losses.items():
                per_view.setdefault(name, []).append(loss)
        means = self._means(per_view)
        progress = self.progress
        progress.win_rates = {name: means.pop(f"won {name}") for name in yardsticks}
        for name, mean in means.items():
            self.logger.update(self._title(name), mean)
        if progress.win_rates:
            self.logger.record({"win rates": progress.win_rates, "step": self.global_step})
        split = "val" if self.plan.label == "train" else f"{self.plan.label}_val"
        self.logger.step(self.global_step, split)
        progress.val_error = means["mae"]
        if progress.step:  # the validation before training does not count
            progress.improved = progress.val_error < progress.best_error
            progress.best_error = min(progress.best_error, progress.val_error)
            self.is_validated = True

    def _measurable_yardsticks(self) -> dict[str, str]:
        """Return each perceptual loss's yardstick, if the views have the domains it needs."""
        available = {task.name for task in self._val.dataset.tasks}
        yardsticks = {name: yardstick_of(name) for name in self.plan.trained}
        measurable = {}
        for name, yardstick in yardsticks.items():
            paths = paths_for(self.plan.config, [yardstick], "val").values()
            if all(path[0] in available for path in paths):
                measurable[name] = yardstick
        return measurable

    def _validation_losses(self, batch: Batch, yardsticks: list[str]) -> dict[str, Tensor]:
        """Return all losses of a batch, {name: (B,)}.

        The yardsticks do not depend on the target network, so each is computed only once.
        """
        views = tuple(batch.views)
        kept = {n: v for n in yardsticks if (v := self._yardsticks.get((n, views))) is not None}
        names = [n for n in ("mae", *self.plan.losses, *yardsticks) if n not in kept]
        paths = paths_for(self.plan.config, names, "val")
        with numerical_precision(self._val.device, self.plan.precision):
            known = self._labels["val"].frozen_values(self.graph, paths, batch)
            values = self.graph.sample(paths, batch, known)
        losses = evaluate_losses(self.plan.config, names, values, "val", self.plan.squared)
        self._yardsticks |= {(n, views): losses[n] for n in yardsticks if n in losses}
        return losses | kept

    def _means(self, per_view: Mapping[str, list[Tensor]]) -> dict[str, float]:
        """Return the mean of each value over the views of all ranks."""
        local = {name: torch.cat(parts).double() for name, parts in per_view.items()}
        sums = {name: (float(values.sum()), len(values)) for name, values in local.items()}
        per_rank = self.ranks.gathered(sums)
        means = {}
        for name in dict.fromkeys(chain.from_iterable(per_rank)):
            parts = [part[name] for part in per_rank if name in part]
            means[name] = sum(total for total, _ in parts) / sum(count for _, count in parts)
        return means

    # ---- display ----------------------------------------------------------------------------

    def _title(self, name: str) -> str:
        if name not in self.plan.config["losses"]:  # of a method's own step
            return f"{name} : training"
        return loss_title(self.plan.config, name, "mse" if self.plan.squared else "mae")

    def _summary(self, with_validation: bool = True) -> str:
        text = f"loss {self.logger.means['loss']:.4f}"
        if not with_validation:
            return text
        return f"{text}, val {self._title('mae')} {self.progress.val_error:.4f}"

    def _advance_bar(self) -> None:
        """Advance the progress bar, which only the first rank shows."""
        if self._plain_lines or not self.ranks.first:
            return
        size = self._train.batch_size * self.ranks.count
        if self._bar is None:
            total = self.plan.epochs * self.plan.steps_per_epoch * size
            initial = (self.global_step - 1) * size
            self._bar = tqdm(total=total, initial=initial, unit="img", desc=self.plan.label)
        self._bar.update(size)
        if "loss" in self.logger.means:
            epoch = f"epoch {self.progress.epoch + 1}/{self.plan.epochs}"
            self._bar.set_postfix_str(f"{epoch}, {self._summary()}", refresh=False)

    def close(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()


def _tuples(value):
    """Return nested lists as tuples, as `random.setstate` requires."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value

"""The training loop: epochs of steps on one reality, validation on another."""

import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain

import torch
from torch import Tensor
from tqdm import tqdm

from datasets import Batch, Reality
from energy import choose_losses, evaluate_losses, loss_title, paths_for, wins, yardstick_of
from graph import TaskGraph
from logger import Logger
from models import make_optimizer
from scripts.label_cache import LabelCache
from scripts.precision import arithmetic
from scripts.ranks import Ranks
from scripts.step import Step

LOG_EVERY = 20  # steps between two lines of the log


class NotFinite(Exception):
    """A loss or a gradient was infinite or not a number; the network is as before that step.

    `step` counts from 1, `losses` are the values, `batch` what the step was to train on.
    """

    def __init__(self, step: int, losses: dict[str, float], batch: Batch) -> None:
        super().__init__(f"step {step}")
        self.step, self.losses, self.batch = step, losses, batch


class Stopped(Exception):
    """Training was asked to stop, and has saved its state."""


@dataclass
class Training:
    """How to train the target network of a graph. `losses` are perceptual, k in use at a time.

    The fields after `label` are where it stands.
    """

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
    balance_every: int = 1
    precision: str = "fp32"
    cache_labels: float = 0.0  # bytes
    save_every: int = 0  # steps; 0: at the end of an epoch alone
    ranks: Ranks = field(default_factory=Ranks)
    quiet: bool = False
    label: str = "train"

    epoch: int = 0
    step: int = 0
    chosen: list[str] = field(default_factory=list)
    win_rates: dict[str, float] = field(default_factory=dict)
    val_error: float = float("nan")
    best_error: float = float("inf")  # of the epochs' validations
    improved: bool = False  # by the last epoch

    def record(self) -> dict:
        """Its settings as plain values."""
        kept = ("config", "ranks", "quiet", "label", *PROGRESS)
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in kept}

    def without_consistency(self) -> "Training":
        """The same on the ground truth alone."""
        how = self.record() | {"losses": [], "k": 0}
        return Training(self.config, ranks=self.ranks, quiet=self.quiet, label="direct", **how)

    @property
    def done(self) -> int:
        """Steps taken."""
        return self.epoch * self.steps + self.step

    def fit(
        self,
        graph: TaskGraph,
        realities: Mapping[str, Reality],
        logger: Logger,
        after_epoch: Callable[[], object],
        state: Mapping | None = None,
        save: Callable[[dict], object] = lambda state: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train for `epochs` × `steps`; call `after_epoch` at the end of each, then `save`.

        `save` gets a state with which another call goes on exactly where this one stood.
        Once `stop` says yes, the step is finished, the state saved and Stopped raised.
        Raises NotFinite.
        """
        self._begin(graph, realities, logger, state)
        size = realities["train"].batch_size * self.ranks.count
        silent = self.quiet or not sys.stderr.isatty() or not self.ranks.first
        total = self.epochs * self.steps * size
        bar = tqdm(total=total, initial=self.done * size, unit="img", desc=self.label,
                   disable=silent)  # fmt: skip
        with bar:
            batches = iter(realities["train"])
            while self.epoch < self.epochs:
                self._train_epoch(batches, bar, save, stop)
                self._validate()
                self.improved = self.val_error < self.best_error
                self.best_error = min(self.best_error, self.val_error)
                after_epoch()
                self.epoch, self.step = self.epoch + 1, 0
                save(self.state_dict())
                if silent:
                    line = f"{self.label} epoch {self.epoch}/{self.epochs}: {self._shown()}"
                    print(line, flush=True)

    def state_dict(self) -> dict:
        """Everything that the rest of the training depends on."""
        self._check()
        return {
            "progress": {name: getattr(self, name) for name in PROGRESS},
            "weights": {name: float(weight) for name, weight in self._step.weights.items()},
            "age": self._step.age,
            "rng": self._rng.getstate(),
            "target": self._graph.target.state_dict(),
            "optimizer": self._step.optimizer.state_dict(),
            "decay": self._decay.state_dict(),
            "logger": self._logger.state_dict(),
        }

    # ---- parts of fit ----------------------------------------------------------------

    def _begin(
        self,
        graph: TaskGraph,
        realities: Mapping[str, Reality],
        logger: Logger,
        state: Mapping | None,
    ) -> None:
        self._graph, self._realities, self._logger = graph, realities, logger
        device = realities["train"].device
        optimizer = make_optimizer(graph.target.parameters(), self.lr)
        self._step = Step(
            graph, self.config, optimizer, device, self.mode, self.squared, self.balance_every,
            self.precision, self.ranks,
            LabelCache(self.cache_labels) if self.cache_labels else None,
        )  # fmt: skip
        steps = max(1, self.epochs * self.steps)
        self._decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        self._rng = random.Random(self.seed)
        self._unchecked: list[tuple[int, dict[str, Tensor], Tensor]] = []
        self._yardsticks: dict[tuple, Tensor] = {}
        if state is None:
            self._validate()
        else:
            self._load(state, device)
        realities["train"].begin(self.done)

    def _load(self, state: Mapping, device: torch.device) -> None:
        for name, value in state["progress"].items():
            setattr(self, name, value)
        weights = {n: torch.tensor(w, device=device) for n, w in state["weights"].items()}
        self._step.weights, self._step.age = weights, state["age"]
        self._rng.setstate(_tuples(state["rng"]))
        self._graph.target.load_state_dict(state["target"])
        self._step.optimizer.load_state_dict(state["optimizer"])
        self._decay.load_state_dict(state["decay"])
        self._logger.load_state_dict(state["logger"])

    def _train_epoch(
        self,
        batches: Iterator[Batch],
        bar: tqdm,
        save: Callable[[dict], object],
        stop: Callable[[], bool],
    ) -> None:
        if self.step == 0:
            self.chosen = choose_losses(
                self.losses, self.k, self.win_rates, self._rng, self.at_random
            )
            if self.losses:
                text = f"epoch {self.epoch}: {', '.join(self.chosen) or 'none'}"
                self._logger.text("chosen losses", text)
        self._graph.train()
        self._waited, self._since = 0.0, time.monotonic()
        while self.step < self.steps:
            self._train_step(batches)
            bar.update(self._realities["train"].batch_size * self.ranks.count)
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                self._check()
                self._logger.step(self.done, self.label)
                bar.set_postfix_str(f"epoch {self.epoch + 1}/{self.epochs}, {self._shown()}")
            if self.ranks.any(stop()):
                save(self.state_dict())
                raise Stopped
            if self.save_every and self.done % self.save_every == 0 and self.step < self.steps:
                save(self.state_dict())
        self._record_times()

    def _train_step(self, batches: Iterator[Batch]) -> None:
        started = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - started
        losses = self._step(batch, self.chosen)
        if self.schedule == "cosine":
            self._decay.step()
        self.step += 1
        self._unchecked.append((self.done, losses, self._step.bad))
        for name, loss in losses.items():
            self._logger.update("loss" if name == "loss" else self._title(name), loss)

    def _record_times(self) -> None:
        """How long the epoch took, and how much of it the step waited for data."""
        seconds = time.monotonic() - self._since
        self._logger.record(
            {"epoch": self.epoch, "seconds": seconds, "seconds waiting for data": self._waited}
        )

    def _check(self) -> None:
        """Raises NotFinite if one of the last steps was bad: the only look at the device."""
        if not self._unchecked:
            return
        flags = torch.stack([bad for _, _, bad in self._unchecked]).tolist()
        steps, self._unchecked = self._unchecked, []
        for flag, (number, losses, _) in zip(flags, steps, strict=True):
            if flag:
                values = {name: float(loss) for name, loss in losses.items()}
                reality = self._realities["train"]
                reality.begin(number - 1)
                raise NotFinite(number, values, next(iter(reality)))

    @torch.no_grad()
    def _validate(self) -> None:
        """Log all losses over all validation views, and take the win rates from them."""
        self._graph.eval()
        yardsticks = {} if self.at_random else {name: yardstick_of(name) for name in self.losses}
        found: dict[str, list[Tensor]] = {}
        for batch in self._realities["val"]:
            losses = self._validation_losses(batch, list(yardsticks.values()))
            for name, yardstick in yardsticks.items():
                won = wins(losses[name], losses[yardstick])
                found.setdefault(f"won {name}", []).append(won)
            for name, loss in losses.items():
                found.setdefault(name, []).append(loss)
        mine = {name: torch.cat(parts).double() for name, parts in found.items()}
        sums = {name: (float(values.sum()), len(values)) for name, values in mine.items()}
        parts = self.ranks.gathered(sums)
        means = {}
        for name in dict.fromkeys(chain.from_iterable(parts)):
            both = [part[name] for part in parts if name in part]
            means[name] = sum(total for total, _ in both) / sum(count for _, count in both)
        self.win_rates = {name: means.pop(f"won {name}") for name in yardsticks}
        for name, mean in means.items():
            self._logger.update(self._title(name), mean)
        if self.win_rates:
            self._logger.record({"win rates": self.win_rates, "step": self.done})
        self._logger.step(self.done, "val" if self.label == "train" else f"{self.label}_val")
        self.val_error = means["mae"]

    def _validation_losses(self, batch: Batch, yardsticks: list[str]) -> dict[str, Tensor]:
        """All losses of a batch, {name: (B,)}; the yardsticks, which never change, once a run."""
        views = tuple(batch.views)
        kept = {n: v for n in yardsticks if (v := self._yardsticks.get((n, views))) is not None}
        names = [n for n in ("mae", *self.losses, *yardsticks) if n not in kept]
        with arithmetic(self._realities["val"].device, self.precision):
            values = self._graph.sample(paths_for(self.config, names, "val"), batch)
        losses = evaluate_losses(self.config, names, values, "val", self.squared)
        self._yardsticks |= {(n, views): losses[n] for n in yardsticks if n in losses}
        return losses | kept

    def _title(self, name: str) -> str:
        return loss_title(self.config, name, "mse" if self.squared else "mae")

    def _shown(self) -> str:
        loss = self._logger.means["loss"]
        return f"loss {loss:.4f}, val {self._title('mae')} {self.val_error:.4f}"


PROGRESS = (
    "epoch", "step", "chosen", "win_rates", "val_error", "best_error", "improved"
)  # fmt: skip


def _tuples(value):
    """Lists as tuples, all the way down: what `random.setstate` wants."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value

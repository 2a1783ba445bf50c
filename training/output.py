"""The files of a run's folder: record, log, pictures, checkpoints and states."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from datasets import Reality
from devices import Ranks
from files import write_json
from graph import TaskGraph
from logger import Logger, VisdomWindows
from models import save_atomically, save_network
from training.curves import draw_curves, read_curves
from training.loop import NotFinite, Trainer
from training.progress_pictures import Pictures
from training.run_folder import record_taken, recorded_taken, write_record
from training.states import RunState, load_state, save_state
from transfers import Scale
from utils import UserError, reason_of

# The entries of run.json that each checkpoint records too.
MADE_BY = (
    "command", "config", "method", "seed", "epochs", "steps_per_epoch", "lr", "network_file",
    "network_function", "network_sha256", "on_predictions", "shift",
)  # fmt: skip


class RunOutput:
    """The folder of a run, and all that is written there. Only the first rank writes,
    except in `keep_for_replay`.

    `columns` are the columns of the closing table so far, and `taken` is what the training for
    each of them took (`Trainer.taken`). `training` is the trainer's state in the current phase, or
    None. `start` holds the initial weights, if a comparison needs them. A resumed run loads all
    of them, from its last state and its record; `resumed` tells whether it had a state. `report`
    is what the run's method adds to the closing table.
    """

    def __init__(
        self,
        folder: Path,
        record: Mapping,
        graph: TaskGraph,
        config: Mapping,
        realities: Mapping[str, Reality],
        ranks: Ranks,
        windows: VisdomWindows | None,
        resuming: bool,
    ) -> None:
        self.folder, self.ranks, self.graph, self.realities = folder, ranks, graph, realities
        state: RunState | None = ranks.from_first(
            load_state(folder) if ranks.first and resuming else None
        )
        self.resumed = state is not None
        self.logger = Logger(record["config"])
        self.record = dict(record)
        if ranks.first:
            self.record = write_record(folder, record)
            if not self.resumed:
                (folder / "log.jsonl").unlink(missing_ok=True)
            self.logger = Logger(record["config"], folder / "log.jsonl", windows)
        self.report = ""
        self.columns: dict[str, dict[str, float]] = state["columns"] if state else {}
        self.taken: dict[str, dict[str, Any]] = recorded_taken(self.record) if state else {}
        self.start: dict[str, Tensor] = state["start"] if state else {}
        self.training: dict | None = state["training"] if state else None
        if state:
            self.logger.load_state_dict(state["logger"])
        for name, reality in realities.items():
            reality.bad.record = self.logger.record
            if state:
                reality.bad.load_state_dict(state["bad"][name])
        self._pictures: Pictures | None = None
        if ranks.first:
            self._pictures = Pictures(config, realities, graph, self.logger, folder)

    def begin(self, before: dict[str, float], keep_start: bool) -> None:
        """Store the table's first column, draw the first pictures and save the first state.

        `keep_start` keeps the initial weights, for a comparison that starts from them too.
        """
        self.columns["before"] = before
        if keep_start:
            weights = self.graph.target.state_dict()
            self.start = {name: value.clone() for name, value in weights.items()}
        if self._pictures:
            heading = f"{self.record['config']}, before training"
            self._pictures.draw(self.graph, "start", "start", heading)
        self.save_state(0)

    def end_phase(self, column: str, measured: dict[str, float], taken: dict[str, Any]) -> None:
        """Store the closing table's column of a finished phase, and the steps and seconds taken.

        If the run is stopped and resumed, only what a later state has saved is kept of it.
        """
        self.columns[column], self.training = measured, None
        self.taken[column] = taken
        if self.ranks.first:
            record_taken(self.folder, self.taken)

    def save_state(self, number: int) -> None:
        """Save a state from which the run can resume. `number` must increase from call to call."""
        if self.ranks.first:
            bad = {name: reality.bad.state_dict() for name, reality in self.realities.items()}
            save_state(self.folder, number, {
                "columns": self.columns, "start": self.start, "training": self.training,
                "logger": self.logger.state_dict(), "bad": bad,
            })  # fmt: skip

    def restore(self, trainer: Trainer) -> None:
        """Restore the trainer from the last saved state. Raises UserError if it does not fit."""
        try:
            trainer.load_state_dict(self.training or {})
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"the last state in {self.folder} is not one of this run: {reason_of(error)}"
            ) from None

    def save_epoch(self, trainer: Trainer, checkpoint: Path, scale: Scale) -> None:
        """Save the network, also as the best if it improved; draw the pictures if validated."""
        if self.ranks.first:
            network = trainer.graph.target
            save_network(checkpoint, network, scale, **self.made_by)
            for name, other in trainer.step.networks.items():
                ending = checkpoint.stem.removeprefix(self.record["trains"])
                save_network(checkpoint.with_stem(name + ending), other, scale, **self.made_by)
            if trainer.progress.improved:
                best = checkpoint.with_stem(f"{checkpoint.stem}_best")
                save_network(best, network, scale, **self.made_by)
            if self._pictures and trainer.is_validated:
                epoch = f"epoch {trainer.progress.epoch + 1} of {trainer.plan.epochs}"
                heading = f"{self.record['config']}, {epoch}"
                self._pictures.draw(trainer.graph, "", "latest", heading)

    def draw_curves(self) -> None:
        """Draw curves.png from the log."""
        if self.ranks.first:
            curves = read_curves(self.folder / "log.jsonl", self.record["steps_per_epoch"])
            title = f"{self.record['config']}, {self.record['epochs']} epochs"
            draw_curves(curves, self.folder / "curves.png", title, self.record["squared"])

    @property
    def made_by(self) -> dict:
        """How the network was made, for its checkpoint."""
        return {key: self.record[key] for key in MADE_BY if key in self.record}

    def keep_for_replay(self, error: NotFinite, trainer: Trainer) -> str:
        """Save the batch and the weights of a step that failed, so that it can be replayed.

        Returns the error message. Each rank writes its own batch.
        """
        ranks, dataset = self.ranks, self.realities["train"].dataset
        file = self.folder / f"not_finite{f'_{ranks.rank}' if ranks.count > 1 else ''}.pt"
        save_atomically(file, {
            "step": error.step, "losses": error.losses,
            "views": [str(dataset.views[number]) for number in error.batch.views],
            "batch": {name: values.cpu() for name, values in error.batch.items()},
            "target": trainer.graph.target.state_dict(),
            "networks": {n: network.state_dict() for n, network in trainer.step.networks.items()},
        })  # fmt: skip
        bad = [n for n, value in error.losses.items() if n != "loss" and not math.isfinite(value)]
        what = f"the loss {', '.join(bad)} is" if bad else "a gradient is"
        return (
            f"step {error.step}: {what} not finite; its batch, the names of its views and the "
            f"network as it was before it are in {file}; a smaller `lr` or `precision` fp32 may "
            f"help"
        )

    def save_table(self) -> None:
        """Write the closing table to evaluation.json."""
        write_json(self.folder / "evaluation.json", self.columns)

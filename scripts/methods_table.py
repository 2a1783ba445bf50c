"""Train every method from the same start for equal steps, and write their table.

python -m scripts.methods_table
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

import consistency
from files import make_folder, read_json, write_atomically, write_json
from flags import as_arguments, command_line, folding_flags
from measuring.given_networks import AtSize
from methods.interface import ALL, TARGETS, Method
from methods.table import METHODS
from models import read_weights, save_network
from other_networks import TASKONOMY_SIZE, find_published, load_published
from sources import Sources, own_models, settle
from tables import markdown_table
from transfers import TRANSFERS
from utils import ROOT, UserError, check_one_of, check_positive, log, read_job

BEGIN, END = "<!-- methods table: begin -->", "<!-- methods table: end -->"
RECORD, PAGE = "methods.json", "methods.md"
TINY = {"image_size": 32, "width": 8, "max_epochs": 1, "steps_per_epoch": 1, "batch_size": 2}
NOT_SHOWN = "–"
# The baseline at the compute of the main job, in seconds; the other rows have equal steps.
LONGER, LIKE = "baseline, for equal seconds", "perceptual"


@dataclass(frozen=True)
class TrainingFlags:
    """Training.

    Args:
        train: train and measure the methods that the record lacks; without it, only the
            table is written again.
        time_again: measure the seconds and the memory of a step again, for all methods in the
            record, one after the other: in the second of two epochs of each.
        methods: only these methods, comma-separated (default: all).
        max_epochs: epochs of each method.
        steps_per_epoch: steps of an epoch.
        batch_size: views per step.
        lr: learning rate of the methods whose source has none of its own.
        schedule: constant or cosine.
        seed: of the common start, and of each training.
        scale: rooms (the shipped networks' scale) or tiny (32 pixels and one step, a trial).
        data_dirs: folders with data (default: the embedded rooms).
        models_dir: the folder of the frozen networks.
        results_dir: where each method's run folder is made (default: results/methods).
    """

    train: bool = False
    time_again: bool = False
    methods: list | None = None
    max_epochs: int = 40
    steps_per_epoch: int = 36
    batch_size: int = 16
    lr: float = 2e-3
    schedule: str = "cosine"
    seed: int = 0
    scale: str = "rooms"
    data_dirs: list | None = None
    models_dir: str | None = None
    results_dir: str | None = None

    def common(self) -> dict[str, object]:
        """Return the flags of train.py that all methods share, {name: value}."""
        flags: dict[str, object] = {
            "max_epochs": self.max_epochs, "steps_per_epoch": self.steps_per_epoch,
            "batch_size": self.batch_size, "schedule": self.schedule, "seed": self.seed,
            "no_imagenet": True,
        }  # fmt: skip
        return flags | (TINY if self.scale == "tiny" else {})

    def of(self, method: Method) -> dict[str, object]:
        """Return the flags of a method beyond the common ones."""
        flags: dict[str, object] = {} if "lr" in method.defaults else {"lr": self.lr}
        if method.trains_on == ALL:
            flags |= {"k": 2, "random_select": True}
        return flags

    def places(self) -> dict[str, object]:
        """Return the flags that say where data and networks are."""
        return {"data_dirs": self.data_dirs, "models_dir": self.models_dir}


@folding_flags
def main(target: str = "normal", *, output_dir: str | None = None, training: TrainingFlags) -> None:
    """Write the table of all methods into docs/methods.md, from what docs/methods.json records.

    With --train, first train each method from the same fresh network, for equal steps, and
    measure it on held-out views; the baseline also for the seconds that perceptual takes. What
    is recorded already is not trained again, so a run that was stopped continues from there.

    Example: python -m scripts.methods_table
    Everything: python -m scripts.methods_table --train

    Args:
        target: normal, depth or reshading.
        output_dir: the folder with methods.md and methods.json (default: docs).
    """
    check_one_of("target", target, tuple(TARGETS))
    check_one_of("scale", training.scale, ("rooms", "tiny"))
    check_one_of("schedule", training.schedule, ("constant", "cosine"))
    check_positive(
        max_epochs=training.max_epochs, steps_per_epoch=training.steps_per_epoch,
        batch_size=training.batch_size, lr=training.lr,
    )  # fmt: skip
    named = [check_one_of("methods", name, tuple(METHODS)) for name in training.methods or METHODS]
    folder = Path(output_dir) if output_dir else ROOT / "docs"
    page = folder / PAGE
    before, after = _around_table(page)
    if training.train:
        train_all(folder / RECORD, [METHODS[name] for name in named], target, training)
    if training.time_again:
        time_all(folder / RECORD, [METHODS[name] for name in named], target, training)
    if not (folder / RECORD).is_file():
        raise UserError(f"no {folder / RECORD}: `train` makes it, which takes a while")
    text = f"{before}{BEGIN}\n\n{table_of(read_json(folder / RECORD))}\n\n{END}{after}"
    write_atomically(page, lambda name: name.write_text(text, encoding="utf-8"))
    print(f"the table is in {page}")


def _around_table(page: Path) -> tuple[str, str]:
    """Return the text before and after the table. Raises UserError if its marks are missing."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {page}: {error.strerror}") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{page} has no lines {BEGIN} and {END}, between which the table stands")
    return before, after


# ---- training -----------------------------------------------------------------------


def train_all(
    record_file: Path, methods: Sequence[Method], target: str, training: TrainingFlags
) -> None:
    """Train and measure the methods that the record lacks; record each as it ends.

    Finally, the baseline is trained once more, for as many epochs as take the seconds of `LIKE`.
    """
    sources = settle(read_job(), training.data_dirs, training.models_dir)
    base = Path(training.results_dir or read_job().results_dir / "methods")
    folder = make_folder(base / f"{target}_{training.scale}_seed{training.seed}")
    record = read_json(record_file) if record_file.is_file() else {}
    if record and record.get("target") != target:
        raise UserError(f"{record_file} is of {record.get('target')}: name another `output_dir`")
    record = {"target": target, "methods": {}} | record
    for method in tqdm(methods, desc="methods", unit="method", disable=None):
        if target not in method.targets:
            continue
        if method.untrained:
            entry = published_entry(method, target, sources)
        else:
            command = command_of(method, target, training)
            if record["methods"].get(method.name, {}).get("command") == command:
                continue  # as before
            entry = trained_entry(method, target, training, folder, sources)
        record["methods"][method.name] = entry
        write_json(record_file, record)
    known = record["methods"]
    if {"baseline", LIKE} <= {method.name for method in methods} and LONGER not in known:
        ratio = known[LIKE]["seconds_a_step"] / known["baseline"]["seconds_a_step"]
        longer = replace(training, max_epochs=max(1, round(training.max_epochs * ratio)))
        known[LONGER] = trained_entry(METHODS["baseline"], target, longer, folder, sources)
        write_json(record_file, record)


def command_of(method: Method, target: str, training: TrainingFlags) -> str:
    """Return the method's command, without what depends on the machine."""
    flags = as_arguments(training.of(method) | training.common())
    return " ".join(["python -m train", f"{method.name}_{target}", *flags])


def trained_entry(
    method: Method, target: str, training: TrainingFlags, folder: Path, sources: Sources
) -> dict:
    """Train a method, or go on with its training, and return what the table shows of it."""
    name = f"{method.name}_{target}"
    command = command_of(method, target, training)
    digest = hashlib.sha256(command.encode()).hexdigest()[:8]  # another command is another run
    runs = make_folder(folder / f"{method.name}_{digest}")
    if unfinished := next(iter(sorted(runs.glob("*/run.json"), reverse=True)), None):
        _run("train", "--resume", str(unfinished.parent), "--quiet")
    else:
        flags = training.places() | training.of(method) | training.common()
        edges = training.places() | {"seed": training.seed}
        edges |= TINY if training.scale == "tiny" else {}
        _run("scripts.train_edges", name, *as_arguments(edges))  # what a method alone needs
        start = "scratch" if method.network else start_of(target, training, folder, sources)
        flags |= {"init": start, "results_dir": runs, "visdom_server": "none", "quiet": True}
        _run("train", name, *as_arguments(flags))
    run_folder = max(runs.glob("*/run.json")).parent
    run, columns = read_json(run_folder / "run.json"), read_json(run_folder / "evaluation.json")
    taken = run["taken"]["trained"]
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "device": run["device"],
        "steps": taken["steps"],
        "seconds_a_step": taken["seconds"] / taken["steps"],
        "peak_mib": taken["peak_mib"],
        "parameters": parameters_in(run_folder / f"rgb2{TARGETS[target]}_{method.ending}.pth"),
        "all_parameters": sum(
            parameters_in(file)
            for file in run_folder.glob("*.pth")
            if not file.stem.endswith("_best")
        ),
        "start": columns["before"],
        "errors": columns["trained"],
    }


def time_all(
    record_file: Path, methods: Sequence[Method], target: str, training: TrainingFlags
) -> None:
    """Measure the seconds and memory of a step of the recorded methods again; record each.

    The second of two epochs counts, in which all views are in memory, and what is computed from
    their labels is cached.
    """
    record = read_json(record_file) if record_file.is_file() else {"methods": {}}
    for method in tqdm(methods, desc="timed", unit="method", disable=None):
        entry = record["methods"].get(method.name, {})
        if "command" not in entry:
            continue
        with tempfile.TemporaryDirectory() as folder:
            flags = training.places() | training.of(method) | training.common()
            flags |= {"max_epochs": 2, "results_dir": folder, "visdom_server": "none"}
            flags |= {"init": "scratch", "quiet": True}
            _run("train", f"{method.name}_{target}", *as_arguments(flags))
            run_folder = next(Path(folder).glob("*/run.json")).parent
            taken = read_json(run_folder / "run.json")["taken"]["trained"]
            lines = (run_folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        epochs = [line for line in map(json.loads, lines) if "epoch" in line]
        entry["seconds_a_step"] = epochs[-1]["seconds"] / (taken["steps"] / len(epochs))
        entry |= {"peak_mib": taken["peak_mib"], "timed": time.strftime("%Y-%m-%d")}
        write_json(record_file, record)


def parameters_in(file: Path) -> int:
    """Return the number of weights in a checkpoint."""
    return sum(value.numel() for value in read_weights(file)[0].values())


def start_of(target: str, training: TrainingFlags, folder: Path, sources: Sources) -> Path:
    """Return the file of the fresh network with which all methods start; it is made once."""
    file = folder / "start.pth"
    if not file.exists():
        tiny = training.scale == "tiny"
        scale = sources.scale.with_overrides(TINY["image_size"], TINY["width"]) if tiny else None
        torch.manual_seed(training.seed)
        network = TRANSFERS["rgb", TARGETS[target]].build(scale or sources.scale)
        save_network(file, network, scale or sources.scale, seed=training.seed)
    return file


def _run(module: str, *arguments: str) -> None:
    """Run a program in a process of its own, whose memory is its own. Exits if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    status = subprocess.run(command, cwd=ROOT).returncode
    if status:
        sys.exit(status if status > 0 else 128 - status)  # the program has said why


def published_entry(method: Method, target: str, sources: Sources) -> dict:
    """Measure a network of another publisher, if its file is here."""
    path = find_published(method.name, TARGETS[target], own_models(read_job()))
    if path is None:
        log.info("%s: its files are not in the models folder, so it is not measured", method.name)
        return {"errors": {}}
    network = load_published(path)[0].eval()
    data = [str(folder) for folder in sources.data_dirs]
    errors = consistency.evaluate(AtSize(network, TASKONOMY_SIZE, back=True), data, TARGETS[target])
    return {"errors": errors, "parameters": sum(p.numel() for p in network.parameters())}


# ---- the table ----------------------------------------------------------------------


def table_of(record: Mapping) -> str:
    """Return the table in Markdown, with the commands and the conditions below it."""
    names = ["baseline", LONGER, *(name for name in METHODS if name != "baseline")]
    entries = {name: record["methods"][name] for name in names if name in record["methods"]}
    trained = {name: entry for name, entry in entries.items() if "command" in entry}
    if not trained:
        raise UserError("the record holds no method that was trained: `train` trains them")
    first = next(iter(trained.values()))
    true = [row for row in first["errors"] if row.endswith(", true")]
    shown = ["direct L1 × 100", "angular error (°)", *true]
    shown = [row for row in shown if row in first["errors"]]
    head = ["method", *map(_heading, shown), "mean of the true ones", "s a step", "peak, MiB",
            "parameters", "all that train"]  # fmt: skip
    rows = [_row("the common start", {"errors": first["start"]}, shown, true)]
    rows += [
        _row(name.replace("baseline", "`baseline`") if name == LONGER else f"`{name}`", entry,
             shown, true)
        for name, entry in entries.items()
    ]  # fmt: skip
    commands = "\n".join(f"- `{entry['command']}`" for entry in trained.values())
    when = sorted({entry["date"] for entry in trained.values()})
    devices = ", ".join(sorted({entry["device"] for entry in trained.values()}))
    dates = when[0] if len(when) == 1 else f"{when[0]} to {when[-1]}"
    return (
        f"{markdown_table(head, rows)}\n\n"
        f"Each method was trained once, {dates}, on {devices}, with these commands. Methods that "
        "train the table's network began with the common start (`--init` and its file), the others "
        "with fresh weights.\n\n"
        f"{commands}"
    )


def _heading(row: str) -> str:
    return row.removeprefix("percep_").replace(" × 100, true", ", true")


def _row(name: str, entry: Mapping, shown: Sequence[str], true: Sequence[str]) -> list[str]:
    errors = entry["errors"]
    values = [errors.get(row) for row in shown]
    of_true = [errors[row] for row in true if errors.get(row) is not None]
    cells = [_number(value, ".3f") for value in values]
    cells.append(_number(fmean(of_true) if of_true else None, ".3f"))
    for key, form in (("seconds_a_step", ".3g"), ("peak_mib", ".0f"), ("parameters", ","),
                      ("all_parameters", ",")):  # fmt: skip
        cells.append(_number(entry.get(key), form))
    return [name, *cells]


def _number(value: float | None, form: str) -> str:
    return NOT_SHOWN if value is None else f"{value:{form}}"


if __name__ == "__main__":
    command_line(main)

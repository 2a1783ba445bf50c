"""Runs that are stopped, killed, or out of disk, and go on: as if nothing had happened."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from forked import Program

import scripts.training

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("time", "seconds", "seconds waiting for data")


class Runs:
    """Runs of the trainer on the small rooms, at their smallest, each in a results folder."""

    def __init__(self, rooms: Path, networks: Path, folder: Path) -> None:
        self.folder = folder
        self.flags = (
            f"--data-dirs={rooms}", f"--models-dir={networks}", "--image-size=32", "--width=8",
            "--batch-size=2", "--steps-per-epoch=3", "--max-epochs=2", "--visdom-port=9",
            "--num-workers=0",
        )  # fmt: skip

    def start(self, results: str, *arguments: str, prepare=lambda: None) -> Program:
        """The run named in `arguments`, into a results folder of that name."""
        named = {a.split("=")[0] for a in arguments}
        flags = [f for f in self.flags if f.split("=")[0] not in named]
        return self._start(results, *arguments, *flags, prepare=prepare)

    def resume(self, results: str, *arguments: str) -> Program:
        """The last run of the configuration in that results folder, gone on with."""
        return self._start(results, *arguments, "--resume")

    def _start(self, results: str, *arguments: str, prepare=lambda: None) -> Program:
        place = f"--results-dir={self.folder / results}"
        return Program(*arguments, place, output=self.folder / f"{results}.txt", prepare=prepare)

    def of(self, results: str) -> Path:
        """The folder of the only run there."""
        (folder,) = (self.folder / results).iterdir()
        return folder


@pytest.fixture
def runs(rooms, networks, tmp_path) -> Runs:
    return Runs(rooms, networks, tmp_path)


def signals_at(*steps: int, number: int = signal.SIGTERM):
    """For `prepare`: the process gets a signal during each of those steps, counted from 1."""

    def prepare() -> None:
        call, count = scripts.training.Step.__call__, 0

        def counted(*arguments):
            nonlocal count
            count += 1
            if count in steps:
                os.kill(os.getpid(), number)
            return call(*arguments)

        scripts.training.Step.__call__ = counted

    return prepare


def last_state(folder: Path) -> dict:
    return torch.load(max(folder.glob("state_*.pt")), weights_only=True)


def log_of(folder: Path) -> list[dict]:
    """The log without its times."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{key: v for key, v in line.items() if key not in TIMES} for line in lines]


def equal(ours, theirs) -> bool:
    """Bit for bit, tensors and all."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs or (ours != ours and theirs != theirs)


def assert_the_same(ours: Path, theirs: Path) -> None:
    """Weights, optimiser, choices, curves and table of two runs, but for the log's length."""
    states = [last_state(folder) for folder in (ours, theirs)]
    for state in states:
        del state["training"]["logger"]["length"]  # times have more digits or fewer
    for name in states[0]["training"]:
        assert equal(states[0]["training"][name], states[1]["training"][name]), name
    assert equal(*states)
    assert log_of(ours) == log_of(theirs)
    tables = [json.loads((folder / "evaluation.json").read_text()) for folder in (ours, theirs)]
    assert equal(*tables)


# ---- stopped by a signal ------------------------------------------------------------

NORMAL = ("example_normal", "--k=2")
WAYS = {
    "random": ((*NORMAL, "--random-select", "--balance-every=2", "--cache-labels=0.1"), (2,)),
    "win rate, direct": ((*NORMAL, "--winrate", "--compare-direct"), (5,)),
    "direct, second phase": ((*NORMAL, "--random-select", "--compare-direct"), (8,)),
    "between epochs": ((*NORMAL, "--random-select", "--compare-direct"), (3, 6)),
    "augmented, workers": ((*NORMAL, "--dataaug", "--num-workers=2"), (4,)),
    "thrice": ((*NORMAL, "--winrate", "--schedule=cosine"), (1, 2, 5)),
    "a row": (("normal2sobel_edges",), (4,)),
}
QUICK = {"random", "direct, second phase"}


@pytest.mark.parametrize(
    "way", [w if w in QUICK else pytest.param(w, marks=pytest.mark.slow) for w in WAYS]
)
def test_a_run_stopped_and_resumed_is_the_uninterrupted_one(runs, tmp_path, way):
    arguments, steps = WAYS[way]
    if way == "a row":
        arguments += (f"--models-dir={tmp_path / 'new'}",)
    status, output = runs.start("whole", *arguments).finish()
    assert status == 0, output
    for number, step in enumerate(steps):
        taken = step - (steps[number - 1] if number else 0)
        prepare = signals_at(taken)
        if number == 0:
            program = runs.start("parts", *arguments, prepare=prepare)
        else:
            program = runs._start("parts", arguments[0], "--resume", prepare=prepare)
        status, output = program.finish()
        assert status == 128 + signal.SIGTERM, output
        in_phase = (step - 1) % 6 + 1  # two epochs of three steps
        folder = runs.of("parts")
        sentence = f"stopped after step {in_phase}; python -m train --resume {folder} goes on"
        assert sentence in output.splitlines() and "Traceback" not in output
        assert not (folder / "evaluation.json").exists()
    status, output = runs.resume("parts", arguments[0]).finish()
    assert status == 0 and f"going on in {folder} from state_{step:09d}.pt" in output
    assert_the_same(runs.of("parts"), runs.of("whole"))

"""Runs of the trainer on the small rooms, at their smallest: started, stopped, compared."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import torch
from forked import Program

import training.loop

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
        return self._start(results, *self.complete(arguments), prepare=prepare)

    def complete(self, arguments: Sequence[str]) -> list[str]:
        """With the small flags that they don't name themselves."""
        named = {a.split("=")[0] for a in arguments}
        return [*arguments, *(f for f in self.flags if f.split("=")[0] not in named)]

    def resume(self, results: str, *arguments: str) -> Program:
        """The last run of the configuration in that results folder, gone on with."""
        return self._start(results, *arguments, "--resume")

    def _start(self, results: str, *arguments: str, prepare=lambda: None) -> Program:
        place = f"--results-dir={self.folder / results}"
        return Program(*arguments, place, output=self.folder / f"{results}.txt", prepare=prepare)

    def of(self, results: str) -> Path:
        """The folder of the only run there."""
        (record,) = (self.folder / results).glob("*/run.json")
        return record.parent


def signals_at(*steps: int, number: int = signal.SIGTERM, times: int = 1):
    """For `prepare`: the process gets signals during each of those steps, counted from 1."""

    def prepare() -> None:
        call, count = training.loop.Step.__call__, 0

        def counted(*arguments):
            nonlocal count
            count += 1
            for _ in range(times if count in steps else 0):
                os.kill(os.getpid(), number)
            return call(*arguments)

        training.loop.Step.__call__ = counted

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
        del state["logger"]["length"]  # times have more digits or fewer
        del state["training"]["seconds"]
    for name in states[0]["training"]:
        assert equal(states[0]["training"][name], states[1]["training"][name]), name
    assert equal(*states)
    assert log_of(ours) == log_of(theirs)
    tables = [json.loads((folder / "evaluation.json").read_text()) for folder in (ours, theirs)]
    assert equal(*tables)

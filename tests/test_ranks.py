"""Two processes train as one with the whole batch, also stopped and resumed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import read_weights

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow  # each rank is a process that starts Python


class Trainings:
    """Ten steps of the trainer, by one process or two, each in a folder of its own."""

    def __init__(self, rooms: Path, networks: Path, folder: Path) -> None:
        self.folder = folder
        self.flags = (
            "example_normal", "--k=2", f"--data-dirs={rooms}", f"--models-dir={networks}",
            "--steps-per-epoch=5", "--max-epochs=2", "--visdom-port=9", "--num-workers=0",
        )  # fmt: skip

    def start(self, results: str, count: int, *arguments: str) -> subprocess.Popen:
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            if count > 1 else []
        )  # fmt: skip
        place = f"--results-dir={self.folder / results}"
        command = [sys.executable, *launcher, "-m", "train", *arguments, place]
        with open(self.output(results), "a") as file:
            return subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
            )

    def output(self, results: str) -> Path:
        return self.folder / f"{results}.txt"

    def finish(self, results: str, count: int, *arguments: str) -> tuple[int, str]:
        process = self.start(results, count, *arguments)
        return process.wait(timeout=300), self.output(results).read_text()

    def of(self, results: str) -> Path:
        (record,) = (self.folder / results).glob("*/run.json")
        return record.parent


@pytest.fixture
def trainings(rooms, networks, tmp_path) -> Trainings:
    return Trainings(rooms, networks, tmp_path)


def log_of(folder: Path) -> list[dict]:
    return list(map(json.loads, (folder / "log.jsonl").read_text().splitlines()))


def numbers(folder: Path) -> list[dict]:
    """The records with curves and win rates, without their times."""
    kept = [line for line in log_of(folder) if "split" in line or "win rates" in line]
    return [{k: v for k, v in line.items() if k != "time"} for line in kept]


def choices(folder: Path) -> list[str]:
    return [line["chosen losses"] for line in log_of(folder) if "chosen losses" in line]


def difference(ours, theirs) -> float:
    """The largest relative difference of numbers in the same places."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        return max((difference(ours[key], theirs[key]) for key in ours), default=0.0)
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        return max(map(difference, ours, theirs), default=0.0)
    if isinstance(ours, float):
        return abs(ours - theirs) / max(abs(theirs), 1e-12)
    assert ours == theirs
    return 0.0


def moved(folder: Path, networks: Path) -> dict[str, torch.Tensor]:
    """How far training has moved the weights."""
    start, _ = read_weights(networks / "rgb2normal_baseline.pth")
    after, _ = read_weights(folder / "rgb2normal_consistency.pth")
    return {name: after[name].double() - start[name].double() for name in start}


def drift(ours: dict, theirs: dict) -> float:
    """‖ours − theirs‖ / ‖theirs‖, over all weights' changes together."""
    squared = sum(float((ours[n] - theirs[n]).square().sum()) for n in ours)
    return (squared / sum(float(theirs[n].square().sum()) for n in ours)) ** 0.5

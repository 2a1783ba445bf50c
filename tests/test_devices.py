"""Two processes train as one with the whole batch, also stopped and resumed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_backbones import OWN

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow  # each rank is a process that starts Python


class Trainings:
    """Ten steps of the trainer, by one process or two, each in a folder of its own."""

    def __init__(self, rooms: Path, networks: Path, folder: Path) -> None:
        self.folder = folder
        self.flags = (
            "example_normal", "--k=1", f"--data-dirs={rooms}", f"--models-dir={networks}",
            "--steps-per-epoch=5", "--max-epochs=2", "--visdom-port=9", "--num-workers=0",
        )  # fmt: skip

    def start(self, results: str, count: int, *arguments: str) -> subprocess.Popen:
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            if count > 1 else []
        )  # fmt: skip
        place = f"--results-dir={self.folder / results}"
        command = [sys.executable, *launcher, "-m", "train", *arguments, place]
        with open(self.output(results), "w") as file:
            return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)

    def output(self, results: str) -> Path:
        return self.folder / f"{results}.txt"

    def finish(self, results: str, count: int, *arguments: str) -> Path:
        """Run to the end; returns the run's folder."""
        status = self.start(results, count, *arguments).wait(timeout=500)
        assert status == 0, self.output(results).read_text()
        return self.of(results)

    def of(self, results: str) -> Path:
        (record,) = (self.folder / results).glob("*/run.json")
        return record.parent


@pytest.fixture
def trainings(rooms, networks, tmp_path) -> Trainings:
    return Trainings(rooms, networks, tmp_path)


def curves(folder: Path) -> list[dict]:
    """The records with losses, win rates and choices, without their times."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    kept = [n for n in lines if {"split", "win rates", "chosen losses"} & set(n)]
    return [{k: v for k, v in line.items() if k != "time"} for line in kept]


def last_state(folder: Path) -> dict:
    return torch.load(max(folder.glob("state_*.pt")), weights_only=True)["training"]


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


def of_optimizer(state: dict, name: str) -> torch.Tensor:
    """One of Adam's averages, of all parameters in a row."""
    values = state["optimizer"]["state"].values()
    return torch.cat([value[name].double().reshape(-1) for value in values])


def test_two_processes_compute_what_one_does(trainings):
    """Losses, coefficients, win rates, choices and gradients of ten steps, to 1e-5.

    The learning rate is so small that no weight moves: each step's gradient is of the same
    weights, and all ten are in Adam's averages. Where weights move, the two runs part:
    Adam makes a step of the same size of a gradient that is nothing but rounding, as those
    of biases before a GroupNorm are.
    """
    flags = (*trainings.flags, "--lr=1e-14")
    one = trainings.finish("one", 1, *flags, "--batch-size=4")
    two = trainings.finish("two", 2, *flags, "--batch-size=2")
    assert difference(curves(two), curves(one)) < 1e-5
    ours, theirs = last_state(two), last_state(one)
    assert difference(ours["weights"], theirs["weights"]) < 1e-5
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        a, b = of_optimizer(ours, name), of_optimizer(theirs, name)
        assert float((a - b).norm() / b.norm()) < 1e-5, name


def test_weights_after_ten_steps_are_those_of_one_process(tmp_path):
    """In float64, at a rate at which weights move: losses, coefficients, weights to 1e-9."""
    program = str(Path(__file__).with_name("ten_steps.py"))
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    found = []
    for name, launcher in (("one", []), ("two", two)):
        subprocess.run(
            [sys.executable, *launcher, program, str(tmp_path / name)], check=True, timeout=300
        )
        found.append(torch.load(tmp_path / name, weights_only=True))
    one, both = found
    # absolutely, as the gradients of biases before a GroupNorm are rounding alone
    torch.testing.assert_close(both, one, rtol=1e-9, atol=1e-10)
    first, last = one["steps"][0]["losses"]["loss"], one["steps"][-1]["losses"]["loss"]
    assert abs(float(last / first) - 1) > 0.01  # it trained


def test_averages_of_batch_normalisation_are_shared(trainings, tmp_path):
    """Two processes measure with the averages that the checkpoint holds, as one process does."""
    (tmp_path / "own.py").write_text(OWN)
    flags = (*trainings.flags, f"--network={tmp_path}/own.py:build", "--lr=1e-2")
    two = trainings.finish("two", 2, *flags, "--batch-size=2")
    file = two / "rgb2normal_consistency.pth"
    one = trainings.finish("one", 1, *flags, f"--init={file}", "--visualize")
    trained = json.loads((two / "evaluation.json").read_text())["trained"]
    again = json.loads((one / "evaluation.json").read_text())["before"]
    assert difference(trained, again) < 1e-5


def begun(program: subprocess.Popen, folder: Path, records: int) -> None:
    """Wait until the log has so many records."""
    while program.poll() is None:
        logs = list(folder.glob("*/log.jsonl"))
        if logs and logs[0].read_text().count("\n") >= records:
            return
        time.sleep(0.002)
    raise AssertionError("it ended")


def test_two_processes_stopped_twice_and_resumed(trainings):
    """By a signal to the launcher, then to one process alone: bit for bit the same at the end."""
    flags = (*trainings.flags, "--batch-size=2", "--steps-per-epoch=30", "--lr=1e-3")
    flags = tuple(flag for flag in flags if flag != "--steps-per-epoch=5")
    whole = trainings.finish("whole", 2, *flags)
    program = trainings.start("parts", 2, *flags)
    begun(program, trainings.folder / "parts", 3)  # losses, win rates, choice
    program.send_signal(signal.SIGTERM)
    assert program.wait(timeout=100) != 0
    folder = trainings.of("parts")
    first = last_state(folder)["progress"]
    again = ("example_normal", f"--resume={folder}")
    output = trainings.output("parts").read_text()
    assert "goes on\n" in output and 0 < first["step"], output
    program = trainings.start("parts", 2, *again)
    begun(program, trainings.folder / "parts", 7)  # of the second epoch
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    subprocess.run(["kill", "-TERM", children[-1]], check=True)
    assert program.wait(timeout=100) != 0
    second = last_state(folder)["progress"]
    assert second["epoch"] == 1 and second["step"] < 30
    assert trainings.finish("parts", 2, *again) == folder
    ours, theirs = last_state(folder), last_state(whole)
    assert all(torch.equal(ours["target"][n], theirs["target"][n]) for n in theirs["target"])
    for name in ("exp_avg", "max_exp_avg_sq"):
        assert torch.equal(of_optimizer(ours, name), of_optimizer(theirs, name))
    assert curves(folder) == curves(whole)

"""A small rendered data set and a folder of fresh networks, made once a test process."""

import importlib
import os
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path

# One thread a test process, whatever the machine's default: several processes run side by side.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["TORCH_HOME"] = os.devnull  # no ImageNet weights from a cache of this machine
os.environ["http_proxy"] = os.environ["https_proxy"] = "http://127.0.0.1:9"  # and no network
os.environ["no_proxy"] = "localhost,127.0.0.1"

from flags import command_line, logged_to_console  # noqa: E402
from rooms.writing import make_rooms  # noqa: E402
from transfers import OWN_TRANSFERS, TRANSFERS, Scale  # noqa: E402

SCALE = Scale(32, 8)
pytest.register_assert_rewrite("small_runs")
# Examples that failed before are not kept: a checkout may be read-only.
hypothesis.settings.register_profile("anywhere", database=None)
hypothesis.settings.load_profile("anywhere")


def closed_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


NO_VISDOM = f"--visdom-port={closed_port()}"


@pytest.fixture(autouse=True)
def console():
    """What is logged is printed, as on the command line."""
    with logged_to_console(lambda: None):
        yield


@pytest.fixture(scope="session")
def rooms(tmp_path_factory) -> Path:
    """Rendered rooms: two training buildings, one of val, one of test, four views each."""
    from loading.splits import read_split

    split = read_split(ROOT / "config" / "split_rooms.txt")
    buildings = [*split["train"][:2], split["val"][0], split["test"][0]]
    folder = tmp_path_factory.mktemp("rooms")
    make_rooms(folder, views_per_building=4, image_size=64, buildings=buildings, quiet=True)
    return folder


@pytest.fixture(scope="session")
def networks(tmp_path_factory) -> Path:
    """A models folder with fresh weights for every row of the table, at 32 pixels, width 8."""
    from models import save_network

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for row in (*TRANSFERS.values(), *OWN_TRANSFERS.values()):
        if row.trainable:
            save_network(folder / row.checkpoint, row.build(SCALE), SCALE, half=True)
    return folder


@pytest.fixture
def copy(rooms, tmp_path) -> Path:
    """A copy of the rooms, to be changed."""
    return Path(shutil.copytree(rooms, tmp_path / "copy"))


@pytest.fixture
def runs(rooms, networks, tmp_path):
    """Runs of the trainer in processes of their own, each in a results folder."""
    from small_runs import Runs

    return Runs(rooms, networks, tmp_path)


@pytest.fixture
def stopped(rooms, networks, tmp_path):
    """A run on copies of rooms and networks, stopped after two steps: (runs, data, models)."""
    from small_runs import Runs, signals_at

    data, models = tmp_path / "data", tmp_path / "models"
    shutil.copytree(rooms, data)
    shutil.copytree(networks, models)
    runs = Runs(data, models, tmp_path)
    arguments = ("example_normal", "--k=1", "--random-select")
    assert runs.start("parts", *arguments, prepare=signals_at(2)).finish()[0] == 143
    return runs, data, models


@pytest.fixture
def run(rooms, networks, tmp_path, monkeypatch, capfd):
    """Run a program's command line on the small data: (exit status, output, results folder).

    In this process, through the same `command_line` as `python -m`, which saves the
    seconds that importing torch takes; `process=True` starts a real one. `program` is a
    module, or a file, by its path.
    """

    def call(*arguments: str, program="train", defaults=True, process=False):
        results = tmp_path / "results"
        standard = [
            f"--data-dirs={rooms}", f"--models-dir={networks}", f"--results-dir={results}",
            "--max-epochs=1", "--batch-size=4", NO_VISDOM,
        ]  # fmt: skip
        named = {a.split("=")[0] for a in arguments}
        arguments += tuple(s for s in standard if defaults and s.split("=")[0] not in named)
        if process:
            command = [sys.executable, "-m", program, *arguments]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
            return done.returncode, done.stdout + done.stderr, results
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        capfd.readouterr()
        status = 0
        try:
            if program.endswith(".py"):
                runpy.run_path(program, run_name="__main__")
            else:
                command_line(importlib.import_module(program).main)
        except SystemExit as stop:
            status = stop.code
        printed = capfd.readouterr()
        return status, printed.out + printed.err, results

    call.rooms = rooms
    return call

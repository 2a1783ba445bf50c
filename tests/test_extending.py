"""The files of README.md and docs/extending.md run as they stand there, by their commands."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import energy
import task_configs
import transfers
from loading import layouts as views
from models import save_network
from transfers import Scale
from utils import ROOT

SCALE = Scale(32, 8)
README = (ROOT / "README.md").read_text()
TEXT = README + (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^    python (my_\w+\.py (?!.*/data/).*)$", TEXT, re.MULTILINE)


@pytest.fixture
def example(tmp_path):
    """Write an example into a folder of its own; afterwards the tables are as before."""
    tables = task_configs.TASKS, transfers.TRANSFERS, energy.energy_configs, views.LAYOUTS
    before = [dict(table) for table in tables]

    def write(name: str) -> str:
        (tmp_path / name).write_text(FILES[name])
        return str(tmp_path / name)

    yield write
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.fixture
def more_networks(networks, tmp_path) -> Path:
    """The fresh networks, and those that an example adds."""
    folder = tmp_path / "models"
    folder.mkdir()
    for file in networks.iterdir():
        (folder / file.name).symlink_to(file)
    torch.manual_seed(0)
    for source in ("rgb", "normal"):
        row = transfers.Transfer(source, "depth_zbuffer", downsample=4)
        save_network(folder / f"{source}2luminance.pth", row.build(SCALE), SCALE)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_trains_by_its_command(run, example, more_networks, command):
    file, *arguments = shlex.split(command)
    status, output, results = run(
        *arguments, f"--models-dir={more_networks}", program=example(file)
    )
    assert status == 0, output
    assert "direct L1" in output
    (folder,) = results.iterdir()
    assert list(folder.glob("*.pth"))


def test_a_network_of_ones_own(run, example, networks):
    status, output, results = run(
        "example_normal", "--k=1", "--steps-per-epoch=1",
        f"--network={example('my_network.py')}:build",
    )  # fmt: skip
    assert status == 0, output
    (folder,) = results.iterdir()
    assert list(folder.glob("*.pth"))


@pytest.mark.slow  # a process that starts Python
def test_train_edges_knows_the_rows_of_an_example(run, example, networks, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # a reader puts the file beside train.py
    folder = shutil.copytree(networks, tmp_path / "models")
    (folder / "keypoints3d2normal.pth").unlink()
    status, output, _ = run(
        "corners", f"--trainer={example('my_target.py')}", f"--models-dir={folder}",
        f"--data-dirs={run.rooms}", f"--results-dir={tmp_path / 'results'}", "--max-epochs=1",
        "--steps-per-epoch=1", program="scripts.train_edges", defaults=False,
    )  # fmt: skip
    assert status == 0, output
    assert "3 networks needed, 2 there, 1 to train" in output
    assert (folder / "keypoints3d2normal.pth").is_file()


def test_the_graph_in_python():
    (code,) = re.findall(r"^```python\n(import .*?)^```$", README, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert {n: tuple(v.shape) for n, v in names["values"].items()} == {
        "n(x)": (1, 3, 64, 64), "f(n(x))": (1, 3, 64, 64)
    }  # fmt: skip


def test_the_table_of_networks():
    """Channels, mask values, halvings and files in the README are those of the tables."""
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([\w.]+) \| (\d), `(.*)` \|$", README, re.MULTILINE)
    assert len(rows) == 7
    for name, channels, mask, halvings, file in rows:
        task, row = task_configs.TASKS[name], transfers.TRANSFERS["rgb", name]
        assert (task.channels, row.downsample, row.checkpoint) == (
            int(channels), int(halvings), file)  # fmt: skip
        assert task.mask_value == (-1 if mask == "none" else float(mask))


def test_a_domain_with_files_of_its_own(example, tmp_path):
    runpy.run_path(example("my_files.py"))
    heat = task_configs.TASKS["heat"]
    path = heat.path(tmp_path / "data", "house", "point_0_view_0")
    assert str(path.relative_to(tmp_path)) in TEXT
    path.parent.mkdir(parents=True)
    Image.fromarray(np.array([[0, 1000], [4000, 65535]], np.uint16)).save(path)
    assert heat.load(path, image_size=2).tolist() == [[[0.0, 0.25], [1.0, 1.0]]]


def test_files_in_a_layout_of_ones_own(example, rooms, tmp_path):
    runpy.run_path(example("my_layout.py"))
    tasks = [task_configs.TASKS[name] for name in ("rgb", "normal")]
    found = views.find_views(tasks, [rooms], views.find_buildings([rooms]))
    for view in found:
        for task in tasks:
            link = tmp_path / "own" / view.building / view.name / f"{task.folder}.png"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(view.path(task))
    own = views.find_views(tasks, [tmp_path / "own"], views.find_buildings([tmp_path / "own"]))
    assert [(v.building, v.name) for v in own] == [(v.building, v.name) for v in found]
    assert {view.layout for view in own} == {"a folder a view"}

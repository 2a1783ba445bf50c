"""The files of examples/, and the section "In your own code" of the README, run as they stand."""

import ast
import json
import re
import runpy
import sys

import pytest
import torch
from torch import nn

from utils import ROOT

README = (ROOT / "README.md").read_text()
SECTION = re.search(r"^## In your own code\n(.*?)(?=^## )", README, re.M | re.S)[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture
def example(monkeypatch, tmp_path, capsys):
    """Run an example in another folder; returns what it printed."""

    def call(name: str, *arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_a_loop_of_ones_own(example, rooms):
    output = example("own_loop.py", "--steps=2", f"--data={rooms}")
    assert re.search(r"step 2 mae 0\.\d+ percep_\w+ 0\.\d+ percep_\w+ 0\.\d+", output)
    rows = re.findall(r"^(\S.*?) +([\d.]+) → +([\d.]+)$", output, re.M)
    assert rows[0][0] == "direct L1 × 100" and rows[1][0] == "angular error (°)"
    assert len([row for row in rows if "percep_" in row[0]]) >= 7
    assert all(before != after for _, before, after in rows)


def test_images_sorted_by_energy(example, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("room.png", "coffee.jpg"):
        (photos / name).write_bytes((ROOT / "assets" / name).read_bytes())
    output = example("image_energy.py", photos, f"--to={tmp_path / 'out'}")
    values = [float(line.split()[0]) for line in output.splitlines()]
    count = 2
    assert len(values) == count and values == sorted(values, reverse=True)
    assert len(list((tmp_path / "out").iterdir())) == count


def test_every_example_is_run_and_short():
    for name in EXAMPLES:
        tests = (file.read_text() for file in (ROOT / "tests").glob("test_*.py"))
        assert any(name in text for text in tests), name
        assert 30 <= len((ROOT / "examples" / name).read_text().splitlines()) <= 80, name


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_notebooks_are_committed_as_they_were_run(file):
    """Run from top to bottom, without errors, with pictures, and small."""
    assert file.stat().st_size < 300_000
    cells = [c for c in json.loads(file.read_text("utf-8"))["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert any(output["output_type"] == "stream" for output in outputs)


@pytest.mark.slow  # it starts a kernel and trains
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.name)
def test_notebooks_run(file, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))  # nothing of the user's
    book = nbformat.read(file, as_version=4)
    before = [cell.get("outputs") for cell in book.cells]
    place = {"metadata": {"path": str(file.parent)}}
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=place).execute()
    nbformat.validate(book)
    for cell, old in zip(book.cells, before, strict=True):
        kinds = [output["output_type"] for output in cell.get("outputs", [])]
        assert kinds == [output["output_type"] for output in old or []], cell.source
        assert not [o for o in cell.get("outputs", []) if o.get("name") == "stderr"], cell.source


@pytest.mark.filterwarnings("ignore:networks. the small ones")
def test_the_readme_in_your_own_code(rooms, tmp_path, monkeypatch):
    """The blocks run in order, five lines each at most; the reader has the network and the data."""
    (tmp_path / "data_rooms").symlink_to(rooms)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    network = nn.Conv2d(3, 3, 3, padding=1)
    names = {
        "network": network, "optimizer": torch.optim.SGD(network.parameters(), 0.1),
        "images": torch.rand(2, 3, 64, 64), "truth": torch.rand(2, 3, 64, 64),
    }  # fmt: skip
    before = network.weight.detach().clone()
    blocks = re.findall(r"^```python\n(.*?)^```$", SECTION, re.M | re.S)
    assert len(blocks) == 4
    for block in blocks:
        assert len([line for line in block.splitlines() if line]) <= 5
        ast.parse(block)
        exec(block, names)
    assert names["normals"].shape == (3, 256, 256)
    assert names["distrust"].shape == (2,) and names["where"].shape == (2, 1, 64, 64)
    assert names["losses"]["percep_curv"].shape == (2,)
    assert not torch.equal(network.weight, before)
    assert names["errors"]["direct L1 × 100"] > 0

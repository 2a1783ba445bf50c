"""torch.hub: entry points from a copy of the project, beside modules with the same names."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain

import pytest
from test_layers import FLOOR, files_of, imported

import hubconf
from utils import ROOT

USER_PROGRAM = """
import contextlib, copy, io, pickle, sys, warnings
import torch
import models  # the user's own, imported before
warnings.simplefilter("ignore")
names, path = set(sys.modules), list(sys.path)
repository = sys.argv[1]
load = lambda *a, **k: torch.hub.load(repository, *a, source="local", **k)

printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    networks = [load(name) for name in ("normals", "depth", "reshading")]
    energy = load("energy")
    loss = load("consistency_loss", "normal", domains=["sobel_edges", "reshading"])
assert printed.getvalue() == "" and sys.path == path

import utils, graph  # the user's own, imported after
assert utils.MINE and models.MINE and graph.MINE
new = {name.partition(".")[0] for name in set(sys.modules) - names}
assert not new & (set(sys.argv[2].split(",")) - {"utils", "graph"}), new

images = torch.rand(2, 3, 64, 80)
shapes = [tuple(network(images).shape) for network in networks]
assert shapes == [(2, 3, 64, 80), (2, 1, 64, 80), (2, 3, 64, 80)]
assert energy(images).shape == (2,)
losses = loss(networks[0](images), torch.rand(2, 3, 64, 80))
weights = loss.balance_gradients(losses, networks[0].parameters())
assert list(weights) == ["mae", "percep_edge", "percep_reshading"]
try:
    loss(images, images[:1])
except ValueError as error:
    assert "give them the same shape" in str(error)

# what needs a module's name finds it
assert type(loss).__module__ == "xtconsistency.consistency"
again = pickle.loads(pickle.dumps(loss))
x, y = torch.rand(2, 1, 3, 64, 64)
assert torch.equal(again(x, y)["percep_edge"], loss(x, y)["percep_edge"])
compiled = torch.compile(copy.deepcopy(loss), backend="eager")
assert torch.equal(compiled(x, y)["mae"], loss(x, y)["mae"])
assert load("energy").__class__ is energy.__class__  # loaded once
"""


@pytest.fixture
def repository(tmp_path):
    """A copy of the project's code, with its assets."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in FLOOR:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source.with_suffix(".py"), folder)
    for name in ("assets", "config"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.slow  # a process that starts Python
def test_a_program_with_modules_of_the_same_names(repository, tmp_path):
    program = tmp_path / "elsewhere"
    program.mkdir()
    for name in ("utils", "models", "graph"):
        (program / f"{name}.py").write_text("MINE = True\n")
    (program / "program.py").write_text(USER_PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", str(repository), ",".join(FLOOR)],
        cwd=program, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert not (repository / "results").exists()


def test_here_the_modules_stay_those_of_the_tests():
    """In one process: ours are a second copy, and the tests' own stay in place."""
    before = dict(sys.modules)
    try:
        energy = hubconf.energy()
        assert type(energy).__module__ == "xtconsistency.consistency"
        own = {name for name in before if name.partition(".")[0] in FLOOR}
        assert {name: sys.modules[name] for name in own} == {name: before[name] for name in own}
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] == "xtconsistency":
                del sys.modules[name]


def test_entry_points_and_dependencies():
    """torch.hub lists the entry points alone. Dependencies are what the modules import."""
    public = [n for n in dir(hubconf) if callable(getattr(hubconf, n)) and n[0] != "_"]
    assert public == ["consistency_loss", "depth", "energy", "normals", "reshading"]
    readme = (ROOT / "README.md").read_text()
    assert all(f'"{name}"' in readme for name in public)
    needed, seen, queue = set(), set(), ["consistency"]
    while queue:
        module = queue.pop()
        top = module.partition(".")[0]
        if top not in FLOOR:
            needed |= {top} - sys.stdlib_module_names
        elif top not in seen:
            seen.add(top)
            for file in files_of(top):
                queue += [name for name in imported(file) if importable(name)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    optional = {re.match(r"[\w-]+", line)[0] for line in extras}
    assert needed - optional - {"visdom"} == set(hubconf.dependencies)


def importable(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None

"""The shape of the project: imports point downwards, importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# lower number = lower layer; a module may import only lower ones
LAYERS = {
    "utils": 0, "modules": 1, "task_configs": 1, "logger": 1, "scripts.packed": 2,
    "scripts.views": 3, "datasets": 4, "transfers": 4, "models": 5, "graph": 5, "energy": 6,
    "scripts": 7, "train": 8, "demo": 8,
}  # fmt: skip


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {layer for layer in map(layer_of, names) if layer}


def layer_of(module: str) -> str | None:
    """The longest name in the table that begins the module's."""
    parts = module.split(".")
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in beginnings if name in LAYERS), None)


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"scripts"}))
def test_imports_point_downwards(name):
    path = ROOT / name.replace(".", "/")
    files = path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    for file in files:
        for other in imported(file) - {name}:
            assert LAYERS[other] < LAYERS[name], f"{file.name} imports {other}"


def test_importing_does_nothing(tmp_path):
    names = [n for n in LAYERS if n != "scripts"] + ["scripts.setting", "scripts.train_edges"]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"import {', '.join(names)}\n"
        "import gc, torch\n"
        "assert not any(type(o) is torch.nn.Parameter for o in gc.get_objects())\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())

"""The shape of the project: imports point downwards, importing does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# lower number = lower layer; a module may import only lower ones
LAYERS = {
    "utils": 0, "modules": 1, "task_configs": 1, "logger": 1, "datasets": 2, "transfers": 2,
    "models": 3, "graph": 3, "energy": 4, "scripts": 5, "train": 6, "demo": 6,
}  # fmt: skip


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names & set(LAYERS)


@pytest.mark.parametrize("name", sorted(set(LAYERS) - {"scripts"}))
def test_imports_point_downwards(name):
    files = [ROOT / f"{name}.py"] if name != "modules" else (ROOT / "modules").glob("*.py")
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

"""The shape of the project: imports point downwards, importing does nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Floors from the bottom up: a file may import from lower floors, and from its own folder.
FLOORS = [
    ["utils", "modules"],
    ["flags"],
    ["files", "task_configs", "precision", "balancing", "choosing", "photometric"],
    ["tables", "loading", "rooms", "transfers", "energy", "colouring"],
    ["backbones"],
    ["datasets", "models", "graph", "pictures", "losses", "devices"],
    ["packing", "streams", "degradations", "logger", "sources", "label_cache", "other_networks"],
    ["methods"],
    ["training", "measuring", "sharding"],
    ["consistency"],
    ["hubconf", "web"],
    ["train", "demo", "scripts"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
PROGRAMS = FLOORS[-1]


def files_of(name: str) -> list[Path]:
    folder = ROOT / name
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> set[str]:
    """The modules that a file imports, by their dotted names; relative ones resolved."""
    found = set()
    package = module_of(file) if file.stem == "__init__" else module_of(file).rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def own_modules() -> set[str]:
    return {module_of(file) for name in FLOOR for file in files_of(name)}


def test_every_file_has_its_floor():
    """No module, and no folder with modules, is outside the rule."""
    ignored = {"tests", "examples"}
    tops = {file.stem for file in ROOT.glob("*.py") if not file.name.startswith("my_")}
    tops |= {file.parent.name for file in ROOT.glob("*/*.py") if file.parent.name[0] != "."}
    assert tops - ignored == set(FLOOR)


@pytest.mark.parametrize("name", FLOOR)
def test_imports_point_downwards(name):
    for file in files_of(name):
        for other in imported(file):
            top = other.partition(".")[0]
            if top in FLOOR and top != name:
                assert FLOOR[top] < FLOOR[name], f"{file.relative_to(ROOT)} imports {other}"


def test_no_circles_within_a_folder():
    modules = own_modules()
    edges = {}
    for name in FLOOR:
        for file in files_of(name):
            known = (next((m for m in (o, o.rpartition(".")[0]) if m in modules), None)
                     for o in imported(file))  # fmt: skip
            edges[module_of(file)] = {other for other in known if other}
    done, path = set(), []

    def visit(module: str) -> None:
        assert module not in path, " → ".join([*path, module])
        if module not in done:
            path.append(module)
            for other in edges[module]:
                if other != module:
                    visit(other)
            done.add(path.pop())

    for module in sorted(edges):
        visit(module)


# The parts of programs: {folder below scripts: how the modules that may import them begin}
PARTS = {"benchmarking": ("scripts.bench", "scripts.gpu_report"), "reproducing": ("scripts.repro",)}


def test_programs_are_imported_by_nothing():
    """A program may only be started; its parts are its own."""
    for name in FLOOR:
        for file in files_of(name):
            for other in imported(file):
                first, *rest = other.split(".")
                if first in PROGRAMS:
                    users = PARTS.get(rest[0], ()) if len(rest) > 1 else ()
                    assert module_of(file).startswith(users or "-"), f"{file}: {other}"


def functions() -> list[tuple[str, ast.FunctionDef]]:
    found = []
    for name in FLOOR:
        for file in files_of(name):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef):
                    found.append((f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node))
    return found


def test_functions_are_short_and_take_few_parameters():
    for place, node in functions():
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        assert node.end_lineno - node.lineno + 1 <= 60, place
        assert len([name for name in names if name not in ("self", "cls")]) <= 12, place


def test_libraries_print_nothing_and_quote_no_flags():
    for name in set(FLOOR) - set(PROGRAMS) - {"flags"}:
        for file in files_of(name):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            docs = {ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(
                n, ast.Module | ast.ClassDef | ast.FunctionDef)}  # fmt: skip
            for node in ast.walk(tree):
                where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id != "print", where
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    flag = re.search(r"(?<![\w-])--[a-z]", node.value)
                    assert not flag or node.value in docs or "torchrun" in node.value, where


def test_importing_does_nothing(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"import {', '.join(sorted(own_modules()))}\n"
        "import gc, torch\n"
        "assert not any(type(o) is torch.nn.Parameter for o in gc.get_objects())\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())

"""Odd values of every flag of every program: a result, or one sentence."""

import importlib
import inspect
import json
import os
import signal
import time
from pathlib import Path

import pytest
from forked import Program
from PIL import Image

from scripts.methods_table import BEGIN, END
from utils import ROOT

PROGRAMS = (
    "train", "demo", "scripts.train_edges", "scripts.energy_calc", "scripts.energy_map",
    "scripts.energy_shift", "scripts.check_data", "scripts.pack", "scripts.download",
    "scripts.make_rooms", "scripts.benchmark", "scripts.export", "scripts.evaluate",
    "scripts.reproduce", "scripts.ken_burns", "scripts.methods_table", "scripts.benchmark_views",
    "scripts.gpu_report",
)  # fmt: skip
SERVER = "scripts.web"  # which does not end; test_web tries its flags
EXTRAS = {"scripts.ken_burns": "av"}  # what a program needs that may not be installed
VALUES = ("0", "-1", "1e30", "nan", "", "None", "x" * 300, "a,b")
SECONDS = 60  # a hang, on any machine


def least_work(rooms: Path, networks: Path, folder: Path) -> dict[str, list[str]]:
    """The arguments by which each program does the least: {module: arguments}."""
    image, models = folder / "image.png", f"--models-dir={networks}"
    Image.new("RGB", (40, 30), (200, 100, 50)).save(image)
    data, quiet = f"--data-dirs={rooms}", "--quiet"
    steps = ("--max-epochs=1", "--steps-per-epoch=1", "--batch-size=2")
    runs = f"--results-dir={folder / 'results'}"
    save = f"--save_dir={folder / 'energy'}"
    return {
        "train": ["example_normal", data, models, *steps, runs, "--visdom-server=none", quiet,
                  "--no-imagenet"],
        "demo": ["--task=normal", f"--img_path={image}", f"--output_path={folder / 'demo'}",
                 models, quiet],
        "scripts.train_edges": ["example_cascade_two_networks", data, models, *steps, runs],
        "scripts.energy_calc": ["energy_calc", data, models, save, "--subset_size=2", quiet],
        "scripts.energy_map": [f"--img_path={image}", f"--output_path={folder / 'map'}", models,
                               quiet],
        "scripts.energy_shift": [data, models, f"--save_dir={folder / 'shift'}",
                                 "--subset_size=1", quiet],
        "scripts.check_data": [str(rooms), "--max-views=1"],
        "scripts.pack": [str(rooms), f"--to={folder / 'pack'}", "--image-size=16",
                         "--tasks=normal", "--num-workers=0", quiet],
        "scripts.download": ["models", str(folder / "fetched"), quiet],
        "scripts.make_rooms": [f"--output-dir={folder / 'rooms'}", "--views-per-building=1",
                               "--image-size=16", "--buildings=agate", "--num-workers=1", quiet],
        "scripts.benchmark": ["--parts=cost", f"--output={folder / 'benchmarks.md'}",
                              "--repeats=1", "--image-size=16", "--width=8", "--batch-size=1",
                              "--config=example_cascade_two_networks"],
        "scripts.export": [str(networks / "rgb2normal_baseline.pth"),
                           f"--to={folder / 'model.safetensors'}"],
        "scripts.evaluate": [str(networks / "rgb2normal_baseline.pth"), data, models,
                             f"--output-dir={folder / 'errors'}", "--subset-size=2",
                             "--resamples=10", quiet],
        "scripts.reproduce": ["--dry", f"--output-dir={folder / 'reproduced'}",
                              f"--report={folder / 'results.md'}"],
        "scripts.ken_burns": [f"--img-path={image}", f"--output-dir={folder / 'clips'}", models,
                              "--seconds=0.1", "--side=32", quiet],
        "scripts.methods_table": [f"--output-dir={table_of_methods(folder)}"],
        "scripts.benchmark_views": ["--views=20", "--reads=10", "--num-workers=1",
                                    f"--folder={folder}"],
        "scripts.gpu_report": ["--report-only", f"--output-dir={folder / 'gpu'}",
                               f"--report={folder / 'gpu.md'}"],
    }  # fmt: skip


def table_of_methods(folder: Path) -> Path:
    """A folder with the table of methods and a record of one, which is written into it."""
    entry = {"command": "c", "date": "d", "device": "cpu", "start": {}, "errors": {}}
    record = {"target": "normal", "methods": {"baseline": entry}}
    (folder / "methods.json").write_text(json.dumps(record))
    (folder / "methods.md").write_text(f"{BEGIN}\n{END}\n")
    return folder


def cases(module: str) -> list[tuple[str, str]]:
    """Every flag of a program with every value."""
    flags = inspect.signature(importlib.import_module(module).main).parameters.values()
    names = [flag.name for flag in flags if flag.kind is flag.KEYWORD_ONLY]
    return [(name, value) for name in names for value in VALUES]


def outcome(module: str, arguments: list[str], name: str, value: str, folder: Path) -> str:
    """What was wrong with how the program ended, "" if nothing was."""
    flag = f"--{name.replace('_', '-')}"
    given = [a for a in arguments if a.split("=")[0].replace("_", "-") != flag]
    output = folder / "output.txt"
    output.unlink(missing_ok=True)
    program = Program(*given, f"{flag}={value}", output=output, module=module,
                      prepare=lambda: os.chdir(folder))  # fmt: skip
    end = time.monotonic() + SECONDS
    while not program.ended():
        if time.monotonic() > end:
            os.killpg(program.pid, signal.SIGKILL)
            return "did not end"
        time.sleep(0.02)
    status, text = program.finish()
    if "Traceback" in text:
        return f"a traceback: {text.strip().splitlines()[-1]}"
    if status not in (0, 1, 2):
        return f"status {status}"
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    if status == 2 and len(errors) != 1:
        return f"status 2 with {len(errors)} sentences"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("module", PROGRAMS)
def test_odd_values_give_a_result_or_one_sentence(module, rooms, networks, tmp_path, monkeypatch):
    monkeypatch.delenv("XTC_MIRROR", raising=False)
    if module in EXTRAS:
        pytest.importorskip(EXTRAS[module])
    arguments = least_work(rooms, networks, tmp_path)[module]
    plain = Program(*arguments, output=tmp_path / "plain.txt", module=module).finish()
    # otherwise the odd values would not be reached; there is no mirror to download from
    assert plain[0] == (2 if module == "scripts.download" else 0), plain[1]
    wrong, tried = [], cases(module)
    for number, (name, value) in enumerate(tried):
        folder = tmp_path / str(number)
        folder.mkdir()
        if problem := outcome(module, arguments, name, value, folder):
            wrong.append(f"--{name} {value[:20]!r}: {problem}")
    print(f"{module}: {len(tried)} combinations")
    assert not wrong, "\n".join(wrong)


def test_every_program_is_tried(tmp_path):
    scripts = [f"scripts.{file.stem}" for file in (ROOT / "scripts").glob("*.py")]
    known = {"train", "demo", *scripts} - {"scripts.__init__", SERVER}
    assert set(PROGRAMS) == known == set(least_work(tmp_path, tmp_path, tmp_path))

"""The formats of images that are read: one list for all programs, without external programs."""

import ast
import os
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import EpsImagePlugin, Image, features

from loading import photographs
from task_configs import FORMATS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "program, flags",
    [("demo", ["--task=normal", "--model=rooms", "--img-path={}", "--output-path={}/out"]),
     ("scripts.energy_map", ["--img-path={}", "--output-path={}/out"]),
     ("scripts.energy_shift", ["--data-dir={}", "--save-dir={}/out"])],
)  # fmt: skip
def test_no_program_is_run_to_read_an_image(run, picture, tmp_path, monkeypatch, program, flags):
    """Pillow would run Ghostscript for an EPS file, whatever its name is."""
    mark, programs = tmp_path / "was-run", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {mark}\necho 10.0\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    picture.save(tmp_path / "a.png", format="EPS")
    arguments = [flag.format(tmp_path) for flag in flags]
    status, output, _ = run(*arguments, program=program, defaults=False)
    assert status in (1, 2) and "a.png is broken, or not an image in a format" in output, output
    assert "Traceback" not in output and not mark.exists()


def test_every_reader_of_images_names_its_formats():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}
    files = [
        *ROOT.glob("*.py"),
        *(f for name in folders - {"tests", "examples"} for f in (ROOT / name).rglob("*.py")),
    ]
    calls = [
        (path, node)
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open"
    ]
    assert len(calls) >= 5
    for path, call in calls:
        assert "formats" in [keyword.arg for keyword in call.keywords], (path, call.lineno)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_of_the_list_is_read(picture, tmp_path, form):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip(f"Pillow {PIL.__version__} is built without AVIF here")
    picture.save(tmp_path / "a", format=form)
    images, skipped = photographs.find_images(tmp_path)
    assert [path.name for path in images] == ["a"] and not skipped
    assert photographs.open_image(images[0]).size == picture.size

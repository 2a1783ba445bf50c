"""The program that measures the start of a run on many views."""

import pytest

from scripts.benchmark_views import make_views
from utils import UserError


@pytest.mark.slow  # starts Python five times
def test_the_start_is_measured_with_and_without_an_index(run, tmp_path):
    made = tmp_path / "made"
    status, output, _ = run(
        "--views=2600", "--faults", "--num-workers=1", "--reads=10", f"--folder={made}",
        "--keep", program="scripts.benchmark_views", defaults=False,
    )  # fmt: skip
    assert status == 0, output
    rows = [line for line in output.splitlines() if line.startswith("2600 ")][-5:]
    kinds = "none", "there", "a folder changed", "cut off", "none"
    for row, kind in zip(rows, kinds, strict=True):
        assert row.split()[1] == "20800" and kind in row
    (folder,) = made.iterdir()  # the index is gone, and the file that was removed is back
    assert len(list(folder.rglob("*.png"))) == 20800


def test_views_are_made_once_and_grow(tmp_path):
    make_views(tmp_path, 20, ["rgb", "normal"])
    inode = {file: file.stat().st_ino for file in tmp_path.rglob("*.png")}
    assert len(inode) == 40
    make_views(tmp_path, 20, ["rgb", "normal"])
    next(iter(inode)).unlink()
    make_views(tmp_path, 20, ["rgb", "normal"])
    assert inode == {file: file.stat().st_ino for file in tmp_path.rglob("*.png")}
    with pytest.raises(UserError, match="files of more views"):
        make_views(tmp_path, 15, ["rgb", "normal"])


@pytest.mark.parametrize("views", ["0", "many"])
def test_a_number_of_views_that_cannot_be(run, views):
    status, output, _ = run(f"--views={views}", program="scripts.benchmark_views", defaults=False)
    assert status == 2 and output.count("\n") == 1 and "whole numbers" in output


def test_a_folder_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").touch()
    status, output, _ = run(
        "--views=20", f"--folder={tmp_path / 'file' / 'made'}", program="scripts.benchmark_views",
        defaults=False,
    )  # fmt: skip
    assert status == 2 and output.count("\n") == 1 and "file" in output

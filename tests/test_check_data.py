"""The data check on rooms, and on rooms with files broken on purpose."""

import shutil

import numpy as np
import pytest
from PIL import Image

from loading.file_checks import check_view
from loading.layouts import find_buildings, find_views
from tables import text_table
from task_configs import TASKS

RGB, NORMAL, DEPTH = (TASKS[name] for name in ("rgb", "normal", "depth_zbuffer"))


@pytest.fixture
def copy(rooms, tmp_path):
    return shutil.copytree(rooms, tmp_path / "copy")


@pytest.fixture
def views(copy):
    return find_views([RGB, NORMAL, DEPTH], [copy], find_buildings([copy]))


@pytest.fixture
def check(run, copy):
    def call(*flags: str) -> tuple[int, str]:
        flags = ("--workers=1", "--quiet", *flags)
        return run(str(copy), *flags, program="scripts.check_data", defaults=False)[:2]

    return call


def change(path, function) -> None:
    with Image.open(path) as image:
        values = np.array(image)
    Image.fromarray(function(values)).save(path)


def halved(values: np.ndarray) -> np.ndarray:
    """Normals of half their length."""
    return (128 + (values.astype(float) - 128) / 2).astype(np.uint8)


def test_good_data_are_good(check):
    status, output = check("--table")
    assert status == 0 and "nothing is wrong" in output and "4 buildings" in output
    lines = output.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("building"))
    rows = lines[start + 2 : start + 2 + 4 * 9]
    assert all(row.split()[2:7] == ["4", "0", "4", "0", "0"] for row in rows)
    assert all(row.split()[-1].endswith("%") for row in rows if "depth_zbuffer" in row)


def test_without_the_table_there_is_a_summary_and_what_is_wrong(check, copy, views):
    status, output = check()
    assert status == 0 and output.splitlines()[1:] == [
        "16 views of 9 domains (rgb, normal, principal_curvature, depth_zbuffer, "
        "segment_semantic, reshading, edge_occlusion, keypoints3d, keypoints2d): "
        "144 files there, 144 opened",
        "nothing is wrong",
    ]
    views[0].path(NORMAL).unlink()
    views[1].path(NORMAL).unlink()
    views[5].path(RGB).write_bytes(b"")
    status, output = check()
    lines = output.splitlines()
    assert status == 1 and not any(line.startswith("building ") for line in lines)
    assert lines[1:3] == [
        f"missing: normal of 2 of 4 views in agate, for example {views[0].path(NORMAL)}",
        f"broken: {views[5].path(RGB)}: it is not an image in a format that is read here",
    ]
    assert lines[3].endswith("142 files there, 142 opened")
    assert lines[4] == "2 files missing, 1 broken or odd"


def test_each_kind_of_fault_is_found_and_named(check, views):
    faults = {
        views[0].path(DEPTH): lambda p: change(p, lambda v: (v // 64).astype(np.uint8)),
        views[1].path(DEPTH): lambda p: change(p, lambda v: (v // 256).astype(np.uint16)),
        views[2].path(DEPTH): lambda p: change(p, lambda v: np.where(v > 2000, 0, v)),
        views[3].path(DEPTH): lambda p: change(p, lambda v: np.full_like(v, 65535)),
        views[4].path(NORMAL): lambda p: change(p, halved),
        views[5].path(NORMAL): lambda p: change(p, lambda v: v[:32, :32]),
        views[6].path(NORMAL): lambda p: p.write_bytes(p.read_bytes()[:-300]),
        views[7].path(NORMAL): lambda p: Image.new("L", (64, 64)).save(p),
        views[8].path(RGB): lambda p: p.write_bytes(b""),
        views[9].path(RGB): lambda p: change(p, lambda v: np.zeros_like(v)),
        views[10].path(RGB): lambda p: p.unlink(),
        views[11].path(NORMAL): lambda p: change(p, lambda v: np.full_like(v, 128)),
    }
    for path, spoil in faults.items():
        spoil(path)
    status, output = check()
    assert status == 1 and "1 file missing, 11 broken or odd" in output
    said = {line.partition(": ")[2]: line.partition(":")[0] for line in output.splitlines()}
    expected = {
        0: (DEPTH, "mode L, not 16-bit grey"), 1: (DEPTH, "8-bit values in a 16-bit file"),
        2: (DEPTH, "are 0, where holes are 65535"), 3: (DEPTH, "nothing but holes"),
        4: (NORMAL, "not of length 1"), 5: (NORMAL, "32 × 32 pixels, other files of its view 64"),
        6: (NORMAL, ""), 7: (NORMAL, "mode L, not 8-bit colour"), 8: (RGB, ""),
        9: (RGB, "one colour all over"), 11: (NORMAL, "nothing but holes"),
    }  # fmt: skip
    for number, (task, text) in expected.items():
        path = str(views[number].path(task))
        (found,) = [line for line in said if line.startswith(path)]
        assert text in found and said[found] == ("broken" if number in (6, 8) else "odd")


@pytest.mark.parametrize(
    "axes, said",
    [((1, 0, 2), "red and green are swapped"), ((2, 1, 0), "red is not the axis that points right"),
     ("mirror", "red points left instead"), ("flip", "green points up instead"),
     ("toward", "z points towards the camera")],
)  # fmt: skip
def test_swapped_axes_are_found(check, views, axes, said):
    def changed(values: np.ndarray) -> np.ndarray:
        if not isinstance(axes, str):
            return values[..., list(axes)]
        channel = ("mirror", "flip", "toward").index(axes)
        hole = (values == 128).all(axis=-1)
        values[..., channel] = np.where(hole, 128, 255 - values[..., channel])
        return values

    building = views[0].building
    for view in views[:4]:
        change(view.path(NORMAL), changed)
    status, output = check(f"--buildings={building}", "--domains=normal,depth_zbuffer")
    assert status == 1 and said in output, output
    assert check(f"--buildings={views[-1].building}")[0] == 0


def test_a_flipped_bit_of_the_pixels_is_found(views):
    path = views[0].path(RGB)
    data = bytearray(path.read_bytes())
    data[-20] ^= 16  # in the compressed pixels' last bytes, or their checksum
    path.write_bytes(data)
    assert check_view((views[0], ["rgb"])).findings["rgb"][0].kind == "broken"


def test_a_sample_is_evenly_spaced_and_the_number_of_processes_changes_nothing(check, views):
    views[2].path(RGB).write_bytes(b"")
    views[3].path(RGB).write_bytes(b"")
    status, output = check("--max-views=2", "--show=0")
    assert status == 1 and "0 files missing, 1 broken or odd" in output
    assert "and 1 more (--show 1 names them all)" in output
    assert check("--max-views=2", "--show=0", "--workers=2") == (status, output)


@pytest.mark.parametrize(
    "words, said",
    [([], "which data?"), (["nowhere"], "no data folder"), ([".", "--max-views=0"], "more than 0"),
     (["FOLDER", "--buildings=x"], "no building x"), (["FOLDER", "--domains=rbg"], "no task"),
     (["EMPTY"], "in a layout known here")],
)  # fmt: skip
def test_what_cannot_be_checked_is_one_sentence(run, copy, tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    names = {"FOLDER": str(copy), "EMPTY": str(tmp_path / "empty")}
    words = [names.get(word, word) for word in words]
    status, output, _ = run(*words, program="scripts.check_data", defaults=False)
    assert status == 2 and said in output.splitlines()[-1] and "Traceback" not in output


def test_a_table_is_aligned():
    assert (
        text_table(["a", "b", "count"], [["xx", "y", "3"]])
        == "a   b  count\n------------\nxx  y      3"
    )


@pytest.mark.parametrize(
    "colours, said",
    [((1,), "it looks as if y points up; if so, invert green in all files"),
     ((1, 2), "y points up and z points towards the camera; if so, invert green and blue"),
     ((2,), "z points towards the camera; if so, invert blue")],
)  # fmt: skip
def test_the_direction_of_normals_is_told_once_a_building(rooms, tmp_path, run, colours, said):
    """By rgb and normals alone, without depth to compare with."""
    for source in (*rooms.glob("*_rgb"), *rooms.glob("*_normal")):
        shutil.copytree(source, tmp_path / source.name)

    def check():
        return run(str(tmp_path), "--quiet", program="scripts.check_data", defaults=False)

    assert check()[0] == 0
    for file in tmp_path.glob("*_normal/normal/*.png"):
        pixels = np.array(Image.open(file))
        hole = (pixels == 128).all(axis=-1)
        for colour in colours:
            pixels[..., colour] = np.where(hole, 128, 255 - pixels[..., colour])
        Image.fromarray(pixels).save(file)
    status, output, _ = check()
    assert status == 1
    assert sum(said in line for line in output.splitlines()) == 4  # buildings


def test_holes_of_depth_that_are_0_are_told(rooms, tmp_path, run):
    """As in most other data sets, however few they are."""
    for source in rooms.glob("agate_*"):
        if source.name in ("agate_rgb", "agate_depth_zbuffer"):
            shutil.copytree(source, tmp_path / source.name)
    file = next(tmp_path.glob("agate_depth_zbuffer/*/*.png"))
    pixels = np.array(Image.open(file))
    pixels[pixels == 65535] = 0
    pixels[:2, :3] = 0
    Image.fromarray(pixels).save(file)
    status, output, _ = run(str(tmp_path), "--quiet", program="scripts.check_data", defaults=False)
    assert status == 1 and f"odd: {file}: " in output and "where holes are 65535" in output

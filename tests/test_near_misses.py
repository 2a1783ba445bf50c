"""Data that are almost right: other names, endings and levels, JPEGs, lists, own layouts."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from datasets import TaskDataset
from loading import near_misses
from loading.layouts import LAYOUTS, View, find_buildings, find_views, what_lies_there
from task_configs import TASKS

SOME = [TASKS[name] for name in ("rgb", "normal", "depth_zbuffer", "reshading")]
RGB, NORMAL, DEPTH, SHADING = SOME


@pytest.fixture
def lay_out(rooms, tmp_path):
    """Link the rooms' files to where `file(task, building, view, part)` puts them."""

    def link(file, folder="data", part=lambda building: "train") -> Path:
        for view in find_views(SOME, [rooms], find_buildings([rooms])):
            for task in SOME:
                path = tmp_path / folder / file(task, view.building, view.name, part(view.building))
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(view.path(task), path)
        return tmp_path / folder

    return link


def as_jpeg(folder: Path, endings=(".jpg",)) -> None:
    """Save all rgb files below the folder as JPEGs instead, with these endings in turn."""
    files = sorted(p for p in folder.rglob("*.png") if "rgb" in str(p.relative_to(folder)))
    assert files
    for number, path in enumerate(files):
        with Image.open(path) as image:
            image.save(path.with_suffix(endings[number % len(endings)]), format="JPEG")
        path.unlink()


# ---- JPEGs --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rgb_may_be_jpeg_in_every_layout(lay_out, tmp_path, layout):
    folder = lay_out(LAYOUTS[layout], part=lambda building: "train") if layout != "one building" \
        else next(iter(lay_out(LAYOUTS["buildings"]).iterdir()))  # fmt: skip
    as_jpeg(folder, (".jpg", ".JPG", ".jpeg", ".Jpeg", ".JPEG"))
    tasks = [*SOME, TASKS["sobel_edges"]]
    views = find_views(tasks, [folder], find_buildings([folder]))
    assert len(views) == (4 if layout == "one building" else 16)
    assert {view.layout for view in views} == {layout}
    tensors = TaskDataset(tasks, views, 32)[0]
    assert torch.equal(tensors[0], RGB.load(views[0].path(RGB), 32))
    assert {view.path(RGB).suffix.lower() for view in views} == {".jpg", ".jpeg"}


def test_png_goes_before_jpeg_and_labels_may_not_be_jpeg(lay_out):
    folder = lay_out(LAYOUTS["raid"])
    path = next((folder / "rgb").rglob("*.png"))
    Image.new("RGB", (8, 8)).save(path.with_suffix(".jpg"))
    views = find_views([RGB], [folder], find_buildings([folder]))
    assert len(views) == 16 and {view.path(RGB).suffix for view in views} == {".png"}
    assert View(folder, "b", "v", "raid").path(NORMAL) == folder / "normal/b/v.png"
    for path in (folder / "normal").rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    assert what_lies_there([folder], [NORMAL]).endswith("did you mean '.png' instead of '.jpg'?")


def test_programs_read_jpegs(run, lay_out, tmp_path):
    folder = lay_out(LAYOUTS["taskonomy"])
    as_jpeg(folder)
    status, output, _ = run("rgb2normal", f"--data-dirs={folder}", "--steps-per-epoch=1")
    assert status == 0, output
    status, output, _ = run(str(folder), "--workers=1", program="scripts.check_data",
                            defaults=False)  # fmt: skip
    assert (status, output.splitlines()[-1]) == (0, "nothing is wrong"), output
    status, output, _ = run(str(folder), f"--to={tmp_path / 'pack'}", "--image-size=32",
                            "--num-workers=0", program="scripts.pack", defaults=False)  # fmt: skip
    assert status == 0 and "16 views of 5 domains" in output


# ---- what lies there ----------------------------------------------------------------

TASKONOMY, MULTIMAE = LAYOUTS["taskonomy"], LAYOUTS["multimae"]


def renamed(layout, old: str, new: str):
    return lambda t, b, v, p: layout(t, b, v, p).replace(old, new)


NEAR = {  # name: (where the files lie, the domain that is missing, what was found, expected, meant)
    "depth": (
        renamed(TASKONOMY, "depth_zbuffer", "depth"), DEPTH,
        "agate_depth/depth/point_0_view_0_domain_depth.png",
        "agate_depth_zbuffer/depth_zbuffer/point_0_view_0_domain_depth_zbuffer.png",
        "'depth_zbuffer' instead of 'depth'",
    ),
    "inner folder": (
        renamed(TASKONOMY, "/normal/", "/normals/"), NORMAL,
        "agate_normal/normals/point_0_view_0_domain_normal.png",
        "agate_normal/normal/point_0_view_0_domain_normal.png", "'normal' instead of 'normals'",
    ),
    "tag": (
        renamed(MULTIMAE, "domain_reshading", "domain_shading"), SHADING,
        "reshading/agate/point_0_view_0_domain_shading.png",
        "reshading/agate/point_0_view_0_domain_reshading.png", "'reshading' instead of 'shading'",
    ),
    "misspelt": (
        renamed(LAYOUTS["raid"], "normal", "nromal"), NORMAL, "nromal/agate/point_0_view_0.png",
        "normal/agate/point_0_view_0.png", "'normal' instead of 'nromal'",
    ),
    "capitals": (
        renamed(LAYOUTS["raid"], "rgb", "RGB"), RGB, "RGB/agate/point_0_view_0.png",
        "rgb/agate/point_0_view_0.png", "'rgb' instead of 'RGB'",
    ),
    "ending": (
        lambda t, b, v, p: MULTIMAE(t, b, v, p).replace(".png", ".tif" if t == DEPTH else ".png"),
        DEPTH, "depth_zbuffer/agate/point_0_view_0_domain_depth_zbuffer.tif",
        "depth_zbuffer/agate/point_0_view_0_domain_depth_zbuffer.png", "'.png' instead of '.tif'",
    ),
    "no inner folder": (
        lambda t, b, v, p: f"{b}_{t}/{v}_domain_{t}.png", RGB,
        "agate_rgb/point_0_view_0_domain_rgb.png", "agate_rgb/rgb/point_0_view_0_domain_rgb.png",
        "to put it into a folder 'rgb'",
    ),
    "no building": (
        lambda t, b, v, p: f"{t}/{b}_{v}.png", RGB, "depth_zbuffer/agate_point_0_view_0.png",
        "BUILDING/rgb/VIEW.png", "the folder PARENT",  # in which this folder is the building
    ),
    "one level too high": (
        lambda t, b, v, p: f"of/mine/{TASKONOMY(t, b, v, p)}", RGB,
        "of/mine/agate_rgb/rgb/point_0_view_0_domain_rgb.png",
        "BUILDING_rgb/rgb/VIEW_domain_rgb.png", "the folder FOLDER/of/mine",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_a_near_miss_is_named(lay_out, name):
    file, task, found, expected, meant = NEAR[name]
    folder = lay_out(file)
    said = what_lies_there([folder], [task])
    meant = meant.replace("FOLDER", str(folder)).replace("PARENT", str(folder.parent))
    assert said == f"found {found}, expected {expected}; did you mean {meant}?"


@pytest.mark.parametrize("below", ["agate_rgb", "agate_rgb/rgb"])
def test_a_folder_too_deep_is_named(lay_out, below):
    folder = lay_out(TASKONOMY)
    said = what_lies_there([folder / below], [NORMAL])
    assert said.endswith(f"did you mean the folder {folder}?"), said


def test_another_domain_is_no_near_miss(lay_out):
    folder = lay_out(renamed(TASKONOMY, "depth_zbuffer", "depth_euclidean"))
    assert "did you mean" not in what_lies_there([folder], [DEPTH])
    assert what_lies_there([folder], [DEPTH]).startswith("found agate_depth_euclidean/")


def test_nothing_near(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.webp").write_text("x")
    expected = "BUILDING_rgb/rgb/VIEW_domain_rgb.png"
    assert what_lies_there([tmp_path], [RGB]) == f"found x/a.webp, expected {expected}"
    shutil.rmtree(tmp_path / "x")
    assert what_lies_there([tmp_path], [RGB]) == f"found notes.txt, expected {expected}"


@pytest.fixture
def four(run, tmp_path, networks):
    """Train on, check, measure and pack a folder: what each program prints."""

    def call(folder, *flags: str, good=False) -> list[str]:
        own = {"defaults": False}
        said = []
        for words, how in (
            (("rgb2normal", f"--data-dirs={folder}", "--steps-per-epoch=1"), {}),
            ((str(folder), "--workers=1", "--quiet"), {"program": "scripts.check_data"} | own),
            (("energy_calc", f"--data-dirs={folder}", f"--save-dir={tmp_path / 'energy'}",
              f"--models-dir={networks}", "--quiet"), {"program": "scripts.energy_calc"} | own),
            ((str(folder), f"--to={tmp_path / 'packed'}", "--num-workers=0", "--image-size=32",
              "--quiet"), {"program": "scripts.pack"} | own),
        ):  # fmt: skip
            status, output, _ = run(*words, *flags, **how)
            assert (status == 0) == good and "Traceback" not in output, output
            said.append(output)
        return said

    return call


def test_all_programs_say_the_same_sentence(four, lay_out):
    folder = lay_out(lambda t, b, v, p: f"{b}_{t}/{v}_domain_{t}.png")
    sentence = (
        f"error: no views under {folder} in a layout known here (docs/data.md; lists are read "
        f"too): found "
        f"agate_rgb/point_0_view_0_domain_rgb.png, expected "
        f"agate_rgb/rgb/point_0_view_0_domain_rgb.png; did you mean to put it into a folder 'rgb'?"
    )
    assert {said.splitlines()[-1] for said in four(folder)} == {sentence}


def test_a_domain_under_another_name_is_named_by_all_programs(run, lay_out, tmp_path):
    folder = lay_out(renamed(TASKONOMY, "normal", "normals"))
    hint = what_lies_there([folder], [NORMAL])
    assert hint.endswith("did you mean 'normal' instead of 'normals'?")
    status, output, _ = run("rgb2normal", f"--data-dirs={folder}")
    assert status == 2 and hint in output.splitlines()[-1], output
    status, output, _ = run(str(folder), "--workers=1", program="scripts.check_data",
                            defaults=False)  # fmt: skip
    assert status == 1 and f"missing: normal: {hint}" in output
    status, output, _ = run(str(folder), f"--to={tmp_path / 'pack'}", "--image-size=32",
                            "--num-workers=0", program="scripts.pack", defaults=False)  # fmt: skip
    assert status == 0 and f"warning: normal is not packed: {hint}" in output


@pytest.mark.slow
def test_a_wanted_domain_under_another_name_is_named(run, lay_out):
    folder = lay_out(renamed(TASKONOMY, "depth_zbuffer", "depth"))
    status, output, _ = run("multiperceptual_normal", "--k=1", "--random-select",
                            "--steps-per-epoch=1", f"--data-dirs={folder}")  # fmt: skip
    assert status == 0 and "did you mean 'depth_zbuffer' instead of 'depth'?" in output


def test_a_large_data_folder_is_not_read_as_a_whole(tmp_path, monkeypatch):
    for building in range(6):
        for name in ("rgb", "depth"):
            folder = tmp_path / f"building{building}_{name}" / name
            folder.mkdir(parents=True)
            for view in range(40):
                (folder / f"point_{view}_view_0_domain_{name}.png").touch()
    monkeypatch.setattr(near_misses, "FILES", 5)
    monkeypatch.setattr(near_misses, "ALL", 30)
    read, scandir = [], os.scandir

    @contextmanager
    def counted(folder):
        with scandir(folder) as entries:
            yield (read.append(entry.name) or entry for entry in entries)

    monkeypatch.setattr(os, "scandir", counted)
    hint = near_misses.what_is_there(tmp_path, [DEPTH], LAYOUTS)[DEPTH]
    assert hint.endswith("did you mean 'depth_zbuffer' instead of 'depth'?")
    assert len(read) <= 30 + 12 + 5


# ---- layouts of one's own -----------------------------------------------------------


@pytest.fixture
def own_layout(tmp_path):
    before = dict(LAYOUTS)
    file = tmp_path / "my_layout.py"
    file.write_text(
        "from loading.layouts import LAYOUTS\n"
        "LAYOUTS['mine'] = lambda t, b, v, p: f'{b}/{v}/{t.folder}.png'\n"
    )
    yield file
    LAYOUTS.clear()
    LAYOUTS.update(before)


def test_a_layout_of_ones_own_reaches_all_programs(four, own_layout, lay_out, run, tmp_path,
                                                  networks):  # fmt: skip
    folder = lay_out(lambda t, b, v, p: f"{b}/{v}/{t.folder}.png")
    as_jpeg(folder)
    assert all("no views under" in said for said in four(folder))
    train, check, energy, pack = four(folder, f"--layouts={own_layout}", good=True)
    assert "views: train 2, val" in train or "views: train" in train
    assert "layout 'mine'" in check and "nothing is wrong" in check
    assert "views →" in energy and "16 views of 5 domains" in pack
    status, output, _ = run(
        "rgb2normal", f"--data-dirs={folder}", f"--models-dir={networks}",
        f"--layouts={own_layout}", program="scripts.train_edges", defaults=False,
    )  # fmt: skip
    assert status == 0 and "1 networks needed, 1 there, 0 to train" in output
    status, output, _ = run(
        f"--data-dirs={folder}", f"--models-dir={networks}", f"--layouts={own_layout}",
        "--subset-size=1", f"--save-dir={tmp_path / 's'}", "--quiet",
        program="scripts.energy_shift", defaults=False,
    )  # fmt: skip
    assert status == 0 and "1 images →" in output, output


@pytest.mark.parametrize(
    "text, said",
    [(None, "no file"), ("x = 1", "adds no layout to LAYOUTS"),
     ("\n\nx = nosuch", "line 3: NameError: name 'nosuch' is not defined"),
     ("\nx = (", "line 2: SyntaxError")],
)  # fmt: skip
def test_a_layouts_file_that_cannot_be_used_is_one_sentence(run, own_layout, text, said):
    own_layout.unlink() if text is None else own_layout.write_text(text)
    status, output, _ = run(".", f"--layouts={own_layout}", program="scripts.check_data",
                            defaults=False)  # fmt: skip
    assert status == 2 and output.startswith("error: --layouts: "), output
    assert said in output and len(output.splitlines()) == 1

import json
import os
import random
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import photometric
from datasets import EndlessSampler, Reality, TaskDataset, TrainTaskDataset
from loading.layouts import LAYOUTS, find_buildings, find_layout, find_places, find_views
from loading.splits import split_buildings
from task_configs import TASKS, get_task
from utils import UserError

REALDATA = Path(__file__).resolve().parents[2] / "shared" / "realdata"
SOME = [TASKS[name] for name in ("rgb", "normal", "depth_zbuffer")]


def test_views_are_complete_and_sorted_naturally(rooms):
    buildings = find_buildings([rooms])
    views = find_views(list(TASKS[n] for n in TASKS if n != "imagenet"), [rooms], buildings)
    assert len(buildings) == 4 and len(views) == 16
    numbers = [(view.building, *map(int, view.name.split("_")[1::2])) for view in views]
    assert numbers == sorted(numbers)


# ---- layouts ------------------------------------------------------------------------


def lay_out(rooms: Path, folder: Path, file, part=lambda building: "") -> Path:
    """The rooms' files, linked to where `file` (a layout) puts them below `folder`."""
    for building in find_buildings([rooms]):
        for task in SOME:
            for source in task.path(rooms, building, "x").parent.glob("*.png"):
                view = source.name.removesuffix(f"_domain_{task.tag}.png")
                path = folder / file(task, building, view, part(building))
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, path)
                (path.parent / f"._{path.name}").write_bytes(b"a Mac's")  # is no view
    return folder


@pytest.mark.parametrize("layout", [n for n in LAYOUTS if n != "one building"])
def test_a_layout_is_found_by_looking(rooms, tmp_path, layout):
    folder = lay_out(rooms, tmp_path / "data", LAYOUTS[layout], lambda b: "part")
    (folder / "notes").mkdir()
    assert find_layout(folder) == layout
    buildings = find_buildings([folder])
    assert buildings == find_buildings([rooms])
    views, published = (find_views(SOME, [f], buildings) for f in (folder, rooms))
    assert [(v.building, v.name) for v in views] == [(v.building, v.name) for v in published]
    for ours, theirs in zip(views, published, strict=True):
        for task in SOME:
            assert os.path.samefile(ours.path(task), theirs.path(task))


def test_the_folder_of_one_building_is_called_as_it_is(rooms, tmp_path):
    building = find_buildings([rooms])[0]
    one = lay_out(rooms, tmp_path / "all", LAYOUTS["buildings"]) / building
    assert find_layout(one) == "one building" and find_buildings([one]) == [building]
    assert len(find_views(SOME, [one], [building])) == 4
    assert len(TaskDataset(SOME, find_views(SOME, [one], [building]), 16)[0]) == len(SOME)


def test_a_layout_of_ones_own_is_one_function(rooms, tmp_path, monkeypatch):
    monkeypatch.setitem(
        LAYOUTS, "own", lambda t, b, v, p: f"of/{b}/{v}/{b}-{t.folder}{'.jpg' if p else '.png'}"
    )
    folder = lay_out(rooms, tmp_path, LAYOUTS["own"])
    assert find_layout(folder) == "own" and len(find_buildings([folder])) == 4
    assert len(find_views(SOME, [folder], find_buildings([folder]))) == 16


def test_folders_train_and_val_are_the_split(rooms, tmp_path):
    buildings = find_buildings([rooms])
    part = dict(zip(buildings, ("val", "train", "train", "val"), strict=True))
    folder = lay_out(rooms, tmp_path, LAYOUTS["multimae split"], part.get)
    split = split_buildings([folder])
    assert split["train"] == buildings[1:3] and split["val"] == [buildings[0], buildings[3]]
    assert split["test"] == split["val"]
    # a building in both would be in training and validation: then the folders are no split
    for task in SOME:
        source = folder / "train" / task.folder / buildings[1]
        shutil.copytree(source, folder / "val" / task.folder / buildings[1])
    assert not set(split_buildings([folder])["train"]) & set(split_buildings([folder])["val"])


def test_names_of_any_form_are_sorted(tmp_path):
    for name in ("x_1", "1_x", "²", "10", "9", "a"):
        path = tmp_path / "rgb" / "home" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    views = find_views([TASKS["rgb"]], [tmp_path], ["home"])
    assert [v.name for v in views if v.name.isascii() and v.name.isdigit()] == ["9", "10"]
    assert len(views) == 6 and find_places(tmp_path)[0].layout == "raid"


# ---- missing views, splits ----------------------------------------------------------


def test_few_missing_are_reported_and_left_out(copy, capsys):
    building = find_buildings([copy])[0]
    next(TASKS["normal"].path(copy, building, "x").parent.glob("*.png")).unlink()
    views = find_views(SOME, [copy], find_buildings([copy]))
    assert len(views) == 15
    assert "1 of 16 views" in capsys.readouterr().err


def test_many_missing_stop_and_can_be_allowed(copy):
    building = find_buildings([copy])
    for name in building[:2]:
        for file in TASKS["normal"].path(copy, name, "x").parent.glob("*.png"):
            file.unlink()
    with pytest.raises(UserError, match=f"8 of 16 .*normal in {building[0]}: 4.*`allow_missing`"):
        find_views(SOME, [copy], building)
    assert len(find_views(SOME, [copy], building, allow_missing=True)) == 8


def test_a_domain_missing_everywhere_stops(copy):
    for name in find_buildings([copy]):
        shutil.rmtree(copy / f"{name}_normal")
    with pytest.raises(UserError, match="16 of 16 views .* lack a domain .normal in"):
        find_views(SOME, [copy], find_buildings([copy]), allow_missing=True)


def test_empty_and_absent_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="no data folder .*nowhere"):
        find_buildings([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no views under .*found no files, expected"):
        split_buildings([tmp_path])
    with pytest.raises(UserError, match="no views under .*expected BUILDING_rgb"):
        find_views(SOME, [tmp_path], ["alder"])


def test_split_is_found_by_the_buildings_at_hand(rooms):
    split = split_buildings([rooms])
    assert [len(split[part]) for part in ("train", "val", "test")] == [2, 1, 1]
    assert len({name for part in split.values() for name in part}) == 4


def test_own_buildings_are_split_by_name(tmp_path):
    for number in range(12):
        (tmp_path / f"own{number:02}_rgb" / "rgb").mkdir(parents=True)
    split = split_buildings([tmp_path])
    assert split["val"] == ["own11"] and len(split["train"]) == 11
    (tmp_path / "split.json").write_text(
        json.dumps({"train_buildings": ["own03"], "val_buildings": ["own01"]})
    )
    assert split_buildings([tmp_path], tmp_path / "split.json")["test"] == ["own01"]
    (tmp_path / "bad.json").write_text("train: x")
    with pytest.raises(UserError, match="should be JSON"):
        split_buildings([tmp_path], tmp_path / "bad.json")


def test_tensors_of_a_view(rooms):
    tasks = [TASKS[name] for name in TASKS if name != "imagenet"]
    views = find_views(tasks, [rooms], find_buildings([rooms]))
    data = TaskDataset(tasks, views, 32)
    for task, tensor in zip(tasks, data[0], strict=True):
        assert tensor.shape == (task.channels, 32, 32) and tensor.dtype == torch.float32
        if task.name != "sobel_edges":
            assert tensor.min() >= 0 and tensor.max() <= 1, task
    labels = data[0][tasks.index(TASKS["segment_semantic"])]
    assert torch.equal(labels.sum(0), torch.ones(32, 32))
    kept = TaskDataset(tasks, views, 32, keep=True)
    assert all(torch.equal(a, b) for a, b in zip(kept[3], data[3], strict=True))
    assert kept[3] is kept[3]


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    file = tmp_path / "d.png"
    Image.fromarray(np.full((64, 64), 65535, np.uint16)).save(file)
    assert TASKS["depth_zbuffer"].load(file, 32).min() == 1
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(file)
    assert TASKS["keypoints3d"].load(file, 32).mean() == pytest.approx(40000 / 64131)


@pytest.mark.parametrize("task, mode", [("depth_zbuffer", "RGB"), ("depth_zbuffer", "L"),
                                        ("rgb", "I;16"), ("normal", "I;16"), ("normal", "L"),
                                        ("segment_semantic", "RGB")])  # fmt: skip
def test_a_wrong_encoding_is_named(tmp_path, task, mode):
    file = tmp_path / "a.png"
    Image.new(mode, (32, 32)).save(file)
    with pytest.raises(ValueError, match=f"a.png: {task} is"):
        get_task(task).load(file, 32)


def test_augmentation_is_one_geometry_for_all_domains_and_follows_the_seed(tmp_path):
    # a picture whose every domain encodes the same ramp
    ramp = np.tile(np.arange(128, dtype=np.uint8) * 2, (128, 1))
    colour = np.repeat(ramp[..., None], 3, axis=2)
    for name, pixels in (("rgb", colour), ("normal", colour),
                         ("depth_zbuffer", ramp.astype(np.uint16) * 16)):  # fmt: skip
        path = TASKS[name].path(tmp_path, "b", "point_0_view_0")
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    views = find_views(SOME, [tmp_path], ["b"])
    plain = TaskDataset(SOME, views, 32)[0]
    data = TrainTaskDataset(SOME, views, 32, augment=True, seed=3)
    cropped = 0
    for draw in range(40):
        rgb, normal, depth = data[draw, 0]
        again = data[draw, 0]
        assert all(torch.equal(a, b) for a, b in zip(again, (rgb, normal, depth), strict=True))
        # the same ramp v in both: v / 255 in normal, 16 v / 8000 in depth
        assert torch.allclose(normal[0] * 255, depth[0] * 8000 / 16, atol=0.6)
        cropped += not torch.equal(normal, plain[1])
    assert 8 <= cropped <= 32
    assert not all(
        torch.equal(data[draw, 0][0], TrainTaskDataset(SOME, views, 32, True, seed=4)[draw, 0][0])
        for draw in range(4)
    )


def test_the_strong_look_changes_rgb_alone_and_follows_seed_and_draw(rooms):
    views = find_views(SOME, [rooms], find_buildings([rooms]))

    def look(keep=False, seed=3, augment=False) -> TrainTaskDataset:
        return TrainTaskDataset(SOME, views, 32, augment, seed, keep, strong_rgb=True)

    plain, kept, data = TaskDataset(SOME, views, 32)[0], look(keep=True), look()
    looks = [data[draw, 0] for draw in range(8)]
    for draw, (rgb, *labels) in enumerate(looks):
        assert all(torch.equal(a, b) for a, b in zip(labels, plain[1:], strict=True))
        assert rgb.shape == plain[0].shape and 0 <= rgb.min() and rgb.max() <= 1
        assert torch.equal(kept[draw, 0][0], rgb)  # what memory keeps is not changed
    assert sum(not torch.equal(rgb, plain[0]) for rgb, *_ in looks) >= 7
    assert sum(not torch.equal(look(seed=4)[draw, 0][0], looks[draw][0]) for draw in range(8)) >= 7
    assert len({rgb.numpy().tobytes() for rgb, *_ in looks}) >= 7
    cropped = TrainTaskDataset(SOME, views, 32, augment=True, seed=3)
    both = [look(augment=True)[draw, 0] for draw in range(8)]
    assert all(torch.equal(a, b) for draw in range(8)
               for a, b in zip(both[draw][1:], cropped[draw, 0][1:], strict=True))  # fmt: skip


def test_each_change_of_the_strong_look_keeps_the_size_and_its_range():
    pixels = np.random.default_rng(0).integers(40, 200, (160, 128, 3), np.uint8)
    image = Image.fromarray(pixels)
    for _, change in photometric.CHANGES:
        seeds = [change(image, random.Random(seed)) for seed in range(6)]
        assert all(new.size == image.size and new.mode == "RGB" for new in seeds), change
        assert all(new != image for new in seeds), change
        assert change(image, random.Random(5)) == seeds[5], change
        assert (len({new.tobytes() for new in seeds}) > 3) == (change is not photometric.make_grey)
    grey = np.asarray(photometric.make_grey(image, random.Random(0)))
    assert (grey == grey[..., :1]).all()


def drawn(*arguments, batches=15, **how) -> list:
    return list(islice(EndlessSampler(*arguments, **how), batches))


def test_endless_sampler_shows_each_view_once_a_round():
    pairs = [pair for batch in drawn(5, 1, seed=1) for pair in batch]
    assert [draw for draw, _ in pairs] == list(range(15))
    rounds = [[i for _, i in pairs[start : start + 5]] for start in (0, 5, 10)]
    assert all(sorted(r) == list(range(5)) for r in rounds) and rounds[0] != rounds[1]
    assert drawn(5, 1, seed=1) == [[pair] for pair in pairs]


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 9), st.integers(1, 3))
def test_endless_sampler_goes_on_and_shares(size, batch_size, start, count):
    whole = drawn(size, batch_size * count, batches=20)
    assert drawn(size, batch_size * count, start=start, batches=5) == whole[start : start + 5]
    parts = [drawn(size, batch_size, rank=rank, count=count, batches=20) for rank in range(count)]
    assert [sum(batch, []) for batch in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("workers", [0, 2])
def test_reality_gives_every_view_once_by_name(rooms, workers):
    views = find_views(SOME, [rooms], find_buildings([rooms]))
    reality = Reality("val", TaskDataset(SOME, views, 16), 5, num_workers=workers)
    batches = list(reality)
    assert len(reality) == 4 and [len(b["rgb"]) for b in batches] == [5, 5, 5, 1]
    expected = torch.stack([reality.dataset[i][2] for i in range(16)])
    assert torch.equal(torch.cat([b["depth_zbuffer"] for b in batches]), expected)


# ---- a real view -------------------------------------------------------------------


@pytest.mark.skipif(not REALDATA.is_dir(), reason="no real view at hand")
def test_the_real_view_loads_and_is_masked_where_its_holes_are():
    names = [task.parent.name for task in REALDATA.glob("*/*/*.png")]
    tasks = [TASKS[name] for name in TASKS if name in names]
    views = find_views(tasks, [REALDATA], find_buildings([REALDATA]))
    assert len(views) == 1 and len(tasks) == 8
    batch = dict(zip([t.name for t in tasks], TaskDataset(tasks, views, 256)[0], strict=True))
    with Image.open(views[0].path(TASKS["depth_zbuffer"])) as file:
        holes = torch.from_numpy(np.array(file).astype(np.int64) == 65535)
    # a loaded pixel comes from the 4 × 4 of the file around it: wholly within a hole
    within = -F.max_pool2d(-holes[None].float(), 4, stride=2, padding=1)[0]
    holes = within == 1
    for name in ("depth_zbuffer", "normal"):
        mask = TASKS[name].mask(batch[name][None])[0, 0]
        assert not mask[holes].any(), name
        assert mask.float().mean() > 0.5, name
    assert 0 < holes.float().mean() < 0.5


# ---- splits that are almost right ---------------------------------------------------


@pytest.fixture
def own(tmp_path):
    for name in ("a1", "a2", "a3"):
        (tmp_path / "data" / f"{name}_rgb" / "rgb").mkdir(parents=True)

    def split(**parts):
        (tmp_path / "split.json").write_text(json.dumps(parts))
        return split_buildings([tmp_path / "data"], tmp_path / "split.json")

    return split


@pytest.mark.parametrize(
    "parts, said",
    [
        ({"val_buildings": ["a2", "a1"]}, "names a1 for train and for val"),
        ({"test_buildings": ["a1"]}, "names a1 for train and for test"),
        ({"tset_buildings": ["a3"]}, "unknown key 'tset_buildings'; did you mean test_buildings"),
        ({"val": ["a3"]}, "val and val_buildings are the same"),
        ({"test_buildings": "a3"}, "test_buildings has to be a list of buildings' names"),
        ({"test_buildings": [3]}, "test_buildings has to be a list of buildings' names"),
    ],
)
def test_a_split_that_is_almost_right_is_refused(own, parts, said):
    with pytest.raises(UserError, match=said):
        own(**{"train_buildings": ["a1"], "val_buildings": ["a2"]} | parts)


def test_unknown_buildings_of_a_split_are_named(own, capsys):
    split = own(train_buildings=["a1", "b7"], val_buildings=["a2"], test_buildings=["a33"])
    assert split == {"train": ["a1"], "val": ["a2"], "test": ["a2"]}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "1 of the 2 train buildings are not in the data: b7" in said[0]
    assert said[1].endswith(
        "1 of the 1 test buildings are not in the data: a33; the val buildings stand in for test; "
        "did you mean a3?"
    )


@pytest.mark.parametrize("second", ["{0}", "{0}/", "{0}/../copy", "link"])
def test_the_same_folder_twice_is_refused(run, copy, tmp_path, second):
    (tmp_path / "link").symlink_to(copy)
    second = str(tmp_path / "link") if second == "link" else second.format(copy)
    for program in ["train"] + ["scripts.energy_calc"] * (second.endswith("link")):
        words = ["rgb2normal"] if program == "train" else ["energy_calc"]
        status, output, _ = run(*words, f"--data-dirs={copy},{second}", program=program,
                                defaults=program == "train")  # fmt: skip
        assert status == 2 and "error: --data-dirs names the same data twice: " in output, output


def test_an_empty_entry_of_a_list_is_refused(run, copy):
    output = run("rgb2normal", f"--data-dirs={copy},")[1]
    assert output.startswith("error: --data-dirs takes entries between commas")

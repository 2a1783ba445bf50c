"""Packs: what is loaded from them is what the files give, and training runs on them."""

import fcntl
import json
import os
import shutil

import numpy as np
import pytest
import torch

import datasets
from datasets import Reality, TaskDataset
from loading.layouts import LAYOUTS, find_buildings, find_views
from loading.packs import find_pack
from loading.splits import split_buildings
from models import read_weights
from task_configs import TASKS
from utils import UserError

WITH_FILES = [task for task in TASKS.values() if task.name != "imagenet"]


@pytest.fixture
def pack(run, tmp_path):
    """Pack a folder by the command line: (exit status, its closing line, the pack's folder)."""

    def call(folder, *arguments, size=32):
        target = tmp_path / f"pack{size}"
        status, output, _ = run(
            str(folder), f"--to={target}", f"--image-size={size}", "--num-workers=0", *arguments,
            program="scripts.pack", defaults=False,
        )  # fmt: skip
        assert "Traceback" not in output
        (line,) = (x for x in output.splitlines() if x.startswith(("pack:", "error:")))
        return status, line, target

    return call


def dataset(folder, size=32, tasks=WITH_FILES):
    return TaskDataset(tasks, find_views(tasks, [folder], find_buildings([folder])), size)


def assert_equal(ours, wanted):
    assert [view[1:3] for view in ours.views] == [view[1:3] for view in wanted.views]
    for index in range(len(wanted)):
        for task, one, other in zip(wanted.tasks, ours[index], wanted[index], strict=True):
            assert one.dtype == other.dtype == torch.float32, task
            assert torch.equal(one, other), task


@pytest.mark.parametrize("size", [32, 37, 100])
def test_every_task_is_the_same_bit_for_bit(pack, rooms, size):
    status, line, folder = pack(rooms, size=size)
    assert status == 0 and line.startswith("pack: 16 views of 10 domains, ")
    assert_equal(dataset(folder, size), dataset(rooms, size))


def test_batches_and_workers(pack, rooms):
    _, _, folder = pack(rooms, "--tasks=depth_zbuffer,rgb", size=32)
    tasks = [TASKS["rgb"], TASKS["depth_zbuffer"]]  # in another order
    wanted, batches = (
        list(Reality("val", dataset(data, tasks=tasks), 5, num_workers=workers))
        for data, workers in ((rooms, 0), (folder, 1))
    )
    assert len(batches) == len(wanted) == 4
    for ours, files in zip(batches, wanted, strict=True):
        assert all(torch.equal(ours[name], files[name]) for name in ("rgb", "depth_zbuffer"))


def test_training_on_a_pack_gives_the_same_network(pack, run, rooms, tmp_path):
    _, _, folder = pack(rooms)
    states = []
    for name, data in (("files", rooms), ("packed", folder)):
        status, output, _ = run("example_normal", f"--data-dirs={data}", "--seed=5",
                                f"--results-dir={tmp_path / name}")  # fmt: skip
        assert status == 0, output
        states.append(read_weights(next((tmp_path / name).glob("*/*.pth")))[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_interrupted_packing_goes_on_where_it_stopped(pack, rooms, tmp_path, monkeypatch):
    monkeypatch.setattr("packing.BATCH", 4)
    monkeypatch.setattr("packing.CHECKPOINT", 1)
    copy = shutil.copytree(rooms, tmp_path / "copy")
    views = dataset(copy).views
    broken = views[10].path(TASKS["normal"])
    good = broken.read_bytes()
    broken.write_bytes(good[:200])
    status, line, folder = pack(copy)
    assert status == 2 and broken.name in line and not folder.exists()
    broken.write_bytes(good)
    opened, read = datasets.open_file, []
    monkeypatch.setattr(
        datasets, "open_file", lambda path, size: read.append(path) or opened(path, size)
    )
    status, line, folder = pack(copy)
    assert status == 0, line
    # eight views were on the disk
    assert [path for path in read if "_normal/" in path] == [
        str(view.path(TASKS["normal"])) for view in views[8:]
    ]
    assert_equal(dataset(folder), dataset(copy))
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["pack.json", *(f"{task}.npy" for task in WITH_FILES)]
    )


def test_a_packing_begins_anew_where_a_packed_file_has_changed(pack, rooms, tmp_path, monkeypatch):
    monkeypatch.setattr("packing.BATCH", 4)
    monkeypatch.setattr("packing.CHECKPOINT", 1)
    copy = shutil.copytree(rooms, tmp_path / "copy")
    views = dataset(copy).views
    broken, changed = (views[number].path(TASKS["normal"]) for number in (10, 2))
    good = broken.read_bytes()
    broken.write_bytes(good[:200])
    assert pack(copy)[0] == 2
    broken.write_bytes(good)
    changed.write_bytes(good)
    status, _, folder = pack(copy)
    assert status == 0
    assert_equal(dataset(folder), dataset(copy))


def test_a_complete_pack_is_left_alone_and_another_is_not_overwritten(pack, rooms):
    _, _, folder = pack(rooms, "--tasks=rgb")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert pack(rooms, "--tasks=rgb")[:2] == (0, f"pack: {folder} is complete")
    status, line, _ = pack(rooms, "--tasks=normal")
    assert status == 2 and f"{folder} is there already" in line
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_views_that_cannot_be_loaded_are_left_out_up_to_a_share(pack, rooms, tmp_path):
    copy = shutil.copytree(rooms, tmp_path / "copy")
    wanted = dataset(copy)
    bad = [0, 3, 4, 9, 10, 11, 15]
    for number in bad:
        wanted.views[number].path(TASKS["normal"]).write_bytes(b"no image")
    status, line, _ = pack(copy)
    assert status == 2 and "more than --max-bad-fraction allows" in line
    status, line, folder = pack(copy, "--max-bad-fraction=0.5")
    assert status == 0 and line.endswith(f"{folder} (7 left out)")
    wanted.views = [view for number, view in enumerate(wanted.views) if number not in bad]
    assert_equal(dataset(folder), wanted)
    assert pack(copy, "--max-bad-fraction=0.5")[1] == f"pack: {folder} is complete"


def test_a_link_to_nothing_is_a_bad_file_as_in_training(pack, rooms, tmp_path):
    copy = shutil.copytree(rooms, tmp_path / "copy")
    wanted = dataset(copy)
    path = wanted.views[2].path(TASKS["normal"])
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    status, line, _ = pack(copy)
    assert status == 2 and f"{path}: No such file" in line
    status, line, folder = pack(copy, "--max-bad-fraction=0.5")
    assert status == 0 and line.endswith(f"{folder} (1 left out)")
    del wanted.views[2]
    assert_equal(dataset(folder), wanted)
    assert pack(copy, "--max-bad-fraction=0.5")[1] == f"pack: {folder} is complete"


def test_parts_of_the_data_stay_apart(pack, rooms, tmp_path):
    tasks = [TASKS["rgb"], TASKS["normal"]]
    for view in dataset(rooms, tasks=tasks).views:
        for task in tasks:
            part = "train" if view.building == "agate" else "val"
            file = LAYOUTS["multimae split"](task, f"in {part}", view.name, part)
            (tmp_path / "parts" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(view.path(task), tmp_path / "parts" / file)
    status, line, folder = pack(tmp_path / "parts")
    assert status == 0, line
    assert split_buildings([folder]) == split_buildings([tmp_path / "parts"])
    assert_equal(dataset(folder, tasks=tasks), dataset(tmp_path / "parts", tasks=tasks))


def cut_off(folder):
    path = folder / "normal.npy"
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(folder):
    path = folder / "normal.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def save(array):
    return lambda folder: np.save(folder / "normal.npy", array, allow_pickle=True)


def save_npz(folder):
    with open(folder / "normal.npy", "wb") as file:
        np.savez(file, np.zeros(3))


def without_digests(folder):
    index = json.loads((folder / "pack.json").read_text())
    del index["arrays"]
    (folder / "pack.json").write_text(json.dumps(index))


def old(damage):
    """The same damage to a pack of an earlier version, which has no digests."""

    def change(folder):
        without_digests(folder)
        damage(folder)

    return change


def edit(**values):
    def change(folder):
        index = json.loads((folder / "pack.json").read_text())
        (folder / "pack.json").write_text(json.dumps(index | values))

    return change


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (cut_off, "normal.npy is missing, damaged or cut off; make it anew"),
        (lambda folder: (folder / "normal.npy").unlink(), "normal.npy is missing, damaged"),
        (edit(views=[["", "agate", "point_0_view_0"]]), "does not fit pack.json beside it"),
        (edit(version=7), "is a pack of version 7, not of 1; make it anew"),
        (edit(views=3), "pack.json is not the index of a pack; make it anew"),
        (lambda folder: (folder / "pack.json").write_text("{"), "pack.json is not a JSON object"),
        (edit(tasks={"rgb": "identity()"}), "has no normal (it has: rgb); make it anew"),
        (edit(tasks={"rgb": "identity()", "normal": "blur(maximum=1)"}), "transform blur(maximum"),
    ],
)
def test_a_pack_that_cannot_be_used_is_one_sentence(pack, run, rooms, damage, sentence):
    _, _, folder = pack(rooms)
    damage(folder)
    status, output, _ = run("normal2reshading", f"--data-dirs={folder}", "--image-size=32",
                            "--width=8")  # fmt: skip
    assert status == 2 and "Traceback" not in output
    assert sentence in output.splitlines()[-1]


WRONG_ENTRIES = [
    ("views", 3), ("views", [["a"]]), ("views", [[1, 2, 3]]), ("views", None),
    ("image_size", "32"), ("image_size", True), ("tasks", ["rgb"]), ("tasks", {"rgb": 1}),
    ("version", "1"), ("version", None), ("arrays", [1]), ("arrays", {"rgb": {}}),
    ("arrays", {"rgb": "0"}),
]  # fmt: skip
DAMAGE = [
    (old(cut_off), "normal.npy is missing, damaged or cut off"),
    (flip_a_bit, "normal.npy is missing, damaged or cut off"),
    (old(save(np.zeros((16, 3, 32, 32)))), "normal.npy is not an array of images"),
    (old(save(np.zeros((16, 3, 32, 32), complex))), "normal.npy is not an array of images"),
    (old(save(np.zeros(16, "u1,f4"))), "normal.npy is not an array of images"),
    (old(save(np.array([None]))), "normal.npy is missing, damaged or cut off"),
    (old(save_npz), "normal.npy is not an array of images"),
    (old(save(np.zeros((16, 3, 32, 31), np.uint8))), "does not fit pack.json beside it"),
    (old(save(np.zeros((16, 1, 32, 32), np.uint8))), "normal.npy does not hold normal"),
    (old(save(np.zeros((16, 3, 32, 32), np.uint16))), "normal.npy does not hold normal"),
    *(
        (edit(**{key: value}), "pack.json is not the index of a pack")
        for key, value in WRONG_ENTRIES
    ),
    (lambda folder: (folder / "pack.json").write_text("[" * 99999), "is not a JSON object"),
    (lambda folder: (folder / "pack.json").write_text("[]"), "not a JSON object, but a list"),
]


def test_edited_and_damaged_packs_are_one_sentence(pack, rooms, tmp_path):
    _, _, folder = pack(rooms, "--tasks=rgb,normal")
    for number, (damage, sentence) in enumerate(DAMAGE):
        copy = shutil.copytree(folder, tmp_path / str(number))
        damage(copy)
        with pytest.raises(UserError, match=f"{sentence}.*; make it anew") as said:
            find_pack(copy).check([TASKS["rgb"], TASKS["normal"]], 32)
        assert len(str(said.value).splitlines()) == 1


def test_other_sizes_and_augmentation_are_refused(pack, run, rooms, tmp_path):
    _, _, folder = pack(rooms)
    new = f"--models-dir={tmp_path / 'new'}"
    status, output, _ = run("normal2reshading", f"--data-dirs={folder}", "--image-size=64", new,
                            "--install")  # fmt: skip
    assert status == 2 and "is of 32-pixel images, and this run's have 64" in output
    status, output, _ = run("example_normal", f"--data-dirs={folder}", "--dataaug")
    assert status == 2 and "error: --dataaug crops the files before" in output.splitlines()[-1]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("--tasks=norml",), "no task 'norml'; did you mean normal?"),
        (("--tasks=imagenet",), "no views under"),
        (("--num-workers=-1",), "--num-workers has to be 0 or more"),
        (("--to=/proc/none",), "cannot pack to /proc/.none.partial: No such"),
    ],
)
def test_what_cannot_be_packed_is_one_sentence(pack, rooms, arguments, sentence):
    status, line, _ = pack(rooms, *arguments)
    assert status == 2 and sentence in line


def test_a_pack_is_not_packed_again(pack, rooms):
    _, _, folder = pack(rooms, "--tasks=rgb")
    assert find_pack(folder).image_size == 32 and find_pack(rooms) is None
    status, line, _ = pack(folder, size=16)
    assert status == 2 and f"{folder} is a pack already" in line


# ---- damage and other processes -----------------------------------------------------


@pytest.fixture
def verify(run):
    def call(folder, *flags):
        status, output, _ = run(
            str(folder), "--verify", *flags, program="scripts.pack", defaults=False
        )
        assert "Traceback" not in output
        return status, output.splitlines()[-1]

    return call


def test_a_damaged_pack_is_not_complete(pack, rooms):
    _, _, folder = pack(rooms, "--tasks=normal")
    cut_off(folder)
    status, line, _ = pack(rooms, "--tasks=normal")
    assert status == 2
    assert "normal.npy is missing, damaged or cut off" in line and f"removing {folder}" in line
    shutil.rmtree(folder)
    assert pack(rooms, "--tasks=normal")[0] == 0


def test_verify_finds_one_flipped_bit_anywhere(pack, rooms, verify):
    tasks = "--tasks=rgb,normal"  # of arrays longer than the ends that opening reads
    _, _, folder = pack(rooms, tasks, size=100)
    assert verify(folder) == (0, f"pack: {folder} is whole: all of its 2 arrays are as recorded")
    path = folder / "normal.npy"
    good = path.read_bytes()
    for place in (60, 3 * len(good) // 7, len(good) - 1):
        damaged = bytearray(good)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        status, line = verify(folder)
        assert status == 2 and "normal.npy" in line and "damaged" in line
    path.write_bytes(good)
    assert verify(folder)[0] == 0


def test_a_pack_of_an_earlier_version_is_read_but_not_verified(pack, rooms, verify):
    _, _, folder = pack(rooms, "--tasks=rgb,normal")
    without_digests(folder)
    tasks = [TASKS["rgb"], TASKS["normal"]]
    assert_equal(dataset(folder, tasks=tasks), dataset(rooms, tasks=tasks))
    assert pack(rooms, "--tasks=rgb,normal")[:2] == (0, f"pack: {folder} is complete")
    status, line = verify(folder)
    assert status == 2 and "has no digests" in line


def test_what_cannot_be_verified_is_one_sentence(rooms, verify, run):
    assert verify(rooms) == (2, f"error: {rooms} is not a pack: it has no pack.json")
    assert "without --to" in verify(rooms, "--to=x")[1]
    status, output, _ = run(str(rooms), program="scripts.pack", defaults=False)
    assert status == 2 and "name the new folder with --to" in output.splitlines()[-1]


def test_one_process_at_a_time_packs_to_a_folder(pack, rooms, tmp_path):
    partial = tmp_path / ".pack32.partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # as another process would hold it
    status, line, folder = pack(rooms)
    assert (status, line) == (2, f"error: another process is packing to {folder}")
    assert not list(partial.iterdir())
    os.close(descriptor)
    assert pack(rooms)[0] == 0 and not partial.exists()


def test_an_edited_record_of_the_progress_begins_anew(pack, rooms, tmp_path):
    partial, tasks = tmp_path / ".pack32.partial", [TASKS["rgb"]]
    for state in ('{"seen": "1", "left_out": []}', '{"seen": 1}', "[1]",
                  '{"seen": 4, "left_out": [[1]]}', "{", "[" * 99999):  # fmt: skip
        _, _, folder = pack(rooms, "--tasks=rgb")
        folder.rename(partial)
        (partial / "done.json").write_text(state)
        assert pack(rooms, "--tasks=rgb")[0] == 0
        assert_equal(dataset(folder, tasks=tasks), dataset(rooms, tasks=tasks))

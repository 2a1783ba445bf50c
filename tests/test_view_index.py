"""The index of views: the same views as without it, whatever happens to it or to the data."""

import hashlib
import os
import pickle
import random
import shutil
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import loading.layouts as layouts
from datasets import EndlessSampler, Reality, TaskDataset
from files import write_atomically, written_atomically
from loading import listings, view_index
from loading.layouts import (
    LAYOUTS,
    View,
    find_buildings,
    find_layout,
    find_views,
    find_views_and_tasks,
)
from loading.view_index import forget_indexes, keep_indexes_in
from loading.view_sequence import Views
from scripts import train_edges
from task_configs import TASKS
from training import inputs
from training.data import Part, trained_on
from training.inputs import views_digest
from utils import UserError

RGB, NORMAL, DEPTH = TASKS["rgb"], TASKS["normal"], TASKS["depth_zbuffer"]
SOME = [RGB, NORMAL, DEPTH, TASKS["sobel_edges"]]
NAMES = "point_1_view_2", "point_10_view_0", "point_2", "point_02", "é ü", "a.b", "x\ny", "_"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Every data folder has an index, in this folder, which is used at once."""
    monkeypatch.setattr(view_index, "SMALL", 1)
    monkeypatch.setattr(layouts, "SMALL", 1)
    monkeypatch.setattr(listings, "UNSETTLED", -(10**15))
    monkeypatch.setattr(listings, "BLOCK", 100)  # listings are in several blocks of memory
    keep_indexes_in(tmp_path / "index")
    forget_indexes()
    yield tmp_path / "index"
    view_index._chosen.clear()
    forget_indexes()


def without_index(monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.setattr(view_index, "SMALL", 10**9)
        patch.setattr(layouts, "SMALL", 10**9)
        forget_indexes()
        keep_indexes_in(None)
        found = call()
    forget_indexes()
    return found


def make_files(
    folder: Path, layout: str, seed: int = 0, buildings=("agate", "b_1", "zinc")
) -> Path:
    """Empty files of some views in a layout; a few are missing, and some rgb files are JPEGs."""
    rng = random.Random(seed)
    for building in buildings:
        for name in NAMES:
            for task in SOME:
                path = folder / LAYOUTS[layout](task, building, name, rng.choice(["p", "q"]))
                endings = [path.suffix, ".jpg", ".JPEG"] if task.folder == "rgb" else [path.suffix]
                for ending in rng.sample(endings, rng.randint(1, len(endings))):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if rng.random() < 0.95:
                        path.with_suffix(ending).touch()
    return folder


def found_in(folder: Path):
    """The views of all buildings, for several choices of domains, or the sentence instead."""
    results = []
    for needed, wanted in ([RGB], []), ([NORMAL], [RGB, DEPTH]), (SOME, [TASKS["reshading"]]):
        for allowed in (False, True):
            try:
                results.append(
                    find_views_and_tasks(
                        needed, wanted, [folder], find_buildings([folder]), allowed
                    )
                )
            except UserError as error:
                results.append(str(error))
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_views_are_those_without_an_index(index, tmp_path, monkeypatch, layout):
    listed: list = []
    for seed in range(2):
        folder = make_files(tmp_path / f"{layout} {seed}", layout, seed)
        expected = without_index(monkeypatch, lambda folder=folder: found_in(folder))
        keep_indexes_in(index)
        assert found_in(folder) == expected  # writes it
        forget_indexes()
        with monkeypatch.context() as patch:
            patch.setattr(layouts.Place, "endings", lambda *arguments: listed.append(arguments))
            assert found_in(folder) == expected and not listed  # reads it
        kinds = {type(result[0]) for result in expected if not isinstance(result, str)}
        assert kinds == {list}


def test_views_are_a_sequence(index, tmp_path):
    make_files(tmp_path / "data", "plain", 1)
    views = find_views([RGB], [tmp_path / "data"], find_buildings([tmp_path / "data"]))
    listed = list(views)
    assert type(views) is Views and len(views) == len(listed) > 8 and views == listed
    assert [views[-1], views[0], *views[3:7], *views[20:2:-3]] == [
        listed[-1], listed[0], *listed[3:7], *listed[20:2:-3]
    ]  # fmt: skip
    assert type(views[2:]) is Views and views[2:] == listed[2:] and views[5:2] == []
    assert all(view in views for view in listed) and listed[0] not in views[1:]
    assert listed[0]._replace(name="other") not in views
    assert listed[0]._replace(files=(("rgb", "x"),)) not in views
    assert pickle.loads(pickle.dumps(views)) == listed
    with pytest.raises(IndexError):
        views[len(listed)]
    parts = {"train": Part(views, (RGB,)), "test": Part(listed[:3], (RGB,))}
    assert trained_on(parts) == 3
    digest = views_digest(parts["train"])
    assert digest == views_digest(Part(listed, (RGB,))) != views_digest(parts["test"])


@pytest.mark.parametrize("small", [True, False])
def test_the_digest_is_the_one_that_runs_have_recorded(tmp_path, monkeypatch, small):
    """Otherwise a run that was stopped before could not be resumed."""
    views, text = [], ""
    for name in ("a", "b"):
        views.append(View(tmp_path, "agate", name))
        text += repr(("", "agate", name))
    for view in views:
        for task in (RGB, NORMAL):
            file = view.path(task)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"{view.name} {task}".encode())
            os.utime(file, ns=(0, len(text) * 10**9))
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            text += f"{task} " + (content if small else f"{len(file.read_bytes())} ")
            text += "" if small else f"{file.stat().st_mtime_ns}"
    monkeypatch.setattr(inputs, "SMALL", 10**9 if small else 0)
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert views_digest(Part(views, (RGB, NORMAL))) == expected


def add_file(folder: Path) -> None:
    normal_of(folder, "agate", "new").touch()


def normal_of(folder: Path, building: str, view: str) -> Path:
    return folder / LAYOUTS["taskonomy"](NORMAL, building, view, "")


def remove_file(folder: Path) -> None:
    next((folder / "zinc_normal/normal").iterdir()).unlink()


def rename_file(folder: Path) -> None:
    file = next((folder / "zinc_normal/normal").iterdir())
    file.rename(file.with_name("other_domain_normal.png"))


def add_building(folder: Path) -> None:
    make_files(folder, "taskonomy", 5, ["new one"])


def remove_building(folder: Path) -> None:
    (folder / "zinc_normal").rename(folder.parent / "elsewhere")


def replace_folder(folder: Path) -> None:
    """With the same mtime, as copying programs keep it."""
    old = folder / "zinc_normal/normal"
    times = old.stat()
    old.rename(folder.parent / "elsewhere")
    old.mkdir()
    normal_of(folder, "zinc", "another").touch()
    os.utime(old, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = add_file, remove_file, rename_file, add_building, remove_building, replace_folder


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_data_is_noticed(index, tmp_path, monkeypatch, change, capsys):
    folder = make_files(tmp_path / "data", "taskonomy")
    before = found_in(folder)
    if change is not remove_file:  # noticed by a later process, or by the same
        forget_indexes()
    change(folder)
    capsys.readouterr()
    after = found_in(folder)
    said = capsys.readouterr().out
    assert said.count("1 of ") == said.count("listed anew") == int(change is not add_building)
    expected = without_index(monkeypatch, lambda: found_in(folder))
    assert after == expected != before
    keep_indexes_in(index)
    assert found_in(folder) == expected and "anew" not in capsys.readouterr().out


def test_a_file_of_an_earlier_layout_is_noticed(index, tmp_path):
    """Which layout a folder has is kept too."""
    folder = make_files(tmp_path / "data", "raid")
    found_in(folder)
    forget_indexes()
    assert find_layout(folder) == "raid" and view_index.index_of(folder).search is not None
    (folder / "normal/agate/flat").mkdir()
    (folder / "normal/agate/flat/point_domain_normal.png").touch()
    assert find_layout(folder) == "omnidata"


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def cut_to_nothing(file: Path) -> None:
    file.write_bytes(b"")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 4
    file.write_bytes(content)


def write_text(file: Path) -> None:
    file.write_text("no index " * 100)


def of_another_version(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[16] += 1
    file.write_bytes(content)


def put_a_folder_there(file: Path) -> None:
    file.unlink()
    file.mkdir()


def put_a_pipe_there(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def of_another_folder(file: Path) -> None:
    other = make_files(file.parent.parent / "other", "taskonomy", 9)
    found_in(other)
    (theirs,) = set(file.parent.iterdir()) - {file}
    theirs.rename(file)


DAMAGES = (
    cut_off, cut_to_nothing, flip_a_bit, write_text, of_another_version, put_a_folder_there,
    put_a_pipe_there, of_another_folder,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_ignored_with_a_word(index, tmp_path, damage, capsys):
    folder = make_files(tmp_path / "data", "taskonomy")
    expected = found_in(folder)
    expected = [r if isinstance(r, str) else (list(r[0]), r[1]) for r in expected]
    (file,) = index.iterdir()
    damage(file)
    forget_indexes()
    capsys.readouterr()
    assert found_in(folder) == expected
    assert capsys.readouterr().out.count("cannot be used") == 1
    forget_indexes()
    assert found_in(folder) == expected  # the new one, or none where none can be
    assert ("cannot be used" in capsys.readouterr().out) == (damage is put_a_folder_there)


@pytest.mark.parametrize("place", ["file", "below a file", "none", "no home"])
def test_no_place_for_an_index_is_no_error(index, tmp_path, monkeypatch, place, capsys):
    folder = make_files(tmp_path / "data", "taskonomy")
    expected = found_in(folder)
    capsys.readouterr()
    forget_indexes()
    (tmp_path / "full").touch()
    if place == "no home":
        view_index._chosen.clear()
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    else:
        places = {"file": tmp_path / "full", "below a file": tmp_path / "full/x", "none": None}
        keep_indexes_in(places[place])
    assert found_in(folder) == expected == found_in(folder)
    assert capsys.readouterr().out.count("no index of the views") == int("file" in place)


def test_the_index_is_in_the_users_cache_folder(index, tmp_path, monkeypatch):
    view_index._chosen.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caché e"))
    found_in(make_files(tmp_path / "data", "taskonomy"))
    (file,) = (tmp_path / "caché e/xtconsistency").iterdir()
    assert file.name.startswith("views-")


def test_folders_that_have_just_changed_are_listed_again(index, tmp_path, monkeypatch):
    """Their times may not change with the next file; with the clock set back, for long."""
    folder = make_files(tmp_path / "data", "taskonomy")
    monkeypatch.setattr(view_index, "folder_times", lambda folder: (5, time.time_ns()))
    monkeypatch.setattr(listings, "UNSETTLED", 2 * 10**9)
    before = found_in(folder)
    add_file(folder)
    assert found_in(folder) != before
    monkeypatch.setattr(view_index, "folder_times", lambda folder: (5, 10**18))
    monkeypatch.setattr(time, "time_ns", lambda: 10**18 - 10**15)  # the clock is set back
    before = found_in(folder)
    remove_file(folder)
    assert found_in(folder) != before


def test_two_processes_write_at_once(index, tmp_path):
    folder = make_files(tmp_path / "data", "taskonomy")
    expected = found_in(folder)
    pids = []
    for number in range(3):
        if pid := os.fork():
            pids.append(pid)
            continue
        status = 1
        try:
            for _ in range(4):
                for file in index.glob("views-*"):
                    if number == 0:
                        file.unlink(missing_ok=True)
                forget_indexes()
                assert found_in(folder) == expected
            status = 0
        finally:
            os._exit(status)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert not list(index.glob(".*"))
    forget_indexes()
    assert found_in(folder) == expected


def test_an_index_that_another_process_replaces_is_not_read_back(index, tmp_path, monkeypatch):
    """The other one has fewer listings than were asked for here."""
    folder = make_files(tmp_path / "data", "taskonomy")
    expected = found_in(folder)
    forget_indexes()
    (file,) = index.iterdir()
    file.unlink()
    find_views([RGB], [folder], ["agate"])
    smaller = file.read_bytes()
    file.unlink()
    forget_indexes()

    @contextmanager
    def replaced(path):
        with written_atomically(path) as name:
            yield name
        write_atomically(path, lambda name: name.write_bytes(smaller))

    monkeypatch.setattr(view_index, "written_atomically", replaced)
    assert found_in(folder) == expected


def test_what_a_killed_writer_left_is_removed(index, tmp_path):
    folder = make_files(tmp_path / "data", "taskonomy")
    found_in(folder)
    (file,) = index.iterdir()
    old, new = (index / f".{file.name}.{end}" for end in ("00000000", "11111111"))
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    add_file(folder)
    found_in(folder)
    assert set(index.iterdir()) == {file, new}


def test_small_data_have_no_index(rooms, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert type(find_views([RGB, NORMAL], [rooms], find_buildings([rooms]))) is list
    assert not list(tmp_path.iterdir()) and not view_index.index_of(rooms).listings


def test_a_run_with_an_index_is_the_one_without(index, run, tmp_path):
    arguments = ("example_normal", "--k=0", "--steps-per-epoch=1", "--num-workers=1")
    place = tmp_path / "my index"
    tables = []
    for flag in (f"--index-dir={place}", "--index-dir=none"):
        forget_indexes()
        status, output, _ = run(*arguments, flag)
        assert status == 0, output
        tables.append(output.partition("normals")[2].partition("checkpoint")[0])
        assert ("index of" in output) == (len(tables) == 1), output
    assert tables[0] == tables[1] and list(place.iterdir())


MEASURE = ("--subset-size=1", "--quiet")
READERS = {
    "energy_calc": MEASURE,
    "energy_shift": MEASURE,
    "evaluate": ("--resamples=10", "--perceptual=none", *MEASURE),
    "pack": ("--image-size=16", "--num-workers=0", "--quiet"),
}


@pytest.mark.parametrize("program", READERS)
def test_other_programs_keep_the_index_where_they_are_told(
    index, run, networks, tmp_path, monkeypatch, program
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    named = {"energy_calc": ["energy_calc"], "evaluate": ["baseline"], "pack": [str(run.rooms)]}
    flags = [f"--data-dirs={run.rooms}", f"--models-dir={networks}", f"--output-dir={tmp_path}/out"]
    flags = [f"--to={tmp_path / 'pack'}"] if program == "pack" else flags
    for place in ("none", str(tmp_path / "my index")):
        view_index._chosen.clear()
        forget_indexes()
        shutil.rmtree(tmp_path / "pack", ignore_errors=True)
        arguments = *named.get(program, ()), *flags, *READERS[program], f"--index-dir={place}"
        status, output, _ = run(*arguments, program=f"scripts.{program}", defaults=False)
        assert status == 0, output
        assert [file.parent.name for file in tmp_path.rglob("views-*.index")] == (
            [] if place == "none" else ["my index"]
        )


def test_train_edges_tells_its_trainings(run, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(train_edges, "_run", lambda *arguments: told.append(arguments[2]) or 0)
    status, output, _ = run(
        "normal2sobel_edges", f"--data-dirs={run.rooms}", f"--models-dir={tmp_path}",
        "--index-dir=somewhere", program="scripts.train_edges", defaults=False,
    )  # fmt: skip
    assert status == 0, output
    assert [flags["index_dir"] for flags in told] == ["somewhere"]


def test_views_of_an_index_take_no_memory_each(index, tmp_path):
    """So nothing of them grows in forked processes, where counting references copies pages."""
    folder = tmp_path / "data/agate_normal/normal"
    folder.mkdir(parents=True)
    for number in range(3000):
        (folder / f"point_{number}_view_0_domain_normal.png").touch()
    find_views([NORMAL], [tmp_path / "data"], ["agate"])
    forget_indexes()
    tracemalloc.start()
    try:
        views = find_views([NORMAL], [tmp_path / "data"], ["agate"])
        data = TaskDataset([NORMAL], views)
        Reality("val", data, 4, num_workers=1)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(views) == 3000 and size < 3000 * 20  # a list of views takes over 300 bytes each


def test_the_order_is_that_of_whole_permutations():
    """The sampler makes them as 32-bit numbers and hands them out in parts."""
    generator = torch.Generator().manual_seed(3)
    expected = [n for _ in range(3) for n in torch.randperm(2500, generator=generator).tolist()]
    for start in (0, 70, 600):
        batches = iter(EndlessSampler(2500, 5, seed=3, start=start))
        drawn = [pair for _ in range(800) for pair in next(batches)]
        assert drawn == list(enumerate(expected))[start * 5 : start * 5 + 4000]


def test_batches_in_order_are_every_view_once(index, tmp_path):
    data = TaskDataset([RGB], [layouts.View(tmp_path, "b", str(n)) for n in range(11)])
    shares = [Reality("val", data, 3, rank=rank, count=2).batches for rank in range(2)]
    assert [list(share) for share in shares] == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9, 10]]]

"""Data files that are broken, or are none; loading processes that fail or are killed."""

import errno
import multiprocessing
import os
import resource
import signal
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from datasets import BadView, EndlessSampler, Reality, TaskDataset, TrainTaskDataset
from loading import bad_files
from loading.file_checks import check_view
from loading.layouts import View, find_buildings, find_views
from task_configs import TASKS
from utils import UserError

SOME = [TASKS[name] for name in ("rgb", "normal", "depth_zbuffer")]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def shrink(path: Path) -> None:
    with Image.open(path) as image:
        small = image.resize((48, 48))
    small.save(path)


def grey(path: Path) -> None:
    Image.new("L", (64, 64)).save(path)


def thin(path: Path) -> None:
    Image.new("RGB", (60_000, 1)).save(path)


SPOILT = {
    "truncated": truncate, "no image": lambda p: p.write_bytes(b"<html>"), "wrong size": shrink,
    "wrong mode": grey, "vanished": Path.unlink, "thin": thin,
    "empty": lambda p: p.write_bytes(b""),
    "folder": lambda p: (p.unlink(), p.mkdir()),
}  # fmt: skip


@pytest.fixture
def spoilt(copy):
    """A copy of the rooms with a file spoilt in each of the ways, and which views those are."""
    views = find_views(SOME, [copy], find_buildings([copy]))
    bad = {}
    for number, (how, spoil) in enumerate(SPOILT.items()):
        task = SOME[1 + number % 2]
        spoil(views[2 * number].path(task))
        bad[str(views[2 * number].path(task))] = how
    return views, bad


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named_in_one_sentence(copy, workers):
    building = find_buildings([copy])[0]
    broken = next(TASKS["normal"].path(copy, building, "x").parent.glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:200])
    views = find_views(SOME, [copy], find_buildings([copy]))
    with pytest.raises(UserError) as caught:
        list(Reality("val", TaskDataset(SOME, views, 16), 4, num_workers=workers))
    assert broken.name in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_all_bad_files_of_a_view_are_named(copy):
    views = find_views(SOME, [copy], find_buildings([copy]))
    truncate(views[0].path(SOME[0]))
    shrink(views[0].path(SOME[2]))
    with pytest.raises(BadView, match="and 1 more of this view") as caught:
        TaskDataset(SOME, views, 16)[0]
    assert list(caught.value.files) == [str(views[0].path(t)) for t in SOME[::2]]


def test_bad_training_views_are_replaced_whatever_the_number_of_workers(spoilt, capsys):
    views, bad = spoilt
    runs = []
    for workers in (0, 2):
        data = TrainTaskDataset(SOME, views, 16, augment=True, seed=5)
        recorded = []
        reality = Reality("train", data, 4, num_workers=workers, endless=True, seed=5,
                          max_bad_fraction=0.5)  # fmt: skip
        reality.bad.record = recorded.append
        batches = [batch for batch, _ in zip(reality, range(8), strict=False)]
        assert set(reality.bad.files) == set(bad) and len(reality.bad.views) == 8
        assert {entry["bad file"] for entry in recorded} == set(bad) and len(recorded) == 8
        assert all(len(batch["rgb"]) == 4 for batch in batches)
        printed = capsys.readouterr().err
        assert all(printed.count(f"cannot load {path}: ") == 1 for path in bad)
        runs.append((batches, list(reality.bad.files)))
    assert runs[0][1] == runs[1][1]
    for ours, theirs in zip(runs[0][0], runs[1][0], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_next_view_takes_the_place_of_a_bad_one(spoilt):
    views, _ = spoilt
    data = TrainTaskDataset(SOME, views, 16)
    reality = Reality("train", data, 1, endless=True, seed=2, max_bad_fraction=1)
    for batch, ((draw, number),) in zip(reality, EndlessSampler(16, 1, 2), strict=False):
        expected = data[draw, number + 1 - number % 2]  # the even ones are bad
        assert all(torch.equal(b[0], e) for b, e in zip(batch.values(), expected, strict=True))
        if draw == 15:
            break


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_views_of_validation_are_left_out(spoilt, workers):
    views, bad = spoilt
    reality = Reality("val", TaskDataset(SOME, views, 16), 3, num_workers=workers,
                      max_bad_fraction=0.5)  # fmt: skip
    good = [v for v in views if str(v.path(SOME[1])) not in bad and str(v.path(SOME[2])) not in bad]
    expected = torch.stack([TaskDataset(SOME, good, 16)[i][0] for i in range(8)])
    for _ in range(2):
        assert torch.equal(torch.cat([batch["rgb"] for batch in reality]), expected)
    assert len(reality.bad.views) == 8
    assert "8 of 16 val views cannot be loaded" in reality.bad.summary()


def test_too_many_bad_views_stop_with_their_list(spoilt):
    views, bad = spoilt
    reality = Reality("val", TaskDataset(SOME, views, 16), 4, max_bad_fraction=0.49)
    with pytest.raises(
        UserError, match="8 of 16 val views.*more than `max_bad_fraction`"
    ) as caught:
        list(reality)
    assert all(path in str(caught.value) for path in bad)


def test_few_views_seen_do_not_count_as_few(spoilt):
    views, _ = spoilt
    many = views[1:2] * 990 + views[:1] + views[1:2] * 2000  # one bad of 2991, the 991st
    data = TaskDataset(SOME, many, 16, keep=True)
    assert sum(len(b["rgb"]) for b in Reality("val", data, 64, max_bad_fraction=0.001)) == 2990
    with pytest.raises(UserError, match="1 of 2991"):
        list(Reality("val", data, 64, max_bad_fraction=0.0009))


def test_a_hundred_bad_views_in_a_row_are_no_accident(spoilt, monkeypatch):
    views, _ = spoilt
    monkeypatch.setattr(bad_files, "TRIES", 3)
    data = TrainTaskDataset(SOME, [views[0]] * 16, 16)
    with pytest.raises(UserError, match="3 views in a row cannot be loaded; cannot load"):
        next(iter(Reality("train", data, 2, endless=True, max_bad_fraction=1)))


def test_a_killed_worker_is_named_in_one_sentence(rooms):
    views = find_views(SOME, [rooms], find_buildings([rooms]))
    data = TrainTaskDataset(SOME, views, 16)
    others = {process.pid for process in multiprocessing.active_children()}  # of earlier tests
    batches = iter(Reality("train", data, 2, num_workers=1, endless=True))
    next(batches)
    (worker,) = {process.pid for process in multiprocessing.active_children()} - others
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(UserError, match="loads the train views was ended") as caught:
        for _ in range(50):
            next(batches)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_what_would_fill_the_memory_is_refused(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="too long and thin"):
        TASKS["rgb"].load(tmp_path / "a.png", 256)
    header = bytearray((tmp_path / "a.png").read_bytes())
    header[16:24] = (9000).to_bytes(4, "big") * 2  # a header that claims 81 million pixels
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(header)
    with pytest.raises(ValueError, match="9000 × 9000 pixels are more than"):
        TASKS["rgb"].load(tmp_path / "a.png", 256)


def test_a_format_that_starts_another_program_is_not_read(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    view = View(tmp_path, "b", "v")
    file = view.path(TASKS["rgb"])
    assert file == TASKS["rgb"].path(tmp_path, "b", "v")
    file.parent.mkdir(parents=True)
    (tmp_path / "a.png").rename(file)
    with pytest.raises(UserError, match="not an image in a format that is read here"):
        TaskDataset([TASKS["rgb"]], [view], 16)[0]


# ---- errors of loading processes, files that are none, limits -----------------------


class Spoilt(TaskDataset):
    """Loads views, and then calls `spoil` in the loading process."""

    spoil = staticmethod(lambda: None)

    def __getitem__(self, index):
        tensors = super().__getitem__(index)
        self.spoil()
        return tensors


def loading(rooms, spoil) -> Reality:
    views = find_views([TASKS["rgb"]], [rooms], find_buildings([rooms]))
    dataset = Spoilt([TASKS["rgb"]], views, 16)
    dataset.spoil = spoil
    return Reality("val", dataset, 4, num_workers=1)


def fail():
    raise RuntimeError("a transform of my own\nneeds 4 channels")


def no_room():
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left")


@pytest.mark.parametrize(
    "spoil, said",
    [
        (fail, r"failed: .*needs 4 channels \(.*test_bad_data.py, line \d+\) \(`num_workers` 0"),
        (no_room, r"too little shared memory \(/dev/shm; .*: No space left$"),
    ],
)
def test_a_loading_process_reports_its_own_error(rooms, spoil, said):
    with pytest.raises(UserError, match=said) as caught:
        list(loading(rooms, spoil))
    assert "from outside" not in str(caught.value) and "\n" not in str(caught.value)


def leave_few_files(more: int):
    """Return a function that leaves its process room for that many more open files."""

    def limit() -> None:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, free + more))

    return limit


@pytest.mark.parametrize("more", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_too_few_open_files_end_a_run_and_do_not_hang_it(rooms, more):
    """With room for one more, the batch is made but cannot be sent: it waited for ever."""
    with pytest.raises(UserError, match="too many open files: raise|ended from outside"):
        list(loading(rooms, leave_few_files(more)))


def test_too_many_open_files_are_not_a_bad_file(rooms, monkeypatch):
    def fail(path, size):
        raise OSError(errno.EMFILE, "Too many open files", path)

    monkeypatch.setattr("datasets.open_file", fail)
    with pytest.raises(UserError, match="too many open files: raise the limit"):
        TaskDataset(SOME, find_views(SOME, [rooms], find_buildings([rooms])), 16)[0]


@pytest.mark.slow
def test_processes_that_cannot_start_are_one_sentence(run, monkeypatch):
    start, started = multiprocessing.process.BaseProcess.start, []

    def limited(process):
        if len(started) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        started.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", limited)
    status, output, _ = run("rgb2normal", "--num-workers=3")
    assert status == 2 and "Traceback" not in output, output
    assert output.splitlines()[-1] == (
        "error: cannot start the processes that load the test views: Too many open files "
        "(fewer --num-workers need less)"
    )
    for process in started:
        process.kill()
        process.join()


def test_a_pipe_as_data_file_is_a_bad_file(copy):
    view = find_views(SOME, [copy], find_buildings([copy]))[0]
    view.path(TASKS["rgb"]).unlink()
    os.mkfifo(view.path(TASKS["rgb"]))
    with pytest.raises(BadView, match="it is a pipe or a device, not a file"):
        TaskDataset(SOME, [view], 16)[0]
    (found,) = check_view((view, ["rgb"])).findings["rgb"]
    assert (found.kind, found.text) == ("broken", "it is a pipe or a device, not a file")

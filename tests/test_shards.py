"""Tar shards: what is written is read again, each view once a pass, and resumed exactly."""

import functools
import http.server
import json
import os
import shlex
import tarfile
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from datasets import TaskDataset, TrainTaskDataset
from loading.layouts import find_buildings, find_places, find_views
from loading.shards import Shards, expand, key_of, name_of
from loading.splits import split_buildings
from sharding import make_shards
from streams import ShardReality, Stream
from task_configs import TASKS
from utils import UserError

RGB, NORMAL = TASKS["rgb"], TASKS["normal"]
SOME = [RGB, NORMAL, TASKS["depth_zbuffer"], TASKS["sobel_edges"]]


@pytest.fixture(autouse=True)
def no_lists_are_kept(monkeypatch, tmp_path):
    pytest.importorskip("webdataset")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def shards(rooms, tmp_path_factory) -> Path:
    """The rooms in shards of two views each."""
    pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("shäred shards") / "rooms"
    each = sum(file.stat().st_size for file in rooms.glob("*/*/*.png")) / 16
    assert make_shards(rooms, folder, each * 1.2 / 1e6) == (8, 16, 0)
    return folder


def pattern(folder: Path) -> str:
    return f"shards:{folder}/rooms-{{000000..{len(list(folder.iterdir())) - 1:06}}}.tar"


def data_of(place: str | Path, kind=TaskDataset, buildings=None, **options) -> TaskDataset:
    return kind(
        SOME, find_views(SOME, [place], buildings or find_buildings([place])), 16, **options
    )


def test_shards_hold_what_the_files_do(rooms, shards):
    """The same views in the same order, with the same tensors; parts by the same buildings."""
    ours, theirs = data_of(pattern(shards)), data_of(rooms)
    assert [view[1:3] for view in ours.views] == [view[1:3] for view in theirs.views]
    for number in range(len(theirs)):
        for mine, other in zip(ours[number], theirs[number], strict=True):
            assert torch.equal(mine, other)
    assert split_buildings([pattern(shards)]) == split_buildings([rooms])
    for shard in Shards(pattern(shards)).samples:  # a shard is of one part
        names = {name[1] for name, _ in shard}
        assert sum(bool(names & set(part)) for part in split_buildings([rooms]).values()) == 1


def test_names_of_any_form_are_kept():
    for name in ("", "b", "x"), ("tra in", "a.b/c", "é\udcff.png"), ("", "%2E", "__a__"):
        key = key_of(*name)
        assert name_of(key, "u") == name and "." not in key and key.isascii()
    assert name_of("000012", "pipe:cat /data/flat-3.tar") == ("", "flat-3", "000012")


def views_of(stream: Stream, reader: int, readers: int, count: int, done: int = 0) -> list[int]:
    drawn = stream._drawn(reader, readers, done)
    return [next(drawn)[1] for _ in range(count)]


@pytest.mark.parametrize("readers", [1, 4])
def test_every_view_once_a_pass_by_all_readers(shards, readers):
    stream = Stream(data_of(pattern(shards)), 2, endless=True, seed=3)
    orders = []
    for turn in range(2):
        seen = []
        for reader in range(readers):
            before = sum(len(stream.shards[s][2]) for t in range(turn)
                         for s in stream.dealt(t, reader, readers))  # fmt: skip
            count = sum(len(stream.shards[s][2]) for s in stream.dealt(turn, reader, readers))
            seen += views_of(stream, reader, readers, before + count)[before:]
            # and from the middle of a pass on, whatever was read before
            for done in (before, before + 1):
                again = views_of(stream, reader, readers, count, done)
                assert again[: before + count - done] == seen[len(seen) - count :][done - before :]
        assert sorted(seen) == list(range(16))
        orders.append(seen)
    assert orders[0] != orders[1]


def realities(shards, start: int, workers: int = 2, kind=TrainTaskDataset) -> list[ShardReality]:
    """Training by two processes, after `start` batches."""
    both = []
    for rank in range(2):
        data = data_of(pattern(shards), kind, augment=True, seed=1, strong_rgb=True)
        both.append(ShardReality("train", data, 2, num_workers=workers, endless=True, seed=5,
                                 rank=rank, count=2))  # fmt: skip
        both[-1].begin(start)
    return both


@pytest.mark.slow  # four loading processes, three times
def test_two_processes_with_two_workers_each_see_every_view_once(shards):
    first = [[next(batches) for _ in range(8)]
             for batches in map(iter, realities(shards, 0))]  # fmt: skip
    for turn in (0, 1):
        seen = Counter(v for both in first for b in both[4 * turn : 4 * turn + 4] for v in b.views)
        assert seen == dict.fromkeys(range(16), 1)
    for start in (3, 4):  # a resumed run goes on with the same tensors
        for rank, reality in enumerate(realities(shards, start)):
            for number, batch in zip(range(start, 8), reality, strict=False):
                expected = first[rank][number]
                assert batch.views == expected.views
                assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_views_in_order_come_once_and_are_shared(shards):
    data = data_of(pattern(shards), buildings=find_buildings([pattern(shards)])[:3])
    seen = []
    for rank in range(2):
        reality = ShardReality("val", data, 5, rank=rank, count=2)
        assert reality.loader.num_workers == 0
        for batch in reality:
            seen += batch.views
            for row, number in enumerate(batch.views):
                assert torch.equal(batch["normal"][row], data[number][1])
    assert sorted(seen) == list(range(12))


def test_too_few_shards_for_the_processes(shards):
    with pytest.raises(UserError, match=r"8 shards of train views are too few for 9 processes"):
        ShardReality("train", data_of(pattern(shards)), 2, endless=True, count=9)


def copy_of(shards: Path, folder: Path) -> list[Path]:
    folder.mkdir()
    for file in sorted(shards.iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
    return sorted(folder.iterdir())


def cut_off(files: list[Path]) -> None:
    files[2].write_bytes(files[2].read_bytes()[: files[2].stat().st_size // 2])


def without_its_end(files: list[Path]) -> None:
    files[2].write_bytes(files[2].read_bytes().rstrip(b"\0"))


def no_archive(files: list[Path]) -> None:
    files[2].write_bytes(b"no archive " * 1000)


def gone(files: list[Path]) -> None:
    files[2].unlink()


def twice(files: list[Path]) -> None:
    files[2].write_bytes(files[3].read_bytes())


@pytest.mark.parametrize("damage", [cut_off, without_its_end, no_archive, gone, twice])
def test_a_broken_shard_is_one_sentence(run, shards, tmp_path, damage):
    files = copy_of(shards, tmp_path / "copy")
    spec = f"shards:{tmp_path}/copy/rooms-{{000000..000007}}.tar"
    damage(files)
    status, output, _ = run("example_normal", f"--data-dirs={spec}")
    assert status == 2 and output.count("\n") == 1 and files[2].name in output, output


def test_a_shard_that_breaks_during_training_is_one_sentence(shards, tmp_path):
    files = copy_of(shards, tmp_path / "copy")
    data = data_of(f"shards:{tmp_path}/copy/*.tar", TrainTaskDataset)
    cut_off(files)
    with pytest.raises(UserError, match=f"cannot read the shard .*{files[2].name}: "):
        batches = iter(ShardReality("train", data, 2, endless=True))
        for _ in range(16):
            next(batches)
    files[2].write_bytes((shards / files[2].name).read_bytes())
    reality = ShardReality("val", data, 2)
    twice(files)
    with pytest.raises(UserError, match="has changed since its views were listed"):
        list(reality)


def test_bad_images_are_replaced_in_training_and_left_out_of_validation(rooms, tmp_path, capsys):
    copy = tmp_path / "copy"
    for file in rooms.rglob("*.png"):
        target = copy / file.relative_to(rooms)
        target.parent.mkdir(parents=True, exist_ok=True)
        bad = file.name.startswith("point_0_view_1") and "normal" in file.name
        target.write_bytes(b"bad" if bad else file.read_bytes())
    count = sum(1 for file in copy.rglob("*normal.png") if file.read_bytes() == b"bad")
    assert 0 < count < 8
    make_shards(copy, tmp_path / "shards", 0.05)
    spec = f"shards:{tmp_path}/shards/*.tar"
    reality = ShardReality("val", data_of(spec), 3, max_bad_fraction=0.5)
    assert sum(len(batch.views) for batch in reality) == 16 - count
    assert (
        all(".normal.png" in file for file in reality.bad.files) and len(reality.bad.views) == count
    )
    train = ShardReality("train", data_of(spec, TrainTaskDataset), 4, endless=True,
                         max_bad_fraction=0.5)  # fmt: skip
    seen = [v for _, batch in zip(range(4), train, strict=False) for v in batch.views]
    assert len(seen) == 16 and not set(seen) & train.bad.views and train.bad.views


def test_training_and_resuming_on_shards(run, shards):
    status, output, results = run(
        "example_normal", "--k=0", f"--data-dirs={pattern(shards)}", "--steps-per-epoch=3",
        "--num-workers=1", "--dataaug", "--save-every=2",
    )  # fmt: skip
    assert status == 0, output
    folder = next(results.iterdir())
    assert json.loads((folder / "run.json").read_text())["views"] == {
        "train": 8, "val": 4, "test": 4}  # fmt: skip
    last = max(folder.glob("state_*.pt"))
    ours = torch.load(last, weights_only=True)["training"]["target"]
    last.unlink()
    status, output, _ = run(f"--resume={folder}", "--max-epochs=1", defaults=False)
    assert status == 0, output
    again = torch.load(last, weights_only=True)["training"]["target"]
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_packing_to_shards(run, rooms, tmp_path):
    arguments = (str(rooms), f"--to={tmp_path / 'my shards'}", "--shards", "--shard-size=0.05",
                 "--domains=rgb,normal", "--quiet")  # fmt: skip
    status, output, _ = run(*arguments, program="scripts.pack", defaults=False)
    assert status == 0 and "16 views" in output, output
    *_, spec = shlex.split(output.splitlines()[-1])
    with tarfile.open(expand(spec)[0]) as archive:
        assert archive.getnames()[0].endswith((".rgb.png", ".normal.png"))
    assert len(find_views([RGB, NORMAL], [spec], find_buildings([spec]))) == 16
    status, output, _ = run(*arguments, program="scripts.pack", defaults=False)
    assert status == 2 and "is there already" in output
    for wrong in ("--image-size=64", "--num-workers=1", "--shard-size=-1"):
        others = (a for a in arguments if a.split("=")[0] != wrong.split("=")[0])
        status, output, _ = run(*others, wrong, program="scripts.pack", defaults=False)
        assert status == 2 and output.count("\n") == 1


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(shards):
    handler = functools.partial(Quiet, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["http", "pipe"])
def test_shards_from_elsewhere(shards, server, monkeypatch, kind):
    numbers = "{000000..000007}"
    place = {"http": server, "pipe": f"pipe:cat {shlex.quote(str(shards))}"}[kind]
    spec = f"shards:{place}/rooms-{numbers}.tar"
    data, local = data_of(spec, TrainTaskDataset), data_of(pattern(shards), TrainTaskDataset)
    for ours, theirs, _ in zip(*(ShardReality("train", d, 4, endless=True) for d in (data, local)),
                               range(4), strict=False):  # fmt: skip
        assert ours.views == theirs.views and torch.equal(ours["normal"], theirs["normal"])
    assert torch.equal(data.load(data.views[5])[0], local.load(local.views[5])[0])
    kept = len(list(Path(os.environ["XDG_CACHE_HOME"]).rglob("shard-*.json")))
    assert kept == 8  # so that they are listed once


def test_shards_that_are_not_there(run, server):
    for spec in (
        "shards:",
        "shards:/nowhere/*.tar",
        "shards:/nowhere/a.tar",
        f"shards:{server}/no",
    ):
        status, output, _ = run("example_normal", f"--data-dirs={spec}")
        assert status == 2 and output.count("\n") == 1, output


def test_other_programs_refuse_shards(run, shards):
    status, output, _ = run(pattern(shards), program="scripts.check_data", defaults=False)
    assert status == 2 and "read by training only" in output
    assert find_places(pattern(shards))[0].layout == "shards"

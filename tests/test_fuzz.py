"""Broken and hostile files by the hundred: one sentence each, nothing run, nothing outside.

A smaller number by default; the full one is marked slow.
"""

import io
import os
import pickle
import random
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from datasets import BadView, Reality, TaskDataset, TrainTaskDataset
from loading.archives import unpack
from loading.layouts import find_buildings, find_views
from models import load_network, read_weights, save_network
from scripts.check_data import check_view
from task_configs import TASKS
from transfers import TRANSFERS, Scale
from utils import UserError

ROW, SCALE = TRANSFERS["normal", "sobel_edges"], Scale(16, 8)
DOMAINS = [TASKS[name] for name in ("rgb", "normal", "depth_zbuffer", "segment_semantic")]


# ---- mutations of bytes -------------------------------------------------------------


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 20, 200))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_early(data: bytes, rng: random.Random) -> bytes:
    """Bits of the header, where sizes and kinds are."""
    return flip_bits(data[:120], rng) + data[120:]


def zero(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    length = min(rng.randrange(1, 2000), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def shuffle(data: bytes, rng: random.Random) -> bytes:
    first, second = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[first:second] + data[:first] + data[second:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 500)] * 5 + data[start:]


def noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 8, 100, 5000)))


BYTES = cut, flip_bits, flip_early, zero, shuffle, repeat, noise


def other_image(data: bytes, rng: random.Random) -> bytes:
    """A good image of another mode, size or format."""
    mode, form = rng.choice([("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"),
                             ("I;16", "png"), ("RGB", "png"), ("RGBA", "png"), ("CMYK", "jpeg"),
                             ("F", "tiff"), ("RGB", "eps"), ("RGB", "pdf"), ("P", "gif"),
                             ("RGB", "webp")])  # fmt: skip
    size = rng.choice([(1, 1), (64, 64), (63, 64), (3000, 1), (64, 200)])
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format=form)
    return buffer.getvalue()


# ---- data files ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_fuzzed_data_files_are_good_or_bad_views(rooms, tmp_path, count):
    """Loaded as tensors in range, or one BadView that names the file; check_data as well."""
    views = find_views(DOMAINS, [rooms], find_buildings([rooms]))
    sound = {view: TaskDataset(DOMAINS, [view], 16)[0] for view in views}
    outcomes = Counter()
    for number in range(count):
        rng = random.Random(number)
        view = rng.choice(views)
        spoilt = view._replace(data_dir=tmp_path / str(number))
        for task in DOMAINS:
            spoilt.path(task).parent.mkdir(parents=True)
            os.link(view.path(task), spoilt.path(task))
        path = spoilt.path(rng.choice(DOMAINS))
        content = rng.choice((*BYTES, other_image))(path.read_bytes(), rng)
        path.unlink()
        path.write_bytes(content)
        data = TrainTaskDataset(DOMAINS, [spoilt, view], 16, augment=True, seed=number)
        for index in ((0, 0), (1, 0)):
            try:
                for task, tensor in zip(DOMAINS, data[index], strict=True):
                    assert tensor.shape == (task.channels, 16, 16) and tensor.isfinite().all()
                    assert tensor.min() >= 0 and tensor.max() <= 1
                outcomes["good"] += 1
            except BadView as error:
                assert str(path) in error.files and len(str(error).splitlines()) == 1
                outcomes["bad"] += 1
        check_view((spoilt, [task.name for task in DOMAINS]))
        reality = Reality("train", data, 2, endless=True, max_bad_fraction=1)
        assert next(iter(reality))["rgb"].shape == (2, 3, 16, 16)
    print(dict(outcomes))
    assert outcomes["bad"] > count and outcomes["good"] > 0 and len(sound) == 16


# ---- checkpoints --------------------------------------------------------------------


class Runs:
    """A pickle of it would write a file when it is loaded in the ordinary way."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def seeds_of_checkpoints(folder: Path) -> list[bytes]:
    """Good checkpoints of all forms, as bytes."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3)
    legacy, bundled, own = io.BytesIO(), io.BytesIO(), folder / "own.pth"
    torch.save(network.state_dict(), legacy, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": network.state_dict(), "optimizer": {"state": {}}}, bundled)
    save_network(own, network, SCALE, maker="a person")
    tensors = save(network.state_dict(), metadata={"width": "8"})
    return [legacy.getvalue(), bundled.getvalue(), own.read_bytes(), tensors]


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fuzzed_checkpoints_load_or_are_refused(tmp_path, count):
    seeds = seeds_of_checkpoints(tmp_path)
    outcomes = Counter()
    for number in range(count):
        rng = random.Random(number)
        path = tmp_path / f"{number}.pth"
        path.write_bytes(rng.choice(BYTES)(rng.choice(seeds), rng))
        try:
            weights, record = read_weights(path)
            assert all(isinstance(value, torch.Tensor) for value in weights.values())
            outcomes["read"] += 1
        except UserError as error:
            assert path.name in str(error) and len(str(error).splitlines()) == 1
            outcomes["refused"] += 1
        with pytest.raises(UserError, match=path.name):
            load_network(ROW.build(SCALE), path, SCALE, ROW.edge)
    print(dict(outcomes))
    assert outcomes["refused"] > count / 3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["pickle", "legacy", "zip", "nested", "protocol 5"])
def test_a_checkpoint_that_would_run_code_runs_none(tmp_path, form):
    mark, path = tmp_path / "was-run", tmp_path / "a.pth"
    trap = Runs(mark)
    inside = {"weight": torch.zeros(2), "trap": trap}
    if form in ("pickle", "protocol 5"):
        path.write_bytes(pickle.dumps(trap, protocol=5 if form == "protocol 5" else 2))
    elif form == "nested":
        torch.save({"state_dict": {"weight": torch.zeros(2)}, "optimizer": [[trap]]}, path)
    else:
        torch.save(inside, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match="a.pth"):
        read_weights(path)
    assert not mark.exists()
    with pytest.raises(UserError, match="a.pth"):
        load_network(ROW.build(SCALE), path)
    assert not mark.exists()


# ---- archives -----------------------------------------------------------------------


def hostile_name(rng: random.Random, ring: Path) -> str:
    """A name that may lead out of the folder, but then into `ring`, where the test looks."""
    parts = [
        "..",
        "",
        ".",
        "c:",
        "x" * 300,
        "..\\..",
        *2 * ["a", "b", "~", "con", "\u202e", "%2e%2e"],
    ]
    start = rng.choice([*6 * [""], f"{ring}/", f"/{ring}/"])
    return start + "/".join(rng.choices(parts, k=rng.randrange(1, 5)))


def hostile_tar(rng: random.Random, ring: Path) -> bytes:
    buffer = io.BytesIO()
    kinds = [tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE,
             tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]  # fmt: skip
    with tarfile.open(fileobj=buffer, mode=rng.choice(["w", "w:gz"])) as archive:
        for _ in range(rng.randrange(1, 5)):
            member = tarfile.TarInfo(hostile_name(rng, ring))
            member.type, member.linkname = rng.choice(kinds), hostile_name(rng, ring)
            content = rng.randbytes(50) if member.isreg() else b""
            member.size, member.mode = len(content), rng.choice([0o644, 0o4777])
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def hostile_zip(rng: random.Random, ring: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice([0, 8])) as archive:
        for _ in range(rng.randrange(1, 5)):
            member = zipfile.ZipInfo(hostile_name(rng, ring).replace("\0", ""))
            member.external_attr = rng.choice([0o100644, 0o120777, 0o104777]) << 16
            archive.writestr(member, rng.randbytes(50))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("count", [100, pytest.param(200, marks=pytest.mark.slow)])
def test_fuzzed_archives_stay_in_their_folder(tmp_path, count):
    outcomes = Counter()
    for number in range(count):
        rng = random.Random(number)
        ring = tmp_path / str(number)
        content = rng.choice((hostile_tar, hostile_zip))(rng, ring)
        if rng.random() < 0.4:
            content = rng.choice(BYTES)(content, rng)
        folder = ring / "in" / "folder"
        folder.mkdir(parents=True)
        archive = ring / "archive"
        archive.write_bytes(content)
        try:
            unpack(archive, folder)
            outcomes["unpacked"] += 1
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            assert not list(folder.iterdir())
            outcomes["refused"] += 1
        outside = [p for p in ring.rglob("*") if folder not in p.parents]
        assert sorted(outside) == [archive, ring / "in", folder]
        assert not any(p.is_symlink() or p.stat().st_mode & 0o7000 for p in ring.rglob("*"))
    print(dict(outcomes))
    assert outcomes["refused"] > count / 2 and outcomes["unpacked"] > 0

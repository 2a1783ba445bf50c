"""Edited files that programs read back: used, or one sentence; no traceback, no hang."""

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from test_fuzz import BYTES

from datasets import BadView, TaskDataset
from energy import ENERGY_DOMAINS, straight_loss
from loading.layouts import find_buildings, find_views
from loading.packs import Pack
from loading.splits import split_buildings
from measuring.consistency_energy import read_reference, read_statistics
from packing import make_pack
from rooms.writing import VERSION, check_settings
from task_configs import TASKS
from training.checks import check_options
from training.objective import objective_of
from training.options import Options
from training.run_folder import begun, find_folder, record_installed, recorded_options
from training.states import load_state, save_state
from utils import ROOT, UserError, read_job

SECONDS = 10  # an edited file may not hold up a program for longer, on any machine
NORMAL = [TASKS["normal"]]


class Kind(NamedTuple):
    """A file that programs read back: how it is made in a folder, and how it is read."""

    make: Callable[[Path, Path], Path]  # (folder, rooms) → the file
    read: Callable[[Path, Path], object]  # (the file, rooms)


def make_run(folder: Path, rooms: Path) -> Path:
    record = begun(Options("example_normal"), 1) | {
        "schedule": "constant", "inputs": {"networks": {}, "views": {}}}  # fmt: skip
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text(json.dumps(record, indent=1))
    return folder / "run" / "run.json"


def read_run(file: Path, rooms: Path) -> None:
    options = recorded_options(file.parent, Options(), 1)
    check_options(options, objective_of(options))
    find_folder(True, file.parent.parent, "example_normal")
    record_installed(file.parent, file)


def make_state(folder: Path, rooms: Path) -> Path:
    state = {"columns": {"before": {"x": 1.0}}, "start": {"w": torch.ones(3)},
             "training": {"target": {"w": torch.zeros(2)}}, "logger": {}, "bad": {}}  # fmt: skip
    save_state(folder, 1, state)
    return folder / "state_000000001.pt"


def make_packed(folder: Path, rooms: Path) -> Path:
    make_pack(rooms, folder / "pack", 16, NORMAL)
    return folder / "pack" / "pack.json"


def read_packed(file: Path, rooms: Path) -> None:
    folder = file.parent
    views = find_views(NORMAL, [folder], find_buildings([folder]))
    data = TaskDataset(NORMAL, views, 16)
    for number in range(len(data)):
        data[number]
    Pack(folder).verify()


def make_statistics(folder: Path, rooms: Path) -> Path:
    columns = {straight_loss(d): {"mean": 0.1, "deviation": 0.2} for d in ENERGY_DOMAINS}
    record = {"config": "energy_calc", "views": 3, "columns": columns, "image_size": 32, "width": 8}
    (folder / "statistics.json").write_text(json.dumps(record))
    rows = [f"a,{number},0.5,{number / 10}" for number in range(3)]
    header = "building,view,normalized_energy,normalized_error"
    (folder / "data.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "statistics.json"


def make_split(folder: Path, rooms: Path) -> Path:
    return Path(shutil.copy(ROOT / "config" / "split_rooms.txt", folder / "split.txt"))


def make_job(folder: Path, rooms: Path) -> Path:
    (folder / "jobinfo.txt").write_text("name, 0, base\n")
    return folder / "jobinfo.txt"


def make_list(folder: Path, rooms: Path) -> Path:
    lines = ["rgb,normal,building,view"]
    for view in find_views([TASKS["rgb"], *NORMAL], [rooms], find_buildings([rooms])):
        paths = (view.path(TASKS[name]) for name in ("rgb", "normal"))
        lines.append(",".join([*map(str, paths), view.building, view.name]))
    (folder / "views.csv").write_text("\n".join(lines) + "\n")
    return folder / "views.csv"


def read_list(file: Path, rooms: Path) -> None:
    views = find_views(NORMAL, [file], find_buildings([file]))
    data = TaskDataset(NORMAL, views, 16)
    for number in range(min(2, len(data))):
        data[number]


def make_rooms_record(folder: Path, rooms: Path) -> Path:
    return Path(shutil.copy(rooms / "rooms.json", folder / "rooms.json"))


def read_rooms_record(file: Path, rooms: Path) -> None:
    check_settings(file.parent, {"image_size": 64, "seed": 0, "generator": VERSION})


KINDS = {
    "run.json": Kind(make_run, read_run),
    "state": Kind(make_state, lambda file, rooms: load_state(file.parent)),
    "pack.json": Kind(make_packed, read_packed),
    "pack array": Kind(
        lambda folder, rooms: make_packed(folder, rooms).with_name("normal.npy"), read_packed
    ),
    "statistics.json": Kind(
        make_statistics, lambda file, rooms: read_statistics(file.parent)
    ),
    "data.csv": Kind(
        lambda folder, rooms: make_statistics(folder, rooms).with_name("data.csv"),
        lambda file, rooms: read_reference(file.parent),
    ),
    "split": Kind(make_split, lambda file, rooms: split_buildings([rooms], file)),
    "jobinfo.txt": Kind(make_job, lambda file, rooms: read_job(file)),
    "list of views": Kind(make_list, read_list),
    "rooms.json": Kind(make_rooms_record, read_rooms_record),
}  # fmt: skip


# ---- edits --------------------------------------------------------------------------

VALUES = (None, True, -1, 10**400, 0.5, "", "x" * 300, [], {}, [[1]], {"a": 1}, "1", ["a", 1])


def edit_value(data: bytes, rng: random.Random) -> bytes:
    """Another value, type or key somewhere in a JSON file; other files are cut off."""
    try:
        whole = json.loads(data)
    except ValueError:
        return data[: rng.randrange(len(data))]
    place: list | dict = {"": whole}
    key: int | str = ""
    while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
        place = place[key]
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    if place == {"": whole}:
        return json.dumps(rng.choice(VALUES)).encode()
    if isinstance(place, dict) and rng.random() < 0.3:
        place[f"{key}x"] = place.pop(key)
    else:
        place[key] = rng.choice(VALUES)
    return json.dumps(whole).encode()


def nested(data: bytes, rng: random.Random) -> bytes:
    return b"[" * rng.choice((10, 10**5)) + data


def exchange_words(data: bytes, rng: random.Random) -> bytes:
    """Two words of a text file in each other's place."""
    words = data.split(b",")
    if len(words) < 2:
        return data + b","
    first, second = rng.sample(range(len(words)), 2)
    words[first], words[second] = words[second], words[first]
    return b",".join(words)


EDITS = (*BYTES, edit_value, edit_value, edit_value, nested, exchange_words)


@pytest.mark.parametrize("each", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_edited_records_are_used_or_refused_in_one_sentence(rooms, tmp_path, each, capsys):
    outcomes = Counter()
    for name, kind in KINDS.items():
        (source := tmp_path / name).mkdir()
        made = kind.make(source, rooms)
        content = made.read_bytes()
        kind.read(made, rooms)  # unedited, it is read
        for number in range(each):
            rng = random.Random(f"{name} {number}")
            place = tmp_path / f"{name} {number}"
            shutil.copytree(source, place)
            file = place / made.relative_to(source)
            file.write_bytes(rng.choice(EDITS)(content, rng))
            start = time.monotonic()
            try:
                kind.read(file, rooms)
                outcomes[name, "used"] += 1
            except (UserError, BadView) as error:
                assert len(str(error).splitlines()) == 1, (name, number, str(error))
                outcomes[name, "refused"] += 1
            assert time.monotonic() - start < SECONDS, (name, number)
            shutil.rmtree(place)
    capsys.readouterr()
    print({f"{name}, {what}": count for (name, what), count in sorted(outcomes.items())})
    refused = {name for name, what in outcomes if what == "refused"}
    assert refused == set(KINDS) and sum(outcomes.values()) == each * len(KINDS)

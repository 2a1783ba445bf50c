"""States that cannot be read, folders that cannot be written: one sentence, nothing lost."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from small_runs import assert_the_same, equal, last_state, signals_at

from files import read_json
from training.states import load_state, save_state
from utils import UserError


def spoil(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    elif how == "a bit":  # of a tensor: torch alone would not notice
        data[len(data) // 2] ^= 4
    elif how == "noise":
        data[:] = random.Random(0).randbytes(len(data))
    file.write_bytes(data)


def state_of(weights: torch.Tensor) -> dict:
    return {"columns": {}, "start": {"w": weights}, "training": None, "logger": {}, "bad": {}}


@pytest.mark.parametrize("how", ["cut", "empty", "a bit", "noise"])
def test_a_damaged_state_is_passed_over_with_a_word(tmp_path, capsys, how):
    states = {number: state_of(torch.full((50, 50), float(number))) for number in (1, 2, 3)}
    for number, state in states.items():
        save_state(tmp_path, number, state)
    spoil(tmp_path / "state_000000003.pt", how)
    (tmp_path / ".state_000000003.pt.abc0_xyz").write_text("half")
    (tmp_path / ".notes.of.mine").write_text("not the run's")
    assert equal(load_state(tmp_path), states[2])
    out, err = capsys.readouterr()
    assert "warning: passing over" in err and "state_000000003.pt, which cannot be read" in err
    assert "from state_000000002.pt" in out
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {
        "state_000000002.pt", "unreadable_state_000000003.pt", ".notes.of.mine"
    }  # fmt: skip
    spoil(tmp_path / "state_000000002.pt", how)
    with pytest.raises(UserError, match="none of the 1 states in .* can be read"):
        load_state(tmp_path)
    assert names == {file.name for file in tmp_path.iterdir()}


def test_a_pipe_as_state_or_record_does_not_hang(tmp_path, capsys):
    save_state(tmp_path, 1, state_of(torch.zeros(3)))
    os.mkfifo(tmp_path / "state_000000002.pt")
    assert equal(load_state(tmp_path), state_of(torch.zeros(3)))
    assert "cannot be read: it is a pipe or a device, not a file" in capsys.readouterr().err
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(UserError, match="cannot read .*run.json: it is a pipe or a device"):
        read_json(tmp_path / "run.json")


def test_a_run_whose_states_are_gone_is_refused_and_left_as_it_is(runs):
    """Nothing that an earlier start made is deleted or overwritten."""
    arguments = ("example_normal", "--k=1", "--random-select")
    assert runs.start("gone", *arguments).finish()[0] == 0
    folder = runs.of("gone")
    for state in folder.glob("state_*.pt"):
        state.unlink()
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    status, output = runs.resume("gone", "example_normal").finish()
    assert status == 2 and "its states (state_*.pt) are gone" in output.splitlines()[-1], output
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files


def test_a_run_goes_on_from_the_state_before_a_damaged_one(runs):
    arguments = ("example_normal", "--k=2", "--random-select")
    for results, steps in (("whole", ()), ("parts", (5,))):
        program = runs.start(results, *arguments, prepare=signals_at(*steps))
        status, output = program.finish()
        assert status == (143 if steps else 0), output
    folder = runs.of("parts")
    spoil(max(folder.glob("state_*.pt")), "a bit")
    status, output = runs.resume("parts", "example_normal").finish()
    assert status == 0 and "passing over" in output and "from state_000000003.pt" in output
    assert_the_same(folder, runs.of("whole"))
    for file in folder.glob("state_*.pt"):
        spoil(file, "cut")
    there = sorted(file.name for file in folder.iterdir())
    status, output = runs.resume("parts", "example_normal").finish()
    assert status == 2 and "none of the 2 states in" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert there == sorted(file.name for file in folder.iterdir())


@pytest.fixture
def disk(tmp_path):
    """Makes a small disk of so many bytes at tmp_path/disk; skips where that is not allowed."""
    place = tmp_path / "disk"

    def mount(options: str) -> Path:
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting is not permitted here")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_costs_no_state(runs, disk, tmp_path):
    arguments = ("example_normal", "--k=2", "--random-select")
    assert runs.start("whole", *arguments).finish()[0] == 0
    size = sum(file.stat().st_size for file in runs.of("whole").iterdir())
    place = disk(f"size={size * 3}")
    status, output = runs.start("disk", *arguments, prepare=signals_at(4)).finish()
    assert status == 143, output
    folder = runs.of("disk")
    state = last_state(folder)
    for free in (0, 5_000, 200_000):
        filler = place / "filler"
        with open(filler, "wb") as file:
            file.write(bytes(max(0, shutil.disk_usage(place).free - free)))
        status, output = runs.resume("disk", "example_normal").finish()
        last = output.splitlines()[-1]
        assert status == 2 and last.startswith(f"error: cannot write {folder}"), output
        assert "No space left on device" in last and "Traceback" not in output
        assert "Exception ignored" not in output
        assert equal(last_state(folder), state)
        assert not [file for file in folder.iterdir() if file.name.startswith(".")]
        filler.unlink()
    status, output = runs.resume("disk", "example_normal").finish()
    assert status == 0, output
    assert_the_same(folder, runs.of("whole"))


def test_a_folder_that_cannot_be_written(runs, disk):
    place = disk("size=20m")
    arguments = ("example_normal", "--k=2", "--random-select")
    assert runs.start("disk", *arguments, prepare=signals_at(2)).finish()[0] == 143
    folder = runs.of("disk")
    there = sorted(file.name for file in folder.iterdir())
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    for command in (("example_normal", "--resume"), runs.complete(arguments)):
        status, output = runs._start("disk", *command).finish()
        assert status == 2 and "Traceback" not in output, output
        assert "Read-only file system" in output.splitlines()[-1]
    assert there == sorted(file.name for file in folder.iterdir())


def test_only_the_programs_own_temporary_files_are_removed(tmp_path, capsys):
    """Files of the user's own stay, whatever their names."""
    own = [".notes.of.mine", ".state_backup.pt.2024", ".latest.png.backup", ".a.b.c"]
    half = [".state_000000003.pt.0a1b2c3d", ".run.json.deadbeef", ".latest.png.00000000",
            ".curves.png.6e915cb6", ".rgb2normal_consistency.pth.12345678"]  # fmt: skip
    for name in (*own, *half):
        (tmp_path / name).write_text("")
    state = state_of(torch.zeros(3))
    save_state(tmp_path, 1, state)
    assert equal(load_state(tmp_path), state)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*own, "state_000000001.pt"])


def other_network(state):
    state["training"]["target"] = {"weight": torch.ones(3)}


def no_optimizer(state):
    del state["training"]["optimizer"]


def other_progress(state):
    state["training"]["progress"] = {"epoch": 1, "steps": 2}


@pytest.mark.parametrize("edit", [other_network, no_optimizer, other_progress])
def test_a_state_of_another_run_is_one_sentence(stopped, edit):
    runs, _, _ = stopped
    folder = runs.of("parts")
    file = max(folder.glob("state_*.pt"))
    state = torch.load(file, weights_only=True)
    edit(state)
    torch.save(state, file)
    status, output = runs.resume("parts", "example_normal").finish()
    assert status == 2 and "Traceback" not in output, output
    assert "is not one of this run" in output.splitlines()[-1]

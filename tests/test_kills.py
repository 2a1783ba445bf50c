"""Programs that are killed again and again, and started again: the same bytes in the end."""

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Program

from models import read_weights

KILLS = 17  # of each program


def contents(folder: Path) -> dict[str, str]:
    """Every file below the folder, hidden ones included: {relative path: SHA-256}."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def weights(folder: Path) -> dict[str, str]:
    """Every network below the folder by its weights; a checkpoint also records its command."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            state, _ = read_weights(path)
            digest = hashlib.sha256()
            for name, value in sorted(state.items()):
                digest.update(name.encode() + value.numpy().tobytes())
            found[str(path.relative_to(folder))] = digest.hexdigest()
    return found


def killed_until_done(
    start: Callable[[], Program], seconds: float, rng: random.Random
) -> tuple[int, str]:
    """Kill the program at random times, at most KILLS times, then let it end.

    `seconds` is about how long it takes undisturbed. Returns the number of kills and the
    output of the last start.
    """
    kills = 0
    while True:
        program = start()
        end = time.monotonic() + rng.uniform(0, seconds)
        while kills < KILLS and not program.ended() and time.monotonic() < end:
            time.sleep(0.005)
        if kills < KILLS and not program.ended():
            os.killpg(program.pid, signal.SIGKILL)
            program.finish()
            kills += 1
            continue
        status, output = program.finish()
        assert status == 0, output
        return kills, output


@pytest.mark.slow
@pytest.mark.parametrize("module", ["scripts.pack", "scripts.make_rooms", "scripts.train_edges"])
def test_killed_programs_end_with_the_same_bytes(module, rooms, networks, tmp_path):
    digest = weights if module == "scripts.train_edges" else contents

    def arguments(folder: Path) -> list[str]:
        if module == "scripts.pack":
            return [str(rooms), f"--to={folder / 'pack'}", "--image-size=32", "--num-workers=2"]
        if module == "scripts.make_rooms":
            return [f"--output-dir={folder / 'rooms'}", "--views-per-building=4", "--quiet",
                    "--image-size=48", "--buildings=agate,tuff", "--num-workers=2"]  # fmt: skip
        return ["example_cascade_two_networks", f"--data-dirs={rooms}",
                f"--models-dir={folder / 'models'}",
                "--image-size=32", "--width=8", f"--results-dir={folder.parent / 'results'}",
                "--max-epochs=1", "--steps-per-epoch=2", "--batch-size=2"]  # fmt: skip

    def start(folder: Path) -> Program:
        return Program(*arguments(folder), output=tmp_path / "output.txt", module=module)

    begun = time.monotonic()
    status, output = start(tmp_path / "whole").finish()
    assert status == 0, output
    seconds = time.monotonic() - begun
    rng, kills = random.Random(module), 0
    folder = tmp_path / "killed"
    while kills < KILLS:  # it may end before it has been killed often enough
        folder = tmp_path / f"killed {kills}"
        count, _ = killed_until_done(lambda folder=folder: start(folder), seconds, rng)
        kills += count
        assert digest(folder) == digest(tmp_path / "whole")
    print(f"{module}: {kills} kills")

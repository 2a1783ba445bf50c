"""Runs that are killed at random moments, and go on: as if nothing had happened."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from small_runs import Runs, assert_the_same

from sharding import make_shards

ROOT = Path(__file__).resolve().parents[1]


class Real:
    """A run in a process that starts Python, and is killed while torch is being imported."""

    def __init__(self, *arguments: str, output: Path) -> None:
        self.output = output
        with open(output, "w") as file:
            command = [sys.executable, "-m", "train", *arguments]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        self.process.kill()

    def finish(self) -> tuple[int, str]:
        return self.process.wait(), self.output.read_text()


class Killer:
    """Kills runs at random moments, and counts what was hit."""

    MOMENTS = "time", "writing", "saved", "logged", "start-up"

    def __init__(self, runs: Runs, seed: int) -> None:
        self.runs, self.rng = runs, random.Random(seed)
        self.hit: Counter = Counter()

    def life(self, results: str, program, moment: str) -> bool:
        """Let a run live until a moment comes; whether it was killed, and not done by then."""
        folder = self.runs.folder / results
        till = self._moment(folder, moment)
        while not program.ended() and not till():
            time.sleep(0.0002)
        if program.ended():
            return False
        program.kill()
        status, output = program.finish()
        if status == 0:  # it was ending by itself already
            return False
        assert status == -signal.SIGKILL, output
        self.hit["kills"] += 1
        self.hit[f"at {moment}"] += 1
        left = [file.name for file in folder.glob("*/.*.*.*")]
        self.hit["half a state left"] += any(name.startswith(".state") for name in left)
        self.hit["half another file left"] += any(not name.startswith(".state") for name in left)
        self.check(output)
        return True

    def check(self, output: str) -> None:
        """What a run says: no error, and how it began."""
        assert "error:" not in output and "Traceback" not in output, output
        self.hit["resumed"] += "going on in" in output
        self.hit["began again, no state yet"] += "it begins again" in output
        self.hit["states passed over"] += output.count("passing over")

    def _moment(self, folder: Path, moment: str):
        """Whether it has come, as a function."""
        if moment in ("time", "start-up"):
            end = time.monotonic() + self.rng.uniform(0, 3 if moment == "time" else 12)
            return lambda: time.monotonic() > end
        if moment == "logged":
            more = self.rng.randrange(1, 1500) + self._logged(folder)
            return lambda: self._logged(folder) > more
        pattern = "*/.state_*" if moment == "writing" else "*/state_*.pt"
        seen, wanted = set(folder.glob(pattern)), self.rng.randrange(1, 4)
        before = len(seen)

        def comes() -> bool:
            seen.update(folder.glob(pattern))
            return len(seen) - before >= wanted

        return comes

    @staticmethod
    def _logged(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.glob("*/log.jsonl"))


def killed_and_resumed(runs: Runs, arguments: Sequence[str], kills: int, starts: int) -> Counter:
    """Kill runs and go on with them until there were so many kills; each ends as if not killed.

    Up to `starts` of the kills come while Python starts. Returns what was hit.
    """
    config = arguments[0]
    status, output = runs.start("whole", *arguments).finish()
    assert status == 0, output
    killer, number = Killer(runs, seed=0), 0
    while killer.hit["kills"] < kills:
        number += 1
        results, alive = f"run{number}", True
        while alive:
            there = list((runs.folder / results).glob("*/run.json"))
            start_up = killer.hit["at start-up"] < starts and killer.rng.random() < 0.15
            if start_up:
                killer.hit["starts of Python"] += 1
                begun = (config, "--resume") if there else runs.complete(arguments)
                program = Real(*begun, f"--results-dir={runs.folder / results}",
                               output=runs.folder / "real.txt")  # fmt: skip
            elif there:
                program = runs.resume(results, config)
            else:
                program = runs.start(results, *arguments)
            moment = "start-up" if start_up else killer.rng.choice(Killer.MOMENTS[:-1])
            if killer.hit["kills"] < kills:
                alive = killer.life(results, program, moment)
            else:
                alive = False
        status, output = program.finish()
        assert status == 0, output
        killer.check(output)
        assert_the_same(runs.of(results), runs.of("whole"))
        left = [file for file in runs.of(results).iterdir() if file.name.startswith(".")]
        assert not left
        killer.hit["runs, all equal to the uninterrupted one"] += 1
    print(dict(killer.hit))
    return killer.hit


@pytest.mark.slow
def test_a_hundred_kills(runs):
    """SIGKILL at any moment, start-up and writing included: nothing is lost but the time."""
    arguments = ("example_normal", "--k=2", "--random-select", "--max-epochs=3", "--save-every=1")
    hit = killed_and_resumed(runs, arguments, kills=100, starts=6)
    assert hit["half a state left"] > 0 and hit["resumed"] > 0


@pytest.mark.slow
def test_twenty_kills_on_shards(runs, rooms, tmp_path):
    """In the middle of shards and of passes over them, with loading processes."""
    pytest.importorskip("webdataset")
    each = sum(file.stat().st_size for file in rooms.glob("*/*/*.png")) / 16
    count, _, _ = make_shards(rooms, tmp_path / "shards" / "rooms", each * 1.2 / 1e6)
    spec = f"shards:{tmp_path}/shards/rooms/rooms-{{000000..{count - 1:06}}}.tar"
    arguments = (
        "example_normal", "--k=2", "--random-select", "--max-epochs=3", "--save-every=1",
        "--dataaug", "--num-workers=2", f"--data-dirs={spec}",
    )  # fmt: skip
    assert killed_and_resumed(runs, arguments, kills=20, starts=1)["resumed"] > 0

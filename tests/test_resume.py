"""Runs that are stopped, killed, or out of disk, and go on: as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from forked import Program
from PIL import Image
from test_backbones import OWN

import training.loop
from files import only_process_in, read_json
from models import save_network
from sharding import make_shards
from training.options import Options
from training.run_folder import find_folder, recorded_options
from training.states import load_state, save_state
from transfers import TRANSFERS, Scale
from utils import UserError

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("time", "seconds", "seconds waiting for data")


class Runs:
    """Runs of the trainer on the small rooms, at their smallest, each in a results folder."""

    def __init__(self, rooms: Path, networks: Path, folder: Path) -> None:
        self.folder = folder
        self.flags = (
            f"--data-dirs={rooms}", f"--models-dir={networks}", "--image-size=32", "--width=8",
            "--batch-size=2", "--steps-per-epoch=3", "--max-epochs=2", "--visdom-port=9",
            "--num-workers=0",
        )  # fmt: skip

    def start(self, results: str, *arguments: str, prepare=lambda: None) -> Program:
        """The run named in `arguments`, into a results folder of that name."""
        return self._start(results, *self.complete(arguments), prepare=prepare)

    def complete(self, arguments: Sequence[str]) -> list[str]:
        """With the small flags that they don't name themselves."""
        named = {a.split("=")[0] for a in arguments}
        return [*arguments, *(f for f in self.flags if f.split("=")[0] not in named)]

    def resume(self, results: str, *arguments: str) -> Program:
        """The last run of the configuration in that results folder, gone on with."""
        return self._start(results, *arguments, "--resume")

    def _start(self, results: str, *arguments: str, prepare=lambda: None) -> Program:
        place = f"--results-dir={self.folder / results}"
        return Program(*arguments, place, output=self.folder / f"{results}.txt", prepare=prepare)

    def of(self, results: str) -> Path:
        """The folder of the only run there."""
        (record,) = (self.folder / results).glob("*/run.json")
        return record.parent


@pytest.fixture
def runs(rooms, networks, tmp_path) -> Runs:
    return Runs(rooms, networks, tmp_path)


def signals_at(*steps: int, number: int = signal.SIGTERM, times: int = 1):
    """For `prepare`: the process gets signals during each of those steps, counted from 1."""

    def prepare() -> None:
        call, count = training.loop.Step.__call__, 0

        def counted(*arguments):
            nonlocal count
            count += 1
            for _ in range(times if count in steps else 0):
                os.kill(os.getpid(), number)
            return call(*arguments)

        training.loop.Step.__call__ = counted

    return prepare


def last_state(folder: Path) -> dict:
    return torch.load(max(folder.glob("state_*.pt")), weights_only=True)


def log_of(folder: Path) -> list[dict]:
    """The log without its times."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{key: v for key, v in line.items() if key not in TIMES} for line in lines]


def equal(ours, theirs) -> bool:
    """Bit for bit, tensors and all."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs or (ours != ours and theirs != theirs)


def assert_the_same(ours: Path, theirs: Path) -> None:
    """Weights, optimiser, choices, curves and table of two runs, but for the log's length."""
    states = [last_state(folder) for folder in (ours, theirs)]
    for state in states:
        del state["logger"]["length"]  # times have more digits or fewer
        del state["training"]["seconds"]
    for name in states[0]["training"]:
        assert equal(states[0]["training"][name], states[1]["training"][name]), name
    assert equal(*states)
    assert log_of(ours) == log_of(theirs)
    tables = [json.loads((folder / "evaluation.json").read_text()) for folder in (ours, theirs)]
    assert equal(*tables)


# ---- stopped by a signal ------------------------------------------------------------

NORMAL = ("example_normal", "--k=2")
WAYS = {
    "random": ((*NORMAL, "--random-select", "--balance-every=2", "--cache-labels=0.1"), (2,)),
    "win rate, direct": ((*NORMAL, "--winrate", "--compare-direct"), (5,)),
    "direct, second phase": ((*NORMAL, "--random-select", "--compare-direct"), (8,)),
    "between epochs": ((*NORMAL, "--random-select", "--compare-direct"), (3, 6)),
    "augmented, workers": ((*NORMAL, "--dataaug", "--augment-rgb=strong", "--num-workers=2"), (4,)),
    "strong look": ((*NORMAL, "--augment-rgb=strong", "--random-select"), (2, 5)),
    "thrice": ((*NORMAL, "--winrate", "--schedule=cosine"), (1, 2, 5)),
    "a row": (("normal2sobel_edges",), (4,)),
}
QUICK = {"random", "direct, second phase"}


@pytest.mark.parametrize(
    "way", [w if w in QUICK else pytest.param(w, marks=pytest.mark.slow) for w in WAYS]
)
def test_a_run_stopped_and_resumed_is_the_uninterrupted_one(runs, tmp_path, way):
    arguments, steps = WAYS[way]
    if way == "a row":
        arguments += (f"--models-dir={tmp_path / 'new'}", "--install", "--force")
    status, output = runs.start("whole", *arguments).finish()
    assert status == 0, output
    for number, step in enumerate(steps):
        taken = step - (steps[number - 1] if number else 0)
        prepare = signals_at(taken)
        if number == 0:
            program = runs.start("parts", *arguments, prepare=prepare)
        else:
            program = runs._start("parts", arguments[0], "--resume", prepare=prepare)
        status, output = program.finish()
        assert status == 128 + signal.SIGTERM, output
        in_phase = (step - 1) % 6 + 1  # two epochs of three steps
        folder = runs.of("parts")
        sentence = f"stopped after step {in_phase}; python -m train --resume {folder} goes on"
        assert sentence in output.splitlines() and "Traceback" not in output
        assert not (folder / "evaluation.json").exists()
    status, output = runs.resume("parts", arguments[0]).finish()
    assert status == 0 and f"going on in {folder} from state_{step:09d}.pt" in output
    assert_the_same(runs.of("parts"), runs.of("whole"))


@pytest.mark.slow
def test_a_run_killed_after_its_first_state_says_nothing_twice(runs):
    """The state before training, where the log has more by now."""
    arguments = ("example_normal", "--k=1", "--random-select")
    assert runs.start("whole", *arguments).finish()[0] == 0
    killed = signals_at(2, number=signal.SIGKILL)
    status, _ = runs.start("parts", *arguments, prepare=killed).finish()
    assert status == -signal.SIGKILL
    status, output = runs.resume("parts", "example_normal").finish()
    assert status == 0 and "from state_000000000.pt" in output, output
    assert_the_same(runs.of("parts"), runs.of("whole"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_and_their_exit_status(runs, number):
    """The first lets the step end and saves; the second ends the process at once."""
    arguments = ("example_normal", "--k=1", "--random-select")
    status, output = runs.start("one", *arguments, prepare=signals_at(2, number=number)).finish()
    assert status == 128 + number and f"{number.name}: finishing the step" in output, output
    assert last_state(runs.of("one"))["training"]["progress"]["step"] == 2
    twice = signals_at(2, number=number, times=2)
    status, output = runs.start("two", *arguments, prepare=twice).finish()
    assert status == 128 + number and "goes on" not in output, output
    assert last_state(runs.of("two"))["training"] is None


def test_a_network_with_dropout_goes_on_as_if_not_stopped(runs, tmp_path):
    """Batch normalisation's averages and what dropout draws are those of the whole run."""
    (tmp_path / "own.py").write_text(OWN)
    network = f"--network={tmp_path}/own.py:build"
    arguments = ("example_normal", "--k=1", "--winrate", "--lr=1e-2", network)
    assert runs.start("whole", *arguments).finish()[0] == 0
    status, output = runs.start("parts", *arguments, prepare=signals_at(2)).finish()
    assert status == 143 and f"--resume {runs.of('parts')} {network} goes on" in output
    status, output = runs.resume("parts", "example_normal", network).finish()
    assert status == 0, output
    assert_the_same(runs.of("parts"), runs.of("whole"))


def test_what_a_resumed_run_may_be_asked_for(runs):
    """It is the run that was begun; longer where that means the same steps before."""
    arguments = ("example_normal", "--k=2", "--random-select", "--seed=3")
    assert runs.start("parts", *arguments, prepare=signals_at(2)).finish()[0] == 143
    folder = runs.of("parts")
    for flags, sentence in (
        (("--seed=4",), "error: --seed 4: the run in"),
        (("--resume=/nowhere",), "error: --resume /nowhere: no run's folder"),
    ):
        given = flags if "resume" in flags[0] else (*flags, f"--resume={folder}")
        status, output = runs._start("parts", *given).finish()
        assert status == 2 and output.splitlines()[-1].startswith(sentence), output
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"processes": 2}))
    status, output = runs.resume("parts", "example_normal").finish()
    assert (
        status == 2
        and "was begun by 2 processes and goes on with as many, not 1" in output.splitlines()[-1]
    )
    (folder / "run.json").write_text(json.dumps(record))
    # asked to go on for longer, it stays so when it is stopped and resumed once more
    program = runs._start("parts", f"--resume={folder}", "--max-epochs=3", prepare=signals_at(5))
    assert program.finish()[0] == 143
    assert runs.resume("parts", "example_normal").finish()[0] == 0
    assert last_state(folder)["training"]["progress"]["epoch"] == 3
    assert json.loads((folder / "run.json").read_text())["command"] == record["command"]


# ---- on the same networks and views ---------------------------------------------------


@pytest.fixture
def stopped(rooms, networks, tmp_path):
    """A run on copies of rooms and networks, stopped after two steps, with flags to resume."""
    data, models = tmp_path / "data", tmp_path / "models"
    shutil.copytree(rooms, data)
    shutil.copytree(networks, models)
    runs = Runs(data, models, tmp_path)
    arguments = ("example_normal", "--k=1", "--random-select")
    assert runs.start("parts", *arguments, prepare=signals_at(2)).finish()[0] == 143
    return runs, data, models


def replace_network(data, models):
    row = TRANSFERS["normal", "principal_curvature"]
    save_network(models / row.checkpoint, row.build(Scale(32, 8)), Scale(32, 8))
    return "normal2curvature.pth is not the network that it began with"


def remove_view(data, models):
    for file in data.glob("agate_*/*/point_0_view_0_*"):
        file.unlink()
    return "train has 7 views now and had 8 then"


def overwrite_label(data, models):
    file = next(data.glob("agate_normal/normal/*.png"))
    Image.new("RGB", (64, 64), (200, 100, 50)).save(file)
    return "views of train or their files have changed"


@pytest.mark.parametrize("change", [replace_network, remove_view, overwrite_label])
def test_a_run_goes_on_with_the_networks_and_views_it_began_with(stopped, change):
    """Otherwise no step is taken, unless that is asked for."""
    runs, data, models = stopped
    folder = runs.of("parts")
    (tmp := folder.parent / "moved").mkdir()  # the folder's name and place do not count
    sentence = change(data, models)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    status, output = runs.resume("parts", "example_normal").finish()
    assert status == 2 and "Traceback" not in output
    assert sentence in output.splitlines()[-1] and "--resume-anyway" in output.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    status, output = runs.resume("parts", "example_normal", "--resume-anyway").finish()
    assert status == 0 and sentence in output, output
    tmp.rmdir()


def test_the_target_may_be_installed_while_its_run_is_stopped(stopped):
    """The weights it started from are in the state."""
    runs, _, models = stopped
    row = TRANSFERS["rgb", "normal"]
    save_network(models / row.checkpoint, row.build(Scale(32, 8)), Scale(32, 8))
    status, output = runs.resume("parts", "example_normal").finish()
    assert status == 0, output


def test_the_run_started_last_goes_on_finished_or_not(runs):
    arguments = ("example_normal", "--k=0", "--max-epochs=1")
    assert runs.start("several", *arguments, prepare=signals_at(1)).finish()[0] == 143
    older = runs.of("several")
    assert runs.start("several", *arguments).finish()[0] == 0
    # resuming the older one by its folder does not make it the last that was started
    assert runs._start("several", f"--resume={older}", prepare=signals_at(1)).finish()[0] == 143
    status, output = runs.resume("several", "example_normal").finish()
    (newer,) = set((runs.folder / "several").iterdir()) - {older}
    assert status == 0 and f"the run in {newer} has already taken all" in output
    # begun in the same second, the newer one's name is the older one's with a number
    assert str(older) not in output.replace(str(newer), "")
    # a run killed before its first state exists, and begins again
    for file in newer.iterdir():
        if file.name != "run.json":
            file.unlink()
    status, output = runs.resume("several", "example_normal").finish()
    assert status == 0 and "it begins again" in output
    assert (newer / "evaluation.json").is_file()


def test_two_processes_cannot_train_in_one_folder(stopped):
    runs, _, _ = stopped
    folder = runs.of("parts")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with only_process_in(folder):
        status, output = runs.resume("parts", "example_normal").finish()
    assert status == 2 and f"another process is writing into {folder}" in output.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_two_processes_that_resume_one_run(stopped):
    """The second one is refused while the first one trains, which goes on."""
    runs, _, _ = stopped
    folder, inside, gate = runs.of("parts"), runs.folder / "inside", runs.folder / "gate"

    def wait_in_a_step() -> None:
        call = training.loop.Step.__call__

        def waiting(*arguments):
            inside.touch()
            while not gate.exists():
                time.sleep(0.01)
            return call(*arguments)

        training.loop.Step.__call__ = waiting

    first = runs._start("first", f"--resume={folder}", prepare=wait_in_a_step)
    while not inside.exists() and not first.ended():
        time.sleep(0.01)
    status, output = runs._start("second", f"--resume={folder}").finish()
    gate.touch()
    assert status == 2 and f"another process is writing into {folder}" in output.splitlines()[-1]
    status, output = first.finish()
    assert status == 0, output


@pytest.mark.parametrize(
    "changes",
    [
        {"processes": "two"},
        {"arguments": []},
        {"arguments": {"config": None}},
        {"arguments": {"config": "example_normal", "k": "three"}},
        {"arguments": {"config": "example_normal", "lr": [1]}},
        {"inputs": 7, "arguments": {"config": "example_normal", "batch_size": 2.5}},
    ],
    ids=str,
)
def test_an_edited_record_is_one_sentence(tmp_path, changes):
    record = {"config": "example_normal", "processes": 1, "schedule": "constant",
              "arguments": Options("example_normal").flags()}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert recorded_options(tmp_path, Options(), 1).config == "example_normal"
    (tmp_path / "run.json").write_text(json.dumps(record | changes))
    with pytest.raises(UserError, match="run.json was changed"):
        recorded_options(tmp_path, Options(), 1)


@pytest.mark.parametrize(
    "flag, value",
    [("layouts", ["mine.py"]), ("data_dirs", ["data", "shards:pipe:cat rooms-{0..1}.tar"])],
)
def test_no_record_makes_a_resumed_run_execute_code(tmp_path, flag, value):
    flags = Options("example_normal").flags() | {flag: value}
    record = {"config": "example_normal", "processes": 1, "arguments": flags}
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=f"was begun with `{flag}` .*code is only run where you"):
        recorded_options(tmp_path, Options(), 1)
    again = Options.from_flags(Options().flags() | {flag: value})
    assert recorded_options(tmp_path, again, 1).flags()[flag] == value
    changed = Options.from_flags(Options().flags() | {flag: ["other.py"]})
    with pytest.raises(UserError, match="leave it out|was begun with"):
        recorded_options(tmp_path, changed, 1)


def test_records_that_cannot_be_read_are_passed_over(tmp_path, capsys):
    for name, text in (("a", ""), ("b", "[" * 10**5), ("c", '{"config": "x", "started": "?"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    assert find_folder(True, tmp_path, "x") == tmp_path / "c"
    assert capsys.readouterr().err.count("warning: passing over a run") == 2
    with pytest.raises(UserError, match="no run of y"):
        find_folder(True, tmp_path, "y")
    with pytest.raises(UserError, match="no run's folder"):
        find_folder("", tmp_path, None)


# ---- killed -------------------------------------------------------------------------


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
        if status != -signal.SIGKILL:  # it ended at that moment
            raise AssertionError(output)
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


# ---- states that cannot be read, folders that cannot be written ---------------------


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

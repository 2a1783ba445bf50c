"""Runs that are stopped and go on: as if nothing had happened, or not at all."""

import json
import signal
import time

import pytest
from PIL import Image
from small_runs import assert_the_same, last_state, signals_at
from test_backbones import OWN

import training.loop
from files import only_process_in
from models import save_network
from training.options import Options
from training.run_folder import find_folder, recorded_options
from transfers import TRANSFERS, Scale
from utils import UserError

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

"""scripts.reproduce: its stages as processes, resuming, and the whole."""

import gzip
import json
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_reproduction_report import record_seconds, store

import scripts.reproduce as program
import scripts.reproducing.running as running
import scripts.train_edges as train_edges
from files import write_json
from flags import as_arguments
from measuring.reproduction.carrying import keep
from measuring.reproduction.plan import plan
from measuring.reproduction.renewing import renew
from measuring.reproduction.results import whole_time
from measuring.reproduction.scales import SCALES
from measuring.reproduction.steps import (
    Places,
    Stage,
    Step,
)
from models import read_weights, save_atomically
from transfers import transfer_by_name
from utils import UserError, log

TINY = SCALES["tiny"]


# ---- the command line, and resuming -------------------------------------------------


def reproduce(run, folder, *words):
    return run(*words, "--scale=tiny", f"--output-dir={folder}", "--jobs=1",
               f"--report={folder / 'page' / 'results.md'}",
               program="scripts.reproduce", defaults=False)  # fmt: skip


class Ended:
    """A command that has ended."""

    def __init__(self, status=0):
        self.status = status

    def poll(self):
        return self.status

    def send_signal(self, number):
        raise AssertionError("it has ended")


def make_folder_of(command):
    """Make the folder into which a command renders rooms."""
    for word in command:
        if "scripts.make_rooms" in command and word.startswith("--output-dir="):
            Path(word.partition("=")[2]).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def commands(monkeypatch):
    """Commands are noted instead of run; the step "stop" fails."""
    noted = []

    def noting(command, log_file, jobs):
        noted.append((log_file.stem, command))
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_file.write_text("stopped")
        make_folder_of(command)
        return Ended(int(log_file.stem == noting.stop))

    noting.stop = ""
    monkeypatch.setattr(running, "start", noting)
    return noted, noting


def test_the_plan_alone(run, tmp_path):
    folder = tmp_path / "work"
    status, said, _ = reproduce(run, folder, "--dry", "--seeds=2")
    assert status == 0 and "trained/normal/1" in said and "rooms_test" in said, said
    assert "runs/consistency_normal_0/….pth" in said and not folder.exists()


def test_a_finished_stage_is_not_repeated_and_a_half_done_one_is(run, tmp_path, commands):
    noted, noting = commands
    noting.stop = "rooms_outdoor_light"
    status, said, _ = reproduce(run, tmp_path, "--only=rooms")
    assert status == 2 and "stopped" in said
    assert [name for name, _ in noted] == [
        "rooms_plain", "rooms_hard", "rooms_other_furniture", "rooms_outdoor_light"
    ]  # fmt: skip
    assert not (tmp_path / "stages" / "rooms.json").exists()
    noted.clear()
    noting.stop = ""
    status, said, _ = reproduce(run, tmp_path, "--only=rooms")
    assert status == 0 and [name for name, _ in noted] == [
        "rooms_outdoor_light", "rooms_other_camera"
    ]  # fmt: skip
    mark = json.loads((tmp_path / "stages" / "rooms.json").read_text())
    assert len(mark["commands"]) == 5 and mark["hardware"]["cores"] >= 1
    assert (tmp_path / "splits" / "refit.json").is_file()
    noted.clear()
    status, said, _ = reproduce(run, tmp_path, "--only=rooms")
    assert status == 0 and not noted and "rooms: done before" in said
    assert (tmp_path / "page" / "results.md").is_file()


def test_an_interrupted_training_is_resumed_and_its_time_adds_up(tmp_path, commands):
    noted, noting = commands
    step = next(s for stage in plan(TINY, tmp_path, 1) for s in stage.steps if s.program == "train")
    noting.stop = step.key
    with pytest.raises(UserError):
        list(running.do_step(step, tmp_path))
    begun = tmp_path / "runs" / step.key / "rgb2normal_1"
    begun.mkdir(parents=True)
    (begun / "run.json").write_text("{}")
    part = tmp_path / "steps" / f"{step.key}.part"
    first = json.loads(part.read_text())
    part.write_text(json.dumps(first | {"intervals": [[0.0, 100.0]]}))
    noting.stop = ""
    list(running.do_step(step, tmp_path))
    assert noted[0][1][:3] == [sys.executable, "-m", "train"] and "--resume" not in noted[0][1]
    assert noted[1][1][1:5] == ["-m", "train", "--resume", str(begun)]
    record = json.loads((tmp_path / "steps" / f"{step.key}.json").read_text())
    assert record["command"] == first["command"] and not part.exists()
    assert str(tmp_path) not in record["command"], "it can be kept, and read on another machine"
    assert record["intervals"][0] == [0.0, 100.0] and len(record["intervals"]) == 2


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--only=edges"], "the stage edges/rgb needs rooms"),
        (["--only=edgs"], "--only is one of rooms"),
        (["--scale=huge"], "--scale is tiny or quick or cpu or gpu"),
        (["--seeds=0"], "--seeds has to be more than 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, tmp_path, commands, words, sentence):
    status, said, _ = reproduce(run, tmp_path, *words) if "scale" not in words[0] else run(
        *words, program="scripts.reproduce", defaults=False)  # fmt: skip
    assert status == 2 and sentence in said and "Traceback" not in said, said
    assert not commands[0]


def test_a_folder_is_of_one_scale(run, tmp_path, commands):
    reproduce(run, tmp_path, "--only=rooms")
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scale": "cpu"}))
    status, said, _ = reproduce(run, tmp_path, "--only=rooms")
    assert status == 2 and "is of scale cpu" in said


def test_better_estimates_are_no_other_scale(tmp_path):
    size = SCALES["tiny"]
    assert program.claimed(tmp_path, "tiny", size, "output_dir")
    assert not program.claimed(tmp_path, "tiny", replace(size, step_seconds=9.0), "output_dir")
    with pytest.raises(UserError, match="another version"):
        program.claimed(tmp_path, "tiny", replace(size, steps=9), "output_dir")


# ---- stages at once -----------------------------------------------------------------


def python_stage(name, text, needs=(), program="python", steps=1):
    """A stage of steps whose command is Python's, with a text to run."""
    made = tuple(Step(f"{name}_{i}", program, (text,)) for i in range(steps))
    return Stage(name, tuple(needs), made)


@pytest.fixture
def texts(monkeypatch):
    """A step's first word is run as a Python text."""
    first = running.start

    def starting(command, log_file, jobs):
        return first([sys.executable, "-c", command[3]], log_file, jobs)

    monkeypatch.setattr(running, "start", starting)


def waiting_for(folder: Path, mine: str, other: str) -> str:
    """A text that ends once another one has begun; it fails if that is not soon."""
    return (f"import pathlib, time; pathlib.Path({str(folder / mine)!r}).touch()\n"
            f"for _ in range(600):\n"
            f"    if pathlib.Path({str(folder / other)!r}).exists(): break\n"
            f"    time.sleep(0.1)\nelse: raise SystemExit('alone')")  # fmt: skip


def test_stages_at_once(texts, tmp_path, monkeypatch):
    """Two stages that need one another's beginning; the third begins when its needs are done."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    ended = []
    stages = [
        python_stage("a", waiting_for(tmp_path, "a", "b")),
        python_stage("b", waiting_for(tmp_path, "b", "a")),
        python_stage("c", "import os; print(os.environ['OMP_NUM_THREADS'])", ["a", "b"], steps=2),
    ]
    running.do_stages(stages, tmp_path, 2, lambda: ended.append(1))
    assert len(ended) == 3
    marks = [json.loads((tmp_path / "stages" / f"{n}.json").read_text()) for n in "abc"]
    assert [len(mark["intervals"]) for mark in marks] == [1, 1, 2]
    last = max(end for mark in marks[:2] for _, end in mark["intervals"])
    assert all(begun >= last for begun, _ in marks[2]["intervals"])
    assert marks[2]["hardware"]["jobs"] == 2
    assert int((tmp_path / "logs" / "c_0.log").read_text()) >= 1


def test_a_command_that_fails_ends_the_others(texts, tmp_path):
    stages = [
        python_stage("a", waiting_for(tmp_path, "a", "never")),
        python_stage("b", waiting_for(tmp_path, "b", "a") + "\nraise SystemExit('last words')"),
        python_stage("c", "print('not reached')"),
    ]
    with pytest.raises(UserError, match=r"b_0 failed with status 1 .*: last words"):
        running.do_stages(stages, tmp_path, 2, lambda: None)
    assert {file.name for file in (tmp_path / "steps").iterdir()} == {"a_0.part", "b_0.part"}
    assert not (tmp_path / "stages").exists() and not (tmp_path / "logs" / "c_0.log").exists()


def test_a_signal_ends_all_commands(texts, tmp_path, caplog):
    """SIGTERM, here from one of the commands, ends all; their times count the next time."""
    stop = f"import os, signal; os.kill({os.getpid()}, signal.SIGTERM)\n"
    stages = [
        python_stage("a", waiting_for(tmp_path, "a", "never")),
        python_stage("b", waiting_for(tmp_path, "b", "a") + "\n" + stop
                     + waiting_for(tmp_path, "b", "never")),
    ]  # fmt: skip
    caplog.set_level("INFO", log.name)
    with pytest.raises(SystemExit) as ended:
        running.do_stages(stages, tmp_path, 2, lambda: None)
    assert ended.value.code == 128 + signal.SIGTERM
    assert "the same command goes on" in caplog.text
    assert len(list((tmp_path / "steps").glob("*.part"))) == 2


def test_time_in_which_several_stages_run_counts_once():
    assert whole_time([[0, 10], [2, 5], [8, 12], [20, 21]]) == pytest.approx(13)
    assert whole_time([]) == 0


# ---- on another machine, and the whole ------------------------------------------------


@pytest.fixture
def begun(run, tmp_path, commands):
    """A reproduction whose trainings are done: its folder, its small copies, a call for another.

    The call goes on from the copies in a folder of that name, and returns status, output, and the
    steps that were done.
    """
    noted, _ = commands
    here, kept = tmp_path / "here", tmp_path / "kept"
    stages = plan(TINY, here, 2, program.is_trainable)
    made = {m for stage in stages for step in stage.steps for m in step.networks()}

    def training(command, log_file, jobs):  # leaves the networks that other steps read
        name, folder = log_file.stem, log_file.parents[1]
        noted.append((name, command))
        make_folder_of(command)
        files = [folder / "runs" / name / "run_1" / f"rgb2normal_x{'_best' * network.best}.pth"
                 for network in made if network.step == name]  # fmt: skip
        if "--install" in command:
            files.append(folder / "models" / transfer_by_name(command[3]).checkpoint)
        if name == "refits":
            files.append(folder / "energy_models" / "depth_zbuffer2normal.pth")
        if "train" in command:
            record_seconds(folder / "runs" / name / "run_1", 10.0)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_atomically(file, {"state_dict": {"weight": torch.linspace(0, 1, 10_000)}})
        return Ended()

    running.start = training  # `commands` has replaced it, and puts it back
    for name in ("rooms", "baselines", "edges", "refits", "trained", "fractions"):
        status, said, _ = reproduce(run, here, f"--only={name}", f"--keep={kept}")
        assert status == 0, said
    store(Places(here), "test_normal_0", {"without 0": 1.0, "consistency 0": 0.9})
    reproduce(run, here, "--only=fractions", f"--keep={kept}")

    def go_on(name: str, *words: str) -> tuple[int, str, list[str]]:
        noted.clear()
        status, said, _ = reproduce(run, tmp_path / name, f"--keep={kept}", *words)
        return status, said, [step for step, _ in noted]

    return here, kept, go_on


NETWORK = Path("runs/consistency_normal_0/run_1/rgb2normal_x.pth")


def test_a_reproduction_goes_on_elsewhere(begun):
    """From small copies: what is done is not repeated, and rooms are rendered again."""
    here, kept, go_on = begun
    assert "trained_normal_0" in {file.stem for file in (kept / "stages").iterdir()}
    assert (kept / NETWORK).stat().st_size < 0.6 * (here / NETWORK).stat().st_size
    status, said, names = go_on("there")
    assert status == 0 and "files restored" in said, said
    assert "[1/" in said and "trained/normal/0: done before" in said, said
    assert {"rooms_plain", "test_rooms_hard", "methods_normal", "shift_labels"} <= set(names)
    assert not {"baseline_normal", "consistency_normal_0", "refits"} & set(names)
    (value,), (restored,) = (read_weights(folder / NETWORK)[0].values()
                             for folder in (here, here.parent / "there"))  # fmt: skip
    assert torch.equal(restored, value.half().float())
    assert not list((kept / "runs").rglob("*.pth")), "all is done: no network is needed"
    assert (kept / "stages" / "rooms.json").is_file()
    status, said, names = go_on("third", "--seeds=2", "--questions=errors")
    assert status == 0 and "results are no longer there" in said, said
    # what another seed needs is made again, and no more
    assert {"rooms_plain", "baseline_normal", "consistency_normal_1",
            "test_normal_1"} <= set(names)  # fmt: skip
    assert not {"refits", "methods_normal", "shorter_normal_1", "test_normal_0",
                "consistency_normal_0"} & set(names)  # fmt: skip
    assert max(Counter(names).values()) == 1


def test_the_same_measurements_make_the_same_copies(tmp_path):
    """So that copies in a repository change only where what was measured has changed."""
    places, copies = Places(tmp_path / "work"), [tmp_path / "one", tmp_path / "two"]
    store(places, "test_normal_0", {"without 0": 1.0})
    for kept in copies:
        keep(places.folder, kept, [], [])
    one, two = (kept / "measured" / "test_normal_0" / "images.csv.gz" for kept in copies)
    assert one.read_bytes() == two.read_bytes() and gzip.decompress(one.read_bytes())


def test_the_report_is_written_from_copies_alone(begun):
    here, kept, go_on = begun
    before = {file: file.stat().st_mtime_ns for file in kept.rglob("*")}
    status, said, names = go_on("there", "--only=report")
    assert status == 0 and "files restored" in said and not names, said
    text = (here.parent / "there" / "page" / "results.md").read_text(encoding="utf-8")
    assert "-10.0 % [-10.0, -10.0]" in text
    assert {file: file.stat().st_mtime_ns for file in kept.rglob("*")} == before


def test_copies_are_elsewhere_and_of_the_same_scale(begun):
    here, kept, go_on = begun
    status, said, _ = go_on("kept")
    assert status == 2 and "--output-dir itself" in said
    (kept / "plan.json").write_text('{"scale": "cpu"}')
    status, said, _ = go_on("there")
    assert status == 2 and "is of scale cpu" in said and "--keep" in said


def test_test_views_are_removed_before_training_goes_on(tmp_path):
    """They are rendered again after it, so no training can have read them."""
    places = Places(tmp_path)
    rooms = places.rooms("hard", test=True)
    stages = [
        Stage("weights", (), (Step("a", "train", ("multiperceptual_normal",)),)),
        Stage("test_rooms", (), (Step("b", "scripts.make_rooms", (), {"output_dir": rooms}),),
              after=("weights",)),
        Stage("evaluation/weights", ("test_rooms",), (Step("c", "scripts.evaluate"),)),
    ]  # fmt: skip

    def renewed_after_all_but(*left):
        rooms.mkdir(parents=True, exist_ok=True)
        for stage in stages:
            write_json(places.stage_mark(stage.name), {})
        for name in left:
            places.stage_mark(name).unlink()
        renew(stages, stages, places)

    renewed_after_all_but("evaluation/weights")
    assert rooms.is_dir() and places.stage_mark("test_rooms").exists(), "no training is left"
    for half_done in ((), ("test_rooms",)):
        renewed_after_all_but("evaluation/weights", "weights", *half_done)
        assert not rooms.exists() and not places.stage_mark("test_rooms").exists()


def test_an_empty_report_says_what_was_not_measured(run, tmp_path, commands):
    status, said, _ = reproduce(run, tmp_path, "--only=report")
    assert status == 0 and not commands[0], said
    text = (tmp_path / "page" / "results.md").read_text(encoding="utf-8")
    assert text.count("not measured") >= 5 and "0 of" in text


@pytest.mark.slow
def test_from_nothing_to_the_report(run, tmp_path, monkeypatch):
    """The tiny scale end to end, in a folder with a space in its name.

    Every command runs through its program's command line, in this process.
    """
    folder = tmp_path / "all of it"

    def call(module, words):
        status, said, _ = run(*words, program=module, defaults=False)
        assert status == 0, f"{module} {words}: {said}"

    def run_here(command, log_file, jobs):
        call(command[2], command[3:])
        return Ended()

    def train_here(trainer, transfer, flags):
        call(trainer, [transfer, *as_arguments({**flags, "visdom_server": "none"})])
        return 0

    monkeypatch.setattr(running, "start", run_here)
    monkeypatch.setattr(train_edges, "_run", train_here)
    page, count = folder / "page" / "results.md", len(plan(TINY, folder, 1))
    program.main(scale="tiny", output_dir=str(folder), report=str(page), jobs=1)
    text = page.read_text(encoding="utf-8")
    assert f"{count} of {count} stages are done" in text
    for word in ("test rooms | without |", "| 50 % |", "other_camera | 2 |", "are chosen",
                 "noise_0.1 | 2 |", "| geonet |", "unsupervised against without"):  # fmt: skip
        assert word in text, word
    assert "not measured" not in text
    assert "random_perceptual" not in text or program.is_trainable("random_perceptual_normal")
    assert (page.parent / "results" / "auc.png").is_file()
    monkeypatch.setattr(running, "start", None)  # nothing is run again
    program.main(scale="tiny", output_dir=str(folder), report=str(page), jobs=1)

"""scripts.reproduce: its plan, its stages as processes, resuming, and the whole."""

import json
import os
import shlex
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_reproduction_report import store

import scripts.reproduce as program
import scripts.reproducing.running as running
import scripts.train_edges as train_edges
from files import write_json
from flags import accepted, as_arguments
from graph import edges_of
from measuring.reproduction.plan import QUESTIONS, chosen, plan
from measuring.reproduction.renewing import renew
from measuring.reproduction.results import whole_time
from measuring.reproduction.scales import SCALES
from measuring.reproduction.steps import (
    EQUAL_TIME,
    Made,
    Places,
    Stage,
    Step,
    splits,
    trained_key,
)
from methods.interface import TARGETS
from methods.table import METHODS
from models import read_weights, save_atomically
from training.objective import find_config
from transfers import TRANSFERS, any_transfer, transfer_by_name
from utils import UserError, log

TINY = SCALES["tiny"]
TESTS = ("evaluation", "energy")  # the groups of stages that read test views


def text_of(step: Step, folder: Path) -> str:
    return shlex.join(running.command_of(step, folder, shown=True))


def record_seconds(run_folder: Path, seconds: float) -> None:
    """Write what a training records of the time that its steps took."""
    taken = {"trained": {"steps": 2, "seconds": seconds, "peak_mib": 1.0}}
    write_json(run_folder / "run.json", {"taken": taken})


# ---- the plan -----------------------------------------------------------------------


PARTS = [{}, *({"questions": [name]} for name in QUESTIONS),
         {"targets": ["depth"], "questions": ["errors"]}]  # fmt: skip


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("scale", SCALES)
def test_no_stage_reads_test_views_before_the_evaluation(scale, part, tmp_path):
    """Test rooms have a folder of their own, rendered after everything that trains or chooses."""
    if not set(part.get("targets", [])) <= set(SCALES[scale].targets):
        pytest.skip("the scale has no such target")
    stages = plan(SCALES[scale], tmp_path, 2, **part)
    names = [stage.name for stage in stages]
    made = names.index("test_rooms")
    assert stages[made].after == tuple(names[:made])
    for number, stage in enumerate(stages):
        texts = [text_of(step, tmp_path) for step in stage.steps]
        reads = [text for text in texts if "rooms_test" in text or "test0" in text]
        if number < made:
            assert not reads, stage.name
        elif number > made:
            assert reads == texts and "test_rooms" in stage.needs, stage.name
            assert stage.name.partition("/")[0] in TESTS
            assert not any(step.program in ("train", "scripts.train_edges") for step in stage.steps)
    for split in splits(SCALES[scale]).values():
        assert not any("test" in name for part in split.values() for name in part)
        assert not set(split["train_buildings"]) & set(split["val_buildings"])
    refit, train = (set(splits(SCALES[scale])[n]["train_buildings"]) for n in ("refit", "train"))
    assert not refit & train


@pytest.mark.parametrize("scale", SCALES)
def test_every_command_is_one_of_the_programs_with_its_flags(scale, tmp_path):
    """No flag of the plan is unknown, and no word names a configuration that is not there."""
    stages = plan(SCALES[scale], tmp_path, 1, program.is_trainable)
    steps = [step for stage in stages for step in stage.steps]
    assert max(Counter(step.key for step in steps).values()) == 1
    for step in steps:
        if step.program == "copy":
            continue
        module = __import__(step.program, fromlist=["main"])
        known = accepted(module.main)
        assert set(step.flags) <= set(known), step.key
        if step.program in ("train", "scripts.train_edges") and step.words != ("energy_calc",):
            find_config(str(step.words[0]))
    before: set[str] = set()
    for stage in stages:
        assert {*stage.needs, *stage.after} <= before, stage.name
        before.add(stage.name)
        if scale == "cpu":
            assert stage.minutes(SCALES[scale]) < 60
    size = SCALES[scale]
    stages = plan(size, tmp_path, size.seeds, program.is_trainable)
    total = sum(stage.minutes(size) for stage in stages)
    assert total < {"tiny": 15, "quick": 15, "cpu": 480, "gpu": 60}[scale]


@pytest.mark.parametrize("scale", SCALES)
def test_each_network_is_trained_once_and_before_it_is_needed(scale, tmp_path):
    size, there = SCALES[scale], set()
    for stage in plan(size, tmp_path, 1, program.is_trainable):
        for step in stage.steps:
            if step.flags.get("install"):
                assert step.words[0] not in there, step.key
                there.add(step.words[0])
            elif step.program == "copy":
                there.add(Path(step.words[1]).name)
            elif step.program == "train" and not str(step.words[0]).startswith("rgb2"):
                made = {TRANSFERS["rgb", TARGETS[target]].checkpoint for target in size.targets}
                rgb = {f"rgb2{TARGETS[target]}" for target in size.targets}
                needed = {
                    row.name
                    for row in map(
                        any_transfer,
                        *zip(*edges_of(find_config(str(step.words[0]))["paths"]), strict=True),
                    )
                    if row.trainable
                }
                assert made <= there and needed - rgb <= there, step.key


def test_a_method_that_is_not_there_is_not_in_the_plan(tmp_path):
    def keys(is_known):
        return {step.key for stage in plan(TINY, tmp_path, 1, is_known) for step in stage.steps}

    name = trained_key("random_perceptual", "normal", 0)
    assert name in keys(lambda config: True)
    left = keys(lambda config: not config.startswith("random_perceptual"))
    assert name not in left and trained_key("consistency", "normal", 0) in left


def test_more_seeds_are_trained_and_measured_again(tmp_path):
    one, two = ({step.key: step for stage in plan(TINY, tmp_path, n) for step in stage.steps}
                for n in (1, 2))  # fmt: skip
    new = set(two) - set(one)
    assert {trained_key(m, "normal", 1) for m in ("consistency", "without", EQUAL_TIME)} <= new
    assert {"test_normal_2", "blur_2_normal_2"} <= new and "rooms_plain" not in new
    assert two["test_normal_2"].flags["output_dir"] == one["test_normal_1"].flags["output_dir"]


def test_equal_time_is_measured(tmp_path):
    """The training without consistency gets as many steps as the other's steps leave time for."""
    stage = next(s for s in plan(TINY, tmp_path, 1) if s.name == "trained/normal/0")
    step = next(s for s in stage.steps if s.as_long_as)
    assert step.key == trained_key(EQUAL_TIME, "normal", 0)
    with pytest.raises(UserError, match="does not tell how long"):
        running.command_of(step, tmp_path)
    for key, seconds in zip(step.as_long_as, (35.0, 10.0), strict=True):
        record_seconds(tmp_path / "runs" / key / "run_1", seconds)
    command = running.command_of(step, tmp_path)
    assert f"--steps-per-epoch={3.5 * TINY.steps:.0f}" in command and "--max-epochs=1" in command


def test_stages_are_chosen_by_name_or_group(tmp_path):
    stages = plan(TINY, tmp_path, 2)
    names = [s.name for s in chosen(stages, "trained") if not s.name.endswith("others")]
    assert names == ["trained/normal/0", "trained/normal/1"]
    assert [s.name for s in chosen(stages, "refits")] == ["refits"]
    assert chosen(stages, None) == stages
    with pytest.raises(UserError, match="`only` is one of rooms, .*did you mean edges"):
        chosen(stages, "edgs")


def test_a_part_of_the_plan_answers_a_question(tmp_path):
    """A part has what its evaluation reads, and no more; all parts together are the whole plan."""
    size = SCALES["cpu"]
    whole = plan(size, tmp_path, 2)
    parts = {name: plan(size, tmp_path, 2, questions=[name]) for name in QUESTIONS}
    assert {s.name for part in parts.values() for s in part} == {s.name for s in whole}
    errors = {stage.name for stage in parts["errors"]}
    assert "evaluation/degraded/2" in errors and "trained/depth/1/others" in errors
    assert not {"refits", "edges/energy", "weights", "methods/cycle"} & errors
    assert "refits" in {stage.name for stage in parts["energy"]}
    assert "trained/normal/0" in {stage.name for stage in parts["views"]}
    depth = {stage.name for stage in plan(size, tmp_path, 2, targets=["depth"])}
    assert depth == {
        "rooms", "baselines/depth", "edges/rgb", "edges/depth", "test_rooms", "evaluation/depth/2",
        *(f"trained/depth/{seed}{end}" for seed in (0, 1) for end in ("", "/others")),
    }  # fmt: skip
    with pytest.raises(UserError, match="`questions` is errors or start .* not losess; did you"):
        plan(size, tmp_path, 1, questions=["losess"])
    with pytest.raises(UserError, match="but errors are about normal"):
        plan(size, tmp_path, 1, targets=["depth"], questions=["energy"])


def test_a_baseline_is_not_replaced_by_a_shorter_training(tmp_path):
    """Networks rgb → other targets are trained shortly, unless their baseline is there."""
    size, places = SCALES["cpu"], Places(tmp_path)

    def trained():
        stages = plan(size, tmp_path, 1, targets=["depth"])
        return {str(s.words[0]) for stage in stages for s in stage.steps if s.flags.get("install")}

    assert {"rgb2normal", "rgb2reshading"} <= trained() and "rgb2depth_zbuffer" not in trained()
    for file in (places.step_mark("baseline_normal_copy"),
                 places.models / TRANSFERS["rgb", "normal"].checkpoint):  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert "rgb2reshading" in trained() and "rgb2normal" not in trained()


def test_the_network_of_a_run(tmp_path):
    run = tmp_path / "runs" / "a" / "rgb2normal_1"
    run.mkdir(parents=True)
    for name in ("rgb2normal.pth", "rgb2normal_best.pth", "state_1.pt"):
        (run / name).touch()
    assert Made("a").file(tmp_path).name == "rgb2normal.pth"
    assert Made("a", best=True).file(tmp_path).name == "rgb2normal_best.pth"
    with pytest.raises(UserError, match="has 0 networks that fit"):
        Made("b").file(tmp_path)


def test_every_method_is_in_the_plan_and_measured(tmp_path):
    """All that docs/methods.md trains, for equal steps, and evaluated as one table."""
    stages = {stage.name: stage for stage in plan(TINY, tmp_path, 1)}
    trainings = [s for stage in stages.values() for s in stage.steps if s.program == "train"]
    words = {str(step.words[0]).rpartition("_")[0]: step for step in trainings}
    words |= {"baseline": words["multiperceptual"], "perceptual": words["multiperceptual"]}
    named = {name for name, row in METHODS.items() if not row.untrained}
    assert named <= set(words)
    for name in named:
        assert words[name].flags["max_epochs"] == TINY.trained_epochs
    assert words["multitask"].flags["init"] == "scratch"
    assert words["pix2pix"].flags["init"] == words["cycle"].flags["init"] == "baseline"
    (step,) = stages["evaluation/methods"].steps
    assert len(step.words) == len(named) and "geonet" in step.flags["labels"]
    made = next(m for m in step.networks() if m.step == trained_key("global", "normal", 0))
    run = tmp_path / "runs" / made.step / "global_normal_1"
    run.mkdir(parents=True)
    for name in ("rgb2normal_global", "rgb2normal_global_best", "rgb2reshading_global"):
        (run / f"{name}.pth").touch()
    assert made.file(tmp_path).name == "rgb2normal_global.pth"


def test_degraded_views_are_trained_on_and_measured_alike(tmp_path):
    stages = {stage.name: stage for stage in plan(TINY, tmp_path, 1)}
    for step in stages["adaptation/noise_0.1"].steps:
        assert step.flags["shift"] == "noise:0.1" and step.flags["split"].stem == "adapt"
    (step,) = (s for s in stages["evaluation/few_views"].steps if s.key == "adapted_noise_0.1")
    assert step.flags["shift"] == "noise:0.1" and "rooms_test" in text_of(step, tmp_path)


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


def test_a_reproduction_goes_on_elsewhere(run, tmp_path, commands):
    """From small copies: what is done is not repeated, and rooms are rendered again."""
    noted, noting = commands
    here, there, kept = (tmp_path / name for name in ("here", "there", "kept"))
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
    wanted = ("rooms", "baselines", "edges", "refits", "trained", "fractions")
    for name in wanted:
        status, said, _ = reproduce(run, here, f"--only={name}", f"--keep={kept}")
        assert status == 0, said
    store(Places(here), "test_normal", {"without 0": 1.0, "consistency 0": 0.9})
    reproduce(run, here, "--only=fractions", f"--keep={kept}")
    marks = {file.stem for file in (kept / "stages").iterdir()}
    assert "trained_normal_0" in marks
    network = kept / "runs" / "consistency_normal_0" / "run_1" / "rgb2normal_x.pth"
    ours = here / network.relative_to(kept)
    assert network.stat().st_size < 0.6 * ours.stat().st_size
    noted.clear()
    status, said, _ = reproduce(run, there, f"--keep={kept}", "--only=report")
    assert status == 0 and "files restored" in said and not noted, said
    assert "-10.0 % [-10.0, -10.0]" in (there / "page" / "results.md").read_text(encoding="utf-8")
    status, said, _ = reproduce(run, there, f"--keep={kept}")
    assert status == 0 and "[1/" in said and "trained/normal/0: done before" in said, said
    names = [name for name, _ in noted]
    assert {"rooms_plain", "test_rooms_hard", "methods_normal", "shift_labels"} <= set(names)
    assert not {"baseline_normal", "consistency_normal_0", "refits"} & set(names)
    (value,), (restored,) = (read_weights(folder / network.relative_to(kept))[0].values()
                             for folder in (here, there))  # fmt: skip
    assert torch.equal(restored, value.half().float())
    assert not list((kept / "runs").rglob("*.pth")), "all is done: no network is needed"
    assert (kept / "stages" / "rooms.json").is_file()
    before = {file: file.stat().st_mtime_ns for file in kept.rglob("*")}
    status, said, _ = reproduce(run, tmp_path / "report", f"--keep={kept}", "--only=report")
    assert status == 0 and {f: f.stat().st_mtime_ns for f in kept.rglob("*")} == before, said
    noted.clear()  # on a third machine: what another seed needs is made again, and no more
    status, said, _ = reproduce(run, tmp_path / "third", f"--keep={kept}", "--seeds=2",
                                "--questions=errors")  # fmt: skip
    assert status == 0 and "results are no longer there" in said, said
    names = [name for name, _ in noted]
    assert {"rooms_plain", "baseline_normal", "consistency_normal_1", "test_normal_2",
            "consistency_normal_0"} <= set(names)  # fmt: skip
    assert not {"refits", "methods_normal", "shorter_normal_1", "test_normal_1"} & set(names)
    assert max(Counter(names).values()) == 1
    status, said, _ = reproduce(run, there, f"--keep={there}")
    assert status == 2 and "--output-dir itself" in said
    (kept / "plan.json").write_text('{"scale": "cpu"}')
    status, said, _ = reproduce(run, there, f"--keep={kept}")
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

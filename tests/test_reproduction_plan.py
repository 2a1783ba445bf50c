"""The plan of scripts.reproduce: its stages, their commands, what needs what."""

import shlex
from collections import Counter
from pathlib import Path

import pytest
from test_reproduction_report import record_seconds

import scripts.reproduce as program
import scripts.reproducing.running as running
from flags import accepted
from graph import edges_of
from measuring.reproduction.plan import QUESTIONS, chosen, plan
from measuring.reproduction.scales import SCALES
from measuring.reproduction.steps import (
    EQUAL_TIME,
    Made,
    Places,
    Step,
    splits,
    trained_key,
)
from methods.interface import TARGETS
from methods.table import METHODS
from training.objective import find_config
from transfers import TRANSFERS, any_transfer
from utils import UserError

TINY = SCALES["tiny"]
TESTS = ("evaluation", "energy")  # the groups of stages that read test views


def text_of(step: Step, folder: Path) -> str:
    return shlex.join(running.command_of(step, folder, shown=True))


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


def test_another_seed_is_trained_and_measured_alone(tmp_path):
    one, two = ({step.key: step for stage in plan(TINY, tmp_path, n) for step in stage.steps}
                for n in (1, 2))  # fmt: skip
    new = set(two) - set(one)
    assert {trained_key(m, "normal", 1) for m in ("consistency", "without", EQUAL_TIME)} <= new
    assert {"test_normal_1", "blur_2_normal_1", "shorter_normal_1"} <= new
    assert "rooms_plain" not in new and "test_normal_0" not in new
    assert all(two[key].flags == step.flags for key, step in one.items())
    measured = two["test_normal_1"]
    assert measured.flags["labels"][0] == "consistency 1", "the baseline is measured with seed 0"
    assert all(made.step.endswith("_1") for made in measured.networks())


def test_validation_is_each_epoch_only_where_it_decides(tmp_path):
    """The best baseline, and the losses with the highest win rates, are chosen by validation."""
    size = SCALES["cpu"]
    steps = {s.key: s for stage in plan(size, tmp_path, 1) for s in stage.steps}
    rates = {key: step.flags.get("validate_every", 1) for key, step in steps.items()
             if step.program == "train"}  # fmt: skip
    once = {key for key, every in rates.items() if every == size.trained_epochs}
    assert {"consistency_normal_0", "without_normal_0", "random_perceptual_depth_0"} <= once
    decided = {"baseline_normal", "baseline_short_normal_0", "2_by_win_rate_normal_0",
               "edge_normal2reshading"}  # fmt: skip
    assert all(rates[key] == 1 for key in decided)


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
    assert {f"evaluation/degraded/{seed}" for seed in (0, 1)} <= errors
    assert "trained/depth/1/others" in errors
    assert not {"refits", "edges/energy", "weights", "methods/cycle"} & errors
    assert "refits" in {stage.name for stage in parts["energy"]}
    assert "trained/normal/0" in {stage.name for stage in parts["views"]}
    depth = {stage.name for stage in plan(size, tmp_path, 2, targets=["depth"])}
    assert depth == {
        "rooms", "baselines/depth", "edges/rgb", "edges/depth", "test_rooms",
        "evaluation/depth/0", "evaluation/depth/1",
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

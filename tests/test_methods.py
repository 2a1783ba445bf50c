"""Every method by its command, and what a method promises to the trainer."""

import json
from dataclasses import replace

import pytest
import torch

import methods.table
from energy import loss_name
from methods.interface import ALL, TARGETS
from methods.table import METHODS, find_method
from models import read_record, read_weights
from training.options import Options, objective_of
from utils import UserError

QUICK = ("--perceptual=curv,edge", "--steps-per-epoch=2", "--visdom-server=none")


# the networks that train besides rgb → normal
OTHERS = {
    "pix2pix": ["discriminator"],
    "cycle": ["normal2rgb", "discriminator_normal", "discriminator_rgb"],
}


def best_of(checkpoint):
    return f"{checkpoint.stem}_best.pth"


def run_folder(results):
    (folder,) = results.iterdir()
    return folder


@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if not m.untrained])
def test_two_steps_by_the_command_line(run, name):
    trains_on = METHODS[name].trained_losses("normal")
    more = {loss_name(loss) for loss in trains_on if METHODS[name].trains_on != ALL} - {"edge"}
    status, output, results = run(f"{name}_normal", *QUICK[1:], ",".join([QUICK[0], *more]))
    assert status == 0, output
    folder = run_folder(results)
    record = json.loads((folder / "run.json").read_text())
    assert (record["method"], record["taken"]["trained"]["steps"]) == (name, 2)
    assert record["taken"]["trained"]["seconds"] > 0 and "trained: 2 steps in" in output
    checkpoint = folder / f"rgb2normal_{METHODS[name].ending}.pth"
    assert read_record(checkpoint)["method"] == name
    columns = json.loads((folder / "evaluation.json").read_text())
    assert list(columns) == ["before", "trained"]
    others = {file.name for file in folder.glob("*.pth")} - {checkpoint.name, best_of(checkpoint)}
    assert others == {f"{other}_{name}.pth" for other in OTHERS.get(name, ())}
    log = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    (trained,) = (line for line in log if line.get("split") == "train")
    assert all(torch.tensor(v).isfinite() for v in trained.values() if isinstance(v, float))
    assert {"percep_curv × 100, predicted", "percep_edge × 100, true"} <= set(columns["trained"])


def test_every_method_has_a_sentence_and_known_targets():
    for name, method in METHODS.items():
        assert name == method.name and method.summary.endswith(".")
        assert set(method.targets) <= set(TARGETS)
        for target in method.targets:
            assert find_method(f"{name}_{target}") == (method, TARGETS[target])


def test_the_main_job_is_a_method():
    for target in TARGETS:
        names = (f"multiperceptual_{target}", f"perceptual_{target}")
        old, new = (objective_of(Options(name)) for name in names)
        assert replace(old, name=new.name) == new and new.method is METHODS["perceptual"]


@pytest.mark.parametrize(
    "typo, meant",
    [("baselin_normal", "baseline_normal"), ("perceptual_normals", "perceptual_normal"),
     ("baseline_dept", "baseline_depth"), ("cyle_normal", "cycle_normal")],
)  # fmt: skip
def test_names_with_typos(typo, meant):
    with pytest.raises(UserError, match=f"no configuration, method .*{typo}.*mean {meant}"):
        objective_of(Options(typo))


def test_the_baseline_trains_on_the_direct_loss_alone(run):
    weights = []
    for name in ("baseline_normal", "multiperceptual_normal"):
        status, output, results = run(name, *QUICK, *["--k=0"] * (name != "baseline_normal"))
        assert status == 0, output
        folder = max(results.iterdir(), key=lambda path: path.stat().st_mtime)
        weights.append(read_weights(next(folder.glob("rgb2normal_*e.pth"), None)
                                    or folder / "rgb2normal_consistency.pth")[0])  # fmt: skip
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    status, output, _ = run("baseline_normal", *QUICK, "--k=1")
    assert status == 2 and "there are 0 perceptual losses" in output
    status, output, _ = run("baseline_normal", *QUICK, "--compare-direct")
    assert status == 2 and "nothing for --compare-direct" in output


def test_training_for_a_time_ends_with_an_epoch_and_goes_on(run):
    flags = (*QUICK, "--max-epochs=3", "--max-seconds=1e-6")
    status, output, results = run("baseline_normal", *flags)
    assert status == 0 and "trained: 2 steps in" in output, output
    folder = run_folder(results)
    first = json.loads((folder / "run.json").read_text())["taken"]["trained"]
    status, output, _ = run("--resume", str(folder), "--max-seconds=1000", defaults=False)
    assert status == 0 and "trained: 6 steps in" in output, output
    taken = json.loads((folder / "run.json").read_text())["taken"]["trained"]
    assert taken["steps"] == 6 and taken["seconds"] > first["seconds"]


def test_a_method_that_is_not_trained_says_so(monkeypatch):
    row = replace(METHODS["baseline"], untrained="it is not trained here: run the demo")
    monkeypatch.setitem(methods.table.METHODS, "baseline", row)
    with pytest.raises(UserError, match="baseline_depth: it is not trained here"):
        objective_of(Options("baseline_depth"))

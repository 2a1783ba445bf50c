"""Every method by its command, and what a method promises to the trainer."""

import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

import consistency
import methods.table
from energy import loss_name
from graph import TaskGraph
from loading.addresses import TASKONOMY
from measuring.demo_networks import choose_methods
from measuring.exporting import export
from methods.interface import ALL, TARGETS
from methods.random_networks import random_graph
from methods.table import METHODS, find_method
from models import read_record, read_weights
from modules import ShiTomasi
from scripts.train_edges import _needed
from sources import Sources
from training.curves import figure_of, read_curves
from training.installing import installed_file
from training.objective import objective_of
from training.options import Options
from transfers import TRANSFERS, Scale, transfer_by_name
from utils import ROOT, UserError

SCALE = Scale(32, 8)  # of the networks in conftest
QUICK = ("--perceptual=curv,edge", "--steps-per-epoch=2", "--visdom-server=none")


# the networks that train besides rgb → normal
OTHERS = {
    "pix2pix": ["discriminator"],
    "cycle": ["normal2rgb", "discriminator_normal", "discriminator_rgb"],
    "global": [
        f"{source}2{target}"
        for source in ("rgb", "normal", "depth_zbuffer", "reshading")
        for target in ("normal", "depth_zbuffer", "reshading")
        if source != target and (source, target) != ("rgb", "normal")
    ],
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


@pytest.mark.slow
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


# ---- consistency without other labels -----------------------------------------------


def test_corners_are_the_smaller_eigenvalues():
    """Against SciPy's filters and NumPy's eigenvalues."""
    image = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0)).double()
    found = ShiTomasi()(image)
    assert found.shape == (2, 1, 20, 24) and found.dtype == torch.float64
    for values, ours in zip(image.numpy(), found[:, 0].numpy(), strict=True):
        blur = partial(ndimage.gaussian_filter, mode="nearest", truncate=3)
        grey = blur(values.mean(axis=0), 1.0)
        down, across = (
            ndimage.correlate1d(grey, [-0.5, 0, 0.5], axis=axis, mode="nearest") for axis in (0, 1)
        )
        parts = [blur(part, 2.0) for part in (across**2, across * down, down**2)]
        tensors = np.stack([parts[0], parts[1], parts[1], parts[2]], -1).reshape(20, 24, 2, 2)
        wanted = 16 * np.sqrt(np.linalg.eigvalsh(tensors)[..., 0].clip(0))
        np.testing.assert_allclose(ours, wanted.clip(0, 1), atol=1e-4)
    step = torch.zeros(1, 3, 32, 32)
    step[..., 16:] = 1
    assert ShiTomasi()(step).max() < 1e-2  # an edge is no corner
    step[..., :16, :] = 0
    middle = ShiTomasi()(step)[0, 0, 14:18, 14:18]
    assert middle.max() > 0.5 and ShiTomasi()(step)[..., :8].max() < 1e-2


def test_corners_have_a_gradient_and_a_flat_image_none():
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ShiTomasi(), image)
    flat = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    response = ShiTomasi()(flat)
    response.sum().backward()
    assert response.max() < 0.02 and flat.grad.isfinite().all()


def test_unsupervised_reads_rgb_and_the_target_alone(run, tmp_path):
    data = tmp_path / "rgb and normals"
    data.mkdir()
    for folder in run.rooms.iterdir():
        if folder.name.endswith(("_rgb", "_normal")):
            (data / folder.name).symlink_to(folder)
    flags = ("--perceptual=edge,corners", "--steps-per-epoch=1", f"--data-dirs={data}")
    status, output, results = run("unsupervised_normal", *flags, "--visdom-server=none")
    assert status == 0 and "all 2 perceptual ones" in output, output
    log = (run_folder(results) / "log.jsonl").read_text()
    assert "percep_corners_mae : C(n(x)) -> C(y^)" in log
    status, output, _ = run("unsupervised_normal", "--perceptual=curv", *flags[1:])
    assert status == 2 and "no loss to train on (its: edge, corners)" in output


def test_the_networks_that_the_unsupervised_method_needs_are_trained_by_train_edges(run):
    row, made = transfer_by_name("normal2corners"), _needed("unsupervised_normal")
    assert row in made and transfer_by_name("normal2sobel_edges") in made
    assert transfer_by_name("normal2rgb") in _needed("cycle_frozen_normal")
    status, output, results = run("normal2corners", "--steps-per-epoch=1", "--visdom-server=none")
    assert status == 0, output
    assert (run_folder(results) / "normal2corners.pth").is_file()


# ---- random networks ----------------------------------------------------------------


def test_random_networks_depend_on_the_seed_alone(networks):
    torch.manual_seed(0)
    sources = Sources([], [networks], SCALE, False, networks)
    config = METHODS["random_perceptual"].config("normal")
    target = TRANSFERS["rgb", "normal"].build(SCALE)
    trained = TaskGraph({("rgb", "normal"): target}, ("rgb", "normal"))
    losses, graphs = ["percep_curv", "percep_edge"], []
    for seed in (0, 0, 1):
        setup = SimpleNamespace(graph=trained, config=config, losses=losses, sources=sources,
                                seed=seed, device=torch.device("cpu"))  # fmt: skip
        before = torch.get_rng_state()
        graphs.append(random_graph(setup))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(graph.target is target for graph in graphs)
    for edge in (("normal", "principal_curvature"), ("normal", "sobel_edges")):
        first, again, other = (next(graph.network(edge).parameters()) for graph in graphs)
        assert torch.equal(first, again) and not torch.equal(first, other)
        assert not any(p.requires_grad for p in graphs[0].network(edge).parameters())


@pytest.mark.slow
def test_random_networks_train_and_the_trained_ones_measure(run):
    """Before training, both methods' tables and the first validation are the same."""
    tables, losses = [], []
    for name in ("random_perceptual_normal", "perceptual_normal"):
        flags = ("--perceptual=curv", "--k=1", "--steps-per-epoch=1", "--visdom-server=none")
        status, output, results = run(name, *flags)
        assert status == 0, output
        (folder,) = (path for path in results.iterdir() if path.name.startswith(name))
        tables.append(json.loads((folder / "evaluation.json").read_text())["before"])
        log = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        losses.append([line for line in log if line.get("split") == "train"][0])
    assert tables[0] == tables[1]
    name = "percep_curv_mae : f(n(x)) -> f(y^)"
    assert losses[0][name] != losses[1][name]
    assert losses[0]["mae : n(x) -> y^"] == losses[1]["mae : n(x) -> y^"]


# ---- the demo and other readers of checkpoints --------------------------------------


def doubled(row, scale):
    """A network of a method's own: the table's, after a convolution."""
    return nn.Sequential(nn.Conv2d(3, 3, 1), TRANSFERS[row.edge].build(scale))


def test_a_methods_own_network_is_built_from_its_checkpoint(run, monkeypatch, tmp_path):
    """Trained, shown by the demo, evaluated and exported by what the checkpoint records."""
    own = replace(METHODS["baseline"], name="double", ending="double", network=doubled,
                  initial="scratch")  # fmt: skip
    monkeypatch.setitem(methods.table.METHODS, "double", own)
    status, output, results = run("double_normal", *QUICK, "--steps-per-epoch=1")
    assert status == 0, output
    file = run_folder(results) / "rgb2normal_double.pth"
    assert any(name.startswith("1.") for name in read_weights(file)[0])
    image, out = str(ROOT / "assets" / "room.png"), tmp_path / "shown"
    for flags in (f"--checkpoint={file.parent}", "--method=double"):
        where = () if "check" in flags else (f"--models-dir={file.parent}",)
        status, output, _ = run(flags, *where, "--task=normal", f"--img-path={image}",
                                f"--output-dir={out}", program="demo", defaults=False)  # fmt: skip
        assert status == 0, output
        assert (out / "room_normal_double.png").is_file()
        shutil.rmtree(out)
    network = consistency.pretrained("normal", checkpoint=file)
    assert isinstance(network.network, nn.Sequential)
    written = export(file, tmp_path / "double.safetensors")
    assert isinstance(written.network, nn.Sequential)


def test_the_demo_shows_the_networks_of_methods(run, tmp_path):
    def demo(*flags):
        return run("--task=normal", f"--img-path={ROOT / 'assets' / 'room.png'}",
                   f"--output-dir={tmp_path}", *flags, program="demo", defaults=False)  # fmt: skip

    status, output, _ = demo("--method=baseline,perceptual")
    assert status == 0, output
    assert {f"room_normal_{m}.png" for m in ("baseline", "perceptual")} <= {
        file.name for file in tmp_path.iterdir()
    }
    for flags, sentence in [
        (("--method=cylce",), "did you mean cycle"),
        (("--method=pix2pix", f"--models-dir={tmp_path}"), "no rgb2normal_pix2pix.pth in"),
        (("--method=cycle", "--model=rooms"), "--method names the networks"),
        (("--method=taskonomy", f"--models-dir={tmp_path}"), "scripts.download taskonomy"),
    ]:
        status, output, _ = demo(*flags)
        assert status == 2 and sentence in output, output


def test_one_network_serves_all_targets_that_it_predicts(run, tmp_path):
    flags = f"--img-path={ROOT / 'assets' / 'room.png'}", f"--output-dir={tmp_path}"
    status, output, _ = run("--task=depth", "--method=geonet,multitask", *flags, program="demo",
                            defaults=False)  # fmt: skip
    assert status == 0, output
    assert all((tmp_path / f"room_depth_{m}.npy").is_file() for m in ("geonet", "multitask"))
    with pytest.raises(UserError, match="no rgb2reshading_multitask.pth"):  # that is less deep
        choose_methods("reshading", ["multitask"])
    with pytest.raises(UserError, match="depth.*_cycle.pth"):
        choose_methods("depth", ["cycle"])


def test_taskonomy_is_not_trained_here(run):
    status, output, _ = run("taskonomy_normal")
    assert status == 2 and "scripts.download taskonomy" in output and "demo.py" in output
    with pytest.raises(UserError, match="did you mean taskonomy_normal"):
        objective_of(Options("taskonomi_normal"))


def test_the_curves_show_the_losses_of_a_methods_own_step(tmp_path):
    log = tmp_path / "log.jsonl"
    records = [{"split": "train", "step": step, "loss": 3.0, "mae : n(x) -> y^": 1.0,
                "adversarial : training": 2.0 * step} for step in (1, 2)]  # fmt: skip
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    axes = figure_of(read_curves(log, 1), "title", squared=False).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"weighted sum": [3, 3], "direct": [1, 1], "adversarial": [2, 4]}


def test_an_installed_network_has_the_name_by_which_the_demo_finds_it(tmp_path):
    sources = SimpleNamespace(install_dir=tmp_path)
    names = {
        "pix2pix_depth": "rgb2depth_pix2pix.pth",
        "baseline_depth": "rgb2zdepth_baseline.pth",  # with which other runs begin
        "perceptual_normal": "rgb2normal_consistency.pth",
        "cycle_reshading": "rgb2reshading_cycle.pth",
    }
    for name, file in names.items():
        assert installed_file(objective_of(Options(name)), sources, False) == tmp_path / file
        (tmp_path / file).touch()
        method, _, task = name.partition("_")
        assert choose_methods(task, [method], tmp_path).paths == {method: tmp_path / file}


def test_the_demo_finds_taskonomys_networks(tmp_path):
    files = TASKONOMY["normal"][:2]
    for file in files:
        (tmp_path / file).touch()
    assert choose_methods("normal", ["taskonomy"], tmp_path).paths == {
        "taskonomy": tmp_path / files[0]
    }
    with pytest.raises(UserError, match="for normal and reshading only"):
        choose_methods("depth", ["taskonomy"], tmp_path)

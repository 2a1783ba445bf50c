"""The trainer by its command line, on small rendered data with fresh networks."""

import hashlib
import json
import re
import shutil

import pytest
import torch
from PIL import Image

import train
from energy import energy_configs, paths_for
from graph import TaskGraph
from losses import evaluate_losses
from models import load_network, read_weights, save_network
from task_configs import TASKS
from training.curves import figure_of, read_curves
from transfers import TRANSFERS, Scale
from utils import read_job

SCALE = Scale(32, 8)  # of the networks in conftest
NO_IMAGENET = (
    "--perceptual=curv,edge,reshading,depth_zbuffer,keypoints2d,keypoints3d,edge_occlusion"
)


def run_folder(results):
    (folder,) = results.iterdir()
    return folder


def log_of(results):
    return [json.loads(line) for line in (run_folder(results) / "log.jsonl").open()]


def test_the_main_job(run, networks):
    status, output, results = run("multiperceptual_normal", "--k=2", "--random-select",
                                  "--compare-direct", "--max-epochs=2", process=True)  # fmt: skip
    assert status == 0, output
    assert "LEFT OUT: percep_imagenet_percep" in output
    assert "pictures: no reality ood" in output and "visdom: no server" in output
    for row in ("direct L1", "angular error", "percep_curv × 100, true", "without consistency"):
        assert row in output
    folder = run_folder(results)
    record = json.loads((folder / "run.json").read_text())
    assert (record["k"], record["seed"], record["left_out"]) == (2, 0, ["percep_imagenet_percep"])
    assert record["versions"]["torch"] == torch.__version__
    # the checkpoint is the trained network of the last epoch, at its scale
    weights, made_by = read_weights(folder / "rgb2normal_consistency.pth")
    start, _ = read_weights(networks / "rgb2normal_baseline.pth")
    assert (made_by["image_size"], made_by["width"], made_by["steps_per_epoch"]) == (32, 8, 2)
    assert any(not torch.equal(weights[name], start[name]) for name in start)
    assert (folder / "curves.png").is_file()
    for name in ("start.png", "latest.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 13 * 64 and picture.height > 2 * 4 * 64  # two bands
    # exactly the chosen losses are in the records of a training epoch
    log = log_of(results)
    chosen = [line["chosen losses"] for line in log if "chosen losses" in line][:2]
    trained = [line for line in log if line.get("split") == "train"]
    for text, line in zip(chosen, trained, strict=True):
        losses = {n for n in line if n.startswith("percep")}
        names = text.split(": ")[1].split(", ")
        assert len(losses) == 2
        assert all(any(n.startswith(f"{name}_mae") for n in losses) for name in names)
    # "loss" is the weighted sum of training alone
    assert {line["split"] for line in log if "loss" in line} == {"train", "direct"}
    columns = json.loads((folder / "evaluation.json").read_text())
    assert list(columns) == ["before", "trained", "without consistency"]


def test_curves_are_drawn_of_every_epoch_and_go_on_after_resuming(run):
    status, output, results = run("example_normal", "--winrate", "--k=1", "--steps-per-epoch=2")
    assert status == 0, output
    folder = run_folder(results)
    with Image.open(folder / "curves.png") as picture:
        assert picture.size == (1000, 700)
    before = (folder / "curves.png").read_bytes()
    status, output, _ = run("--resume", str(folder), "--max-epochs=3", defaults=False)
    assert status == 0, output
    assert (folder / "curves.png").read_bytes() != before
    curves = read_curves(folder / "log.jsonl", 2)
    assert list(curves.train["train"]["loss"]) == [1, 2, 3]
    names = ["mae", "percep_curv", "percep_edge"]
    assert [name for name in curves.val["train"] if not name.startswith("direct")] == names
    for points in (curves.val["train"]["mae"], curves.wins["percep_curv"]):
        assert list(points) == [0, 1, 2, 3]
    assert all(0 <= rate <= 1 for rate in curves.wins["percep_edge"].values())


def test_curves_of_both_phases_with_legends_off_the_points(tmp_path):
    title = "percep_{}_mae : f(n(x)) -> f(y^)"
    domains = ["curv", "edge", "reshading", "depth_zbuffer", "keypoints2d", "keypoints3d",
               "edge_occlusion", "imagenet_percep"]  # fmt: skip
    records = []
    for split in ("train", "val", "direct", "direct_val"):
        for step in (5, 10, 15, 20):
            values = {title.format(domain): 1 / step for domain in domains}
            values |= {"mae : n(x) -> y^": step, "loss": float("nan") if step == 5 else 2.0}
            records.append({"split": split, "step": step, **values})
    records.append({"win rates": {f"percep_{d}": 0.5 for d in domains}, "step": 10})
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"time": 0.0, **record}) + "\n" for record in records))
    curves = read_curves(log, steps_per_epoch=10)
    assert curves.train["direct"]["mae"] == {1: 7.5, 2: 17.5}  # the mean over each epoch
    assert curves.val["direct"]["mae"] == {0.5: 5, 1: 10, 1.5: 15, 2: 20}
    figure = figure_of(curves, "title", squared=False)
    figure.draw_without_rendering()
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert len(legends) == 3
    boxes = [legend.get_window_extent() for legend in legends]
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(axes.bbox) for axes in figure.axes)
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert figure.bbox.containsx(box.x1) and figure.bbox.containsy(box.y0)
    perceptual = figure.axes[2]
    assert len(perceptual.lines) == 2 * len(domains)
    assert perceptual.lines[0].get_ydata()[0] == 100  # % of the first


def test_validation_only_every_few_epochs_trains_the_same(run):
    """The last epoch is always validated; a run stopped at any epoch resumes the same."""
    flags = ("example_normal", "--k=1", "--random-select", "--max-epochs=5", "--steps-per-epoch=2",
             "--quiet")  # fmt: skip
    folders, validated = [], {}
    for every in (1, 2):
        status, output, results = run(*flags, f"--validate-every={every}")
        assert status == 0, output
        folders.append(max(results.iterdir(), key=lambda folder: folder.stat().st_mtime_ns))
        lines = map(json.loads, (folders[-1] / "log.jsonl").open())
        validated[every] = [line["step"] for line in lines if line.get("split") == "val"]
        told = [line for line in output.splitlines() if re.search(r"train epoch \d/5: loss", line)]
        assert [", val " in line for line in told] == [
            n % every == 0 or n == 5 for n in range(1, 6)
        ]
    assert validated == {1: [0, 2, 4, 6, 8, 10], 2: [0, 4, 8, 10]}
    ends = [read_weights(folder / "rgb2normal_consistency.pth")[0] for folder in folders]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert (folders[1] / "rgb2normal_consistency_best.pth").is_file()
    # time that is up ends an epoch that would not be validated otherwise
    status, output, results = run(*flags, "--validate-every=5", "--max-seconds=1e-6")
    assert status == 0 and "train epoch 1/5: loss" in output and ", val " in output, output
    status, output, _ = run(*flags, "--validate-every=0")
    assert status != 0 and "--validate-every has to be more than 0" in output


def test_a_run_can_leave_visdom_alone_and_each_job_has_its_environment(run, monkeypatch):
    made = []
    monkeypatch.setattr(train, "VisdomWindows", lambda *place: made.append(place))
    for flags in ((), ("--visdom-env=normaltarget_allperceps",), ("--visdom-server=none",)):
        status, output, _ = run("example_normal_direct", "--steps-per-epoch=1", *flags)
        assert status == 0, output
        assert "visdom:" not in output
    job = read_job().name
    envs = [env for env, *_ in made]
    assert envs == [f"{job}_example_normal_direct", "normaltarget_allperceps"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("example_cascade_two_networks", "--k=1", "--fast"),
        ("example_normal", "--k=2", "--fast", "--dataaug", "--num-workers=1"),
        ("example_normal_direct", "--augment-rgb=strong"),
        ("multiperceptual_depth", "--k=2", "--random-select", "--batch-size=1",
         "--steps-per-epoch=2"),
        ("multiperceptual_reshading", "--winrate", "--k=1"),
        ("multiperceptual_normal", "--k=7", "--subset-size=4", "--init=scratch"),
        ("multiperceptual_normal", "--mode=standard", NO_IMAGENET, "--visualize"),
        ("example_normal", "--mode=standard", "--schedule=cosine"),
    ],
    ids=lambda arguments: " ".join(arguments)[:50],
)  # fmt: skip
def test_the_other_ways_to_train(run, arguments):
    status, output, results = run(*arguments)
    assert status == 0, output
    assert "direct L1" in output and run_folder(results).joinpath("evaluation.json").is_file()
    assert any(results.glob("*/*.pth")) is not ("--visualize" in arguments)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("multiperceptual_normal", "--k=9"), "error: --k 9: there are 8 perceptual losses"),
        (("multiperceptual_normal", "--k=8"), "error: --k 8: there are 7 perceptual losses"),
        (("multiperceptual_normal", "--strict"), "error: no ImageNet weights"),
        (("multiperceptual_norm",), "did you mean multiperceptual_normal?"),
        ((), "error: what to train?"),
        (("energy_calc",), "error: energy_calc measures and does not train"),
        (("example_normal", "--data-dirs=/nowhere"), "error: no data folder /nowhere"),
        (("example_normal", "--models-dir=/nowhere"), "error: no models folder /nowhere"),
        (("example_normal", "--perceptual=curve"), "did you mean curv?"),
        (("example_normal", "--lrr=1"), "error: unknown flag --lrr; did you mean --lr?"),
        (("example_normal", "--width=16"), "trained at image size 32, width 8, this run has"),
        (("example_normal", "--winrate", "--random-select"), "error: --winrate excludes"),
        (("example_normal", "--init=/nowhere.pth"), "error: no checkpoint /nowhere.pth"),
        (
            ("example_normal", "--subset-size=1000"),
            "error: --subset-size is 1000, and there are 8 training views",
        ),
        (("example_normal", "--split=/nowhere"), "error: cannot read /nowhere"),
        (("example_normal", "--k=0", "--compare-direct"), "error: without perceptual losses"),
        (("normal2reshading", "--augment-rgb=strong"), "error: --augment-rgb changes rgb, which"),
        (("example_normal", "--augment-rgb=weak"), "error: --augment-rgb is strong, not weak"),
        (("normal2reshading", "--random-select"), "error: without perceptual losses"),
        (("example_normal", "--mode=standard", "--random-select"), "error: --mode standard uses"),
        (("example_normal", "--visualize", "--compare-direct"), "error: --visualize stops before"),
        (
            ("normal2reshading", "--models-dir=/proc/none", "--install"),
            "error: cannot write into /proc/none",
        ),
        (("normal2reshading", "--force"), "error: --force is for --install"),
        (
            ("example_normal", "--visdom-server=none", "--visdom-env=x"),
            "error: --visdom-server none leaves Visdom alone: no --visdom-env",
        ),
        (("example_normal", "--resume-anyway"), "error: --resume-anyway is for --resume"),
        (("example_normal", "--max-epochs=0"), "error: --max-epochs has to be more than 0"),
        (("example_normal", "--num-workers=-1"), "error: --num-workers has to be 0 or more"),
        (("rgb2sobel_edges",), "error: rgb2sobel_edges has nothing to train"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_one_sentence(run, arguments, sentence):
    status, output, results = run(*arguments)
    assert status == 2 and "Traceback" not in output
    assert sentence in output.splitlines()[-1]
    assert not results.exists()


def test_a_missing_checkpoint_names_the_ways_to_one(run, networks, tmp_path):
    folder = shutil.copytree(networks, tmp_path / "models")
    (folder / "normal2curvature.pth").unlink()
    status, output, _ = run("example_normal", f"--models-dir={folder}")
    last = output.splitlines()[-1]
    assert status == 2
    for part in ("normal2curvature.pth", "normal → principal_curvature", "tools/download_models.sh",
                 "python -m scripts.train_edges example_normal"):  # fmt: skip
        assert part in last


def test_a_domain_missing_for_half_the_views(run, rooms, tmp_path):
    folder = shutil.copytree(rooms, tmp_path / "rooms")
    building = sorted(p.name.removesuffix("_rgb") for p in folder.glob("*_rgb"))
    for name in building:
        for file in list(TASKS["normal"].path(folder, name, "x").parent.glob("*.png"))[:2]:
            file.unlink()
    status, output, _ = run("example_normal", f"--data-dirs={folder}")
    assert status == 2 and "4 of 8 views" in output and "normal in" in output.splitlines()[-1]
    status, output, _ = run("example_normal", f"--data-dirs={folder}", "--allow-missing")
    assert status == 0, output


def test_a_transfers_network_stays_in_its_run(run, networks, tmp_path):
    """A trial of one network does not change what later runs use."""
    folder = shutil.copytree(networks, tmp_path / "models")
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    status, output, results = run("normal2principal_curvature", f"--models-dir={folder}")
    assert status == 0, output
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()} == before
    weights, record = read_weights(run_folder(results) / "normal2principal_curvature.pth")
    assert (record["image_size"], record["width"], record["config"]) == (
        32, 8, "normal2principal_curvature")  # fmt: skip
    assert len(weights) == 28 and "val mse : n(x) -> y^" in output


def test_installing_replaces_nothing_unless_forced(run, networks, tmp_path):
    folder = shutil.copytree(networks, tmp_path / "models")
    file = folder / "normal2curvature.pth"
    before = file.read_bytes()
    arguments = "normal2principal_curvature", f"--models-dir={folder}", "--install"
    status, output, results = run(*arguments)
    assert status == 2 and "--force replaces it" in output.splitlines()[-1]
    assert not results.exists() and file.read_bytes() == before  # said before any training
    status, output, results = run(*arguments, "--force")
    assert status == 0, output
    kept = folder / "normal2curvature_replaced_1.pth"
    assert kept.read_bytes() == before and f"{file} (the one before: {kept})" in output
    installed, record = read_weights(file)
    trained, _ = read_weights(run_folder(results) / "normal2principal_curvature.pth")
    assert all(torch.equal(installed[n], trained[n].half().float()) for n in trained)
    assert (record["image_size"], record["config"]) == (32, "normal2principal_curvature")


def test_a_finished_run_is_installed_afterwards(run, tmp_path):
    status, output, results = run("example_normal", "--k=0")
    assert status == 0, output
    folder = tmp_path / "new"
    status, output, _ = run(
        f"--resume={run_folder(results)}", "--install", f"--models-dir={folder}", defaults=False
    )
    assert status == 2 and "--models-dir" in output  # of the run's folder
    status, output, _ = run(f"--resume={run_folder(results)}", "--install", "--force",
                            defaults=False)  # fmt: skip
    assert status == 0 and "rgb2normal_consistency.pth" in output


def test_a_row_trains_into_a_new_folder_at_any_scale(run, tmp_path):
    folder = tmp_path / "new" / "models"
    status, output, _ = run("depth_zbuffer2sobel_edges", f"--models-dir={folder}", "--install",
                            "--image-size=16", "--width=16")  # fmt: skip
    assert status == 0, output
    _, record = read_weights(folder / "depth_zbuffer2sobel_edges.pth")
    assert (record["image_size"], record["width"]) == (16, 16)


def test_a_run_says_what_it_will_do_before_it_starts(run, networks, rooms):
    status, output, results = run("example_normal", "--k=1", "--steps-per-epoch=2", process=True)
    assert status == 0, output
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("run "))
    block = {line[:10].strip(): line[11:] for line in lines[start:]}
    digest = hashlib.sha256((networks / "normal2curvature.pth").read_bytes()).hexdigest()
    assert "rgb → normal" in block["run"] and "rgb2normal_baseline.pth" in block["run"]
    assert f"{rooms}; views: train 8, val 4, test 4" in block["data"]
    assert re.search(rf"normal2curvature.pth +{digest[:8]}  {networks}$", output, re.MULTILINE)
    assert "1 of the 2 perceptual ones" in block["losses"] and "curv, edge" in block["losses"]
    for part in ("1 epoch × 2 steps, batch 4", "lr 3e-05 (default), constant rate (default)"):
        assert part in block["steps"], block
    assert (block["device"], block["results"]) == ("cpu, fp32", str(run_folder(results)))
    record = json.loads((run_folder(results) / "run.json").read_text())
    assert record["inputs"]["networks"]["normal2principal_curvature"] == {
        "file": str(networks / "normal2curvature.pth"), "sha256": digest}  # fmt: skip


@pytest.mark.parametrize(
    "arguments, heading, warned",
    [
        ((), "4 held-out views", False),
        (("--fast",), "4 views, all trained on", True),
        (("one building",), "4 views, all trained on", True),
        (("no test part",), "4 validation views", False),
    ],
    ids=str,
)
def test_the_table_says_which_views_it_measured(run, rooms, tmp_path, arguments, heading, warned):
    buildings = sorted(p.name.removesuffix("_rgb") for p in rooms.glob("*_rgb"))
    keep = {("one building",): buildings[:1], ("no test part",): buildings[:2]}.get(arguments)
    if keep:
        for source in (p for b in keep for p in rooms.glob(f"{b}_*")):
            shutil.copytree(source, tmp_path / "data" / source.name)
        arguments = (f"--data-dirs={tmp_path / 'data'}",)
    status, output, _ = run("example_normal", "--k=0", "--steps-per-epoch=1", *arguments)
    assert status == 0, output
    assert f"\n{heading}  " in output
    assert ("warning: the closing table has no held-out views" in output) is warned


def test_the_imagenet_network_can_be_left_out(run):
    status, output, results = run("multiperceptual_normal", "--k=1", "--no-imagenet",
                                  "--random-select", "--steps-per-epoch=1")  # fmt: skip
    assert status == 0, output
    assert "ImageNet" not in output and "imagenet_percep" not in output
    assert not json.loads((run_folder(results) / "run.json").read_text())["left_out"]


def test_data_are_looked_at_before_imagenet_is_fetched(run, tmp_path):
    (tmp_path / "empty").mkdir()
    status, output, _ = run("multiperceptual_normal", f"--data-dirs={tmp_path / 'empty'}")
    assert status == 2 and "ImageNet" not in output


@pytest.mark.slow
def test_train_edges_makes_what_is_missing_and_no_more(run, networks, tmp_path):
    folder = shutil.copytree(networks, tmp_path / "models")
    for name in ("normal2curvature.pth", "rgb2principal_curvature.pth"):
        (folder / name).unlink()
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    program = "scripts.train_edges"
    arguments = ("example_normal", f"--models-dir={folder}", "--steps-per-epoch=1")
    status, output, results = run(
        *arguments, f"--data-dirs={run.rooms}", f"--results-dir={tmp_path / 'results'}",
        "--max-epochs=1", program=program, defaults=False,
    )  # fmt: skip
    assert status == 0, output
    assert "4 networks needed, 2 there, 2 to train" in output
    made = {p.name for p in folder.iterdir()} - set(before)
    assert made == {"normal2curvature.pth", "rgb2principal_curvature.pth"}
    assert all((folder / n).stat().st_mtime_ns == t for n, t in before.items())
    # networks between domains come before those from rgb
    assert output.index("==== normal2") < output.index("==== rgb2")


def test_the_same_seed_gives_the_same_network(run, tmp_path):
    states = []
    for folder in ("a", "b"):
        status, output, _ = run("example_normal", "--dataaug", "--seed=5",
                                f"--results-dir={tmp_path / folder}")  # fmt: skip
        assert status == 0, output
        states.append(read_weights(next((tmp_path / folder).glob("*/*.pth")))[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("why, step", [("--lr=1e30", 2), ("a huge weight", 1)])
def test_numbers_that_are_not_finite_end_a_run_and_can_be_replayed(
    run, networks, tmp_path, why, step
):
    arguments = ["example_normal", "--k=1", "--random-select"]
    row = TRANSFERS["rgb", "normal"]
    if why.startswith("--"):
        arguments.append(why)
    else:
        folder = shutil.copytree(networks, tmp_path / "models")
        network = row.build(SCALE)
        load_network(network, folder / row.checkpoint)
        network.last_conv2.weight.data[:] = 3e38
        save_network(folder / row.checkpoint, network, SCALE)
        arguments.append(f"--models-dir={folder}")
    status, output, results = run(*arguments)
    last, file = output.splitlines()[-1], run_folder(results) / "not_finite.pt"
    assert status == 2 and "Traceback" not in output
    assert last.startswith(f"error: step {step}: the loss mae, percep_") and str(file) in last
    kept = torch.load(file, weights_only=True)
    assert kept["step"] == step and len(kept["views"]) == 4
    assert "point_" in kept["views"][0] and not torch.tensor(kept["losses"]["mae"]).isfinite()
    # its losses are computed again from what was kept
    network = row.build(SCALE)
    network.load_state_dict(kept["target"])
    graph = TaskGraph({row.edge: network}, row.edge)
    config = energy_configs["example_normal"]
    values = graph.sample(paths_for(config, ["mae"]), kept["batch"])
    assert not evaluate_losses(config, ["mae"], values)["mae"].mean().isfinite()

"""What a run reads of its data: the domains that each reality uses, each file once."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch

import datasets
import train
from devices import Ranks
from energy import energy_configs
from loading.layouts import find_buildings, find_views
from loading.splits import read_split
from models import read_record
from task_configs import TASKS
from training.data import Part, default_steps, make_realities, reads_of
from training.objective import objective_of
from training.options import DataOptions, LossOptions, Options
from utils import ROOT

NORMAL = energy_configs["multiperceptual_normal"]
OWN = {"rgb", "normal"}


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The data files that are opened, in order."""
    paths: list[str] = []
    original = datasets.open_file
    monkeypatch.setattr(
        datasets, "open_file", lambda path, size: paths.append(str(path)) or original(path, size)
    )
    return paths


@pytest.fixture
def two_domains(rooms, tmp_path):
    """The rooms of somebody who owns rgb and normals alone."""
    folder = tmp_path / "two"
    for name in OWN:
        for source in rooms.glob(f"*_{name}"):
            shutil.copytree(source, folder / source.name)
    return folder


def objective(config, **losses):
    return objective_of(Options(config, losses=LossOptions(**losses)))


def test_each_reality_reads_what_it_uses():
    reads = reads_of(objective("multiperceptual_normal", random_select=True))
    assert {task.name for task in reads["train"].needed} == OWN and not reads["train"].wanted
    assert {task.name for task in reads["val"].needed} == OWN and not reads["val"].wanted
    assert {task.name for task in reads["test"].needed} == OWN
    domains = {"principal_curvature", "sobel_edges", "depth_zbuffer", "reshading", "keypoints2d",
               "keypoints3d", "edge_occlusion"}  # fmt: skip
    assert {task.name for task in reads["test"].wanted} == domains
    with_rates = reads_of(objective("multiperceptual_normal"))
    # the yardstick of edges compares networks' outputs, so the file is not needed
    assert {task.name for task in with_rates["val"].wanted} == domains - {"sobel_edges"}


def test_plots_are_read_where_they_are_drawn():
    reads = reads_of(objective("multiperceptual_reshading", k=0))
    assert TASKS["depth_zbuffer"] in reads["test"].needed  # its column, for the mask
    assert TASKS["depth_zbuffer"] not in reads["train"].needed + reads["val"].needed


def test_a_training_view_opens_two_files(run, opened):
    status, output, _ = run("multiperceptual_normal", "--k=2", "--random-select")
    assert status == 0, output
    split = read_split(ROOT / "config" / "split_rooms.txt")
    trained = [path for path in opened if any(f"/{b}_" in path for b in split["train"])]
    files = Counter(path.replace("normal", "rgb") for path in trained)
    assert len(files) == 8 and set(files.values()) == {2}  # eight views, two files of each


def test_a_file_that_serves_two_domains_is_opened_once(rooms, opened):
    tasks = [TASKS["rgb"], TASKS["sobel_edges"], TASKS["normal"]]
    views = find_views(tasks, [rooms], find_buildings([rooms]))
    datasets.TaskDataset(tasks, views, 32)[0]
    assert opened == [str(views[0].path(TASKS[name])) for name in ("rgb", "normal")]


def test_rgb_and_normals_alone_are_enough(run, two_domains):
    status, output, results = run("multiperceptual_normal", "--k=2", "--random-select",
                                  f"--data-dirs={two_domains}")  # fmt: skip
    assert status == 0, output
    assert "warning: no principal_curvature, depth_zbuffer" in output
    (table,) = results.glob("*/evaluation.json")
    rows = json.loads(table.read_text())["trained"]
    assert "percep_curv × 100, predicted" in rows and "percep_curv × 100, true" not in rows
    assert "percep_edge × 100, true" in rows  # edges are computed from rgb


def test_without_the_yardsticks_domains_the_choice_is_random(run, two_domains):
    status, output, results = run("multiperceptual_normal", "--k=2", "--winrate",
                                  f"--data-dirs={two_domains}")  # fmt: skip
    assert status == 0, output
    (log,) = results.glob("*/log.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    rates = [record["win rates"] for record in records if "win rates" in record]
    assert rates and all(set(found) == {"percep_edge"} for found in rates)


def test_labels_are_cached_where_that_is_free(monkeypatch, rooms):
    tasks = [TASKS["rgb"], TASKS["normal"]]
    views = find_views(tasks, [rooms], find_buildings([rooms]))
    monkeypatch.setattr(train, "free_memory", lambda device: 4e9)
    kept = datasets.Reality("train", datasets.TaskDataset(tasks, views, 32, keep=True), 2)
    loaded = datasets.Reality("train", datasets.TaskDataset(tasks, views, 32), 2)
    options = Options("multiperceptual_normal")
    assert train.label_bytes(options, kept) == 1e9 and train.label_bytes(options, loaded) == 0
    for gib in (0.0, 0.5):
        named = replace(options, compute=replace(options.compute, cache_labels=gib))
        assert train.label_bytes(named, kept) == gib * 2**30


@pytest.mark.parametrize("views, batch, steps", [(10, 4, 3), (576, 16, 36), (30_000, 64, 100),
                                                 (4_000_000, 64, 156)])  # fmt: skip
def test_steps_of_an_epoch(views, batch, steps):
    assert default_steps(views, batch) == steps


def test_training_on_spoilt_images(run):
    """--shift spoils rgb alone, the same way in each pass; it is said, recorded, and resumed."""
    quick = ("--perceptual=curv,edge", "--k=1", "--random-select", "--steps-per-epoch=2")
    status, output, results = run("multiperceptual_normal", *quick, "--shift=noise:0.2")
    assert status == 0 and "images degraded by noise (σ) 0.2" in output, output
    (folder,) = results.iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert record["shift"] == "noise:0.2" and record["arguments"]["shift"] == "noise:0.2"
    assert read_record(folder / "rgb2normal_consistency.pth")["shift"] == "noise:0.2"
    status, output, _ = run("multiperceptual_normal", *quick, "--resume", "--max-epochs=2")
    assert status == 0 and "images degraded by noise (σ) 0.2" in output, output
    spoilt = json.loads((folder / "evaluation.json").read_text())["before"]
    run("multiperceptual_normal", *quick)
    (clean,) = (f for f in results.iterdir() if f != folder)
    assert json.loads((clean / "evaluation.json").read_text())["before"] != spoilt
    assert "shift" not in read_record(clean / "rgb2normal_consistency.pth")


@pytest.mark.parametrize("endless", [True, False])
def test_spoilt_images_depend_on_the_view_alone(rooms, endless):
    tasks = [TASKS["rgb"], TASKS["normal"], TASKS["sobel_edges"]]
    views = find_views(tasks, [rooms], find_buildings([rooms]))[:6]
    parts = {"train" if endless else "val": Part(views, tuple(tasks))}

    def batches(shift, count=4):
        data = DataOptions(shift=shift, num_workers=0)
        (reality,) = make_realities(parts, 32, data, 2, 0, torch.device("cpu"), Ranks()).values()
        return list(islice(reality, count)), reality.sample(3)

    clean, of_clean = batches(None)
    spoilt, of_spoilt = batches("noise:0.1")
    seen: dict[int, torch.Tensor] = {}
    for one, two in zip(clean, spoilt, strict=True):
        assert one.views == two.views
        for name in ("normal", "sobel_edges"):
            assert torch.equal(one[name], two[name])
        assert (one["rgb"] - two["rgb"]).abs().mean() > 0.02
        for view, image in zip(two.views, two["rgb"], strict=True):
            assert torch.equal(seen.setdefault(view, image), image)
    assert (of_clean["rgb"] - of_spoilt["rgb"]).abs().mean() > 0.02
    assert torch.equal(of_spoilt["rgb"][0], seen.get(0, of_spoilt["rgb"][0]))


def test_a_shift_that_is_none(run):
    status, output, _ = run("multiperceptual_normal", "--shift=fog:1")
    assert status == 2 and "--shift is a kind and a level" in output

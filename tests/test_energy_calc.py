"""The consistency energy: published values, every view once, independence of the batch."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.recipe import fill
from PIL import Image

from datasets import Reality, TaskDataset
from energy import ENERGY_DOMAINS, energy_configs, paths_for
from graph import edges_of
from loading.layouts import View, find_views
from loading.photographs import open_image, square
from losses import evaluate_losses
from measuring import consistency_energy, demo_networks, energy_maps, plots, prediction, shifts
from measuring.statistics import standardised, statistics
from models import save_network
from precision import forward_only
from scripts import energy_calc, energy_map, energy_shift
from sources import SHIPPED, VARIANTS, Sources, sources_in
from task_configs import get_task
from transfers import TRANSFERS, Scale
from utils import UserError

ROOT = Path(__file__).resolve().parents[1]
SMALL = Scale(32, 8)
TINY_BUILDINGS = ["agate", "basalt", "tuff", "zeolite"]  # trained on, and tested on
EDGES = edges_of(energy_configs["energy_calc"]["paths"])
TASKS_NEEDED = [get_task("rgb"), get_task("normal")]


def salted(edge, scale):
    """The network of an edge with weights of its own."""
    return fill(TRANSFERS[edge].build(scale), edge)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """All networks of the energy, at 32 pixels; reshading has no consistency checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    for edge in EDGES:
        if TRANSFERS[edge].checkpoint:
            save_network(folder / TRANSFERS[edge].checkpoint, salted(edge, SMALL), SMALL)
    for name, target in (("normal", "normal"), ("depth", "depth_zbuffer")):
        network = salted(("rgb", target), SMALL)
        with torch.no_grad():
            network.last_conv2.bias += 0.1
        save_network(folder / f"rgb2{name}_consistency.pth", network, SMALL)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Made-up labelled views: in each of two test buildings three, one a half-black."""
    folder = tmp_path_factory.mktemp("data")
    for number, building in enumerate(TINY_BUILDINGS):
        for view in range(3):
            rng = np.random.default_rng([number, view])
            for task in TASKS_NEEDED:
                values = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
                path = task.path(folder, building, f"point_{view * 5}_view_0")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture
def graph(models):
    setting = Sources([], [models], SMALL, embedded=False, install_dir=models)
    return consistency_energy.energy_graph("energy_calc", setting, torch.device("cpu"))


def table_of(graph, data, batch_size, buildings=("tuff", "zeolite")):
    views = find_views(TASKS_NEEDED, [data], buildings)
    reality = Reality("test", TaskDataset(TASKS_NEEDED, views, 32), batch_size)
    return consistency_energy.measure_views(graph, reality, quiet=True)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def labelled(models, data, tmp_path_factory):
    """The folder of a labelled run."""
    folder = tmp_path_factory.mktemp("energy")
    energy_calc.main(
        "energy_calc", data_dirs=[str(data)], models_dir=str(models), output_dir=str(folder),
        batch_size=4, buildings=["tuff", "zeolite"],
    )  # fmt: skip
    return folder


# ---- measuring ----------------------------------------------------------------------


def test_batch_size_changes_nothing(graph, data):
    tables = [table_of(graph, data, size) for size in (1, 4, 6)]
    for name, values in tables[0].items():
        for other in tables[1:]:
            np.testing.assert_allclose(other[name], values, rtol=1e-4, atol=1e-6)


def test_the_consistent_networks_are_preferred(models, capsys):
    setting = Sources([], [models], SMALL, embedded=False, install_dir=models)
    graph = consistency_energy.energy_graph("energy_calc", setting, torch.device("cpu"))
    said = capsys.readouterr().out
    assert "rgb2reshading_consistency.pth" in said and "normal_consistency" not in said
    assert said.count("\n") == 1
    baseline = salted(("rgb", "normal"), SMALL).last_conv2.bias
    bias = graph.networks["rgb2normal"].last_conv2.bias
    torch.testing.assert_close(bias, baseline + 0.1)
    assert not any(p.requires_grad for p in graph.parameters())


def test_a_pass_computes_each_prefix_once(graph):
    calls = []
    for name, network in graph.networks.items():
        network.register_forward_hook(lambda *_, name=name: calls.append(name))
    batch = {"rgb": torch.rand(1, 3, 32, 32), "normal": torch.rand(1, 3, 32, 32)}
    with forward_only(torch.device("cpu")):
        consistency_energy.measure_batch(graph, "energy_calc", batch)
    assert sorted(calls) == sorted("2".join(edge) for edge in EDGES)


def test_labelled_run(labelled):
    rows = rows_of(labelled / "data.csv")
    names = [(row["building"], row["view"]) for row in rows]
    views = ["point_0_view_0", "point_5_view_0", "point_10_view_0"]
    assert names == [(building, view) for building in ("tuff", "zeolite") for view in views]
    assert [row[""] for row in rows] == [str(i) for i in range(6)]
    percep = [name for name in rows[0] if name.startswith("percep_")]
    assert len(percep) == 28
    assert list(rows[0])[3:] == [
        "energy",
        "error",
        *percep,
        "normalized_energy",
        "normalized_error",
    ]
    for row in rows:
        assert float(row["energy"]) == pytest.approx(np.mean([float(row[n]) for n in percep]))
    assert {p.name for p in labelled.iterdir()} == {
        "data.csv", "statistics.json", "energy.pdf", "energy.png"}  # fmt: skip
    assert Image.open(labelled / "energy.png").size > (500, 400)
    assert (labelled / "energy.pdf").read_bytes().startswith(b"%PDF")
    energies = sorted(float(row["normalized_energy"]) for row in rows)
    statistics = consistency_energy.read_statistics(labelled)
    assert statistics["energies"] == pytest.approx(energies)
    for place, energy in enumerate(energies):
        assert consistency_energy.share_below(statistics, energy + 1e-9) == (place + 1) / 6


def test_shipped_statistics_are_of_the_shipped_networks():
    statistics = consistency_energy.read_statistics(SHIPPED)
    consistency_energy.check_networks(statistics, sources_in(), SHIPPED)
    energies = statistics["energies"]
    assert len(energies) == statistics["views"] == 144 and energies == sorted(energies)
    assert np.mean(energies) == pytest.approx(0, abs=1e-9)
    assert consistency_energy.share_below(statistics, energies[-1]) == 143 / 144
    del statistics["energies"]  # a run of an earlier version
    assert consistency_energy.share_below(statistics, 0.0) is None


def test_queries_are_standardised_by_the_labelled_run(labelled, models, data, tmp_path):
    """The labelled run's own images have the same energies as queries; bad files are reported."""
    views = [View(data, b, f"point_{p}_view_0") for b in ("tuff", "zeolite") for p in (0, 5, 10)]
    for i, view in enumerate(views):
        (tmp_path / f"{i}.png").write_bytes(view.path(TASKS_NEEDED[0]).read_bytes())
    (tmp_path / "broken.png").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        energy_calc.main("energy_calc_nogt", img_path=str(tmp_path), models_dir=str(models),
                         output_dir=str(labelled))  # fmt: skip
    assert stop.value.code == 1
    queries, known = rows_of(labelled / "energy_query.csv"), rows_of(labelled / "data.csv")
    assert [Path(row["image"]).name for row in queries] == [f"{i}.png" for i in range(6)]
    for query, row in zip(queries, known, strict=True):
        for name in ("energy", "normalized_energy"):
            assert float(query[name]) == pytest.approx(float(row[name]), rel=1e-3, abs=1e-3)
    for kind in ("pdf", "png"):
        path = labelled / f"energy_query.{kind}"
        assert path.stat().st_size > 1000
        path.unlink()
    (labelled / "energy_query.csv").unlink()


@pytest.mark.parametrize(
    "config,flags,sentence",
    [
        ("energy_calk", {}, "did you mean energy_calc"),
        ("energy_calc_nogt", {}, "needs `img_path`"),
        ("energy_calc", {"img_path": "."}, "named by `data_dirs`"),
        ("energy_calc", {"batch_size": 0}, "`batch_size` has to be more than 0"),
        ("energy_calc", {"precision": "half"}, "`precision` is fp32 or"),
        ("energy_calc_nogt", {"img_path": "."}, "first run python -m scripts.energy_calc"),
    ],
)
def test_mistakes_are_named(config, flags, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        energy_calc.main(config, output_dir=str(tmp_path), **flags)


def test_command_line(models, data, tmp_path):
    """The published command: underscores in flags, a subset, a file per result."""
    command = [sys.executable, "-m", "scripts.energy_calc", "energy_calc", "--batch_size", "2"]
    command += ["--subset_size=4", f"--save_dir={tmp_path}", f"--data-dirs={data}"]
    command += [f"--models-dir={models}", "--buildings=tuff,zeolite"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Pearson  r = " in done.stdout and "Fisher's z" in done.stdout
    assert "Resampling the 2 buildings" in done.stdout
    rows = rows_of(tmp_path / "data.csv")
    assert [row["building"] for row in rows] == ["tuff", "tuff", "zeolite", "zeolite"]


def test_the_plots_legend_covers_no_point(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, stem: figures.append(figure))
    points = np.random.default_rng(0).normal(size=(2, 200))
    queries = {f"{'a' * 20 * i} query {i}.png": float(i) for i in range(12)}
    plots.plot_energy(tmp_path / "energy", *points, "title", queries)
    (figure,) = figures
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert not legend.get_window_extent().overlaps(figure.axes[0].bbox)
    assert figure.axes[0].bbox.width > 0.4 * figure.bbox.width


def test_plots_of_the_same_values_are_the_same_files(tmp_path):
    points = np.random.default_rng(0).normal(size=(2, 20))
    for name in ("first", "second"):
        plots.plot_energy(tmp_path / name, *points, "title")
    assert b"CreationDate" not in (tmp_path / "first.pdf").read_bytes()
    for kind in ("pdf", "png"):
        first, second = (tmp_path / f"{name}.{kind}" for name in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


# ---- pixels -------------------------------------------------------------------------


def test_pixels_average_to_the_image(graph):
    losses = energy_maps.STRAIGHT_LOSSES
    config = energy_configs["energy_calc_nogt"]
    batch = {"rgb": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        values = graph.sample(paths_for(config, losses), batch)
    parts = energy_maps.disagreements(values)
    for domain, loss in zip(ENERGY_DOMAINS, evaluate_losses(config, losses, values).values(),
                            strict=True):  # fmt: skip
        torch.testing.assert_close(parts[domain].mean(dim=(1, 2, 3)), loss)
    table = {f"percep__{d}": m.mean(dim=(1, 2, 3)).double().numpy() for d, m in parts.items()}
    by = statistics(table)
    per_image = energy_maps.pixel_energy(parts, by).mean(dim=(1, 2, 3))
    wanted = standardised(table, by)["normalized_energy"]
    np.testing.assert_allclose(per_image, wanted, atol=1e-3)


def test_energy_map_run(models, labelled, tmp_path):
    source = ROOT / "assets" / "room.png"
    for per_path, columns, bands in ((False, 4, 1), (True, 7, 2)):
        energy_map.main(img_path=str(source), output_dir=str(tmp_path), models_dir=str(models),
                        per_path=per_path, statistics=str(labelled))  # fmt: skip
        picture = Image.open(tmp_path / "room_energy.png")
        assert columns * 256 < picture.width < (columns + 1) * 256
        assert bands * 256 < picture.height < bands * (256 + 200)


def test_images_of_one_call_share_their_scale(models, tmp_path, capsys):
    """Before: each image was drawn from black to white by its own 99 % quantile."""
    source = tmp_path / "in"
    source.mkdir()
    picture = Image.open(ROOT / "assets" / "room.png").convert("RGB")
    picture.save(source / "room.png")
    Image.new("RGB", picture.size, "grey").save(source / "grey.png")
    flags = {"img_path": str(source), "models_dir": str(models)}
    energy_map.main(output_dir=str(tmp_path / "both"), **flags)
    assert capsys.readouterr().out.count("scale: 0.0000 … ") == 1
    room, grey = (np.asarray(Image.open(tmp_path / "both" / f"{name}_energy.png"))
                  for name in ("room", "grey"))  # fmt: skip
    bars = slice(312, 345), slice(600, None)
    assert np.array_equal(room[bars], grey[bars]) and room[bars].min() < 60
    energy_map.main(output_dir=str(tmp_path / "white"), white=0.9, **flags)
    assert "scale: 0.0000 … 0.9000" in capsys.readouterr().out
    dimmer = np.asarray(Image.open(tmp_path / "white" / "room_energy.png"))
    assert not np.array_equal(dimmer[bars], room[bars])
    # few images are few; of many, some set the scale, and all are drawn
    energy_map.SAMPLE, before = 1, energy_map.SAMPLE
    try:
        energy_map.main(output_dir=str(tmp_path / "many"), **flags)
    finally:
        energy_map.SAMPLE = before
    assert len(list((tmp_path / "many").iterdir())) == 2


def test_the_scale_spans_all_maps():
    maps = [torch.linspace(0, 1, 101).view(1, 1, 101), torch.linspace(0, 3, 101).view(1, 1, 101)]
    low, high = energy_maps.common_limits(maps, None, standardised=False)
    assert low == 0 and 2.9 < high < 3
    assert energy_maps.common_limits(maps, 0.5, standardised=False) == (0.0, 0.5)
    low, _ = energy_maps.common_limits([m - 1 for m in maps], None, standardised=True)
    assert -1 <= low < -0.9
    low, high = energy_maps.common_limits([torch.zeros(1, 4, 4)], None, standardised=False)
    assert low < high


def test_the_energy_lies_over_the_image():
    image = torch.full((1, 3, 8, 8), 0.25)
    energy = torch.zeros(1, 1, 8, 8)
    energy[..., 4:] = 1.0
    laid = energy_maps.overlaid(image, energy, (0.0, 1.0))
    assert torch.equal(laid[..., :4], image[..., :4])
    assert (laid[:, 0, :, 4:] > 0.8).all()  # bright yellow


@torch.no_grad()
def test_the_energy_is_of_the_networks_that_the_demo_shows(models, tmp_path, monkeypatch):
    """The demo's stand-ins are of another image size than those of the other edges."""
    larger = Scale(64, 8)
    for name, target in (("normal", "normal"), ("depth", "depth_zbuffer")):
        for variant in VARIANTS:
            network = fill(TRANSFERS["rgb", target].build(larger), everywhere=variant)
            save_network(tmp_path / f"rgb2{name}_{variant}.pth", network, larger)

    class Job:
        models_dir = tmp_path / "none"

    monkeypatch.setattr(demo_networks, "read_job", lambda: Job)
    monkeypatch.setattr(demo_networks, "DEMO_MODELS", tmp_path)
    cpu = torch.device("cpu")
    shown = energy_maps.shown_networks(None, None, cpu)
    assert set(shown) == {("rgb", "normal"), ("rgb", "depth_zbuffer")}
    sources = Sources([], [models], SMALL, embedded=False, install_dir=models)
    graph, size = energy_maps.map_graph(sources, shown, cpu)
    assert size == 64
    image = open_image(ROOT / "assets" / "room.png")
    normals, parts = energy_map.predict(graph, square(image, size)[None])
    prediction._kept_predictor.cache_clear()
    with pytest.warns(UserWarning, match="shipped"):
        wanted = prediction.predict(image, "normal")
    prediction._kept_predictor.cache_clear()
    enlarged = torch.nn.functional.interpolate(normals.clamp(0, 1), (256, 256), mode="bilinear")
    torch.testing.assert_close(enlarged[0], wanted, atol=1e-5, rtol=0)
    assert {tuple(part.shape) for part in parts.values()} == {(1, 1, 64, 64)}
    # the path through depth goes on from the demo's depth, at its own network's size
    depth = shown["rgb", "depth_zbuffer"](square(image, 64)[None])
    onward = graph.network(("depth_zbuffer", "normal")).network
    through = onward(torch.nn.functional.interpolate(depth, (32, 32), mode="bilinear",
                                                     antialias=True))  # fmt: skip
    through = torch.nn.functional.interpolate(through, (64, 64), mode="bilinear")
    apart = (normals - through).abs() * get_task("normal").mask(through)
    torch.testing.assert_close(parts["depth_zbuffer"], apart.mean(dim=1, keepdim=True),
                               atol=1e-4, rtol=0)  # fmt: skip


@pytest.mark.parametrize("program", ["energy_calc_nogt", "energy_map"])
def test_statistics_belong_to_their_networks(program, labelled, models, tmp_path, capsys):
    """Of the same scale, another network is noticed by its checksum."""
    other = shutil.copytree(models, tmp_path / "models")
    labelled = shutil.copytree(labelled, tmp_path / "labelled")
    row = TRANSFERS["reshading", "normal"]
    save_network(other / row.checkpoint, fill(row.build(SMALL), everywhere="other."), SMALL)
    image = str(ROOT / "assets" / "room.png")

    def measure(models_dir) -> None:
        if program == "energy_map":
            energy_map.main(img_path=image, statistics=str(labelled), models_dir=str(models_dir),
                            output_dir=str(tmp_path / "map"))  # fmt: skip
        else:
            energy_calc.main(program, img_path=image, output_dir=str(labelled),
                             models_dir=str(models_dir))  # fmt: skip

    measure(models)
    with pytest.raises(UserError, match="measured another network reshading2normal"):
        measure(other)
    record = json.loads((labelled / "statistics.json").read_text())
    file = hashlib.sha256((models / row.checkpoint).read_bytes())
    assert record["networks"]["reshading2normal"] == file.hexdigest()


@pytest.mark.parametrize(
    "config, flags",
    [("energy_calc_nogt", {"split": "x"}), ("energy_calc_nogt", {"num_workers": 2}),
     ("energy_shift", {"buildings": ["a"]}), ("energy_shift", {"allow_missing": True})],
)  # fmt: skip
def test_flags_of_labelled_views_are_refused_for_images(config, flags, models, tmp_path):
    flags |= {"img_path": str(ROOT / "assets" / "room.png"), "models_dir": str(models)}
    with pytest.raises(UserError, match="measures images without labels: no `"):
        if config == "energy_shift":
            energy_shift.main(output_dir=str(tmp_path), **flags)
        else:
            energy_calc.main(config, output_dir=str(tmp_path), **flags)


def test_the_energy_of_a_runs_own_network(models, tmp_path, capsys):
    """What a run has made is measured by naming its folder, beside the demo's others."""
    larger = Scale(64, 8)
    run = tmp_path / "run"
    network = fill(TRANSFERS["rgb", "normal"].build(larger), everywhere="own.")
    save_network(run / "rgb2normal_consistency.pth", network, larger)
    energy_map.main(img_path=str(ROOT / "assets" / "room.png"), models_dir=str(models),
                    output_dir=str(tmp_path / "map"), checkpoint=[str(run)])  # fmt: skip
    said = capsys.readouterr().out
    assert f"rgb → normal from {run / 'rgb2normal_consistency.pth'} ({larger})" in said
    assert f"rgb → depth from {models}" in said
    image = str(ROOT / "assets" / "room.png")
    for checkpoint, sentence in (([str(tmp_path)], "no file rgb2normal"),
                                 (["gone/rgb2normal.pth"], "no checkpoint gone")):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            energy_map.main(img_path=image, models_dir=str(models), checkpoint=checkpoint,
                            output_dir=str(tmp_path / "map"))  # fmt: skip


# ---- shift --------------------------------------------------------------------------


def test_shifts_do_what_they_say():
    image = square(open_image(ROOT / "assets" / "room.png"), 64)[None].repeat(3, 1, 1, 1)
    assert torch.equal(shifts.shifted(image, shifts.CLEAN, range(3)), image)
    for kind, (_, levels) in shifts.SHIFTS.items():
        sizes = []
        for level in levels:
            changed = shifts.shifted(image, (kind, level), range(3))
            assert changed.shape == image.shape and 0 <= changed.min() and changed.max() <= 1
            sizes.append(float((changed - image).abs().mean()))
            # each image's noise is its own, and the same in any batch
            alone = shifts.shifted(image[1:2], (kind, level), [1])
            assert torch.equal(alone[0], changed[1])
        assert sizes == sorted(sizes) and sizes[0] > 0
    dark = shifts.shifted(image, ("darkening (factor)", 1.0), range(3))
    assert torch.equal(dark, image)  # to 8 bits and back loses nothing


@pytest.mark.parametrize("labels", [True, False])
def test_shift_run(labels, models, data, tmp_path, capsys):
    flags = {"data_dirs": [str(data)], "buildings": ["tuff"]} if labels else {}
    flags |= {} if labels else {"img_path": str(ROOT / "assets" / "room.png")}
    energy_shift.main(output_dir=str(tmp_path), models_dir=str(models), batch_size=2, **flags)
    rows = rows_of(tmp_path / "shift.csv")
    assert [row["shift"] for row in rows][:2] == ["clean", "blur (σ)"] and len(rows) == 21
    assert ("error" in rows[0]) == labels
    images = rows_of(tmp_path / "shift_images.csv")
    assert len(images) == 21 * (3 if labels else 1)
    assert (tmp_path / "shift.pdf").is_file() and (tmp_path / "shift.png").is_file()
    if labels:
        assert abs(float(rows[0]["energy"])) < 1e-9  # clean images standardise themselves
        assert all(0 <= float(row["auc"]) <= 1 for row in rows[1:])


def test_a_figure_on_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    """Before: a traceback out of Matplotlib's PDF writer."""
    from matplotlib.figure import Figure

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="cannot write .*shift.pdf: No space left"):
        plots.save_figure(Figure(), tmp_path / "shift")
    assert not list(tmp_path.iterdir())

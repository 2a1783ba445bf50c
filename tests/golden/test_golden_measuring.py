"""The programs that measure: the energy's statistics, its values of images, the demo's pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import FOLDER, ROUNDING, fill, on_meta, read

import demo
from datasets import Reality, TaskDataset
from energy import energy_configs
from graph import TaskGraph, edges_of
from loading.layouts import find_views
from loading.photographs import open_image
from measuring import consistency_energy
from measuring.demo_networks import choose_networks
from measuring.prediction import load_predictor
from measuring.statistics import pearson, spearman, standardised, statistics
from models import save_network
from task_configs import get_task
from transfers import TRANSFERS, Scale

STATISTICS = read("energy_calc_stats.json")


def numbers(values) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics(name, compare):
    case = STATISTICS[name]
    table = {column: numbers(values) for column, values in case["input"].items()}
    z = standardised(table, statistics(table))
    pairs = [(values, numbers(case[column])) for column, values in z.items()]
    for measure in (spearman, pearson):
        ours = measure(z["normalized_energy"], z["normalized_error"])
        pairs.append((np.array(ours[:2]), numbers(case[measure.__name__])))
    for ours, golden in pairs:
        compare.same("energy: statistics, NaN", np.isnan(ours).tolist(), np.isnan(golden).tolist())
        defined = ~np.isnan(golden)
        compare("energy: statistics", ours[defined], golden[defined], rel=1e-9)


needs_folder = pytest.mark.skipif(
    not (FOLDER / "energy_calc_data").is_dir(), reason="too large for the trimmed copy"
)


@pytest.mark.slow
@needs_folder
def test_energies_of_images(compare):
    case, folder = read("energy_calc_images.json"), FOLDER / "energy_calc_data"
    networks = {}
    for edge in edges_of(energy_configs["energy_calc"]["paths"]):
        networks[edge] = fill(on_meta(lambda edge=edge: TRANSFERS[edge].build(Scale())), edge)
    buildings = consistency_energy.choose_buildings([folder], None, None)
    compare.same("energy of images: buildings", buildings, ["almena", "albertville"])
    tasks = [get_task("rgb"), get_task("normal")]
    views = find_views(tasks, [folder], buildings)
    reality = Reality("test", TaskDataset(tasks, views, 256), 2)
    table = consistency_energy.measure_views(TaskGraph(networks), reality, quiet=True)
    names = [(v["building"], f"point_0_view_{v['view']}") for v in case["per_image"]]
    order = [[(v.building, v.name) for v in views].index(name) for name in names]
    for name, values in table.items():
        if name != "energy":
            column = "direct_normal" if name == "error" else name
            wanted = [view["losses"][column] for view in case["per_image"]]
            compare("energy of images: losses", values[order], wanted, rel=2e-6)
    wanted = case["table_over_all_6"]
    compare("energy of images: energy", table["energy"][order], wanted["energy"], rel=2e-6)
    for name, values in standardised(table, statistics(table)).items():
        compare("energy of images: standardised", values[order], wanted[name], abs=2e-5)


@pytest.mark.slow
@needs_folder
@pytest.mark.parametrize("task", demo.TARGETS)
def test_demo_pictures(task, tmp_path, compare):
    models, source, out = (tmp_path / name for name in ("models", "in", "out"))
    for variant, prefix in (("baseline", ""), ("consistency", "p39.")):
        row = TRANSFERS["rgb", demo.TARGETS[task]]
        network = fill(on_meta(lambda row=row: row.build(Scale())), everywhere=prefix)
        save_network(models / f"rgb2{task}_{variant}.pth", network, Scale())
    source.mkdir()
    for name in ("A_rgb.png", "A_rgba.png"):
        (source / name).write_bytes((FOLDER / "preproc_inputs" / name).read_bytes())
    demo.main(task=task, img_path=str(source), output_dir=str(out), models_dir=str(models))
    exact = exact_levels(task, models, sorted(source.iterdir()))
    with np.load(FOLDER / "demo_outputs.npz") as published:
        for name in (n for n in published.files if f"_{task}_" in n):
            ours = np.array(Image.open(out / f"{name}.png"))
            compare("demo: grey levels", ours, published[name], abs=1)
            # levels are cut off, not rounded: how many fall on the other side of a border
            # depends on the processor's float32, measured here against our float64
            rounding = ROUNDING * (ours != exact[name]).mean()
            share = (ours != published[name]).mean()
            compare("demo: share of pixels that differ", share, 0.0, abs=max(3e-4, rounding))


@torch.no_grad()
def exact_levels(task: str, models: Path, images: list[Path]) -> dict[str, np.ndarray]:
    """The demo's grey levels, {name of the picture: (H, W) or (H, W, 3)}, from float64."""
    predictor = load_predictor(task, choose_networks(task, models_dir=models), torch.device("cpu"))
    for network in predictor.networks.values():
        network.double()
    levels = {}
    for path in images:
        values = predictor.prepare(open_image(path), None)[0][None].double()
        for variant, network in predictor.networks.items():
            found = network(values)[0].clamp(0, 1).mul(255).byte()
            levels[f"{path.stem}_{task}_{variant}"] = found.permute(1, 2, 0).squeeze(-1).numpy()
    return levels

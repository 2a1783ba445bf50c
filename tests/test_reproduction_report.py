"""The report of scripts.reproduce: tables, answers and figures from the result files alone."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from files import write_json
from measuring.closing_table import DIRECT
from measuring.reproduction.evaluation_stages import compared_networks
from measuring.reproduction.plan import plan
from measuring.reproduction.report import write_page
from measuring.reproduction.results import (
    above_the_frozen_networks,
    change_by_perfection,
    mean_change,
    over_seeds,
    read_groups,
)
from measuring.reproduction.scales import SCALES
from measuring.reproduction.steps import OTHER_SETS, Places, Stage, seed_key, seed_keys
from measuring.reproduction.training_stages import ALL, FIXED
from methods.table import METHODS
from tables import read_csv, write_csv
from utils import UserError

TINY = SCALES["tiny"]


# ---- the report ---------------------------------------------------------------------


def record_seconds(run_folder: Path, seconds: float) -> None:
    """Write what a training records of the time that its steps took."""
    taken = {"trained": {"steps": 2, "seconds": seconds, "peak_mib": 1.0}}
    write_json(run_folder / "run.json", {"taken": taken})


def store(places: Places, key: str, networks: dict[str, float], views: int = 12) -> None:
    """Write images.csv: each network's errors are the same numbers times its factor."""
    rng = np.random.default_rng(0)
    base = {DIRECT: 5 + rng.random(views), "percep_curv × 100, predicted": 1 + rng.random(views),
            "percep_curv × 100, true": 2 + rng.random(views)}  # fmt: skip
    columns: dict[str, list] = {"network": [], "building": [], "view": []}
    for label, factor in networks.items():
        columns["network"] += [label] * views
        columns["building"] += [f"test{i % 4:03d}" for i in range(views)]
        columns["view"] += [str(i) for i in range(views)]
        for name, values in base.items():
            columns.setdefault(name, []).extend(factor * values)
    write_csv(places.results(key) / "images.csv", columns)


def store_seed(
    places: Places, what: str, seed: int, baseline: float, factors: dict[str, float]
) -> None:
    """Write images.csv of a seed's networks, and with seed 0 that of the baseline."""
    first = {} if seed else {"baseline": baseline}
    named = {f"{method} {seed}": factor for method, factor in factors.items()}
    store(places, seed_key(what, "normal", seed), first | named)


def store_energies(places: Places, key: str, noise: float, more: float = 0.0) -> None:
    """Write what scripts.energy_calc does: errors, and energies that follow them with noise."""
    rng = np.random.default_rng(len(key))
    error = rng.standard_normal(40)
    energy = error + noise * rng.standard_normal(40) + 3 * more
    write_csv(places.results(key) / "data.csv", {
        "building": [f"test{i % 4:03d}" for i in range(40)], "percep_a": energy, "error": error,
        "normalized_energy": energy, "normalized_error": error})  # fmt: skip
    columns = {"columns": {"percep_a": {"mean": 0.0, "deviation": 1.0}}}
    write_json(places.results(key) / "statistics.json", columns)


def store_shifts(places: Places, key: str) -> None:
    """Write what scripts.energy_shift does: of 40 views, a tenth and then all rise above clean."""
    clean = np.linspace(0, 1, 40)
    levels = {("clean", 0.0): clean, ("blur (σ)", 1.0): clean + 0.1, ("blur (σ)", 2.0): clean + 2}
    write_csv(places.results(key) / "shift_images.csv", {
        "image": [f"test{i % 4:03d}/{i}" for _ in levels for i in range(40)],
        "shift": [kind for kind, _ in levels for _ in range(40)],
        "level": [level for _, level in levels for _ in range(40)],
        "error": [0.05 + level / 100 for _, level in levels for _ in range(40)],
        "normalized_energy": np.concatenate(list(levels.values()))})  # fmt: skip


def stored(folder: Path) -> list[Stage]:
    """Result files of the tiny scale in which consistency is ten per cent better."""
    places, stages = Places(folder), plan(TINY, folder, 2)
    whole = {"consistency": 0.9, "without": 1.0, "without equal time": 1.0}
    short = {"without": 0.8, "consistency": 0.76}
    for seed in (0, 1):
        for what in ("test", *OTHER_SETS, "blur_2"):
            store_seed(places, what, seed, 1.0, whole)
        store_seed(places, "shorter", seed, 0.8, short)
    store(places, "fraction_50percent", {"baseline": 1, "without": 1, "consistency": 0.8})
    for kind in OTHER_SETS:
        store(places, f"adapted_{kind}", {f"{m} {n}": f for m, f in
              (("without", 1.0), ("consistency", 0.9)) for n in (0, 2)})  # fmt: skip
    store(places, "adapted_noise_0.1", {f"{m} {n}": f for m, f in
          (("without", 1.0), ("consistency", 1.1)) for n in (0, 2)})  # fmt: skip
    factors = {"without": 1.0, "consistency": 0.9, "unsupervised": 1.05, ALL: 0.9, FIXED: 0.9}
    for group, names in compared_networks(TINY).items():
        store(places, f"{group}_normal", {n: factors.get(n, 1.2) for n in names})
    for name, noise in (("labels", 2.0), ("predictions", 0.5)):
        store_energies(places, f"energy_val_{name}", noise)
        store_energies(places, f"energy_{name}", noise)
        for number, kind in enumerate(OTHER_SETS):
            store_energies(places, f"energy_{name}_{kind}", noise, number - 1)
        store_shifts(places, f"shift_{name}")
    for stage in stages[:3]:
        mark = places.stage_mark(stage.name)
        mark.parent.mkdir(exist_ok=True)
        mark.write_text(json.dumps({
            "stage": stage.name, "seconds": 60, "intervals": [[0, 60]],
            "finished": "2026-11-21 10:00",
            "hardware": {"gpu": None, "processor": "a processor", "cores": 2, "torch": "2",
                         "jobs": 1},
            "commands": ["python -m train --results-dir=runs/a"]}))  # fmt: skip
    return stages


def test_the_report_is_of_the_result_files_alone(tmp_path):
    stages = stored(tmp_path / "work")
    page = tmp_path / "docs" / "results.md"
    write_page(page, tmp_path / "work", "tiny", 2, stages)
    text = page.read_text(encoding="utf-8")
    assert "| test rooms | without | -10.0 % [-10.0, -10.0] | -10.0 % [-10.0, -10.0] |" in text
    row = next(line for line in text.splitlines() if line.startswith("| percep_curv × 100, true"))
    assert row.endswith("| -10.0 % [-10.0, -10.0] |")
    assert "| 50 % |" in text and "-20.0 % [-20.0, -20.0]" in text
    energies = read_csv(
        tmp_path / "work/measured/energy_predictions/data.csv", ["percep_a", "error"]
    )
    r = np.corrcoef(energies["percep_a"], energies["error"])[0, 1]
    (row,) = re.findall(r"\| predictions \| 0\.\d+ \[.+?\] \| (.+?) \[(.+?), (.+?)\] \|", text)
    assert row[0] == f"{r:.3f}" and float(row[1]) < r < float(row[2])
    assert f"| predictions, weighted | fitted | {r:.3f} [" in text  # one path
    assert re.search(rf"\| a \| 0\.\d\d \| {r:.2f} \|", text)
    assert "the networks trained on predictions are chosen" in text
    assert "| blur (σ) | 2 | 7.00 | 1.000 [1.00, 1.00] | 1.000 [1.00, 1.00] |" in text
    assert re.search(r"\| blur \(σ\) \| 1 \| 6\.00 \| 0\.58\d \[0\.\d\d, 0\.\d\d\] \|", text)
    assert re.search(r"\| other_camera \| predictions \| 40 \| 0\.9\d\d \[", text)
    assert "3 of" in text and "a processor, 2 cores" in text and "2026-11-21" in text
    assert "python -m train --results-dir=runs/a" in text
    assert "on test rooms: direct error lower (-10.0 % [-10.0, -10.0])" in text
    both = section(text, "From baselines trained shorter and longer")
    assert "| 4 | 5.5" in both and "| 2 | 4.4" in both and "| -5.0 % [-5.0, -5.0] |" in both
    assert "| noise_0.1 | 2 | " in text  # adaptation to degraded images
    for name in ("changes", "degraded", "choice", "methods", "energy", "auc"):
        assert f"results/{name}.png" in text
        with Image.open(page.parent / "results" / f"{name}.png") as picture:
            assert picture.width > 300


def test_the_report_begins_with_the_claims(tmp_path):
    """Each has what was measured, and the answer of its interval, also where that is no."""
    folder, page = tmp_path / "work", tmp_path / "results.md"
    stages = stored(folder)
    places = Places(folder)
    for seed in (0, 1):
        store_seed(places, "other_camera", seed, 1.0, {"without": 1.0, "consistency": 1.1})
    write_page(page, folder, "tiny", 2, stages)
    claims = section(page.read_text(encoding="utf-8"), "The claims")
    found = {line.split(" | ")[0].strip("| "): line for line in claims.splitlines()}
    both = "equal steps: -10.0 % [-10.0, -10.0]; equal time: -10.0 % [-10.0, -10.0] | yes |"
    assert found["consistency lowers the direct error: normal"].endswith(both)
    assert found["consistency lowers the perceptual errors against truth: normal"].endswith(both)
    wider = found["it generalises better to other camera: normal"]
    assert "direct: +10.0 %" in wider and wider.endswith("| no, it is higher |")
    short = found["it lowers the errors of a baseline of 2 steps: normal"]
    assert "direct: -5.0 % [-5.0, -5.0]" in short and short.endswith("| yes |")
    assert found["it helps with 50 % of the training views: normal"].endswith("| yes |")
    r = found["the energy rises with the error (the paper: r = 0.67)"]
    assert re.search(r"\| r = 0\.9\d\d \[0\.\d\d, 0\.\d\d\], ρ = 0\.", r) and r.endswith("| yes |")
    rooms = {name.split(" (")[0].split(": ")[1]: line.split(" | ")[2]
             for name, line in found.items() if "other rooms apart" in name}  # fmt: skip
    assert rooms == {"other furniture": "no, they have less |", "other camera": "yes |",
                     "outdoor light": "not told apart by the interval |"}  # fmt: skip
    blur = next(line for name, line in found.items() if "images apart: blur" in name)
    assert "0.58 1.00, from the mildest level on" in blur and "rises with every level" in blur
    shutil.rmtree(folder / "measured")
    write_page(page, folder, "tiny", 2, stages)
    empty = section(page.read_text(encoding="utf-8"), "The claims")
    assert "changes.png" not in empty and "yes" not in empty
    assert "| not measured | not measured |" in empty


def test_the_frozen_networks_own_errors_are_left_out():
    """Of 3 × 1 and 5 × 1 above what the truth mapped has, half and a tenth are left."""
    buildings, one = list("xxyyzzww"), np.ones(8)
    own = {"percep_a × 100, truth mapped": 7 * one, "percep_b × 100, truth mapped": 5 * one}
    first = {"percep_a × 100, true": 10 * one, "percep_b × 100, true": 10 * one, **own}
    second = {"percep_a × 100, true": 8.5 * one, "percep_b × 100, true": 5.5 * one, **own}
    change = above_the_frozen_networks([first, first], [second, second], buildings, 100)
    assert change.percent == pytest.approx(100 * (1.5 + 0.5) / (3 + 5) - 100)
    assert change.percent_high < 0
    assert change_by_perfection([first, first]) == pytest.approx(100 * (0.7 + 0.5) / 2 - 100)
    assert np.isnan(above_the_frozen_networks([own], [own], buildings, 100).percent)
    exact = {"percep_a × 100, true": 7 * one, **own}
    assert np.isnan(above_the_frozen_networks([exact], [exact], buildings, 100).percent)


def test_seeds_are_put_together(tmp_path):
    """Those that were asked for and are there; the views have to be the same ones."""
    places, keys = Places(tmp_path), seed_keys("test", "normal", replace(TINY, seeds=2))
    assert keys == ["test_normal_0", "test_normal_1"] and read_groups(places, keys) is None
    for seed, factor in enumerate((0.9, 0.7, 0.5)):
        store_seed(places, "test", seed, 1.0, {"consistency": factor})
    groups, buildings = read_groups(places, keys)
    assert {name: len(runs) for name, runs in groups.items()} == {"baseline": 1, "consistency": 2}
    base = groups["baseline"][0][DIRECT]
    assert np.allclose(over_seeds(groups["consistency"], DIRECT), 0.8 * base)
    assert len(buildings) == len(base)
    store(places, keys[1], {"consistency 1": 0.7}, views=8)
    with pytest.raises(UserError, match="test_normal_1 and .*test_normal_0 are of different views"):
        read_groups(places, keys)


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}")[1].split("\n## ")[0]


def test_the_report_on_other_ways_to_train(tmp_path):
    """Each question has its table and its answer, also where the answer is no."""
    stages = stored(tmp_path / "work")
    page = tmp_path / "results.md"
    write_page(page, tmp_path / "work", "tiny", 2, stages)
    text = page.read_text(encoding="utf-8")
    alone = section(text, "Consistency through domains without labels")
    assert "unsupervised against without: direct error higher (+5.0 %" in alone
    assert "unsupervised against consistency: direct error higher (+16.7 %" in alone
    weights = section(text, "Balanced or fixed weights")
    assert f"{ALL} against {FIXED}: direct error not told apart by the interval (+0.0 %" in weights
    choice = section(text, "How many perceptual losses, and which")
    assert "1 by win rate against 1 at random: direct error not told apart" in choice
    assert f"{ALL} against consistency" in choice and "| 1 at random |" in choice
    every = section(text, "All methods")
    assert "| baseline (`without`) | " in every and "| perceptual (`consistency`) | " in every
    for name in METHODS:
        assert name in every or METHODS[name].untrained, name
    assert "- geonet against without: direct error higher (+20.0 % [+20.0, +20.0]), " in every
    assert "Except: multitask has a network of another shape" in every
    for part in (alone, weights, choice, every):
        assert "Seed 0 alone, 2 steps from the same baseline" in part and "not measured" not in part
    shutil.rmtree(tmp_path / "work" / "measured" / "weights_normal")
    write_page(page, tmp_path / "work", "tiny", 2, stages)
    text = page.read_text(encoding="utf-8")
    assert section(text, "Balanced or fixed weights").rstrip().endswith("not measured")


def test_the_mean_change_weighs_every_error_alike():
    rng = np.random.default_rng(0)
    first = {"a": 1 + rng.random(8), "b": 100 + rng.random(8)}
    second = {"a": 0.8 * first["a"], "b": 1.1 * first["b"]}
    found = mean_change([first], [second], ["a", "b"], list("xxyyzzww"), 200)
    assert found.percent == pytest.approx(-5.0, abs=0.2) and found.low < found.value < found.high

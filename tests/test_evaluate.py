"""Errors of checkpoints: each by its own definition, the program's tables, and its intervals."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from consistency import evaluate
from degradations import SHIFTS, parse_shift
from energy import get_config
from graph import TaskGraph
from losses import angular_error
from measuring.closing_table import DIRECT, image_errors
from measuring.errors import aligned, depth_errors, direct_errors, normal_errors
from measuring.evaluation import chosen_images
from measuring.statistics import paired_difference
from methods.table import METHODS
from models import save_network
from tables import read_csv
from transfers import TRANSFERS, Scale
from utils import UserError

SCALE = Scale(32, 8)
SEEDS = st.integers(0, 2**32 - 1)


def maps(seed, channels, count=3, size=7):
    """Two maps (B, C, H, W) and a mask (B, H, W) with at least two valid pixels an image."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, count, channels, size, size, generator=generator)
    valid = torch.rand(count, size, size, generator=generator) < 0.7
    valid[:, 0, :2] = True
    return first, second, valid


# ---- each image's errors, by their definitions in NumPy ------------------------------


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_angles_by_their_definition(seed):
    first, second, valid = maps(seed, 3)
    found = normal_errors(first, second, valid)
    means = angular_error(first, second, valid[:, None].expand_as(first))
    for i in range(len(first)):
        a, b = ((2 * x[i].double().numpy() - 1).reshape(3, -1) for x in (first, second))
        cosine = (a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
        angle = np.degrees(np.arccos(cosine.clip(-1, 1)))[valid[i].reshape(-1).numpy()]
        assert float(means[i]) == pytest.approx(angle.mean(), abs=1e-3)
        expected = {
            "median angle (°)": np.median(angle),
            "RMSE angle (°)": math.sqrt(np.mean(angle**2)),
            "within 11.25° (%)": 100 * np.mean(angle < 11.25),
            "within 22.5° (%)": 100 * np.mean(angle < 22.5),
            "within 30° (%)": 100 * np.mean(angle < 30),
        }
        assert list(found) == list(expected)
        for row, value in expected.items():
            assert float(found[row][i]) == pytest.approx(value, abs=1e-3), row


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_depth_errors_by_their_definition(seed):
    prediction, truth, valid = maps(seed, 1)
    prediction, truth = 15 * prediction[:, 0], 15 * truth[:, 0]
    truth[:, 2, 2] = 0.0  # no depth there: left out
    found = depth_errors(prediction, truth, valid)
    for i in range(len(truth)):
        chosen = (valid[i] & (truth[i] > 0)).numpy()
        t = truth[i].numpy()[chosen].astype(np.float64)
        p = prediction[i].numpy()[chosen].astype(np.float64)
        slope, shift = np.polyfit(p, t, 1)
        for end, q in {"": p, ", aligned": slope * p + shift}.items():
            with np.errstate(divide="ignore"):
                ratio = np.where(q > 0, np.maximum(q / t, t / q), np.inf)
            expected = {
                "abs-rel × 100": 100 * np.mean(np.abs(q - t) / t),
                "RMSE (m)": math.sqrt(np.mean((q - t) ** 2)),
                "δ < 1.25 (%)": 100 * np.mean(ratio < 1.25),
            }
            for row, value in expected.items():
                assert float(found[row + end][i]) == pytest.approx(value, rel=1e-3, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(0.1, 5), st.floats(-3, 3))
def test_alignment_undoes_a_scale_and_a_shift(seed, scale, shift):
    truth, other, valid = (x if x.dtype == torch.bool else x[:, 0] for x in maps(seed, 1))
    torch.testing.assert_close(aligned(scale * truth + shift, truth, valid), truth,
                               rtol=1e-3, atol=1e-3)  # fmt: skip
    plain = aligned(other, truth, valid)
    torch.testing.assert_close(aligned(scale * other + shift, truth, valid), plain,
                               rtol=1e-3, atol=1e-3)  # fmt: skip
    constant = aligned(torch.full_like(truth, 0.25), truth, valid)
    means = (truth * valid).sum((1, 2)) / valid.sum((1, 2))
    torch.testing.assert_close(constant, means[:, None, None].expand_as(truth))


@pytest.mark.parametrize("target, channels", [("normal", 3), ("depth_zbuffer", 1)])
def test_the_truth_has_no_error_and_an_empty_mask_none_either(target, channels):
    truth, other, valid = maps(0, channels)
    mask = valid[:, None].expand_as(truth).clone()
    for row, values in direct_errors(target, truth, truth, mask).items():
        best = 100.0 if row.startswith(("within", "δ")) else 0.0
        torch.testing.assert_close(values, torch.full_like(values, best), atol=1e-3, rtol=0)
    mask[1] = False
    for row, values in direct_errors(target, other, truth, mask).items():
        assert values.isnan().tolist() == [False, True, False], row


# ---- the bootstrap -------------------------------------------------------------------


def test_the_interval_is_of_drawn_buildings():
    """The same draws, one by one and image by image."""
    rng = np.random.default_rng(1)
    names = ["a"] * 3 + ["b"] * 5 + ["c"] * 2 + ["d"]
    first, second = rng.random((2, len(names)))
    first[4] = np.nan  # left out of both
    found = paired_difference(first, second, names, resamples=50, seed=7)
    groups = [[i for i, n in enumerate(names) if n == name and i != 4] for name in "abcd"]
    differences, changes = [], []
    for drawn in np.random.default_rng(7).integers(0, 4, (50, 4)):
        images = [i for g in drawn for i in groups[g]]
        one, two = first[images].mean(), second[images].mean()
        differences.append(two - one)
        changes.append(100 * (two / one - 1))
    assert found.value == pytest.approx(np.nanmean(second[np.isfinite(first)]) - np.nanmean(first))
    expected = [*np.quantile(differences, [0.025, 0.975]), *np.quantile(changes, [0.025, 0.975])]
    assert (found.low, found.high, found.percent_low, found.percent_high) == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(-2, 2))
def test_laws_of_the_paired_difference(seed, shift):
    rng = np.random.default_rng(seed)
    first, names = rng.random(12) + 3, [f"b{i % 4}" for i in range(12)]
    same = paired_difference(first, first + shift, names, 100)
    assert (same.value, same.low, same.high) == pytest.approx((shift,) * 3)
    second = rng.random(12)
    there, back = (paired_difference(*pair, names, 100)
                   for pair in [(first, second), (second, first)])  # fmt: skip
    assert (back.value, back.low, back.high) == pytest.approx(
        (-there.value, -there.high, -there.low)
    )
    order = rng.permutation(12)
    mixed = paired_difference(first[order], second[order], [names[i] for i in order], 100)
    assert mixed == pytest.approx(there)


def test_buildings_widen_the_interval_as_views_alone_do_not():
    """Views of a building share its difference; an interval over views would be too narrow."""
    rng = np.random.default_rng(0)
    held = {"buildings": 0, "views": 0}
    for seed in range(200):
        difference = np.repeat(rng.standard_normal(20), 10) + 0.1 * rng.standard_normal(200)
        zero, names = np.zeros(200), np.repeat(np.arange(20), 10)
        for kind, clusters in {"buildings": names, "views": np.arange(200)}.items():
            found = paired_difference(zero, difference, clusters, 200, seed)
            held[kind] += found.low <= 0 <= found.high
    assert 0.88 <= held["buildings"] / 200 <= 0.98 and held["views"] / 200 < 0.6


def test_one_building_has_no_interval_and_no_image_no_difference():
    found = paired_difference(np.ones(3), np.full(3, 2.0), ["a"] * 3)
    assert (found.value, found.percent) == (1, 100) and math.isnan(found.low)
    assert all(map(math.isnan, paired_difference(np.full(2, np.nan), np.ones(2), ["a", "b"])))


def test_the_frozen_networks_own_errors_are_those_of_a_perfect_prediction():
    """The row "…, truth mapped" is "…, true" of a network that predicts the truth."""
    config = get_config("multiperceptual_normal")
    truth, other = torch.rand(2, 3, 16, 16), torch.rand(2, 1, 16, 16)
    batch = {"rgb": truth, "normal": truth, "reshading": other}
    frozen = nn.Conv2d(3, 1, 3, padding=1)
    wrong = nn.Conv2d(3, 3, 1)
    rows = {
        name: image_errors(TaskGraph({("rgb", "normal"): network, ("normal", "reshading"): frozen}),
                           config, ["percep_reshading"], batch, detailed=detailed)
        for name, network, detailed in (("perfect", nn.Identity(), True), ("wrong", wrong, True),
                                        ("plain", wrong, False))
    }  # fmt: skip
    own = rows["wrong"]["percep_reshading × 100, truth mapped"]
    assert torch.equal(own, rows["perfect"]["percep_reshading × 100, true"]) and own.min() > 0
    assert not torch.equal(own, rows["wrong"]["percep_reshading × 100, true"])
    assert "percep_reshading × 100, truth mapped" not in rows["plain"]


def test_best_median_and_worst_images():
    direct = np.array([5.0, np.nan, 1, 4, 2, 3, 6, 7])
    assert chosen_images(direct, 2) == {"best": [2, 4], "median": [5, 3], "worst": [6, 7]}
    assert chosen_images(np.array([2.0, 1.0]), 2) == {"best": [1, 0], "median": [], "worst": []}


@pytest.mark.parametrize("kind", SHIFTS)
def test_every_shift_has_five_levels_and_a_name(kind):
    levels = SHIFTS[kind][1]
    assert len(levels) == 5
    for level in levels:
        assert parse_shift(f"{kind.split()[0].lower()}:{level:g}") == (kind, level)


@pytest.mark.parametrize("text", ["blurr:2", "blur", "blur:x", "noise:2", "jpeg:0", "blur:nan"])
def test_a_shift_that_is_none(text):
    with pytest.raises(UserError, match="`shift` "):
        parse_shift(text)


# ---- the program ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Two networks rgb → normal and one rgb → depth in folders, as runs leave them."""
    folder = tmp_path_factory.mktemp("runs")
    for number, (name, target) in enumerate(
        [("one", "normal"), ("two", "normal"), ("deep", "depth_zbuffer")]
    ):
        torch.manual_seed(number)
        row = TRANSFERS["rgb", target]
        save_network(folder / name / f"{row.name}_consistency.pth", row.build(SCALE), SCALE)
    return folder


def call(run, networks, tmp_path, *arguments):
    words = [*map(str, arguments), f"--data-dirs={run.rooms}", f"--models-dir={networks}",
             f"--output-dir={tmp_path / 'out'}", "--quiet"]  # fmt: skip
    if not any(word.startswith("--resamples") for word in words):
        words.append("--resamples=100")
    return run(*words, program="scripts.evaluate", defaults=False)


def test_the_program_writes_tables_and_pictures(run, networks, others, tmp_path):
    buildings = sorted({p.name.removesuffix("_rgb") for p in run.rooms.glob("*_rgb")})[:2]
    status, said, _ = call(run, networks, tmp_path, "baseline", others / "one", others / "two",
                           f"--buildings={','.join(buildings)}")  # fmt: skip
    assert status == 0 and "8 views of 2 buildings" in said, said
    out = tmp_path / "out"
    record = json.loads((out / "evaluation.json").read_text())
    assert list(record["errors"]) == ["baseline", "one", "two"]
    assert sorted(record["buildings"]) == buildings and record["resamples"] == 100
    with open(out / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 8 and {row["building"] for row in rows} == set(buildings)
    for row, mean in record["errors"]["two"].items():
        values = [float(r[row]) for r in rows if r["network"] == "two" and r[row]]
        assert mean == pytest.approx(np.mean(values))
    values = {n: np.array([float(r[DIRECT]) for r in rows if r["network"] == n])
              for n in record["errors"]}  # fmt: skip
    names = [row["building"] for row in rows[:8]]
    expected = paired_difference(values["baseline"], values["one"], names, 100)
    assert record["differences"]["one"][DIRECT] == pytest.approx(expected._asdict())
    assert "baseline" not in record["differences"]
    summary = read_csv(out / "evaluation.csv", ["mean", "low"])
    assert len(summary["mean"]) == 3 * len(record["errors"]["one"])
    text = (out / "evaluation.md").read_text()
    assert text.startswith("| error | baseline | one | two |") and "bootstrap" in text
    for name in ("baseline", "one", "two"):
        with Image.open(out / f"{name}.png") as picture:
            assert picture.width > 4 * 128 and picture.height > 6 * 128


def test_without_checkpoints_both_of_the_models_folder_are_measured(
    run, networks, others, tmp_path
):  # fmt: skip
    models = shutil.copytree(networks, tmp_path / "models")
    for file in (others / "one").glob("*.pth"):
        shutil.copy(file, models)
    status, said, _ = call(run, models, tmp_path, "--perceptual=none")
    assert status == 0, said
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(record["errors"]) == ["baseline", "consistency"]


def test_the_errors_are_those_of_the_closing_table(run, networks, others, tmp_path):
    status, said, _ = call(run, networks, tmp_path, others / "one", "--batch-size=3")
    assert status == 0, said
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["errors"]["one"]
    expected = evaluate(others / "one", run.rooms, models_dir=networks, detailed=True)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-5)


def test_depth_and_spoilt_images(run, networks, others, tmp_path):
    call(run, networks, tmp_path, others / "deep", "--perceptual=none")
    clean = json.loads((tmp_path / "out" / "evaluation.json").read_text())["errors"]["deep"]
    assert "δ < 1.25 (%), aligned" in clean and not any("percep" in row for row in clean)
    call(run, networks, tmp_path, others / "deep", "--perceptual=none", "--shift=noise:0.2")
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["shift"] == "noise (σ) 0.2" and record["errors"]["deep"] != clean


def test_checkpoints_of_methods_with_networks_of_their_own(run, networks, others, tmp_path):
    """Each is built as its record says; rows that only one has are empty for the others."""
    for number, name in enumerate(("geonet", "multitask", "pix2pix")):
        torch.manual_seed(number)
        network = METHODS[name].row("normal").build(SCALE)
        if name == "multitask":
            network.train_on(["normal", "depth_zbuffer"])
        save_network(tmp_path / f"rgb2normal_{name}.pth", network, SCALE, method=name)
    files = [tmp_path / f"rgb2normal_{name}.pth" for name in ("geonet", "multitask", "pix2pix")]
    status, said, _ = call(run, networks, tmp_path, others / "one", *files,
                           "--perceptual=reshading,depth_zbuffer",
                           "--labels=one,geonet,multitask,pix2pix")  # fmt: skip
    assert status == 0 and "nan" not in said, said
    errors = json.loads((tmp_path / "out" / "evaluation.json").read_text())["errors"]
    other = "direct L1 × 100, depth_zbuffer"
    assert errors["one"][other] is None and errors["pix2pix"][other] is None
    assert errors["geonet"][other] > 0 and errors["multitask"][other] > 0
    assert all(rows[DIRECT] > 0 for rows in errors.values())
    (line,) = (line for line in said.splitlines() if line.startswith(other))
    assert line.split()[-1] == "–"


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["one", "deep"], "which --task do"),
        (["one", "one"], "two networks are called"),
        (["one", "--labels=a,b"], "--labels names 2 networks, and there are 1"),
        (["consistency"], "no rgb2normal_consistency.pth in"),
        (["one", "--shift=fog:1"], "--shift is a kind and a level"),
        (["one", "--perceptual=curvv"], "no perceptual loss curvv; did you mean curv?"),
        (["one", "--resamples=0"], "--resamples has to be more than 0"),
        (["gone.pth", "--task=normal"], "no checkpoint gone.pth"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, networks, others, tmp_path, words, sentence):
    words = [others / word if word in ("one", "deep") else word for word in words]
    status, said, _ = call(run, networks, tmp_path, *words)
    assert status == 2 and sentence in said and "Traceback" not in said, said
    assert not (tmp_path / "out" / "evaluation.json").exists()

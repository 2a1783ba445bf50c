"""The energy's arithmetic: published values, and laws of correlation and ROC."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy import energy_configs
from measuring.statistics import (
    auc_over_buildings,
    fitted_weights,
    make_table,
    over_buildings,
    pearson,
    regression,
    roc_auc,
    spearman,
    times_drawn,
    weighted_auc,
    weighted_correlation,
    weighted_ranks,
)
from tables import read_csv, write_csv
from utils import UserError


def test_energy_is_the_mean_of_all_pairs():
    losses = {n: np.arange(3.0) + i for i, n in enumerate(energy_configs["energy_calc"]["losses"])}
    table = make_table(losses, "direct_normal")
    pairs = [values for name, values in losses.items() if name.startswith("percep")]
    assert len(pairs) == 28
    np.testing.assert_allclose(table["energy"], np.mean(pairs, axis=0))
    np.testing.assert_array_equal(table["error"], losses["direct_normal"])


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = {pearson: 0, spearman: 0}
    truth = {pearson: 0.6, spearman: 6 / np.pi * np.arcsin(0.3)}
    for _ in range(400):
        x, noise = rng.standard_normal((2, 40))
        y = 0.6 * x + 0.8 * noise
        for measure in hits:
            result = measure(x, y)
            hits[measure] += result.low <= truth[measure] <= result.high
    assert all(0.92 <= hit / 400 <= 0.98 for hit in hits.values())


def test_fitted_weights_are_those_of_the_errors():
    """Weights of paths that fall with the error are 0, and it does not matter how they vary."""
    rng = np.random.default_rng(0)
    paths = rng.standard_normal((200, 3)) * [1, 10, 1] + [5, 0, 0]
    error = 2 * paths[:, 0] + 0.3 * paths[:, 1] - paths[:, 2] + 7
    paths[:, 2] *= 1e3
    weights = fitted_weights(paths, error)
    assert weights == pytest.approx([2, 0.3, 0], abs=0.1) and weights[2] == 0
    assert fitted_weights(paths[:, :1], -paths[:, 0]) == 0
    paths[3, 1] = np.nan
    assert np.isnan(fitted_weights(paths, error)).all()


def test_too_few_or_constant_values_give_nan():
    for x in (np.array([1.0]), np.array([2.0, 2.0, 2.0]), np.array([1.0, np.nan, 2.0])):
        assert np.isnan(pearson(x, np.arange(len(x)) * 1.0).value)
        assert regression(x, np.arange(len(x)) * 1.0) is None


def test_roc_auc():
    rng = np.random.default_rng(0)
    clean, shifted = rng.integers(0, 5, 30) * 1.0, rng.integers(1, 7, 20) * 1.0
    pairs = (shifted[:, None] > clean) + 0.5 * (shifted[:, None] == clean)
    assert roc_auc(clean, shifted) == pytest.approx(pairs.mean())
    assert roc_auc(clean, clean) == 0.5 and np.isnan(roc_auc(clean, np.array([])))


@given(st.integers(0, 2**32 - 1))
def test_what_counts_several_times_is_as_if_repeated(seed):
    """Correlations and areas of drawn images are those of as many copies of the images."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 6, 20) * 1.0, rng.standard_normal(20)
    is_shifted = rng.random(20) < 0.5
    times = rng.integers(0, 3, (3, 20)) * 1.0
    for t, r, rho, area in zip(
        times, weighted_correlation(x, y, times),
        weighted_correlation(weighted_ranks(x, times), weighted_ranks(y, times), times),
        weighted_auc(x, is_shifted, times), strict=True,
    ):  # fmt: skip
        xs, ys, shifted = (np.repeat(v, t.astype(int)) for v in (x, y, is_shifted))
        assert r == pytest.approx(pearson(xs, ys).value, nan_ok=True)
        assert rho == pytest.approx(spearman(xs, ys).value, nan_ok=True)
        assert area == pytest.approx(roc_auc(xs[~shifted], xs[shifted]), nan_ok=True)


def test_whole_buildings_are_drawn():
    times = times_drawn(list("aabbbc"), 500)
    assert (times[:, 0] == times[:, 1]).all() and (times[:, 2] == times[:, 4]).all()
    assert (times[:, [0, 2, 5]].sum(axis=1) == 3).all()
    assert times[:, 5].mean() == pytest.approx(1, abs=0.1)


def test_intervals_over_buildings_hold_the_truth_where_those_over_views_do_not():
    """Views of a building share most of their energy and of their error."""
    rng = np.random.default_rng(0)
    hits = {"views": 0, "buildings": 0}
    for _ in range(200):
        of_building = rng.standard_normal((2, 30, 1))
        x, y = (of_building + 0.5 * rng.standard_normal((2, 30, 10))).reshape(2, -1)
        by_views, names = pearson(x, y), np.repeat(np.arange(30), 10).astype(str)
        low, high = over_buildings(x, y, names, 400)["pearson"]
        hits["views"] += by_views.low <= 0 <= by_views.high
        hits["buildings"] += low <= 0 <= high
    assert hits["views"] / 200 < 0.6 and 0.88 <= hits["buildings"] / 200 <= 0.99
    assert np.isnan(over_buildings(x, y, ["one"] * 300)["spearman"]).all()


def test_an_areas_interval_holds_the_truth():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        energies = np.concatenate([rng.standard_normal(200), rng.standard_normal(200) + 0.5])
        names = np.tile(np.repeat(np.arange(40), 5), 2).astype(str)
        low, high = auc_over_buildings(energies, np.arange(400) >= 200, names, 400)
        hits += low <= 0.63817 <= high  # the normal distribution at 0.5 / √2
    assert 0.88 <= hits / 200 <= 0.99


def test_csv_keeps_every_bit(tmp_path):
    values = np.array([1 / 3, np.nan, 1e-300])
    write_csv(tmp_path / "a.csv", {"name": ["a,b", "ä", "\udcff"], "value": values})
    np.testing.assert_array_equal(read_csv(tmp_path / "a.csv", ["value"])["value"], values)
    with pytest.raises(UserError, match="is not a table with the columns error"):
        read_csv(tmp_path / "a.csv", ["error"])

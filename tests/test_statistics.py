"""The energy's arithmetic: published values, and laws of correlation and ROC."""

import numpy as np
import pytest

from energy import energy_configs
from measuring.statistics import make_table, pearson, regression, roc_auc, spearman
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


def test_csv_keeps_every_bit(tmp_path):
    values = np.array([1 / 3, np.nan, 1e-300])
    write_csv(tmp_path / "a.csv", {"name": ["a,b", "ä", "\udcff"], "value": values})
    np.testing.assert_array_equal(read_csv(tmp_path / "a.csv", ["value"])["value"], values)
    with pytest.raises(UserError, match="is not a table with the columns error"):
        read_csv(tmp_path / "a.csv", ["error"])

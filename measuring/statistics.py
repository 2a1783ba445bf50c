"""Statistics of the consistency energy: standardisation, correlation, ROC. Pure functions.

A table is {column: (N,) float64} with one entry per image. Its columns are "energy", "error"
(if there are labels), and each loss "percep_…" of an energy configuration.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import nnls

from energy import is_perceptual, is_straight

Values = NDArray[np.float64]
Table = dict[str, Values]
CONFIDENCE = 0.95


def make_table(losses: Mapping[str, Values], error: str | None = None) -> Table:
    """Build the table from losses per image.

    "energy" is the mean of all losses "percep_…", not standardised (as published). `error` is
    the name of the loss against the ground truth, if there is one.
    """
    names = sorted(name for name in losses if is_perceptual(name))
    columns = {name: np.asarray(losses[name], dtype=np.float64) for name in names}
    table = {"energy": np.mean(list(columns.values()), axis=0)}
    if error is not None:
        table["error"] = np.asarray(losses[error], dtype=np.float64)
    return table | columns


def statistics(table: Mapping[str, Values]) -> dict:
    """Return the statistics for `standardised`: {"columns": {name: {mean, deviation}}, "error"}.

    As published, the deviation is the mean absolute deviation for energies, and the standard
    deviation (with n − 1) for the error.
    """
    result: dict = {"columns": {}}
    for name in filter(is_straight, table):
        values = table[name]
        centre = float(values.mean())
        result["columns"][name] = {
            "mean": centre,
            "deviation": float(np.abs(values - centre).mean()),
        }
    if "error" in table:
        error = table["error"]
        spread = float(error.std(ddof=1)) if len(error) > 1 else math.nan
        result["error"] = {"mean": float(error.mean()), "deviation": spread}
    return result


def standardised(table: Mapping[str, Values], by: Mapping) -> Table:
    """Standardise a table by the `statistics` of a table.

    Returns {"normalized_energy"[, "normalized_error"]}, (N,) each. The energy is the mean over
    the columns of (x − mean) / mean absolute deviation. If the deviation of any column is
    zero, all energies are NaN (0 / 0, as published).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = by["columns"].items()
        parts = [(table[n] - s["mean"]) / np.float64(s["deviation"]) for n, s in columns]
        if any(s["deviation"] == 0 for _, s in columns):
            parts.append(np.full_like(parts[0], np.nan))
        result = {"normalized_energy": np.mean(parts, axis=0)}
        if "error" in table and "error" in by:
            s = by["error"]
            result["normalized_error"] = (table["error"] - s["mean"]) / np.float64(s["deviation"])
    return result


def standardised_paths(table: Mapping[str, Values], by: Mapping) -> Values:
    """Return the columns of `by`, the `statistics` of a table, standardised by these: (N, P)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([(table[name] - s["mean"]) / np.float64(s["deviation"])
                         for name, s in by["columns"].items()], axis=1)  # fmt: skip


def fitted_weights(paths: Values, error: Values) -> Values:
    """Return the weights (≥ 0) with which the paths' disagreements fit the error best, (P,).

    `paths` are (N, P), and `error` is (N,). Least squares, both centred. All weights are 0 if
    no path rises with the error, and NaN if the values are not finite.
    """
    centred = paths - paths.mean(axis=0)
    if not np.isfinite(centred).all() or not np.isfinite(error).all():
        return np.full(paths.shape[1], np.nan)
    return nnls(centred, error - error.mean())[0]


class Correlation(NamedTuple):
    """A correlation coefficient, its p-value (against no correlation) and confidence interval."""

    value: float
    p: float
    low: float
    high: float


def pearson(x: Values, y: Values) -> Correlation:
    """Pearson's r, with an interval by Fisher's z: atanh r ± 1.96 / √(n − 3)."""
    if not _comparable(x, y):
        return Correlation(*[math.nan] * 4)
    result = stats.pearsonr(x, y)
    low, high = result.confidence_interval(CONFIDENCE)
    if len(x) <= 3:
        low = high = math.nan
    return Correlation(*map(float, (result.statistic, result.pvalue, low, high)))


def spearman(x: Values, y: Values) -> Correlation:
    """Spearman's ρ, with an interval by Fisher's z with variance (1 + ρ²/2) / (n − 3).

    The variance is by Bonett and Wright (2000).
    """
    if not _comparable(x, y):
        return Correlation(*[math.nan] * 4)
    result = stats.spearmanr(x, y)
    rho, low, high = float(result.statistic), math.nan, math.nan
    if len(x) > 3 and abs(rho) < 1:
        width = stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
        low, high = (math.tanh(math.atanh(rho) + side * width) for side in (-1, 1))
    return Correlation(rho, float(result.pvalue), low, high)


def _comparable(x: Values, y: Values) -> bool:
    finite = np.isfinite(x).all() and np.isfinite(y).all()
    return bool(len(x) > 1 and finite and np.ptp(x) > 0 and np.ptp(y) > 0)


class Regression(NamedTuple):
    """A straight line y = slope · x + intercept."""

    slope: float
    intercept: float


def regression(x: Values, y: Values) -> Regression | None:
    """Fit a line by least squares. None if there are too few, constant or non-finite values."""
    if not _comparable(x, y):
        return None
    slope, intercept, *_ = stats.linregress(x, y)
    return Regression(float(slope), float(intercept))


def roc_auc(clean: Values, shifted: Values) -> float:
    """Return the area under the ROC curve for detecting shifted images by their energy.

    It equals the probability that a shifted image has more energy than a clean one, where ties
    count half. NaN if either is empty or not finite.
    """
    count, both = len(shifted), np.concatenate([shifted, clean])
    if not count or not len(clean) or not np.isfinite(both).all():
        return math.nan
    wins = stats.rankdata(both)[:count].sum() - count * (count + 1) / 2  # Mann and Whitney's U
    return float(wins / (count * len(clean)))


class Difference(NamedTuple):
    """The difference of two means, with a 95 % interval, and the same in per cent of the first."""

    value: float
    low: float
    high: float
    percent: float
    percent_low: float
    percent_high: float


def paired_difference(
    first: Values, second: Values, clusters: Sequence[str], resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Return mean(second) − mean(first), of the same images, with a cluster bootstrap's interval.

    `first` and `second` are (N,), and `clusters` names the building of each image. Images of a
    building are not independent, so whole buildings are drawn with replacement, `resamples` times,
    and both means are taken over the images of the drawn buildings. The interval reaches from the
    2.5th to the 97.5th percentile. Images for which a value is NaN are left out. The interval of a
    single building is NaN. With few buildings, intervals come out too narrow.
    """
    both = np.isfinite(first) & np.isfinite(second)
    if not both.any():
        return Difference(*[math.nan] * 6)
    names = np.asarray(clusters)[both]
    _, cluster = np.unique(names, return_inverse=True)
    count = np.bincount(cluster).astype(np.float64)
    sums = [np.bincount(cluster, values[both]) for values in (first, second)]
    value, percent = _change(sums[0].sum(), sums[1].sum(), count.sum())
    if len(count) < 2:
        return Difference(float(value), math.nan, math.nan, float(percent), math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(0, len(count), (resamples, len(count)))
    changes = _change(*(part[drawn].sum(axis=1) for part in (*sums, count)))
    ends = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    (low, high), (percent_low, percent_high) = (np.quantile(c, ends) for c in changes)
    numbers = value, low, high, percent, percent_low, percent_high
    return Difference(*(float(number) for number in numbers))


def _change(first: Any, second: Any, count: Any) -> tuple[Any, Any]:
    """Return the difference of two means with these sums, and the same in per cent."""
    base = np.where(first == 0, np.nan, first)
    return (second - first) / count, 100 * (second / base - 1)


# ---- intervals of bootstraps over buildings ---------------------------------------------


def over_buildings(x: Values, y: Values, buildings: Sequence[str], resamples: int = 2000) -> dict:
    """Return 95 % intervals of Pearson's r and Spearman's ρ by a bootstrap over buildings.

    `x` and `y` are (N,), and `buildings` names the building of each image. Images of a building
    are not independent, so whole buildings are drawn with replacement. The intervals reach from
    the 2.5th to the 97.5th percentile. They are NaN for a single building. With few buildings,
    they come out too narrow.

    Returns {"buildings": n, "pearson": (low, high), "spearman": (low, high)}.
    """
    times = times_drawn(buildings, resamples)
    ranks = weighted_ranks(x, times), weighted_ranks(y, times)
    return {
        "buildings": len(set(buildings)),
        "pearson": _interval(weighted_correlation(x, y, times)),
        "spearman": _interval(weighted_correlation(*ranks, times)),
    }


def auc_over_buildings(
    energies: Values, is_shifted: NDArray[np.bool_], buildings: Sequence[str],
    resamples: int = 2000,
) -> tuple[float, float]:  # fmt: skip
    """Return the 95 % interval of `roc_auc` by a bootstrap over buildings, as `over_buildings`.

    `energies` are (N,), those of clean images and of shifted ones. A building that has both is
    drawn as a whole.
    """
    return _interval(weighted_auc(energies, is_shifted, times_drawn(buildings, resamples)))


def times_drawn(clusters: Sequence[str], resamples: int, seed: int = 0) -> Values:
    """Return how often each image is drawn if clusters are drawn with replacement, (resamples, N).

    `clusters`, (N,), names the cluster of each image. As many clusters are drawn as there are. If
    there is only one, the result is (0, N).
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(cluster.max(initial=-1)) + 1
    if count < 2:
        return np.empty((0, len(cluster)))
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    times = np.zeros((resamples, count))
    np.add.at(times, (np.arange(resamples)[:, None], drawn), 1)
    return times[:, cluster]


def weighted_correlation(x: Values, y: Values, times: Values) -> Values:
    """Return Pearson's r of images that count several times, (R,).

    `times` are (R, N); `x` and `y` (N,), or (R, N). NaN where either is constant.
    """
    share = times / times.sum(axis=1, keepdims=True)
    x, y = (v - (share * v).sum(axis=1, keepdims=True) for v in (x, y))
    products = ((share * a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y)))
    both, of_x, of_y = products
    with np.errstate(invalid="ignore", divide="ignore"):
        return both / np.sqrt(of_x * of_y)


def weighted_ranks(values: Values, times: Values) -> Values:
    """Return the rank of each image among images that count several times, (R, N).

    `values` are (N,), `times` (R, N). Equal values have the mean of their ranks.
    """
    below, equal = _below_and_equal(values, times)
    return below + (equal + 1) / 2


def weighted_auc(energies: Values, is_shifted: NDArray[np.bool_], times: Values) -> Values:
    """Return `roc_auc` of images that count several times, (R,).

    `energies` and `is_shifted` are (N,), `times` (R, N). NaN where one kind is missing.
    """
    clean, shifted = times * ~is_shifted, times * is_shifted
    below, equal = _below_and_equal(energies, clean)
    wins = (shifted * (below + equal / 2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins / (clean.sum(axis=1) * shifted.sum(axis=1))


def _below_and_equal(values: Values, times: Values) -> tuple[Values, Values]:
    """How many images, counted several times, have less than each image's value, and as much."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(size) - size
    equal = np.add.reduceat(times[:, np.argsort(group, kind="stable")], starts, axis=1)
    below = np.cumsum(equal, axis=1) - equal
    return below[:, group], equal[:, group]


def _interval(values: Values) -> tuple[float, float]:
    if not np.isfinite(values).any():
        return math.nan, math.nan
    low, high = np.nanquantile(values, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)

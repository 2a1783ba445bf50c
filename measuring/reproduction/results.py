"""Reading what scripts.reproduce measured: errors by image, changes with their intervals."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from measuring.closing_table import DIRECT
from measuring.reproduction.steps import Places
from measuring.statistics import Difference, Values, paired_difference
from utils import UserError

NOT_MEASURED = "not measured"
UNDEFINED = Difference(*[float("nan")] * len(Difference._fields))
Errors = Mapping[str, Values]  # {error: (N,)}, of one network
Images = dict[str, dict[str, Values]]  # {network: its errors}
Runs = Sequence[Errors]  # of the networks of one method, one for each seed


def read_images(places: Places, key: str) -> tuple[Images, list[str]] | None:
    """Return the errors of an evaluation and the images' buildings; None if it was not done.

    Raises UserError if its file cannot be read.
    """
    file = places.results(key) / "images.csv"
    if not file.is_file():
        return None
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        networks = list(dict.fromkeys(row["network"] for row in rows))
        names = [name for name in rows[0] if name not in ("", "network", "building", "view")]
        errors = {
            network: {name: np.array([float(row[name] or "nan") for row in rows
                                      if row["network"] == network]) for name in names}
            for network in networks
        }  # fmt: skip
        return errors, [row["building"] for row in rows if row["network"] == networks[0]]
    except (OSError, KeyError, ValueError, IndexError):
        raise UserError(f"{file} is not what scripts.evaluate writes: remove its stage's file, to "
                        f"measure it again") from None  # fmt: skip


def read_groups(
    places: Places, keys: Iterable[str]
) -> tuple[dict[str, list[dict[str, Values]]], list[str]] | None:
    """Return what evaluations of the same views found, {method: its runs}, and their buildings.

    None if none of the evaluations was done. Raises UserError if a file cannot be read, or if the
    views differ.
    """
    found = {key: read for key in keys if (read := read_images(places, key))}
    if not found:
        return None
    errors: Images = {}
    (first, (_, buildings)), *_ = found.items()
    for key, (more, others) in found.items():
        if others != buildings:
            raise UserError(f"{places.results(key)} and {places.results(first)} are of different "
                            f"views: remove their stages' files, to measure them "
                            f"again")  # fmt: skip
        errors |= more
    return by_method(errors), buildings


def by_method(errors: Images) -> dict[str, list[dict[str, Values]]]:
    """Group networks named "consistency 0", "consistency 1", … by method, one for each seed."""
    groups: dict[str, list[dict[str, Values]]] = {}
    for label, rows in errors.items():
        method, _, seed = label.rpartition(" ")
        groups.setdefault(method if seed.isdecimal() and method else label, []).append(rows)
    return groups


def over_seeds(runs: Runs, row: str) -> Values:
    """Return each image's mean over the seeds of an error: (N,)."""
    return np.mean([run[row] for run in runs], axis=0)


def mean_of(runs: Runs, rows: Sequence[str]) -> float:
    """Return the mean of errors over rows, seeds and images; NaN without rows."""
    return float(np.mean([np.nanmean(run[row]) for run in runs for row in rows])) if rows else (
        float("nan"))  # fmt: skip


def perceptual_rows(rows: Iterable[str], end: str = "true") -> list[str]:
    """Return the names of the perceptual errors against truth, or those of another end."""
    return [row for row in rows if row.startswith("percep_") and row.endswith(end)]


def mean_change(
    first: Runs, second: Runs, rows: Sequence[str], buildings: Sequence[str], resamples: int,
    less: Mapping[str, str] = MappingProxyType({}),
) -> Difference:  # fmt: skip
    """Return the change of the mean of several errors, each in units of its mean of `first`.

    If `less`, {row: another row}, is given, it has an entry for each of `rows`, and the other row
    is subtracted from it first. NaN without errors, or if their mean of `first` is not positive.
    """
    bases = {row: np.nanmean(over_seeds(first, row)) for row in rows}
    bases = {row: base for row, base in bases.items() if base > 0}  # 0 has no change in per cent
    if not bases:
        return UNDEFINED

    def mean(runs: Runs) -> Values:
        return np.mean([(over_seeds(runs, row) - (over_seeds(runs, less[row]) if less else 0))
                        / base for row, base in bases.items()], axis=0)  # fmt: skip

    one, two = mean(first), mean(second)
    return paired_difference(one, two, buildings, resamples) if np.nanmean(one) > 0 else UNDEFINED


def above_the_frozen_networks(
    first: Runs, second: Runs, buildings: Sequence[str], resamples: int
) -> Difference:
    """Return the change of the perceptual errors against truth above the frozen networks' own.

    A frozen network is not exact, so even the true target, mapped by it, has an error, which no
    training of rgb → target can change. It is subtracted here. NaN where it was not measured.
    """
    mapped = _truth_mapped(first[0])
    return mean_change(first, second, list(mapped), buildings, resamples, mapped)


def _truth_mapped(rows: Iterable[str]) -> dict[str, str]:
    """Return {perceptual error against truth: the frozen network's own}, where it was measured."""
    known = list(rows)
    names = {row: f"{row.removesuffix('true')}truth mapped" for row in perceptual_rows(known)}
    return {row: own for row, own in names.items() if own in known}


def change_by_perfection(runs: Runs) -> float:
    """Return the change, in per cent, of the perceptual errors if the prediction were the truth.

    No prediction is known to do better. NaN where the frozen networks' own errors were not
    measured.
    """
    shares = [mean_of(runs, [own]) / mean_of(runs, [row])
              for row, own in _truth_mapped(runs[0]).items()]  # fmt: skip
    return 100 * (float(np.mean(shares)) - 1) if shares else float("nan")


def kinds_of_error(runs: Runs) -> dict[str, list[str]]:
    """Return the errors that the findings are about, {kind: rows}."""
    return {"direct error": [DIRECT], "perceptual errors against truth": perceptual_rows(runs[0])}


def finding(change: Difference) -> str:
    """Say whether an error is lower or higher, as far as its interval tells."""
    if not np.isfinite(change.percent):
        return "not defined"
    if not np.isfinite(change.percent_low):
        return "without an interval"
    if change.percent_high < 0:
        return "lower"
    return "higher" if change.percent_low > 0 else "not told apart by the interval"


def change_text(change: Difference) -> str:
    """Format a change in per cent with its interval."""
    if not np.isfinite(change.percent):
        return "–"
    interval = f" [{change.percent_low:+.1f}, {change.percent_high:+.1f}]"
    return f"{change.percent:+.1f} %{interval if np.isfinite(change.percent_low) else ''}"


def answer(first: Runs, second: Runs, buildings: Sequence[str], resamples: int) -> str:
    """Say whether `second` has lower errors than `first`, the direct and the perceptual ones."""
    told = []
    for text, rows in kinds_of_error(first).items():
        change = mean_change(first, second, rows, buildings, resamples)
        told.append(f"{text} {finding(change)} ({change_text(change)})")
    return ", ".join(told)


def whole_time(intervals: Iterable[Sequence[float]]) -> float:
    """The seconds that lie in at least one of the intervals [begun, ended]."""
    seconds, until = 0.0, float("-inf")
    for begun, end in sorted((begun, end) for begun, end in intervals):
        seconds += max(0.0, end - max(begun, until))
        until = max(until, end)
    return seconds

"""`compare`: a golden value against ours; the table of the largest differences at the end."""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from recipe import FOLDER, ROUNDING, TRIMMED  # noqa: E402


class Compare:
    """Asserts that ours is the golden value, and notes how far off it is under `item`."""

    def __init__(self, node: pytest.Item) -> None:
        self.node = node

    def __call__(
        self, item: str, ours, golden, *, rel: float = 0.0, abs: float = 0.0, exact=None
    ) -> None:
        """Numbers or arrays of one shape, within a relative *or* an absolute tolerance.

        The relative one is of the largest magnitude in the golden array. How float32 rounds
        depends on the processor (which vector instructions it has); so where `exact` is
        given, our own value computed in float64, what ours is off it on this machine counts:
        `ROUNDING` times that is allowed where it is more than the tolerance. A mistake of
        ours is in both, and moves it not at all.
        """
        ours, golden = _array(ours), _array(golden)
        assert ours.shape == golden.shape, f"{item}: {ours.shape}, golden {golden.shape}"
        assert np.isfinite(ours).all(), f"{item}: not finite"
        difference = float(np.abs(ours - golden).max()) if golden.size else 0.0
        unit, tolerance = "abs", abs
        scale = 1.0
        if rel:
            unit, tolerance = "rel", rel
            scale = max(float(np.abs(golden).max()), 1e-30) if golden.size else 1.0
        difference /= scale
        if exact is not None and golden.size:
            rounding = float(np.abs(ours - _array(exact)).max()) / scale
            tolerance = max(tolerance, ROUNDING * rounding)
        self._note(item, difference, float(tolerance), unit, golden.size)
        assert difference <= tolerance, (
            f"{item}: off by {difference:.3g} ({unit}), {tolerance:.3g} allowed"
        )

    def same(self, item: str, ours, golden) -> None:
        """Names, lists, whole numbers: equal."""
        self._note(item, 0.0 if ours == golden else float("inf"), 0.0, "", 1)
        assert ours == golden, item

    def _note(self, *values) -> None:
        self.node.user_properties.append(("golden", values))


def _array(value) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


@pytest.fixture
def compare(request) -> Compare:
    return Compare(request.node)


def pytest_terminal_summary(terminalreporter) -> None:
    rows = defaultdict(list)
    for reports in list(terminalreporter.stats.values()):
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, value in report.user_properties:
                    if name == "golden":
                        rows[value[0]].append(value[1:])
    if not rows:
        return
    where = "the trimmed copy" if FOLDER == TRIMMED else str(FOLDER)
    terminalreporter.section(f"against the golden values in {where}")
    wide = max(map(len, rows)) + 2
    terminalreporter.write_line(
        f"{'item':<{wide}}{'compared':>9}{'values':>10}{'largest difference':>24}{'allowed':>12}"
    )
    for item, notes in rows.items():
        worst, tolerance, unit, _ = max(notes, key=lambda note: note[0] - note[1])
        worst = max(note[0] for note in notes)
        size = sum(note[3] for note in notes)
        shown = "equal" if worst == 0 else f"{worst:.2g} {unit}"
        allowed = f"{tolerance:.0e}" if tolerance else "equal"
        terminalreporter.write_line(
            f"{item:<{wide}}{len(notes):>9}{size:>10}{shown:>24}{allowed:>12}"
        )

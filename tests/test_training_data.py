"""What a run reads of its data."""

import pytest

from training.data import default_steps


@pytest.mark.parametrize("views, batch, steps", [(10, 4, 3), (576, 16, 36), (30_000, 64, 100),
                                                 (4_000_000, 64, 156)])  # fmt: skip
def test_steps_of_an_epoch(views, batch, steps):
    assert default_steps(views, batch) == steps

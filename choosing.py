"""The choice of the k perceptual losses in use, at random or by win rates."""

import random
from collections.abc import Mapping, Sequence

from torch import Tensor


def wins(perceptual: Tensor, yardstick: Tensor) -> Tensor:
    """Return 1 for each sample whose perceptual loss exceeds its yardstick, else 0.

    Both losses and the result are (B,). The mean of the result is the win rate.
    """
    return (perceptual > yardstick).float()


def choose_losses(
    names: Sequence[str],
    k: int,
    win_rates: Mapping[str, float],
    rng: random.Random,
    at_random: bool = False,
) -> list[str]:
    """Choose the k losses with the largest win rates. Ties are resolved by the order of `names`.

    The choice is random if `at_random`, or if the win rate of any loss is still unknown.
    """
    if at_random or any(name not in win_rates for name in names):
        return rng.sample(list(names), k)
    return sorted(names, key=lambda name: -win_rates[name])[:k]

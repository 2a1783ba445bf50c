"""The rounds of global consistency: how long paths are, and which network trains along which."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graph import Path
from transfers import Edge

LARGEST, ROUND_ROBIN = "largest", "round-robin"
NETWORK_CHOICES = (ROUND_ROBIN, LARGEST, "random")
PATH_CHOICES = (LARGEST, "random")


@dataclass(frozen=True)
class Schedule:
    """The lengths of the paths over the `steps` of a run, and its rounds.

    The first `direct_steps` train every network on its direct loss: paths of one network. The
    rest is divided evenly among the lengths 2 … `longest`, and each part into rounds of
    `round_steps`; its last round may be shorter.
    """

    steps: int
    direct_steps: int
    round_steps: int
    longest: int

    def _start(self, length: int) -> int:
        lengths = self.longest - 1
        return self.direct_steps + (self.steps - self.direct_steps) * (length - 2) // lengths

    def length(self, step: int) -> int:
        """Return the number of networks of the paths at a step, counted from 0."""
        lengths = (n for n in range(self.longest, 1, -1) if step >= self._start(n))
        return 1 if step < self.direct_steps else next(lengths)

    def begins_round(self, step: int) -> bool:
        """Whether a new choice is due before this step, counted from 0."""
        length = self.length(step)
        return length > 1 and (step - self._start(length)) % self.round_steps == 0


@dataclass(frozen=True)
class Choice:
    """The path along which a round trains the path's first network, and its violation."""

    path: Path
    violation: float

    @property
    def edge(self) -> Edge:
        """The edge of the network that trains."""
        return self.path[0], self.path[1]


def choose(
    violations: Mapping[Path, float],
    by_network: str,
    by_path: str,
    number: int,
    generator: random.Random,
) -> Choice:
    """Choose a network among those that begin the paths, then one of its paths.

    `violations` are those of all feasible paths. `by_network` is "largest" (the mean violation of
    its paths), "round-robin" or "random"; `by_path` is "largest" or "random". `number` is that of
    the round.
    """
    paths_of: dict[Edge, list[Path]] = {}
    for path in violations:
        paths_of.setdefault((path[0], path[1]), []).append(path)
    networks = list(paths_of)

    def mean(edge: Edge) -> float:
        return sum(violations[path] for path in paths_of[edge]) / len(paths_of[edge])

    ways: dict[str, Callable[[], Edge]] = {
        "largest": lambda: max(networks, key=mean),
        "round-robin": lambda: networks[number % len(networks)],
        "random": lambda: generator.choice(networks),
    }
    paths = paths_of[ways[by_network]()]
    if by_path == "random":
        path = generator.choice(paths)
    else:
        path = max(paths, key=violations.__getitem__)
    return Choice(path, violations[path])

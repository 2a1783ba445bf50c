"""The method `global`: all networks of a graph train along paths of growing length.

Global consistency of Zamir et al. (CVPR 2020): inference-path invariance. In each round, one
network f_ij minimises |f_ij(x) − y_j| + |f_p(f_ij(x)) − f_p(y_j)| along one path, whose rest f_p
is frozen.
"""

import random
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datasets import Batch
from files import write_json
from graph import Path, TaskGraph
from methods.interface import Beginning, MethodOptions, Setup
from methods.optimising import Optimised, freshly
from methods.paths import (
    DOMAINS,
    LONGEST,
    edges,
    mean_violations,
    path_name,
    paths_of_length,
    violation_of_edges,
    violations_of,
)
from methods.rounds import (
    LARGEST,
    NETWORK_CHOICES,
    PATH_CHOICES,
    ROUND_ROBIN,
    Choice,
    Schedule,
    choose,
)
from methods.violation_picture import draw_violations
from precision import numerical_precision
from tables import text_table
from task_configs import TASKS
from transfers import Edge, get_transfer
from utils import UserError, check_one_of, check_positive

VIEWS = 32  # validation views on which a round's violations are measured, evenly spaced
ROUND_STEPS = 20
PICTURE, TABLE = "violations.png", "violations.json"


def reads_all(target: str) -> tuple[str, ...]:
    """Return the domains of the graph."""
    return DOMAINS


def schedule_of(options: MethodOptions, init: str, steps: int) -> Schedule:
    """Return the schedule of a run. Raises UserError for options that are out of range."""
    check_one_of("choose_network", options.choose_network or ROUND_ROBIN, NETWORK_CHOICES)
    check_one_of("choose_path", options.choose_path or LARGEST, PATH_CHOICES)
    check_positive(round_steps=options.round_steps)
    length = LONGEST if options.path_length is None else options.path_length
    if not 2 <= length <= LONGEST:
        raise UserError(
            f"`path_length` is from 2 to {LONGEST}, as no path visits one of the "
            f"{len(DOMAINS)} domains twice, not {length}"
        )
    direct = options.direct_steps
    if direct is None:
        direct = 0 if init == "baseline" else steps // 2
    if not 0 <= direct <= steps:
        raise UserError(f"`direct_steps` is from 0 to the {steps} steps of the run, not {direct}")
    return Schedule(steps, direct, options.round_steps or ROUND_STEPS, length)


def begin_global(run: Beginning) -> tuple[dict[str, Any], str]:
    """Check the options, and that all baselines are there if the run starts from them.

    Returns the schedule, for the record and for the announcement. Raises UserError if a check
    fails.
    """
    schedule = schedule_of(run.options, run.init, run.steps)
    for edge in edges() if run.init == "baseline" else ():
        run.sources.checkpoint(get_transfer(*edge, run.sources.models_dirs[0]))
    lengths = " and ".join(map(str, range(2, schedule.longest + 1)))
    text = f"rounds of {schedule.round_steps} steps along paths of {lengths} networks"
    if schedule.direct_steps:
        text = f"{schedule.direct_steps} steps on the direct losses, then {text}"
    return {"schedule_of_paths": asdict(schedule)}, text


class GlobalStep:
    """Trains the networks between `DOMAINS`; the run's target network is one of them.

    The violations that choose a round's network and path are measured on `VIEWS` validation
    views; those before and after training on all held-out views.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._schedule = schedule_of(setup.options, setup.init, setup.steps)
        own: dict[Edge, nn.Module] = {}
        for edge in edges():
            is_target = edge == setup.graph.target_edge
            own[edge] = setup.graph.target if is_target else _network(setup, edge)
        self._optimised = {
            edge: Optimised(network.parameters(), setup.lr, setup.steps, betas=None)
            for edge, network in own.items()
        }
        networks = {edge: _ChannelsOf(edge[1], network) for edge, network in own.items()}
        self._graph = TaskGraph(networks)  # all frozen; `_training` makes an exception
        self.bad = torch.zeros((), device=setup.device)
        self.networks = {
            "2".join(edge): network for edge, network in own.items()
            if edge != setup.graph.target_edge
        }  # fmt: skip
        self._age = self._round = 0  # steps and rounds so far
        self._choice: Choice | None = None
        self._generator = random.Random(setup.seed)
        self._before: dict[Path, float] = {}
        self._views: Batch | None = None

    def __call__(self, batch: Batch, chosen: Sequence[str]) -> dict[str, Tensor]:
        """Train on a batch: every network on its direct loss, or the one of this round.

        Returns "direct", the mean direct loss, "violation", and "loss", their sum.
        """
        if self._schedule.length(self._age) > 1 and not self._before:
            self._before = self._measured()
            self._draw({"before": self._before})
        if self._schedule.begins_round(self._age):
            self._begin_round()
        if self._schedule.length(self._age) == 1:
            losses = [self._train(edge, [edge], batch) for edge in self._optimised]
        else:
            assert self._choice is not None
            losses = [self._train(self._choice.edge, [self._choice.edge, self._choice.path], batch)]
        self._age += 1
        means = self._setup.ranks.average(torch.stack(losses).mean(dim=0))
        named = dict(zip(("direct", "violation"), means, strict=False))
        return {"loss": means.sum(), **named}

    def _train(self, edge: Edge, paths: Sequence[Path], batch: Batch) -> Tensor:
        """Minimise the sum of the violations of paths that begin with a network: (paths,)."""
        optimised = self._optimised[edge]
        with _training(self._graph.network(edge), optimised.parameters):
            with numerical_precision(self._setup.device, self._setup.precision):
                values = violations_of(self._graph, paths, batch).values()
                losses = torch.stack([value.mean() for value in values])
                self.bad = optimised.update(losses.sum(), self.bad, self._setup.ranks)
        return losses.detach()

    # ---- rounds -------------------------------------------------------------------------

    def _begin_round(self) -> None:
        """Measure the violations, choose the network and the path, and log the choice."""
        setup, length = self._setup, self._schedule.length(self._age)
        if self._views is None:
            self._views = setup.val.sample(VIEWS)
        paths = paths_of_length(length)
        views = [self._views]
        own = mean_violations(self._graph, paths, views, setup.device, setup.precision)
        violations = setup.ranks.from_first(own)  # all ranks choose the same
        by_network = setup.options.choose_network or ROUND_ROBIN
        by_path = setup.options.choose_path or LARGEST
        self._choice = choice = choose(
            violations, by_network, by_path, self._round, self._generator
        )
        setup.logger.record({
            "round": {
                "number": self._round, "step": self._age, "length": length,
                "network": path_name(choice.edge), "path": path_name(choice.path),
                "violation": choice.violation,
                "mean violation": sum(violations.values()) / len(violations),
            },
            "rounds": f"step {self._age}: {path_name(choice.path)}, "
                      f"violation × 100: {100 * choice.violation:.3f}",
        })  # fmt: skip
        self._round += 1

    # ---- before and after ---------------------------------------------------------------

    def _measured(self) -> dict[Path, float]:
        """Return the violations of all paths, the direct errors included, on held-out views."""
        setup = self._setup
        paths = [path for length in range(1, LONGEST + 1) for path in paths_of_length(length)]
        return mean_violations(
            self._graph, paths, setup.held_out, setup.device, setup.precision, setup.ranks
        )

    def _draw(self, columns: Mapping[str, Mapping[Path, float]]) -> None:
        if self._setup.ranks.first:
            edges = {name: violation_of_edges(values) for name, values in columns.items()}
            picture = draw_violations(edges, "violations on held-out views")
            self._setup.logger.picture("violations", picture, self._setup.folder / PICTURE)

    def report(self) -> str:
        """Measure the violations after training, and write picture and table.

        Returns the table as text. To be called on all ranks.
        """
        columns = {"before": self._before} if self._before else {}
        columns["after"] = self._measured()
        self._draw(columns)
        rows = {name: summary(values) for name, values in columns.items()}
        if self._setup.ranks.first:
            write_json(self._setup.folder / TABLE, {
                name: {
                    "summary × 100": rows[name],
                    "violations": {path_name(p): v for p, v in values.items() if len(p) > 2},
                    "direct errors": {path_name(p): v for p, v in values.items() if len(p) == 2},
                }
                for name, values in columns.items()
            })  # fmt: skip
        cells = [[row, *(f"{rows[name][row]:.3f}" for name in rows)] for row in rows["after"]]
        return text_table(["× 100, held-out views", *rows], cells)

    # ---- states -------------------------------------------------------------------------

    def decay(self) -> None:
        """Lower the learning rates by a step of the schedule."""
        for optimised in self._optimised.values():
            optimised.decay()

    def state_dict(self) -> dict[str, Any]:
        """Return the other networks, the optimisers, the round and the random state."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimisers": {"2".join(edge): o.state_dict() for edge, o in self._optimised.items()},
            "age": self._age,
            "round": self._round,
            "choice": [self._choice.path, self._choice.violation] if self._choice else None,
            "generator": self._generator.getstate(),
            "before": list(self._before.items()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for edge, optimised in self._optimised.items():
            optimised.load_state_dict(state["optimisers"]["2".join(edge)])
        self._age, self._round = state["age"], state["round"]
        choice = state["choice"]
        self._choice = Choice(tuple(choice[0]), choice[1]) if choice else None
        version, numbers, gauss = state["generator"]
        self._generator.setstate((version, tuple(numbers), gauss))
        self._before = {tuple(path): value for path, value in state["before"]}


class _ChannelsOf(nn.Module):
    """A network whose output is cut to its domain's channels, for the next network on a path.

    Reshading → depth, as published, returns three channels, which are equal.
    """

    def __init__(self, domain: str, network: nn.Module) -> None:
        super().__init__()
        self.channels, self.network = TASKS[domain].channels, network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, : self.channels]


def _network(setup: Setup, edge: Edge) -> nn.Module:
    """Return an edge's network: its baseline, or a fresh one if the run starts from scratch."""
    row = get_transfer(*edge, setup.sources.models_dirs[0])
    if setup.init != "baseline":
        build = partial(row.build, setup.sources.scale)
        return setup.prepare(freshly(build, setup.seed, row.name))
    return setup.prepare(setup.sources.network(row))


@contextmanager
def _training(network: nn.Module, parameters: Sequence[nn.Parameter]):
    """Within the block, the network is in training mode and its parameters are not frozen."""
    network.train()
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        network.eval()
        for parameter in parameters:
            parameter.requires_grad_(False)


def summary(violations: Mapping[Path, float]) -> dict[str, float]:
    """Return the rows of the table: the mean violation of each length, and direct errors, × 100."""
    rows = {}
    for length in range(LONGEST, 1, -1):
        values = [value for path, value in violations.items() if len(path) == length + 1]
        rows[f"mean violation of the {len(values)} paths of length {length}"] = values
    rows |= {f"direct error {path_name(p)}": [v] for p, v in violations.items() if len(p) == 2}
    return {name: 100 * sum(values) / len(values) for name, values in rows.items()}

"""Perceptual losses through frozen networks with random weights, which have learnt nothing."""

from functools import partial

from energy import paths_for
from graph import TaskGraph, edges_of
from methods.interface import Setup, TrainingStep
from methods.optimising import freshly
from transfers import any_transfer


def random_graph(setup: Setup) -> TaskGraph:
    """Return a graph of the network that trains and of frozen networks with random weights.

    It holds the networks that the run's losses need behind the target. The weights of each
    depend on the run's seed and the network's name alone; they are those with which training
    would begin.
    """
    start = setup.graph.target_edge
    assert start is not None  # a run trains a network
    networks = {start: setup.graph.target}
    for edge in edges_of(paths_for(setup.config, ["mae", *setup.losses])):
        if edge != start:
            row = any_transfer(*edge, setup.sources.models_dirs[0])
            build = partial(row.build, setup.sources.scale)
            networks[edge] = freshly(build, setup.seed, row.name).to(setup.device)
    return TaskGraph(networks, start)


def random_perceptual_step(setup: Setup) -> TrainingStep:
    """Return the main job's step on `random_graph`."""
    return setup.usual_step(random_graph(setup))

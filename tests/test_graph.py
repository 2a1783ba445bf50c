import pytest
import torch
from torch import nn

from graph import TaskGraph, edges_of
from utils import UserError


class Counting(nn.Module):
    """Multiplies by a parameter, and counts its calls."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.factor


@pytest.fixture
def graph():
    edges = {("rgb", "normal"): 2.0, ("normal", "depth"): 3.0, ("depth", "normal"): 5.0}
    return TaskGraph({e: Counting(f) for e, f in edges.items()}, target=("rgb", "normal"))


BATCH = {"rgb": torch.ones(1, 3, 4, 4), "normal": torch.full((1, 3, 4, 4), 7.0)}
PATHS = {
    "x": ("rgb",),
    "n(x)": ("rgb", "normal"),
    "g(n(x))": ("rgb", "normal", "depth"),
    "G(g(n(x)))": ("rgb", "normal", "depth", "normal"),
    "g(y^)": ("normal", "depth"),
}


def test_paths_are_compositions_and_prefixes_run_once(graph):
    values = graph.sample(PATHS, BATCH)
    assert [float(v.detach().mean()) for v in values.values()] == [1, 2, 6, 30, 21]
    assert [net.calls for net in graph.networks.values()] == [1, 2, 1]


def test_only_the_target_trains(graph):
    graph.train()
    assert [net.training for net in graph.networks.values()] == [True, False, False]
    assert not any(net.training for net in graph.eval().networks.values())
    values = graph.sample(PATHS, BATCH)
    assert not values["g(y^)"].requires_grad and values["g(n(x))"].requires_grad
    values["G(g(n(x)))"].sum().backward()
    grads = [net.factor.grad for net in graph.networks.values()]
    assert grads[0] is not None and grads[1:] == [None, None]


def test_unknown_edges_and_labels_are_named(graph):
    with pytest.raises(UserError, match="no network normal → rgb; from normal it has: depth"):
        graph.sample({"p": ("normal", "rgb")}, BATCH)
    with pytest.raises(UserError, match="the batch has no depth .it has: rgb, normal"):
        graph.sample({"p": ("depth",)}, BATCH)
    with pytest.raises(UserError, match="no network rgb → depth"):
        TaskGraph({}, target=("rgb", "depth"))


def test_edges_of():
    assert edges_of(PATHS) == [("rgb", "normal"), ("normal", "depth"), ("depth", "normal")]

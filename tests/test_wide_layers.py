"""Wide layers as products: the same gradients, losses and weights as by plain convolutions."""

import random
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from datasets import Batch
from devices import Ranks
from energy import energy_configs, paths_for, perceptual_losses
from graph import TaskGraph, edges_of
from models import make_optimizer
from modules.unet import recompute_activations
from scripts.benchmarking.step import difference
from task_configs import TASKS
from training import wide_layers
from training.step import Step
from training.wide_layers import Product, WideLayers, wide_layers_for
from transfers import TRANSFERS, Scale

NORMAL = energy_configs["multiperceptual_normal"]
ALL = perceptual_losses(NORMAL)
CPU = torch.device("cpu")
SIDE = 16


@pytest.fixture
def small_ones(monkeypatch):
    """Layers of a few weights count as wide here, and are multiplied out in many parts."""
    monkeypatch.setattr(wide_layers, "MANY_WEIGHTS", 200)
    monkeypatch.setattr(wide_layers, "FEW_POSITIONS", 1000)
    monkeypatch.setattr(wide_layers, "IN_CACHE", 100)


class Drawn(nn.Module):
    """A network of random convolutions: (B, 3, H, W) → (B, 3, H, W)."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        width = draw.choice([8, 12])
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList()
        for _ in range(draw.randint(1, 3)):
            kernel, dilation = draw.choice([(1, 1), (3, 1), (3, 2), ((1, 3), 1), (2, 1)])
            self.layers.append(nn.Conv2d(
                width, width, kernel, stride=draw.choice([1, 2, (2, 1)]), dilation=dilation,
                padding=draw.choice([1, (2, 1)]), bias=draw.random() < 0.7,
                groups=draw.choice([1, 1, 1, 4]),
            ))  # fmt: skip
        self.same = nn.Conv2d(width, width, 3, padding="same")
        self.again = nn.Conv2d(width, width, 3, padding=1)
        self.unused = nn.Conv2d(width, width, 3)
        self.frozen = nn.Conv2d(width, width, 3, padding=1).requires_grad_(False)
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        self.twice, self.weighs = draw.random() < 0.3, draw.random() < 0.3

    def forward(self, x):
        size = x.shape[-2:]
        x = F.relu(self.first(x))
        for layer in self.layers:
            x = F.relu_(layer(x))
        x = self.frozen(x) + self.same(x)
        x = x + self.again(x)  # both branches get the same gradient
        if self.twice:
            x = F.relu(self.again(x))
        if self.weighs:
            x = x * self.again.weight.mean()
        return F.interpolate(self.last(x), size=size)


def graph_of(target: nn.Module, losses) -> TaskGraph:
    torch.manual_seed(1)
    networks: dict = {}
    for source, end in edges_of(paths_for(NORMAL, ["mae", *losses])):
        networks[source, end] = nn.Sequential(
            nn.Conv2d(TASKS[source].channels, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(), nn.Conv2d(8, TASKS[end].channels, 1),
        )  # fmt: skip
    networks["rgb", "normal"] = target
    return TaskGraph(networks, NORMAL["paths"]["n(x)"]).double()


def batch_of(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    names = sorted({path[0] for path in NORMAL["paths"].values()} - {"imagenet"})
    shapes = {name: (size, TASKS[name].channels, SIDE, SIDE) for name in names}
    values = {n: torch.rand(s, generator=generator).double() for n, s in shapes.items()}
    return Batch(values, tuple(range(size)))


def stepped(graph, batch, losses, wide: bool, **how):
    """The losses, weights and gradient of one step, and how many weights went as factors."""
    step = Step(graph, NORMAL, make_optimizer(graph.target.parameters()), CPU, **how)
    if not wide:
        step._wide = None
    whole, counts = Product.gradient, Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Product, "gradient", lambda *a: counts.update(["whole"]) or whole(*a))
        logged = step(batch, losses)
    return logged, step.weights, [p.grad for p in step.parameters], counts["whole"]


def assert_same(found, wanted):
    for ours, plain in zip(found[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)
    assert difference(found[2], wanted[2]) < 1e-12


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(small_ones, seed):
    draw = random.Random(seed)
    losses = draw.sample(ALL[:3], draw.randint(0, 3))
    batch, how = batch_of(draw.choice([1, 2, 3])), {"mode": draw.choice(["winrate", "standard"])}
    results = []
    for wide in (True, False):
        torch.manual_seed(seed)
        graph = graph_of(Drawn(random.Random(seed)), losses)
        results.append(stepped(graph, batch, losses, wide, **how))
    assert_same(*results)
    factored = losses and how["mode"] == "winrate"
    assert (results[0][3] > 0) == bool(factored)


def test_weights_with_several_uses_are_no_factors(small_ones):
    for twice, weighs in ((False, False), (True, False), (False, True)):
        torch.manual_seed(0)
        network = Drawn(random.Random(0))
        network.twice, network.weighs = twice, weighs
        with WideLayers(network) as wide:
            found = wide.products(network(torch.rand(1, 3, SIDE, SIDE)))
        assert (network.again.weight in found) == (not twice and not weighs)
        assert network.last.weight in found and network.frozen.weight not in found


def test_a_loss_without_a_gradient(small_ones):
    """All masked: no gradient but zeros, and weights that are finite."""
    batch = batch_of(2)
    batch["normal"][:] = 128 / 255  # the mask value of normals
    results = [stepped(graph_of(Drawn(random.Random(3)), ALL[:1]), batch, ALL[:1], wide)
               for wide in (True, False)]  # fmt: skip
    for logged, weights, gradient, _ in results:
        assert all(torch.isfinite(value) for value in [*logged.values(), *weights.values()])
        assert all(torch.isfinite(g).all() for g in gradient)


def test_what_is_not_finite_changes_nothing(small_ones):
    batch = batch_of(2)
    batch["normal"][0, 0, 0, 0] = float("nan")
    graph = graph_of(Drawn(random.Random(3)), ALL[:1])
    before = {name: value.clone() for name, value in graph.target.state_dict().items()}
    step = Step(graph, NORMAL, make_optimizer(graph.target.parameters()), CPU)
    step(batch, ALL[:1])
    assert float(step.bad) == 1
    assert all(torch.equal(before[n], v) for n, v in graph.target.state_dict().items())


class Two(Ranks):
    """Two ranks with equal gradients."""

    def averaged(self, gradients):
        yield from gradients


def test_gradients_of_several_ranks_are_whole(small_ones):
    torch.manual_seed(0)
    graph, batch = graph_of(Drawn(random.Random(3)), ALL[:2]), batch_of(2)
    found = stepped(graph, batch, ALL[:2], True, ranks=Two(0, 2))
    torch.manual_seed(0)
    plain = stepped(graph_of(Drawn(random.Random(3)), ALL[:2]), batch, ALL[:2], False)
    assert_same(found, plain)
    assert found[3] == 0


# ---- U-Nets -------------------------------------------------------------------------


def unets() -> TaskGraph:
    torch.manual_seed(0)
    edges = edges_of(paths_for(NORMAL, ["mae", *ALL[:2]]))
    networks = {edge: TRANSFERS[edge].build(Scale(SIDE, 8, 2)) for edge in edges}
    return TaskGraph(networks, NORMAL["paths"]["n(x)"]).double()


@pytest.mark.parametrize("prepare", [
    lambda graph: graph,
    lambda graph: graph.to(memory_format=torch.channels_last),  # left to the convolution
    lambda graph: recompute_activations(graph) or graph,
], ids=["plain", "channels last", "activations computed again"])  # fmt: skip
def test_unets(small_ones, prepare):
    wanted = stepped(unets(), batch_of(2), ALL[:2], False)
    found = stepped(prepare(unets()), batch_of(2), ALL[:2], True)
    torch.testing.assert_close(found[:2], wanted[:2], rtol=1e-12, atol=1e-14)
    assert difference(found[2], wanted[2]) < 1e-9  # rounding, as through fresh U-Nets it grows


def test_the_same_bits_again(small_ones):
    first, again = (stepped(unets().float(), batch_of_floats(), ALL[:2], True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[2], again[2], strict=True))


def batch_of_floats() -> Batch:
    batch = batch_of(2)
    return Batch({name: value.float() for name, value in batch.items()}, batch.views)


# ---- which layers -------------------------------------------------------------------


class Shapes(TorchDispatchMode):
    """Lists the weights of the convolutions that are computed as such, forward and back."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in func._schema.name:
            place = 2 if "backward" in func._schema.name else 1
            self.found.append(tuple(args[place].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weights,side,batch,wide", [
    (1024, 16, 1, True), (1024, 4, 16, True), (1024, 17, 1, False), (1023, 4, 1, False),
])  # fmt: skip
def test_which_layers_are_wide(weights, side, batch, wide):
    """Those of 2²⁰ weights or more and 256 positions or fewer, if a gradient flows through."""
    layer = nn.Conv2d(1024, weights, 1)
    x = torch.rand(batch, 1024, side, side)
    with WideLayers(layer), Shapes() as convolutions:
        layer(x).sum().backward()
    assert convolutions.found == ([] if wide else [(weights, 1024, 1, 1)] * 2)
    with torch.no_grad(), WideLayers(layer), Shapes() as convolutions:
        layer(x)
    assert convolutions.found == [(weights, 1024, 1, 1)]
    with torch.autocast("cpu", torch.bfloat16), WideLayers(layer), Shapes() as convolutions:
        layer(x)
    assert convolutions.found == [(weights, 1024, 1, 1)]


def test_small_networks_and_other_precisions_have_none():
    assert wide_layers_for(unets(), CPU, "fp32") is None
    large = nn.Sequential(nn.Conv2d(1024, 1024, 1))
    assert wide_layers_for(large, CPU, "fp32") is not None
    assert wide_layers_for(large, CPU, "bf16") is None
    assert wide_layers_for(large, torch.device("cuda"), "fp32") is None
    large._compiled_call_impl = large.forward
    assert wide_layers_for(large, CPU, "fp32") is None
    assert wide_layers_for(nn.Conv2d(4, 2**18, 3, padding="same"), CPU, "fp32") is None


def test_layers_are_as_before_after_the_block():
    layer = nn.Conv2d(1024, 1024, 1)
    before = dict(layer.__dict__)
    with pytest.raises(ZeroDivisionError), WideLayers(layer):
        1 / 0  # noqa: B018
    assert layer.__dict__ == before

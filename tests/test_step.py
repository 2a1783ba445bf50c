"""A step's losses and gradients: the same as the plain formulation's, with nothing done twice."""

from collections import Counter

import pytest
import torch
from torch import nn

from datasets import Batch
from energy import energy_configs, paths_for, perceptual_losses
from graph import TaskGraph, edges_of
from label_cache import Budget, LabelCache
from losses import evaluate_losses
from models import make_optimizer
from modules.unet import recompute_activations
from scripts.benchmarking.published_schedule import PublishedStep
from scripts.benchmarking.step import difference
from task_configs import TASKS
from training.step import Step, losses_of
from transfers import TRANSFERS, Scale
from utils import UserError

# hooks that count passes tell of inputs without gradients
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook")
NORMAL = energy_configs["multiperceptual_normal"]
ALL = perceptual_losses(NORMAL)


def graph_of(config=NORMAL, seed=0) -> TaskGraph:
    """A small network an edge, in float64."""
    torch.manual_seed(seed)
    networks = {}
    for source, target in edges_of(config["paths"]):
        channels = TASKS[source].channels, TASKS[target].channels
        networks[source, target] = nn.Conv2d(*channels, 3, padding=1)
    return TaskGraph(networks, config["paths"]["n(x)"]).double()


def batch_of(config=NORMAL, seed=0, views=(0, 1)) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    names = sorted({path[0] for path in config["paths"].values()})
    whole = {n: torch.rand(4, TASKS[n].channels, 8, 8, generator=generator).double() for n in names}
    return Batch({n: values[list(views)] for n, values in whole.items()}, views)


def step_of(graph, config=NORMAL, **how) -> Step:
    optimizer = make_optimizer(graph.target.parameters(), 1e-2)
    return Step(graph, config, optimizer, torch.device("cpu"), **how)


def counted(graph) -> Counter:
    """Passes forward and back through each network, as they happen."""
    passes = Counter()
    for edge, network in graph.networks.items():
        network.register_forward_hook(lambda *_, e=edge: passes.update([(e, "forward")]))
        network.register_full_backward_hook(lambda *_, e=edge: passes.update([(e, "back")]))
    return passes


@pytest.mark.parametrize("k", [0, 2, len(ALL)])
def test_the_gradient_is_the_published_schedules(k):
    chosen, batch = ALL[:k], batch_of()
    theirs, ours = PublishedStep(graph_of(), NORMAL), step_of(graph_of())
    wanted = theirs(batch, chosen)
    ours(batch, chosen)
    assert difference([p.grad for p in ours.parameters], wanted) < 1e-12


def test_the_yardstick_makes_the_published_passes():
    """Counted with hooks on the published code: 32 forward, 42 again, 42 back."""
    graph = graph_of()
    step = PublishedStep(graph, NORMAL)
    passes = counted(graph)
    step(batch_of(), ALL[:2])
    forward = sum(n for (_, kind), n in passes.items() if kind == "forward")
    back = sum(n for (_, kind), n in passes.items() if kind == "back")
    chosen_only = 2 * (len(ALL) - 2)  # the last pass, which stops with an error there
    assert (forward, back) == (32 + 42 - chosen_only, 42 - chosen_only)
    assert passes["rgb2normal", "back"] == 10


@pytest.mark.parametrize("k", [0, 2, len(ALL)])
def test_no_pass_too_many(k):
    """The target once forward and once back a loss; each frozen network twice and once."""
    graph = graph_of()
    step, passes = step_of(graph), counted(graph)
    step(batch_of(), ALL[:k])
    wanted = Counter({("rgb2normal", "forward"): 1, ("rgb2normal", "back"): k + 1})
    for name in ALL[:k]:
        edge = "2".join(paths_for(NORMAL, [name]).popitem()[1][-2:])
        wanted |= Counter({(edge, "forward"): 2, (edge, "back"): 1})
    assert passes == wanted


def test_weights_measured_every_few_steps():
    graph = graph_of()
    step, passes = step_of(graph, balance_every=3), counted(graph)
    measured = []
    for _ in range(6):
        passes.clear()
        step(batch_of(), ALL[:2])
        measured.append((passes["rgb2normal", "back"], step.weights))
    assert [backs for backs, _ in measured] == [3, 1, 1, 3, 1, 1]
    assert measured[0][1] is measured[2][1] and measured[2][1] is not measured[3][1]
    step(batch_of(), ALL[2:4])  # other losses are measured at once
    assert list(step.weights) == ["mae", *ALL[2:4]]


def test_between_measurements_the_gradient_is_the_weighted_sum():
    graph = graph_of()
    step, batch = step_of(graph, balance_every=2), batch_of()
    step(batch, ALL[:2])
    names = ["mae", *ALL[:2]]
    values = graph.sample(paths_for(NORMAL, names), batch)
    losses = {n: v.mean() for n, v in evaluate_losses(NORMAL, names, values).items()}
    total = sum(step.weights[name] * losses[name] for name in names)
    wanted = torch.autograd.grad(total, step.parameters)
    logged = step(batch, ALL[:2])
    torch.testing.assert_close([p.grad for p in step.parameters], list(wanted))
    torch.testing.assert_close(logged["loss"], total.detach())


def test_labels_are_kept_within_the_budget():
    chosen = ALL[:2]
    plain = losses_of(graph_of(), NORMAL, ["mae", *chosen], batch_of())
    graph, cache = graph_of(), LabelCache(Budget(1e9))
    passes = counted(graph)
    for _ in range(2):
        kept = losses_of(graph, NORMAL, ["mae", *chosen], batch_of(), labels=cache)
        assert all(torch.equal(kept.values[n], plain.values[n]) for n in plain.values)
    assert passes["normal2principal_curvature", "forward"] == 3  # twice of n(x), once of y^
    # the second batch has one new view: its labels are computed, those of the other kept
    losses_of(graph, NORMAL, ["mae", *chosen], batch_of(views=(1, 2)), labels=cache)
    assert cache.budget.taken == 3 * 8 * 8 * (3 + 1) * 8  # three views of 3 + 1 channels
    rgb_paths = {"n(x)": ("rgb", "normal")}
    for changing, count in (((), 1), (("rgb",), 2)):  # what is not the same again is not kept
        graph, own = graph_of(), LabelCache(Budget(1e9), changing)
        passes = counted(graph)
        for _ in range(2):
            own.values(graph, rgb_paths, batch_of())
        assert passes["rgb2normal", "forward"] == count
    small = LabelCache(Budget(cache.budget.taken - 1))
    for views in ((0, 1), (1, 2), (2, 3)):
        losses_of(graph, NORMAL, ["mae", *chosen], batch_of(views=views), labels=small)
        assert small.budget.taken <= small.budget.total


def test_losses_that_share_a_value_beyond_the_prediction():
    paths = {
        "y^": ("normal",), "n(x)": ("rgb", "normal"),
        "f(n(x))": ("rgb", "normal", "reshading"), "f(y^)": ("normal", "reshading"),
        "g(n(x))": ("rgb", "normal", "reshading", "sobel_edges"),
        "g(y^)": ("normal", "reshading", "sobel_edges"),
    }  # fmt: skip
    losses = {
        "mae": {("train",): [("n(x)", "y^")]},
        "percep_f": {("train",): [("f(n(x))", "f(y^)")]},
        "percep_g": {("train",): [("g(n(x))", "g(y^)")]},
    }
    config = {"paths": paths, "losses": losses, "freeze_list": [], "plots": {}}
    graph, batch = graph_of(config), batch_of(config)
    passes = counted(graph)
    found = losses_of(graph, config, list(losses), batch)
    assert passes["normal2reshading", "forward"] == 2
    values = graph.sample(paths, batch)
    plain = {n: v.mean() for n, v in evaluate_losses(config, list(losses), values).items()}
    parameters = list(graph.target.parameters())
    gradients = dict(found.gradients(parameters))
    for name, loss in plain.items():
        wanted = torch.autograd.grad(loss, parameters, retain_graph=True)
        torch.testing.assert_close(gradients[name], list(wanted))


def test_the_network_that_trains_is_the_first_of_its_paths():
    config = {
        "paths": {"y^": ("rgb",), "n(x)": ("rgb", "rgb"), "n(n(x))": ("rgb", "rgb", "rgb")},
        "losses": {"mae": {("train",): [("n(n(x))", "y^")]}},
    }
    with pytest.raises(UserError, match="rgb → rgb → rgb uses the network that trains"):
        losses_of(graph_of(config), config, ["mae"], batch_of(config))


def test_after_a_loss_that_is_not_finite_nothing_changes_any_more():
    graph = graph_of()
    step = step_of(graph)
    step(batch_of(), ALL[:1])
    before = {name: value.clone() for name, value in graph.target.state_dict().items()}
    broken = batch_of()
    broken["normal"][0, 0, 0, 0] = float("nan")
    for batch in (broken, batch_of()):
        step(batch, ALL[:1])
        assert float(step.bad) == 1
        after = graph.target.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


# ---- modes of U-Nets ----------------------------------------------------------------


def unets() -> TaskGraph:
    torch.manual_seed(0)
    edges = edges_of(paths_for(NORMAL, ["mae", *ALL[:2]]))
    networks = {edge: TRANSFERS[edge].build(Scale(16, 8, 1)) for edge in edges}
    return TaskGraph(networks, NORMAL["paths"]["n(x)"]).double()


def trained(graph, chosen=tuple(ALL[:2]), **how) -> tuple[dict, list[torch.Tensor]]:
    dtype = next(graph.parameters()).dtype
    generator = torch.Generator().manual_seed(0)
    names = sorted({path[0] for path in NORMAL["paths"].values()})
    shapes = {name: (2, TASKS[name].channels, 16, 16) for name in names}
    images = {n: torch.rand(s, generator=generator).to(dtype) for n, s in shapes.items()}
    step = step_of(graph, **how)
    losses = step(Batch(images, (0, 1)), chosen)
    return losses, [p.grad for p in step.parameters]


def compiled(graph) -> TaskGraph:
    torch._functorch.config.donated_buffer = False
    for network in graph.networks.values():
        network.compile()
    return graph


def recomputing(graph) -> TaskGraph:
    recompute_activations(graph)
    return graph


@pytest.mark.parametrize(
    "prepare",
    [
        lambda graph: graph.to(memory_format=torch.channels_last),
        recomputing,
        pytest.param(compiled, marks=pytest.mark.slow),
    ],
    ids=["channels last", "activations computed again", "compiled"],
)
def test_the_same_gradients_in_other_ways(prepare):
    # in float64, as rounding alone moves these gradients by a per cent in float32
    wanted, gradient = trained(unets())
    found, other = trained(prepare(unets()))
    torch.testing.assert_close(found, wanted)
    assert difference(other, gradient) < 1e-9


def test_activations_are_computed_again_for_each_loss():
    passes = Counter()
    graph = recomputing(unets())
    inner = next(m for m in graph.target.modules() if isinstance(m, nn.Conv2d))
    inner.register_forward_hook(lambda *_: passes.update(["forward"]))
    trained(graph)
    assert passes["forward"] == 1 + 3


def test_bfloat16_is_near_and_leaves_losses_in_float32():
    wanted, gradient = trained(unets().float(), ())
    found, other = trained(unets().float(), (), precision="bf16")
    assert all(value.dtype == torch.float32 for value in [*found.values(), *other])
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0)
    assert difference(other, gradient) > 1e-4  # so it was in use

"""The transfer table row by row, the fallback, checkpoints in all the published forms."""

import os
import pickle

import pytest
import torch
from recipe import fill, network_of, on_meta, read
from torch import nn

from energy import ENERGY_DOMAINS, energy_configs
from models import load_network, make_optimizer, read_weights, save_network
from modules import Dense1by1Net, ResNetClass, SobelKernel, UNet
from task_configs import TASKS
from transfers import TRANSFERS, Scale, generic_transfer, get_transfer
from utils import UserError

TABLE = read("transfers.json")
ROWS = {(row["src"], row["dest"]): row for row in TABLE["pretrained"]}
SMALL = Scale(16, 8)


def key_of(row: dict) -> str:
    return f"{row['cls']}({','.join(f'{k}={v}' for k, v in sorted(row['kwargs_full'].items()))})"


def shapes(network: nn.Module) -> list:
    return [(name, tuple(value.shape)) for name, value in network.state_dict().items()]


# ---- the table ----------------------------------------------------------------------


def test_rows_and_their_order(compare):
    compare.same("transfers: rows, order", list(TRANSFERS), list(ROWS))


@pytest.mark.parametrize("edge", ROWS, ids="2".join)
def test_row(edge, compare):
    row, ours = ROWS[edge], TRANSFERS[edge]
    compare.same("transfers: class", ours.network.__name__, row["cls"])
    network = on_meta(lambda: ours.build(Scale()))
    golden = network_of(key_of(row))
    compare.same("transfers: channels, depth", shapes(network), shapes(golden))
    if ours.network is ResNetClass:  # published: downloaded behind one's back, without a name
        assert ours.checkpoint == "resnet50-0676ba61.pth"
    else:
        compare.same("transfers: checkpoint", ours.checkpoint or None, row["checkpoint"])


@pytest.mark.parametrize(
    "row", TABLE["fallback_if_file_exists"], ids=lambda row: f"{row['src']}2{row['dest']}"
)
def test_fallback(row, compare, tmp_path):
    edge = row["src"], row["dest"]
    with pytest.raises(UserError, match=f"no transfer {row['src']} → {row['dest']}"):
        get_transfer(*edge, tmp_path)
    (tmp_path / row["checkpoint_that_activates_it"]).touch()
    ours = get_transfer(*edge, tmp_path)
    assert ours == generic_transfer(*edge)
    golden = network_of(key_of(row))
    compare.same(
        "transfers: generic UNet where its file exists",
        shapes(on_meta(lambda: ours.build(Scale()))),
        shapes(golden),
    )


def test_model_types_agree_with_the_table(compare):
    """The published second table: what it says of edges without a row is what we fall back to."""
    for row in TABLE["model_types_in_task_configs"]:
        edge = row["src"], row["dest"]
        if edge not in TRANSFERS:
            ours = on_meta(lambda edge=edge: generic_transfer(*edge).build(Scale()))
            golden = shapes(network_of(key_of(row)))
            compare.same("transfers: second table", shapes(ours), golden)


def test_named_transfers_are_rows(compare):
    """The published one-letter transfers: the same edges, the same files.

    But one, "npstep": an experiment's file that was never released.
    """
    for row in TABLE["functional_transfers"]:
        edge = row["src"], row["dest"]
        if edge in TRANSFERS and row["checkpoint"] and row["name"] != "npstep":
            compare.same("transfers: by letter", TRANSFERS[edge].checkpoint, row["checkpoint"])


def test_freeze_lists(compare):
    for name, edges in TABLE["freeze_lists"].items():
        ours = sorted(map(list, energy_configs[name]["freeze_list"]))
        compare.same("configurations: freeze lists", ours, sorted(edges))


def test_energy_calc_transfers_are_rows(compare):
    """What the energy is computed with: rgb → domain → normal, all in the table."""
    for domain in ENERGY_DOMAINS:
        assert ("rgb", domain) in TRANSFERS and (domain, "normal") in TRANSFERS
    for edge in TABLE["energy_calc_overrides"]:
        assert tuple(edge.split("->")) in TRANSFERS


# ---- graph checkpoints --------------------------------------------------------------

GRAPH = read("graph_save_format.json")
SAVED = {k: v for k, v in GRAPH["example_cascade_two_networks"].items()}


@pytest.mark.parametrize("key", SAVED)
def test_graph_save_names(key, compare):
    """The entries of the published file are our state dict's under the published prefix."""
    *first, last = SAVED[key]
    network = on_meta(lambda: TRANSFERS[eval(key)].build(Scale()))
    prefix = "model.parallel_apply.module."
    ours = [[prefix + name, list(shape)] for name, shape in shapes(network)]
    compare.same("graph.pth: names, shapes", ours[: len(first)], first)
    compare.same("graph.pth: tensors", f"... total {len(ours)} tensors", last)


def test_graph_save_edges_are_known(compare):
    for name in ("example_cascade_two_networks", "multiperceptual_normal"):
        for key in GRAPH[f"{name}_edges_in_file"]:
            compare.same("graph.pth: edges", eval(key) in TRANSFERS, True)


def test_graph_save_loads(tmp_path, compare):
    edges = [("normal", "principal_curvature"), ("rgb", "normal")]
    made = {edge: TRANSFERS[edge].build(SMALL) for edge in edges}
    file = {
        str(edge): {f"model.parallel_apply.module.{n}": v for n, v in net.state_dict().items()}
        for edge, net in made.items()
    }
    torch.save(file, tmp_path / "graph.pth")
    for edge, net in made.items():
        fresh = TRANSFERS[edge].build(SMALL)
        load_network(fresh, tmp_path / "graph.pth", edge=edge)
        for name, value in net.state_dict().items():
            compare("graph.pth: loads", fresh.state_dict()[name], value)
    with pytest.raises(UserError, match="no state dict"):
        read_weights(tmp_path / "graph.pth", ("rgb", "reshading"))


# ---- other checkpoints --------------------------------------------------------------

FORMS = {
    "plain": lambda s, net: s,
    "parallel_apply": lambda s, net: {f"parallel_apply.module.{n}": v for n, v in s.items()},
    "DataParallel": lambda s, net: {f"module.{n}": v for n, v in s.items()},
    "bundled": lambda s, net: {
        "state_dict": s,
        "optimizer": make_optimizer(net.parameters()).state_dict(),
    },
    "bundled, parallel_apply": lambda s, net: {
        "state_dict": {f"parallel_apply.module.{n}": v for n, v in s.items()},
        "optimizer": {},
    },
    "half precision": lambda s, net: {n: v.half() for n, v in s.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_checkpoint_forms(form, tmp_path, compare):
    network = fill(Dense1by1Net())
    torch.save(FORMS[form](network.state_dict(), network), tmp_path / "net.pth")
    weights, record = read_weights(tmp_path / "net.pth")
    assert record == {} and list(weights) == list(network.state_dict())
    fresh = Dense1by1Net()
    load_network(fresh, tmp_path / "net.pth")
    for name, value in network.state_dict().items():
        assert fresh.state_dict()[name].dtype == torch.float32
        how = {"abs": 1e-2} if form == "half precision" else {}
        item = f"checkpoint forms: {'half precision' if how else 'as saved'}"
        compare(item, fresh.state_dict()[name], value, **how)


def test_our_own_checkpoint_round_trip(tmp_path):
    network = UNet(1, width=8)
    save_network(tmp_path / "net.pth", nn.DataParallel(network), SMALL, seed=3)
    weights, record = read_weights(tmp_path / "net.pth")
    assert record == {"image_size": 16, "width": 8, "levels": 2, "network": "UNet", "seed": 3}
    assert all(torch.equal(weights[n], v) for n, v in network.state_dict().items())


class _Payload:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("extra", [_Payload(), pickle.Pickler], ids=["code", "class"])
def test_nothing_but_weights_is_unpickled(extra, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(1), "extra": extra}, "net.pth")
    with pytest.raises(UserError, match="not a checkpoint of weights alone"):
        read_weights("net.pth")
    assert not os.path.exists("pwned")


def test_a_mismatch_names_the_first_entries_of_both_sides(tmp_path):
    torch.save(UNet(2, 1, 3, width=8).state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError) as error:
        load_network(UNet(2, 3, 3, width=8), tmp_path / "net.pth")
    text = str(error.value)
    assert "the network has down1.conv1.weight (8, 3, 3, 3); " in text
    assert text.endswith("the file has down1.conv1.weight (8, 1, 3, 3)")
    with pytest.raises(UserError) as error:
        load_network(Dense1by1Net(width=8), tmp_path / "net.pth")
    text = str(error.value)
    assert "net.pth does not fit Dense1by1Net: the network has decoder.0.conv.weight" in text
    assert "the file has down1.conv1.weight (8, 1, 3, 3), down1.conv1.bias (8,)" in text


def test_formulas_have_no_checkpoint():
    rows = [row for row in TRANSFERS.values() if row.network is SobelKernel]
    assert [row.checkpoint for row in rows] == [""]
    assert not SobelKernel().state_dict()


def test_channels_follow_from_the_tasks():
    """A generic transfer of any pair of domains fits their channels."""
    for source in ("rgb", "depth_zbuffer"):
        for target in ("keypoints3d", "normal"):
            network = on_meta(lambda e=(source, target): generic_transfer(*e).build(Scale()))
            state = network.state_dict()
            assert state["down1.conv1.weight"].shape[1] == TASKS[source].channels
            assert state["last_conv2.weight"].shape[0] == TASKS[target].channels

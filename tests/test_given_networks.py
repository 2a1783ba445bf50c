"""The energy programs, and `consistency.Energy`, on networks that the user names."""

import csv
import json
import shutil

import pytest
import torch
from torch import nn

from backbones import backbone
from consistency import Energy
from datasets import TaskDataset
from files import sha256
from loading.layouts import View
from loading.photographs import open_image, square
from measuring.consistency_energy import UNLABELLED, energy_graph, measure_batch
from measuring.given_networks import given_networks
from models import save_network
from sources import Sources, sources_in
from task_configs import TASKS
from transfers import TRANSFERS, Scale
from utils import ROOT, UserError

SCALE = Scale(32, 8)
CPU = torch.device("cpu")
ROOM = f"--img-path={ROOT / 'assets' / 'room.png'}"
OWN = """
from torch import nn

def build(in_channels, out_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, out_channels, 1), nn.Sigmoid())
"""


@pytest.fixture
def own(tmp_path):
    """A file that builds a network, and a checkpoint of it: (flags, the network, its file)."""
    code = tmp_path / "own.py"
    code.write_text(OWN)
    return saved(code, tmp_path / "run")


def saved(code, folder, scale=SCALE):
    row = backbone(f"{code}:build", TRANSFERS["rgb", "normal"])
    torch.manual_seed(1)
    network = row.build(scale).eval()
    file = folder / "rgb2normal_consistency.pth"
    save_network(file, network, scale, **row.record())
    return (f"--checkpoint={folder}", f"--network={code}:build"), network, file


@pytest.fixture
def energy(run, networks, tmp_path):
    """Run one of the energy programs: (exit status, output)."""

    def call(program, *arguments):
        named = {argument.split("=")[0] for argument in arguments}
        standard = [f"--models-dir={networks}", f"--output-dir={tmp_path / 'out'}", "--quiet"]
        arguments += tuple(flag for flag in standard if flag.split("=")[0] not in named)
        return run(*arguments, program=f"scripts.{program}", defaults=False)[:2]

    return call


def mean_of(output: str) -> float:
    """The energy of the room that energy_map prints."""
    return float(output.rpartition("room.png: mean ")[2].split()[0])


def test_energy_calc_measures_a_network_of_ones_own(energy, own, rooms, networks, tmp_path):
    flags, network, file = own
    labelled = ("energy_calc", f"--data-dirs={rooms}", "--subset-size=3")
    status, output = energy("energy_calc", *labelled, *flags)
    assert status == 0 and f"rgb → normal from {file}" in output, output
    record = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert record["networks"]["rgb2normal"] == sha256(file)
    rows = list(csv.DictReader((tmp_path / "out" / "data.csv").open()))
    tasks = [TASKS["rgb"], TASKS["normal"]]
    views = TaskDataset(tasks, [View(rooms, r["building"], r["view"]) for r in rows], 32)
    images = torch.stack([views[i][0] for i in range(len(rows))])
    same = Energy(models_dir=networks, network=network, statistics=tmp_path / "out")
    wanted = torch.tensor([float(row["normalized_energy"]) for row in rows])
    with torch.no_grad():
        torch.testing.assert_close(same(images), wanted, rtol=1e-3, atol=1e-4)

    status, output = energy("energy_calc", "energy_calc_nogt", ROOM, *flags)
    assert status == 0, output
    status, output = energy("energy_calc", "energy_calc_nogt", ROOM)
    assert status == 2 and "measured another network rgb2normal" in output
    status, output = energy("energy_calc", *labelled, flags[0])
    assert status == 2 and output.count("error: ") == 1 and flags[1].replace("=", " ") in output
    status, output = energy("energy_calc", *labelled, flags[1])
    assert (
        status == 2
        and "the models folder holds no network that was trained with --network" in output
    )


@pytest.mark.slow
def test_energy_map_and_shift_measure_a_network_of_ones_own(energy, own, networks, tmp_path):
    flags, network, file = own
    image = square(open_image(ROOT / "assets" / "room.png"), 32)[None]
    status, output = energy("energy_map", ROOM, *flags)
    assert status == 0 and f"rgb → normal from {file}" in output, output
    assert (tmp_path / "out" / "room_energy.png").is_file()
    with torch.no_grad():
        wanted = float(Energy(models_dir=networks, network=network)(image))
    assert mean_of(output) == pytest.approx(wanted, abs=1e-4)

    status, output = energy("energy_shift", ROOM, *flags)
    assert status == 0 and f"rgb → normal from {file}" in output, output
    clean = next(csv.DictReader((tmp_path / "out" / "shift_images.csv").open()))
    graph = energy_graph(UNLABELLED, sources_in(networks), CPU, given={("rgb", "normal"): network})
    with torch.no_grad():
        losses = measure_batch(graph, UNLABELLED, {"rgb": image})
    assert float(clean["energy"]) == pytest.approx(
        float(torch.stack(list(losses.values())).mean()), rel=1e-3
    )
    for program in ("energy_map", "energy_shift"):
        status, output = energy(program, ROOM, flags[0])
        assert status == 2 and flags[1].replace("=", " ") in output
        status, output = energy(program, ROOM, flags[1])
        assert status == 2 and "holds no network that was trained with --network" in output


@pytest.mark.slow  # three programs
def test_maps_are_standardised_for_a_network_of_ones_own(energy, own, rooms, tmp_path):
    flags, _, _ = own
    out = tmp_path / "out"
    status, output = energy(
        "energy_calc", "energy_calc", f"--data-dirs={rooms}", "--subset-size=3", *flags
    )
    assert status == 0, output
    status, output = energy("energy_map", ROOM, f"--statistics={out}", *flags)
    assert status == 0, output
    mean = mean_of(output)
    status, output = energy("energy_calc", "energy_calc_nogt", ROOM, *flags)
    (row,) = csv.DictReader((out / "energy_query.csv").open())
    assert mean == pytest.approx(float(row["normalized_energy"]), abs=2e-3)
    status, output = energy("energy_map", ROOM, f"--statistics={out}")
    assert status == 2 and "measured another network rgb2normal" in output


def test_an_installed_network_of_another_size(own, networks, tmp_path):
    """In the models folder, `network` alone names it; its output has the size of its input."""
    flags, _, _ = own
    models = shutil.copytree(networks, tmp_path / "models")
    code = flags[1].partition("=")[2]
    _, network, file = saved(code.rpartition(":")[0], models, Scale(48, 8))
    sources = Sources([], [models], SCALE, embedded=False, install_dir=models)
    found = given_networks(sources, None, code, CPU)
    assert {edge: one.file for edge, one in found.items()} == {("rgb", "normal"): file}
    images = torch.rand(2, 3, 32, 32)

    def resized(values, size):
        return nn.functional.interpolate(values, (size, size), mode="bilinear", antialias=True)

    with torch.no_grad():
        wanted = resized(network(resized(images, 48)), 32)
        torch.testing.assert_close(found["rgb", "normal"].network(images), wanted)
    with pytest.raises(UserError, match="no file rgb2normal"):
        given_networks(sources, [str(tmp_path / "nothing")], None, CPU)


def test_the_energy_takes_a_module(networks):
    """It is run in eval mode and left as it is; gradients flow to it."""
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sigmoid()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(2, 3, 32, 32)
    energy = Energy(models_dir=networks, network=network)
    values = energy(images)
    assert values.shape == (2,) and energy.pixels(images).shape == (2, 1, 32, 32)
    assert network.training and network[1].training
    assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())
    values.sum().backward()
    assert network[0].weight.grad.abs().max() > 0
    assert not list(energy.parameters()) and not energy.state_dict()
    assert energy.to(torch.float64) and network[0].weight.dtype == torch.float32
    plain = Energy(models_dir=networks)
    with torch.no_grad():
        same = Energy(models_dir=networks, network=plain.graph.network(("rgb", "normal")))
        torch.testing.assert_close(same(images), plain(images))
        assert not torch.allclose(values, plain(images))
    assert Energy().statistics is not None  # those of the shipped networks,
    assert Energy(network=network).statistics is None  # which are not of another one
    with pytest.raises(UserError, match=r"`network` returns \(2, 1, 32, 32\) for images"):
        Energy(models_dir=networks, network=nn.Conv2d(3, 1, 1))(images)

"""The public API: equal to the trainer and the programs, and usable in any training loop."""

import copy
import csv
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as TF

import consistency
from consistency import ConsistencyLoss, Energy, balance_gradients, evaluate, predict, pretrained
from datasets import Batch, TaskDataset
from energy import ENERGY_DOMAINS, get_config
from graph import TaskGraph
from loading.layouts import find_buildings, find_views
from measuring.consistency_energy import LABELLED, energy_graph, measure_batch, read_statistics
from measuring.statistics import make_table, standardised
from models import make_optimizer
from scripts.benchmarking.step import difference
from sources import SHIPPED, sources_in
from task_configs import TASKS
from training.step import Step
from transfers import TRANSFERS
from utils import ROOT, UserError, log

CPU = torch.device("cpu")
TARGETS = ["normal", "depth_zbuffer", "reshading"]
JOBS = {"normal": "normal", "depth_zbuffer": "depth", "reshading": "reshading"}


def batch_of(rooms, *domains, size=32, count=3) -> Batch:
    """Views of the rooms, with invalid pixels in them."""
    tasks = [TASKS[name] for name in ("rgb", *domains)]
    views = find_views(tasks, [rooms], find_buildings([rooms]))[:count]
    dataset = TaskDataset(tasks, views, size)
    columns = zip(*(dataset[i] for i in range(len(dataset))), strict=True)
    batch = {t.name: torch.stack(column) for t, column in zip(tasks, columns, strict=True)}
    for name in domains:
        batch[name][0, :, :9, :9] = TASKS[name].mask_value
    return Batch(batch, range(count))


def network_of(networks, target="normal") -> nn.Module:
    return sources_in(networks).network(TRANSFERS["rgb", target])


def trainer_of(consistent: ConsistencyLoss, network: nn.Module, precision="fp32") -> Step:
    """The trainer's step with the frozen networks of the loss, and a copy of the network."""
    frozen = {e: consistent.graph.network(e) for e in TRANSFERS if consistent.graph.has(e)}
    edge = ("rgb", consistent.target)
    graph = TaskGraph({**frozen, edge: copy.deepcopy(network)}, edge)
    optimizer = make_optimizer(graph.target.parameters())
    return Step(graph, consistent.config, optimizer, CPU, precision=precision)


def gradients(network) -> list[torch.Tensor]:
    return [p.grad for p in network.parameters()]


# ---- the losses and weights are the trainer's ---------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_losses_weights_and_gradients_are_the_trainers(target, networks, rooms):
    """Bit for bit, with masks, for all domains."""
    batch, ours = batch_of(rooms, target), network_of(networks, target)
    consistent = ConsistencyLoss(target, models_dir=networks)
    assert len(consistent.domains) == 7 and "imagenet" not in consistent.domains
    step = trainer_of(consistent, ours)
    assert step.config is get_config(f"multiperceptual_{JOBS[target]}")
    wanted = step(batch, list(consistent.losses.values()))

    losses = consistent(ours(batch["rgb"]), batch[target])
    assert list(losses) == ["mae", *consistent.losses.values()]
    assert all(loss.shape == (3,) for loss in losses.values())
    assert all(torch.equal(loss.mean(), wanted[name]) for name, loss in losses.items())
    weights = balance_gradients(losses, ours.parameters())
    assert all(torch.equal(weights[name], step.weights[name]) for name in losses)
    assert all(map(torch.equal, gradients(ours), gradients(step.graph.target)))
    assert any(g.abs().max() > 0 for g in gradients(ours))
    titles = consistent.titles
    assert titles["percep_curv"] == "percep_curv_mae : f(n(x)) -> f(y^)"


@pytest.mark.slow  # two processes that start Python
def test_two_processes_with_ddp_compute_what_the_trainer_does(networks, rooms, tmp_path):
    for target in TARGETS:
        torch.save(dict(batch_of(rooms, target, count=4)), tmp_path / f"{target}.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(ROOT / "tests" / "consistency_ranks.py"), str(networks), str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for target in TARGETS:
        first, second = (result[target] for result in results)
        assert first["losses_equal"] and second["losses_equal"]
        assert first["weights"] == first["trainer_weights"] == second["weights"]
        for one, other, trainer in zip(
            first["gradient"], second["gradient"], first["trainer_gradient"], strict=True
        ):
            assert torch.equal(one, other) and torch.equal(one, trainer)


def test_a_second_loop_of_the_same_loss_trains(networks, rooms):
    """Five lines of one's own: the losses fall."""
    batch, network = batch_of(rooms, "normal"), network_of(networks)
    consistent = ConsistencyLoss("normal", ["sobel_edges"], models_dir=networks)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    totals = []
    for _ in range(8):
        losses = consistent(network(batch["rgb"]), batch["normal"])
        optimizer.zero_grad()
        balance_gradients(losses, network.parameters())
        optimizer.step()
        totals.append(float(losses["mae"].detach().mean()))
    assert totals[-1] < 0.95 * totals[0]


# ---- choice of domains --------------------------------------------------------------


def test_domains_and_k(networks):
    consistent = ConsistencyLoss(
        "normal", ["sobel_edges", "principal_curvature", "reshading"], models_dir=networks, seed=3
    )
    assert consistent.domains == ["principal_curvature", "sobel_edges", "reshading"]
    x, y = torch.rand(2, 2, 3, 32, 32)
    assert list(consistent(x, y)) == ["mae", "percep_curv", "percep_edge", "percep_reshading"]
    assert list(consistent(x, y, domains=["reshading"])) == ["mae", "percep_reshading"]
    assert list(consistent(x, y, domains="sobel_edges")) == ["mae", "percep_edge"]
    assert list(consistent(x, y, k=0)) == ["mae"]
    found = {tuple(consistent(x, y, k=1)) for _ in range(30)}
    assert len(found) == 3 and all(len(names) == 2 for names in found)
    again = ConsistencyLoss("normal", consistent.domains, models_dir=networks, seed=3)
    other = ConsistencyLoss("normal", consistent.domains, models_dir=networks, seed=3)
    assert [again.choose(2) for _ in range(9)] == [other.choose(2) for _ in range(9)]


def test_a_configuration_of_ones_own(networks, monkeypatch):
    own = consistency.energy_configs | {
        "corners": __import__("energy").target_through_domains("keypoints3d", ("normal",), ())
    }
    monkeypatch.setattr(consistency, "energy_configs", own)
    monkeypatch.setattr("energy.energy_configs", own)
    consistent = ConsistencyLoss("corners", models_dir=networks)
    x, y = torch.rand(2, 2, 1, 32, 32)
    assert {n: v.shape for n, v in consistent(x, y).items()} == {
        "mae": (2,), "percep_normal": (2,)
    }  # fmt: skip


# ---- an nn.Module among others ------------------------------------------------------


def test_frozen_networks_are_moved_but_never_trained(networks):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Conv2d(3, 3, 3, padding=1)
            self.consistent = ConsistencyLoss("normal", models_dir=networks)
            self.energy = Energy(models_dir=networks)

    own = Own()
    assert len(list(own.parameters())) == 2 and set(own.state_dict()) == {
        "network.weight", "network.bias"
    }  # fmt: skip
    own.train().requires_grad_(True)
    for held in (own.consistent, own.energy):
        assert not any(p.requires_grad for p in held.graph.parameters())
        assert not any(module.training for module in held.graph.modules())
    own.double()
    x, y = torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    losses = own.consistent(own.network(x), y)
    assert all(loss.dtype == torch.float64 for loss in losses.values())
    sum(loss.sum() for loss in losses.values()).backward()
    assert own.network.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in own.consistent.graph.parameters())
    other = copy.deepcopy(own).float()
    assert next(own.consistent.graph.parameters()).dtype == torch.float64
    assert next(other.energy.graph.parameters()).dtype == torch.float32
    own.to("meta")
    assert next(own.consistent.graph.parameters()).device.type == "meta"


def test_no_gradient_flows_to_the_truth(networks):
    consistent = ConsistencyLoss("normal", ["sobel_edges"], models_dir=networks)
    x, y = (t.requires_grad_() for t in torch.rand(2, 1, 3, 32, 32))
    sum(loss.sum() for loss in consistent(x, y).values()).backward()
    assert x.grad.abs().max() > 0 and y.grad is None


# ---- other ways to train ------------------------------------------------------------


def test_autocast_and_a_scaler(networks, rooms):
    """In bfloat16, the trainer's losses and gradients bit for bit; a scaler changes no weight."""
    batch, network = batch_of(rooms, "normal"), network_of(networks)
    consistent = ConsistencyLoss("normal", ["sobel_edges", "reshading"], models_dir=networks)
    trainer = trainer_of(consistent, network, "bf16")
    wanted = trainer(batch, list(consistent.losses.values()))
    with torch.autocast("cpu", torch.bfloat16):
        losses = consistent(network(batch["rgb"]), batch["normal"])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(torch.equal(loss.mean(), wanted[name]) for name, loss in losses.items())
    weights = balance_gradients(losses, network.parameters())
    found = gradients(network)
    assert all(map(torch.equal, found, gradients(trainer.graph.target)))

    network.zero_grad()
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with torch.autocast("cpu", torch.bfloat16):
        losses = consistent(network(batch["rgb"]), batch["normal"])
    scaled = {name: scaler.scale(loss) for name, loss in losses.items()}
    torch.testing.assert_close(balance_gradients(scaled, network.parameters()), weights)
    assert difference(gradients(network), found) > 100
    scaler.unscale_(optimizer)
    assert difference(gradients(network), found) < 1e-3


def test_parts_of_a_batch_give_its_weights_and_gradient(networks, rooms):
    batch, network = batch_of(rooms, "normal"), network_of(networks).double()
    consistent = ConsistencyLoss("normal", ["sobel_edges", "reshading"], models_dir=networks)
    consistent.double()
    x, y = batch["rgb"].double(), batch["normal"].double()
    weights = balance_gradients(consistent(network(x), y), network.parameters())
    whole = gradients(network)
    network.zero_grad()
    parts = (consistent(network(x[s]), y[s]) for s in (slice(0, 2), slice(2, 3)))
    in_parts = balance_gradients(parts, network.parameters())
    torch.testing.assert_close(in_parts, weights)
    assert difference(gradients(network), whole) < 1e-9
    # like backward(), it adds to gradients that are there
    balance_gradients(consistent(network(x), y), network.parameters())
    assert difference(gradients(network), [2 * g for g in whole]) < 1e-9


def test_a_frozen_part_of_the_network_stays_frozen(networks):
    network = network_of(networks)
    network.down1.requires_grad_(False)
    consistent = ConsistencyLoss("normal", ["sobel_edges"], models_dir=networks)
    x, y = torch.rand(2, 1, 3, 32, 32)
    balance_gradients(consistent(network(x), y), network.parameters())
    assert all(p.grad is None for p in network.down1.parameters())
    assert network.last_conv2.weight.grad.abs().max() > 0


@pytest.mark.parametrize("in_parts", [False, True])
def test_gradients_that_share_memory(in_parts):
    """Those of w and v in w + v are one tensor, and that of w in a sum has one number."""
    w, v = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    named = {"mae": (3 * (w + v)).sum(), "percep_a": (w * w + v).sum()}
    wanted = []
    for parameter in (w, v):
        one, two = (torch.autograd.grad(loss, parameter, retain_graph=True)[0]
                    for loss in named.values())  # fmt: skip
        wanted.append((one, two))
    g = [torch.cat([pair[i] for pair in wanted]).abs().mean() for i in (0, 1)]
    weights = [g[1] / sum(g), g[0] / sum(g)]  # n = 2: c_i = (G − g_i) / G
    found = balance_gradients([named] if in_parts else named, [w, v])
    torch.testing.assert_close(list(found.values()), weights)
    for parameter, (one, two) in zip((w, v), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, weights[0] * one + weights[1] * two)


@pytest.mark.slow  # it compiles
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(networks, backend):
    """Network and loss compiled: several backward passes, and the same gradients."""
    x, y = torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    consistent = ConsistencyLoss("normal", ["sobel_edges"], models_dir=networks).double()
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)
    network = nn.Sequential(*layers).double()
    wanted = balance_gradients(consistent(network(x), y), network.parameters())
    exact = gradients(network)
    fast = torch.compile(network, backend=backend)
    loss = torch.compile(consistent, backend=backend)
    for _ in range(2):
        network.zero_grad()
        weights = balance_gradients(loss(fast(x), y), network.parameters())
    torch.testing.assert_close(weights, wanted)
    assert difference(gradients(network), exact) < 1e-9
    torch.compiler.reset()


# ---- the energy ---------------------------------------------------------------------


def test_the_energy_is_that_of_energy_calc(run, rooms, networks, tmp_path):
    status, output, _ = run(
        "energy_calc", f"--save-dir={tmp_path}", f"--data-dirs={rooms}",
        f"--models-dir={networks}", "--quiet", program="scripts.energy_calc", defaults=False,
    )  # fmt: skip
    assert status == 0, output
    rows = list(csv.DictReader((tmp_path / "data.csv").open()))
    tasks = [TASKS["rgb"], TASKS["normal"]]
    views = {(v.building, v.name): v for v in find_views(tasks, [rooms], find_buildings([rooms]))}
    dataset = TaskDataset(tasks, [views[r["building"], r["view"]] for r in rows], 32)
    images = torch.stack([dataset[i][0] for i in range(len(rows))])
    energy = Energy(models_dir=networks, statistics=tmp_path)
    wanted = torch.tensor([float(row["normalized_energy"]) for row in rows])
    with torch.no_grad():
        torch.testing.assert_close(energy(images), wanted, rtol=1e-3, atol=1e-4)
        pixels = energy.pixels(images)
        assert pixels.shape == (len(rows), 1, 32, 32)
        torch.testing.assert_close(pixels.mean(dim=(1, 2, 3)), energy(images))
        plain = Energy(models_dir=networks)  # no statistics: the mean of the columns
        columns = [[float(row[f"percep__{d}"]) for d in ENERGY_DOMAINS] for row in rows]
        torch.testing.assert_close(plain(images), torch.tensor(columns).mean(dim=1))
    assert plain.statistics is None
    record = json.loads((tmp_path / "statistics.json").read_text())
    (tmp_path / "statistics.json").write_text(json.dumps(record | {"width": 16}))
    with pytest.raises(UserError, match="had other networks: not image size 32, width 8"):
        Energy(models_dir=networks, statistics=tmp_path)


def test_the_shipped_energy(rooms):
    """The shipped statistics are those of the shipped networks, and rooms are ordinary."""
    batch = batch_of(rooms, "normal", size=64, count=2)
    energy = Energy()
    with torch.no_grad():
        found = energy(batch["rgb"])
        graph = energy_graph(LABELLED, sources_in(), CPU)
        losses = {n: v.double().numpy() for n, v in measure_batch(graph, LABELLED, batch).items()}
        wanted = standardised(make_table(losses), read_statistics(SHIPPED))["normalized_energy"]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
        assert found.abs().max() < 4
        noise = energy(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
        assert noise.min() < 4
        # any size: resized to the networks' size and back
        wide = torch.nn.functional.interpolate(batch["rgb"][:1], (96, 150))
        assert energy(wide).shape == (1,)
        assert energy.pixels(wide).shape == (1, 1, 96, 150)
    image = batch["rgb"][:1].requires_grad_()
    energy(image).sum().backward()
    assert image.grad.abs().max() > 0


# ---- predictions --------------------------------------------------------------------


@pytest.fixture
def picture() -> Image.Image:
    return Image.open(ROOT / "assets" / "room.png").convert("RGB").resize((150, 101))


def test_predictions_of_a_batch(picture):
    batch = torch.stack([TF.to_tensor(picture), TF.to_tensor(picture).flip(2)])
    found = predict(batch, "depth", model="rooms")
    assert found.shape == (2, 1, 256, 256)
    for image, value in zip(batch, found, strict=True):
        alone = predict(image, "depth", model="rooms")
        torch.testing.assert_close(value, alone, rtol=1e-4, atol=1e-4)
    assert predict(batch, model="rooms", device="cpu").device == CPU
    assert not found.is_inference()


def test_predictions_of_the_images_own_size(picture):
    found = predict(picture, model="rooms", size="own")
    assert found.shape == (3, 101, 150)
    network = pretrained(model="rooms")
    assert not network.training
    with torch.no_grad():
        values = network(TF.to_tensor(picture)[None])
    torch.testing.assert_close(values[0], found, rtol=1e-4, atol=1e-5)
    square = picture.crop((0, 0, 96, 96))  # a size that the network takes as it is
    own = predict(square, model="rooms", size="own")
    with torch.no_grad():
        direct = network.network(TF.to_tensor(square)[None])[0].clamp(0, 1)
    torch.testing.assert_close(own, direct, rtol=1e-4, atol=1e-5)
    assert predict(picture.crop((0, 0, 5, 3)), model="rooms", size="own").shape == (3, 3, 5)


def test_pretrained_networks_are_copies(picture):
    first, second = pretrained("reshading", model="rooms"), pretrained("reshading", model="rooms")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert any(parameter.abs().max() > 0 for parameter in second.parameters())


# ---- evaluation ---------------------------------------------------------------------


def test_evaluation_is_the_closing_table_of_a_run(run, rooms, networks):
    status, output, results = run(
        "multiperceptual_normal", "--k=1", "--random-select", "--steps-per-epoch=2",
        "--no-imagenet",
    )  # fmt: skip
    assert status == 0, output
    (folder,) = results.iterdir()
    table = json.loads((folder / "evaluation.json").read_text())
    column = list(table["columns"].values())[-1] if "columns" in table else None
    found = evaluate(folder, rooms, models_dir=networks)
    wanted = column or list(table.values())[-1]
    assert found.keys() == wanted.keys() and len(found) > 10
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)

    # a module in training, with a part of it frozen, is left as it was
    network = sources_in(networks).network(TRANSFERS["rgb", "normal"])
    checkpoint = next(folder.glob("rgb2normal_consistency.pth"))
    network.load_state_dict(torch.load(checkpoint)["state_dict"])
    network.train().down1.requires_grad_(False).eval()
    domains = ["sobel_edges"]
    from_folder = evaluate(network, [rooms], domains=domains, models_dir=networks)
    torch.testing.assert_close(from_folder, {n: found[n] for n in from_folder})
    assert network.training and not network.down1.training
    assert [p.requires_grad for p in network.parameters()].count(False) > 0
    assert network.last_conv2.weight.requires_grad
    # the same from batches
    dataset = batch_of(rooms, "normal", "sobel_edges")
    from_batches = evaluate(network, [dict(dataset)], domains=domains, models_dir=networks)
    assert from_batches.keys() == from_folder.keys()


# ---- what cannot be -----------------------------------------------------------------


def loss(**options):
    return lambda networks: ConsistencyLoss(**{"models_dir": networks} | options)


def losses(*arguments, **options):
    return lambda networks: ConsistencyLoss(models_dir=networks)(*arguments, **options)


ONES = torch.ones(2, 3, 32, 32)


@pytest.mark.parametrize(
    "call,sentence",
    [
        (loss(target="normals"), "`target` is normal, depth_zbuffer, reshading or an energy "
         "configuration, not normals; did you mean normal"),
        (loss(target="energy_calc"), "energy_calc measures and does not train"),
        (loss(domains=["edges"]), "no loss for edges.*there are: principal_curvature"),
        (loss(domains=["imagenet"]), "cannot fetch the ImageNet network"),
        (loss(models_dir="gone"), "no models folder gone"),
        (loss(models_dir=ROOT / "tests"), "tests has no network"),
        (losses(ONES[:, :1], ONES), r"`prediction` is \(B, 3, H, W\), with sides of .* pixels"),
        (losses(ONES[0], ONES), r"not \(3, 32, 32\)"),
        (losses(ONES[..., :4], ONES[..., :4]), r"not \(2, 3, 32, 4\)"),
        (losses(ONES, ONES[:1]), r"`truth` is \(1, 3, 32, 32\), `prediction`"),
        (losses(ONES, ONES, domains=["normal"]), "there is no loss for normal"),
        (losses(ONES, ONES, k=9), "`k` is 0 to 7 here, not 9"),
        (losses(ONES, ONES, ["reshading"], 1), "give one of the two"),
        (lambda _: Energy()(ONES[0]), r"`images` is \(B, 3, H, W\), not \(3, 32, 32\)"),
        (lambda n: Energy(models_dir=n, statistics="gone"), "no gone/statistics.json"),
        (lambda _: predict(ONES, size="full", model="rooms"), "`size` is a number of pixels or"),
        (lambda _: predict(ONES, device="gpu7", model="rooms"), "`device` gpu7 cannot be used"),
        (lambda _: evaluate(nn.Conv2d(3, 3, 1), []), "`data` holds no batch"),
        (lambda _: evaluate(nn.Conv2d(3, 3, 1), [{"rgb": ONES}]), "the batch has no normal"),
        (lambda n: evaluate("gone.pth", "x", models_dir=n), "no checkpoint gone.pth"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(call, sentence, networks):
    with pytest.raises(UserError, match=sentence):
        call(networks)


def test_losses_that_cannot_be_balanced():
    weight = nn.Parameter(torch.ones(()))
    with pytest.raises(UserError, match="`parameters` holds none"):
        balance_gradients({"mae": weight}, [])
    with pytest.raises(UserError, match=r"`losses` has no mae \(it has: l1\)"):
        balance_gradients({"l1": weight * 2}, [weight])
    with pytest.raises(UserError, match="the loss mae does not depend on what is trained"):
        balance_gradients({"mae": torch.ones(2)}, [weight])
    with pytest.raises(UserError, match="all parts of a batch have the same losses: mae, not l1"):
        balance_gradients([{"mae": weight * 2}, {"l1": weight * 2}], [weight])
    assert balance_gradients({"l1": weight * 2}, [weight], direct="l1") == {"l1": 1}
    assert weight.grad == 2


def test_nothing_is_printed(capfd, recwarn, networks, monkeypatch):
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])  # as in a user's program
    ConsistencyLoss(models_dir=networks)(ONES, ONES * 0.3)
    Energy(models_dir=networks)(ONES)
    predict(ONES[0], model="rooms")
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")

"""Refits of the networks between domains on predicted domains, for the consistency energy."""

import json
import shutil

import pytest
import torch

from datasets import Batch
from graph import TaskGraph
from label_cache import Budget, LabelCache
from measuring.closing_table import measure
from measuring.consistency_energy import network_digests, network_for_energy
from models import load_network, read_record, read_weights, save_network
from sources import REFITS, sources_in
from training.objective import objective_of
from training.options import NetworkOptions, Options
from transfers import TRANSFERS, Scale
from utils import UserError

SCALE = Scale(32, 8)
TRANSFER = "depth_zbuffer2normal"
EDGES = [("rgb", "depth_zbuffer"), ("depth_zbuffer", "normal")]


def built(networks):
    """The two networks of the folder, and a graph in which the second is trained."""
    found = {}
    for edge in EDGES:
        found[edge] = TRANSFERS[edge].build(SCALE)
        load_network(found[edge], networks / TRANSFERS[edge].checkpoint, SCALE)
    return found, TaskGraph(found, EDGES[1])


def objective():
    return objective_of(Options(TRANSFER, networks=NetworkOptions(on_predictions=True)))


def test_the_objective_is_l1_from_its_own_checkpoint():
    found = objective()
    assert found.config["paths"]["n(x)"] == ("rgb", *EDGES[1])
    assert found.transfer.edge == EDGES[1] and found.predictor.edge == EDGES[0]
    assert not found.squared and found.init == "baseline" and found.perceptual == ()
    plain = objective_of(Options(TRANSFER))
    assert plain.squared and plain.init == "scratch" and plain.predictor is None


def test_it_is_measured_on_predictions_and_never_cached_while_it_trains(networks):
    """The cache holds what rgb → depth predicts, not what the network that trains makes of it."""
    found, graph = built(networks)
    batch = Batch({"rgb": torch.rand(2, 3, 32, 32), "normal": torch.rand(2, 3, 32, 32)}, [0, 1])
    cache, config = LabelCache(Budget(2**30)), objective().config
    first = measure(graph, config, [], [batch], labels=cache)
    with torch.no_grad():
        predicted = found[EDGES[1]](found[EDGES[0]](batch["rgb"]))
    error = 100 * (predicted - batch["normal"]).abs().mean()
    assert first["direct L1 × 100"] == pytest.approx(float(error), rel=1e-5)
    kept = cache.frozen_values(graph, config["paths"], batch)
    assert list(kept) == [EDGES[0]]
    with torch.no_grad():
        found[EDGES[1]].last_conv2.bias += 0.2
    assert measure(graph, config, [], [batch], labels=cache) != first


def train(run, *flags, name=TRANSFER):
    return run(name, "--on-predictions", "--steps-per-epoch=2", "--quiet", *flags)


def test_training_moves_the_second_network_only(run, networks, tmp_path):
    status, said, results = train(run)
    assert status == 0, said
    assert "depth_zbuffer → normal on what rgb → depth_zbuffer predicts" in said
    (folder,) = results.iterdir()
    record = read_record(folder / f"{TRANSFER}.pth")
    file = TRANSFERS[EDGES[0]].checkpoint
    assert record["on_predictions"].startswith(f"rgb2depth_zbuffer, {file}, SHA-256 ")
    written = json.loads((folder / "run.json").read_text())
    assert written["on_predictions"] == record["on_predictions"] and not written["squared"]
    assert set(written["inputs"]["networks"]) == {TRANSFER, "rgb2depth_zbuffer"}
    rows = json.loads((folder / "evaluation.json").read_text())
    assert rows["before"] != rows["trained"]


def test_cached_predictions_change_nothing(run):
    weights = []
    for gib in (0, 1):
        status, said, results = train(run, f"--cache-labels={gib}") if not gib else train(run)
        assert status == 0, said
        folder = max(results.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        weights.append(torch.load(folder / f"{TRANSFER}.pth", weights_only=True)["state_dict"])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["rgb2normal", "multiperceptual_normal"])
def test_what_cannot_be_trained_on_predictions(run, name):
    status, said, _ = train(run, name=name)
    assert status == 2 and "--on-predictions is for a transfer between domains" in said, said


def test_the_network_with_consistency_predicts_where_there_is_one(run, networks, tmp_path):
    """As in the energy, which then meets the same predictions."""
    models = tmp_path / "models"
    models.mkdir()
    for edge in EDGES:
        shutil.copy(networks / TRANSFERS[edge].checkpoint, models)
    torch.manual_seed(1)
    save_network(models / "rgb2depth_consistency.pth", TRANSFERS[EDGES[0]].build(SCALE), SCALE)
    status, said, results = train(run, f"--models-dir={models}")
    assert status == 0, said
    (folder,) = results.iterdir()
    assert "rgb2depth_consistency.pth" in read_record(folder / f"{TRANSFER}.pth")["on_predictions"]


# ---- scripts.train_edges ------------------------------------------------------------


def edges(run, networks, *words, output=None):
    return run(*words, "--on-predictions", f"--data-dirs={run.rooms}", f"--models-dir={networks}",
               "--max-epochs=1", "--steps-per-epoch=1", "--batch-size=2",
               *([f"--output-dir={output}"] if output else []),
               program="scripts.train_edges", defaults=False)  # fmt: skip


def test_train_edges_refits_once_into_a_folder_of_its_own(run, networks, tmp_path, monkeypatch):
    """The label-trained networks stay; the refits lie beside copies of those from rgb."""
    commands = []

    def trained(trainer, row, flags):
        commands.append((row, flags))
        folder, row = flags["models_dir"], next(r for r in TRANSFERS.values() if r.name == row)
        shutil.copy(networks / row.checkpoint, folder)
        return 0

    import scripts.train_edges as program

    monkeypatch.setattr(program, "_run", trained)
    before = {file.name: file.read_bytes() for file in networks.iterdir()}
    output = tmp_path / "refitted"
    status, said, _ = edges(run, networks, output=output)
    assert status == 0 and "7 networks to refit on predictions, 0 there" in said, said
    assert {row for row, _ in commands} == {
        f"{domain}2normal" for domain in (
            "principal_curvature", "sobel_edges", "depth_zbuffer", "edge_occlusion", "reshading",
            "keypoints3d", "keypoints2d")}  # fmt: skip
    for row, flags in commands:
        assert flags["on_predictions"] and flags["install"] and flags["models_dir"] == str(output)
        assert flags["init"].startswith(str(networks)), row
    assert (output / "rgb2normal_baseline.pth").read_bytes() == before["rgb2normal_baseline.pth"]
    assert {file.name: file.read_bytes() for file in networks.iterdir()} == before
    commands.clear()
    status, said, _ = edges(run, networks, output=output)
    assert status == 0 and "7 there" in said and not commands
    (output / "rgb2normal_baseline.pth").write_bytes(b"another")
    status, said, _ = edges(run, networks, output=output)
    assert status == 2 and "were refitted on the predictions of others" in said


def test_train_edges_says_what_is_wrong(run, networks, tmp_path):
    status, said, _ = edges(run, networks, "rgb2normal", output=tmp_path)
    assert status == 2 and "rgb2normal has no network between domains" in said
    status, said, _ = edges(run, networks, output=networks)
    assert status == 2 and "has the networks that are refitted" in said
    status, said, _ = run("example_normal", f"--data-dirs={run.rooms}", "--output-dir=x",
                          program="scripts.train_edges", defaults=False)  # fmt: skip
    assert status == 2 and "--output-dir is for --on-predictions" in said


@pytest.mark.slow
def test_train_edges_runs_the_trainer(run, networks, tmp_path):
    output = tmp_path / "refitted"
    status, said, _ = edges(run, networks, TRANSFER, f"--results-dir={tmp_path}", output=output)
    assert status == 0, said
    record = read_record(output / TRANSFERS[EDGES[1]].checkpoint)
    assert record["on_predictions"].startswith("rgb2depth_zbuffer")


def test_a_row_without_a_predictor_is_refused():
    with pytest.raises(UserError, match="`on_predictions` is for"):
        objective_of(Options("rgb2depth_zbuffer", networks=NetworkOptions(on_predictions=True)))


def same(network, file) -> bool:
    """Whether a network has the weights of a file."""
    return all(torch.equal(v, network.state_dict()[n]) for n, v in read_weights(file)[0].items())


def test_the_energy_takes_refits_that_lie_beside_the_networks(networks, tmp_path):
    """Training's losses and the energy of the folder without refits do not change."""
    folder = shutil.copytree(networks, tmp_path / "models")
    row = TRANSFERS[EDGES[1]]
    plain = sources_in(folder)
    before = network_digests("energy_calc_nogt", plain)
    assert same(network_for_energy(row, plain), folder / row.checkpoint)
    (folder / REFITS).mkdir()
    torch.manual_seed(7)
    save_network(folder / REFITS / row.checkpoint, row.build(SCALE), SCALE)
    assert same(network_for_energy(row, plain), folder / REFITS / row.checkpoint)
    assert plain.find(row) == folder / row.checkpoint  # what a perceptual loss takes
    after = network_digests("energy_calc_nogt", plain)
    assert {name for name in before if before[name] != after[name]} == {TRANSFER}

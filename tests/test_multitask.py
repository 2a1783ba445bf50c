"""One encoder and a decoder a domain; its training from the command line."""

import json
import shutil

import pytest
import torch

from methods.multitask import DOMAINS
from models import fill_network, read_weights, save_network
from modules.multitask import MultiTaskUNet
from modules.unet import UNet
from transfers import Scale
from utils import UserError


def test_with_one_domain_it_is_the_unet():
    torch.manual_seed(0)
    table = UNet(downsample=3, in_channels=3, out_channels=3, width=8)
    ours = MultiTaskUNet({"normal": 3}, "normal", downsample=3, width=8)
    weights = {}
    for name in ours.state_dict():
        bare = name.removeprefix("encoder.").removeprefix("decoders.normal.")
        weights[name] = table.state_dict().get(bare, ours.has_labels)
    ours.load_state_dict(weights)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(ours(image), table(image))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in table.parameters())


def test_each_domain_has_its_decoder_and_all_share_the_encoder():
    torch.manual_seed(0)
    net = MultiTaskUNet({"normal": 3, "depth_zbuffer": 1, "edges": 1}, "normal", 2, width=8)
    image = torch.rand(1, 3, 16, 16)
    outputs = net.outputs(image)
    assert {name: value.shape[1] for name, value in outputs.items()} == {
        "normal": 3, "depth_zbuffer": 1, "edges": 1,
    }  # fmt: skip
    assert torch.equal(net(image), outputs["normal"])
    outputs["depth_zbuffer"].sum().backward()
    assert all(p.grad is not None for p in net.encoder.parameters())
    assert all(p.grad is None for p in net.decoders["normal"].parameters())


def test_decoders_without_labels_are_frozen_and_the_weights_tell():
    net = MultiTaskUNet({"normal": 3, "depth_zbuffer": 1}, "normal", 2, width=8)
    net.train_on(["normal"])
    again = MultiTaskUNet({"normal": 3, "depth_zbuffer": 1}, "normal", 2, width=8)
    again.load_state_dict(net.state_dict())
    assert list(again.outputs(torch.rand(1, 3, 16, 16))) == ["normal"]
    assert not any(p.requires_grad for p in net.decoders["depth_zbuffer"].parameters())
    assert all(p.requires_grad for p in net.encoder.parameters())


def test_files_may_leave_out_decoders_that_are_not_trained(tmp_path):
    channels = {"normal": 3, "depth_zbuffer": 1}
    network = MultiTaskUNet(channels, "normal", 2, width=8)
    network.train_on(["normal"])
    save_network(tmp_path / "whole.pth", network, Scale(16, 8))
    weights, _ = read_weights(tmp_path / "whole.pth")
    fewer = {name: value for name, value in weights.items() if "depth_zbuffer" not in name}
    again = MultiTaskUNet(channels, "normal", 2, width=8)
    own = again.decoders["depth_zbuffer"].state_dict()
    fill_network(again, "fewer.pth", fewer)
    assert torch.equal(again.encoder.down1.conv1.weight, network.encoder.down1.conv1.weight)
    assert all(torch.equal(own[n], v) for n, v in again.decoders.depth_zbuffer.state_dict().items())
    for absent in ("decoders.normal", "encoder.down1", "has_labels"):
        broken = {name: value for name, value in fewer.items() if not name.startswith(absent)}
        with pytest.raises(UserError, match="does not fit MultiTaskUNet"):
            fill_network(again, "fewer.pth", broken)


QUICK = ("--steps-per-epoch=2", "--perceptual=curv", "--no-imagenet", "--visdom-server=none")


@pytest.mark.slow
def test_two_steps_by_the_command_line(run):
    """All domains of the rooms are trained, logged and measured."""
    status, output, results = run("multitask_normal", *QUICK)
    assert status == 0, output
    (folder,) = results.iterdir()
    others = [name for name in DOMAINS if name != "normal"]
    assert len(others) == 8
    columns = json.loads((folder / "evaluation.json").read_text())
    rows = {f"direct L1 × 100, {name}" for name in others}
    assert rows <= set(columns["before"]) == set(columns["trained"])
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    (losses,) = [record for record in records if record.get("split") == "train"]
    parts = [losses["mae : n(x) -> y^"], *(losses[f"{name} : training"] for name in others)]
    assert losses["loss"] == pytest.approx(sum(parts))
    _, record = read_weights(folder / "rgb2normal_multitask.pth")
    assert record["method"] == "multitask"


@pytest.mark.slow
def test_domains_without_files_are_left_out(run, rooms, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for folder in rooms.iterdir():
        if folder.name.endswith(("_rgb", "_normal", "_depth_zbuffer")):
            shutil.copytree(folder, few / folder.name)
    status, output, results = run("multitask_normal", *QUICK, f"--data-dirs={few}")
    assert status == 0, output
    (folder,) = results.iterdir()
    weights, _ = read_weights(folder / "rgb2normal_multitask.pth")
    trained = [n for n, has in zip(DOMAINS, weights["has_labels"], strict=True) if has]
    assert trained == ["normal", "depth_zbuffer", "sobel_edges"]
    assert f"domains {', '.join(trained)}" in output
    columns = json.loads((folder / "evaluation.json").read_text())
    assert [row for row in columns["trained"] if row.startswith("direct L1 × 100, ")] == [
        "direct L1 × 100, depth_zbuffer", "direct L1 × 100, sobel_edges",
    ]  # fmt: skip

"""The export: what is written computes what torch does, and says what it is."""

import json
from types import SimpleNamespace

import pytest
import torch

from measuring.exporting import export, find_network
from models import read_weights, save_network
from sources import DEMO_MODELS, SHIPPED
from transfers import TRANSFERS, Scale
from utils import ROOT, UserError

SCALE = Scale(32, 8, levels=1)  # small graphs are traced quickly
SMALL = """
from torch import nn

class Fixed(nn.Module):
    \"\"\"Takes images of 32 pixels alone.\"\"\"
    def __init__(self, out_channels):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, out_channels, 1), nn.BatchNorm2d(out_channels))

    def forward(self, x):
        return self.model(x).reshape(-1, 3, 32, 32)

def build(out_channels):
    return Fixed(out_channels)

def other(out_channels):
    return nn.Conv2d(3, out_channels, 1, bias=False)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("run") / "rgb2normal_consistency.pth"
    save_network(file, TRANSFERS["rgb", "normal"].build(SCALE), SCALE)
    save_network(
        file.with_stem(f"{file.stem}_best"), TRANSFERS["rgb", "normal"].build(SCALE), SCALE
    )
    return file


def test_pt2_has_any_batch_and_size_and_is_described(run, checkpoint, tmp_path):
    to = tmp_path / "model.pt2"
    status, output, _ = run(
        str(checkpoint.parent), f"--to={to}", "--time=1",
        program="scripts.export", defaults=False,
    )  # fmt: skip
    assert status == 0, output
    assert "rgb2normal" in output and "ms in torch" in output
    files = {"metadata.json": ""}
    program = torch.export.load(to, extra_files=files).module()
    described = json.loads(files["metadata.json"])
    assert described["task"] == "rgb2normal" and described["normalisation"] == "none"
    assert "multiples of 2 from 4" in described["input_size"]
    assert described["output"].startswith("prediction, float32 (B, 3, H, W)")
    assert "n = 2 v - 1" in described["output_channels"]
    network = TRANSFERS["rgb", "normal"].build(SCALE).eval()
    network.load_state_dict(read_weights(checkpoint)[0])
    for shape in ((1, 3, 32, 32), (5, 3, 16, 40)):
        images = torch.rand(shape)
        with torch.no_grad():
            assert (program(images) - network(images)).abs().max() < 1e-4


def test_safetensors_is_read_by_this_project(run, checkpoint, tmp_path):
    to = tmp_path / "rgb2normal_consistency.safetensors"
    status, output, _ = run(str(checkpoint), f"--to={to}", program="scripts.export", defaults=False)
    assert status == 0, output
    before, (weights, record) = read_weights(checkpoint)[0], read_weights(to)
    assert all(torch.equal(value, weights[name]) for name, value in before.items())
    assert (record["image_size"], record["width"], record["task"]) == (32, 8, "rgb2normal")
    status, output, _ = run(
        "--task=normal", f"--checkpoint={to}", f"--img_path={ROOT / 'assets' / 'room.png'}",
        f"--output_path={tmp_path / 'shown'}", program="demo", defaults=False,
    )  # fmt: skip
    assert status == 0, output
    with pytest.raises(UserError, match="holds only weights"):
        export(checkpoint, to).seconds_per_image(1)


@pytest.mark.slow  # half a minute each
@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
@pytest.mark.parametrize("target", ["normal", "depth", "reshading"])
@pytest.mark.parametrize("folder", [DEMO_MODELS, SHIPPED], ids=["demo", "rooms"])
def test_the_shipped_networks(folder, target, ending, tmp_path):
    if ending == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    written = export(folder / f"rgb2{target}_consistency.pth", tmp_path / f"model{ending}")
    assert written.difference is not None and written.difference <= 1e-4  # at two sizes
    images = torch.rand(2, 3, 80, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (written.run(images) - written.network(images)).abs().max() <= 1e-4


def test_onnx_computes_what_torch_does(run, checkpoint, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    to = tmp_path / "model.onnx"
    status, output, _ = run(
        str(checkpoint), f"--to={to}", "--time=1", program="scripts.export", defaults=False
    )
    assert status == 0 and "checked" in output and "ms in torch" in output, output
    model = onnx.load(to)
    onnx.checker.check_model(model)
    described = {p.key: p.value for p in model.metadata_props}
    assert described["task"] == "rgb2normal" and "multiples of 2 from 4" in described["input_size"]
    session = onnxruntime.InferenceSession(to, providers=["CPUExecutionProvider"])
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("images", ["batch", 3, "2*h", "2*w"])
    assert (found.name, found.shape) == ("prediction", ["batch", 3, "2*h", "2*w"])
    network = TRANSFERS["rgb", "normal"].build(SCALE).eval()
    network.load_state_dict(read_weights(checkpoint)[0])
    for shape in ((1, 3, 32, 32), (5, 3, 16, 40)):
        images = torch.rand(shape)
        (values,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            assert (torch.from_numpy(values) - network(images)).abs().max() < 1e-4


def test_onnx_without_its_package_is_one_sentence(run, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("measuring.exporting.find_spec", lambda name: None)
    to = tmp_path / "model.onnx"
    status, output, _ = run(str(checkpoint), f"--to={to}", program="scripts.export", defaults=False)
    assert status == 2 and output == (
        "error: --to .onnx needs the packages onnx and onnxscript: pip install onnx onnxscript "
        "onnxruntime\n"
    )
    assert not to.exists()


def test_a_network_of_ones_own(run, tmp_path):
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    _, _, results = run("rgb2normal", "--steps-per-epoch=1", f"--network={file}:build")
    (folder,) = results.iterdir()
    for to in (tmp_path / "model.pt2", tmp_path / "model.safetensors"):
        words = (str(folder), f"--to={to}")
        status, output, _ = run(*words, program="scripts.export", defaults=False)
        assert status == 2 and f"--network {file}:build" in output
        status, output, _ = run(
            *words, f"--network={file}:build", program="scripts.export", defaults=False
        )
        assert status == 0, output
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert program(torch.rand(7, 3, 32, 32)).shape == (7, 3, 32, 32)  # any batch, one size
    record = read_weights(tmp_path / "model.safetensors")[1]
    assert record["network_file"] == str(file)
    with pytest.raises(UserError, match="does not fit"):
        export(folder, tmp_path / "other.pt2", network=f"{file}:other")


def test_a_model_that_differs_gets_no_name(checkpoint, tmp_path, monkeypatch):
    load = torch.export.load

    def wrong(file):
        program = load(file).module()
        return SimpleNamespace(module=lambda: lambda images: program(images) + 2e-4)

    monkeypatch.setattr(torch.export, "load", wrong)
    with pytest.raises(UserError, match="differs from torch by"):
        export(checkpoint, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_one_sentence(run, checkpoint, networks, tmp_path):
    plain = tmp_path / "net.pth"
    plain.write_bytes(checkpoint.read_bytes())
    to = tmp_path / "m.pt2"
    for words, sentence in {
        (str(checkpoint), "--to=model.tflite"): "--to ends in .onnx, .pt2 or .safetensors",
        (str(plain), f"--to={to}"): "say with --transfer which network it is",
        (str(plain), f"--to={to}", "--transfer=rgb2norm"): "did you mean rgb2normal?",
        (str(plain), f"--to={to}", "--transfer=normal2principal_curvature"): "does not fit",
        (str(networks), f"--to={to}"): "holds several networks",
        (str(tmp_path / "nothing" / "rgb2normal.pth"), f"--to={to}"): "no checkpoint",
        (str(ROOT / "docs"), f"--to={to}"): "holds no network by its name",
    }.items():
        status, output, _ = run(*words, program="scripts.export", defaults=False)
        assert status == 2 and output.count("error: ") == 1, output
        assert sentence in output and not to.exists()


def test_a_network_is_known_by_its_name(networks):
    for row in TRANSFERS.values():
        if row.trainable:
            assert find_network(networks / row.checkpoint)[1] == row
            assert find_network(networks / f"{row.name}_consistency.pth")[1] == row
    assert find_network(networks, "normal2sobel_edges")[0].name == "normal2edges2d.pth"

"""Networks of other publishers in the demo and as a start of training, on small files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from measuring.demo_networks import choose_networks
from measuring.prediction import predict
from modules import TaskonomyNetwork, UNet
from other_networks import OMNIDATA_FILE, TASKONOMY, load_published, recognised
from utils import UserError


@pytest.fixture
def omnidata(tmp_path) -> Path:
    """A models folder with a U-Net as Omnidata stores it, but of width 8 and with 2 halvings."""
    torch.manual_seed(0)
    weights = {f"model.{name}": v for name, v in UNet(2, width=8).state_dict().items()}
    weights["model.last_conv2.bias"] += 0.4
    (tmp_path / "models").mkdir()
    torch.save({"state_dict": weights}, tmp_path / "models" / OMNIDATA_FILE)
    return tmp_path / "models"


@pytest.fixture(scope="module")
def taskonomy(tmp_path_factory) -> Path:
    """A models folder with two of Taskonomy's networks, which share an encoder."""
    torch.manual_seed(0)
    folder, network = tmp_path_factory.mktemp("taskonomy"), TaskonomyNetwork(3)
    for parameter in network.parameters():
        if parameter.dim() > 1:  # PyTorch's initial weights would give nearly constant outputs
            parameter.data *= 2
    for domain in ("normal", "reshading"):
        decoder = network.decoder.state_dict()
        for name in ("decoder_output.0.weight", "decoder_output.0.bias"):
            decoder[name] = decoder[name][: TASKONOMY[domain].channels]
        torch.save({"state_dict": network.encoder.half().state_dict()},
                   folder / TASKONOMY[domain].encoder)  # fmt: skip
        halves = {name: v.half() if v.is_floating_point() else v for name, v in decoder.items()}
        torch.save({"state_dict": halves}, folder / TASKONOMY[domain].decoder)
    return folder


@pytest.fixture
def photograph(tmp_path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(values).resize((400, 300)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def demo(run, *words: str):
    status, output, _ = run(*words, "--quiet", program="demo", defaults=False)
    assert "Traceback" not in output
    return status, output


def test_the_demo_shows_omnidata_in_the_models_folder(omnidata, photograph, run, tmp_path):
    """At 384 pixels, clamped, and then resized as every prediction is."""
    words = ["--task=normal", f"--img-path={photograph}", f"--models-dir={omnidata}"]
    status, output = demo(run, *words, f"--output-dir={tmp_path / 'out'}", "--compare")
    assert status == 0, output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a_normal_omnidata.png", "a_normal_omnidata.npy", "a_normal_compare.png"}
    with Image.open(photograph) as image, torch.no_grad():
        small = TF.to_tensor(TF.center_crop(TF.resize(image, [384]), [384, 384]))
        network = load_published(omnidata / OMNIDATA_FILE)[0].eval()
        expected = TF.resize(network(small[None]).clamp(0, 1), [256, 256])[0]
    assert expected.std() > 0.01
    with Image.open(tmp_path / "out" / "a_normal_omnidata.png") as shown:
        difference = TF.to_tensor(shown) - expected
    assert difference.abs().max() <= 1.01 / 255


def test_omnidata_stands_beside_other_networks(omnidata, networks, photograph, run, tmp_path):
    own = networks / "rgb2normal_baseline.pth"
    words = ["--task=normal", f"--img-path={photograph}", f"--models-dir={omnidata}",
             f"--checkpoint=omnidata,{own}", "--size=64"]  # fmt: skip
    status, output = demo(run, *words, f"--output-dir={tmp_path / 'out'}")
    assert status == 0, output
    written = {path.stem for path in (tmp_path / "out").glob("*.npy")}
    assert written == {"a_normal_omnidata", "a_normal_baseline"}


def test_predict_takes_publishers_as_variants(omnidata, photograph):
    by_name = predict(photograph, variant="omnidata", models_dir=omnidata)
    by_file = predict(photograph, checkpoint=omnidata / OMNIDATA_FILE)
    assert by_name.shape == (3, 256, 256) and torch.equal(by_name, by_file)
    assert by_name.min() >= 0 and by_name.max() <= 1 and by_name.std() > 0.01


def test_names_without_a_prefix_are_read_too(omnidata):
    file = omnidata / OMNIDATA_FILE
    network, scale = load_published(file)
    assert (scale.image_size, scale.width, scale.levels) == (384, 8, 2)
    torch.save(network.state_dict(), file)
    again, _ = load_published(file)
    assert all(torch.equal(again.state_dict()[n], v) for n, v in network.state_dict().items())


def test_the_demo_shows_taskonomys_networks(taskonomy, photograph):
    """From an image in [0, 1] to [−1, 1] and back; the one channel of reshading becomes three."""
    values = predict(photograph, "reshading", variant="taskonomy", models_dir=taskonomy)
    assert values.shape == (3, 256, 256)
    network = load_published(taskonomy / TASKONOMY["reshading"].encoder)[0].eval()
    with Image.open(photograph) as image, torch.no_grad():
        small = TF.to_tensor(TF.center_crop(TF.resize(image, [256]), [256, 256]))
        raw = network.network(2 * small[None] - 1)
    assert raw.std() > 0.01 and raw.shape[1] == 1
    assert choose_networks("normal", models_dir=taskonomy).paths == {
        "taskonomy": taskonomy / TASKONOMY["normal"].encoder
    }
    torch.testing.assert_close(values, ((raw[0] + 1) / 2).expand(3, -1, -1), atol=1e-6, rtol=0)


WRONG = [  # (task, what is given, what is said)
    ("depth", ["--checkpoint=omnidata"], "omnidata stands for networks rgb → normal, not"),
    ("normal", ["--checkpoint=taskonomy"], "no network of taskonomy in"),
    ("depth", ["--checkpoint=depth_zbuffer_encoder.pth"], "the unit of Taskonomy's own depth"),
    ("normal", ["--checkpoint=reshading_encoder.pth"], "is a network rgb → reshading"),
    ("normal", ["--checkpoint=normal_encoder.pth"], "needs one normal_decoder-….pth beside it"),
    ("normal", [f"--checkpoint={OMNIDATA_FILE}"], "does not fit UNet"),
]


@pytest.mark.parametrize("task, given, said", WRONG)
def test_what_does_not_fit_is_one_sentence(photograph, run, tmp_path, monkeypatch, task, given,
                                           said):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("depth_zbuffer_encoder.pth", "reshading_encoder.pth", "normal_encoder.pth",
                 OMNIDATA_FILE):  # fmt: skip
        torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, name)
    folder = [f"--models-dir={tmp_path}"] if ".pth" not in given[0] else []
    if "omnidata_unet" not in given[0]:
        Path(OMNIDATA_FILE).unlink()
    status, output = demo(run, f"--task={task}", f"--img-path={photograph}", *given, *folder)
    assert status == 2 and said in output.splitlines()[-1], output
    assert output.count("error: ") == 1


def test_names_of_files_tell_the_publisher():
    assert recognised("x/omnidata_unet_normal_v1.pth") == ("omnidata", "normal")
    assert recognised(TASKONOMY["principal_curvature"].decoder) == (
        "taskonomy", "principal_curvature")  # fmt: skip
    for name in ("rgb2normal_baseline.pth", "normal_encoder.txt", "class_encoder.pth", "omnidata"):
        assert recognised(name) is None
    with pytest.raises(UserError, match="its name is not that of"):
        load_published("rgb2normal.pth")


def test_a_path_called_like_a_publisher_is_a_path(networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "omnidata").mkdir()
    own = tmp_path / "omnidata" / "rgb2normal_baseline.pth"
    own.write_bytes((networks / own.name).read_bytes())
    assert list(choose_networks("normal", checkpoint=["omnidata"]).paths) == ["baseline"]


# ---- training -----------------------------------------------------------------------


def test_training_starts_from_omnidata(omnidata, run, tmp_path):
    """By its name and by its file: the same network, which then trains."""
    words = ["rgb2normal", f"--models-dir={omnidata}", "--image-size=32", "--width=8",
             "--levels=2", "--steps-per-epoch=1", "--lr=1e-9", "--seed=0"]  # fmt: skip
    trained = []
    for init in ("omnidata", str(omnidata / OMNIDATA_FILE)):
        results = tmp_path / f"results {len(trained)}"
        status, output, _ = run(*words, f"--init={init}", f"--results-dir={results}")
        assert status == 0, output
        (record,) = results.glob("*/run.json")
        read = json.loads(record.read_text())
        assert str(omnidata / OMNIDATA_FILE) in json.dumps(read)
        weights = torch.load(record.parent / "rgb2normal.pth", weights_only=True)["state_dict"]
        trained.append(weights)
    start = load_published(omnidata / OMNIDATA_FILE)[0].state_dict()
    for name, value in start.items():
        assert torch.equal(trained[0][name], trained[1][name]), name
        torch.testing.assert_close(trained[0][name].float(), value, atol=1e-6, rtol=0)


STARTS = [  # (what trains, more flags, where it starts, what is said)
    ("rgb2depth_zbuffer", [], "omnidata", "and this run trains rgb → depth_zbuffer"),
    ("rgb2normal", [], "omnidata", "has `width` 8 and `levels` 2, and this run has"),
    ("rgb2normal", [], "taskonomy", "is a network of Taskonomy, which is not a U-Net"),
    ("rgb2normal", [], TASKONOMY["normal"].encoder, "is a network of Taskonomy, which is no"),
]


@pytest.mark.parametrize("what, flags, init, said", STARTS)
def test_a_start_that_does_not_fit_is_one_sentence(omnidata, run, what, flags, init, said):
    words = [what, *flags, f"--models-dir={omnidata}", "--image-size=32", f"--init={init}"]
    status, output, _ = run(*words)
    last = output.splitlines()[-1].replace("--width", "`width`").replace("--levels", "`levels`")
    assert status == 2 and last.startswith("error: ") and said in last, output

"""Networks of other publishers: state dicts, and values computed with their own code."""

import gzip
import json
from functools import cache

import numpy as np
import pytest
import torch
from recipe import OTHERS, TRIMMED, fill, images, on_meta
from trim import OTHERS_STRIDE

from measuring.demo_networks import choose_networks
from measuring.prediction import load_predictor
from modules import TaskonomyNetwork, UNet
from other_networks import TASKONOMY, load_published

THINNED = OTHERS == TRIMMED / "other_networks"
STRIDE = OTHERS_STRIDE if THINNED else 1
CPU = torch.device("cpu")


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(OTHERS / "outputs.npz") as file:
        return {key: file[key] for key in file.files}


@cache
def state_dicts() -> dict:
    if THINNED:
        return json.loads(gzip.decompress((OTHERS / "state_dicts.json.gz").read_bytes()))
    return json.loads((OTHERS / "state_dicts.json").read_text())


def shapes(network: torch.nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def taskonomy(channels: int) -> TaskonomyNetwork:
    return fill(on_meta(lambda: TaskonomyNetwork(channels)))


def signed() -> torch.Tensor:
    """The input of Taskonomy's golden values, in [−1, 1]."""
    values = np.random.default_rng(1234).random((1, 3, 256, 256)) * 2 - 1
    return torch.from_numpy(values.astype(np.float32))


def test_state_dicts(compare):
    item = "other networks: names, shapes, order"
    networks = {channels: on_meta(lambda c=channels: TaskonomyNetwork(c)) for channels in (1, 3)}
    ours = {"taskonomy encoder": shapes(networks[1].encoder)}
    for channels, network in networks.items():
        ours[f"taskonomy decoder out_channels={channels}"] = shapes(network.decoder)
    ours["omnidata_unet_normal_v1"] = shapes(on_meta(UNet))
    assert set(ours) == set(state_dicts())
    for name, entries in ours.items():
        compare.same(item, list(entries.items()), list(state_dicts()[name].items()))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_taskonomys_values(compare, channels):
    network = taskonomy(channels)
    code = network.encoder(signed())
    key = f"taskonomy|out_channels={channels}"
    compare("Taskonomy: encoder", code, golden()[f"{key}|encoder"], abs=2e-5)
    output = network.decoder(code)[..., :: 4 * STRIDE, :: 4 * STRIDE]
    compare("Taskonomy: output", output, golden()[f"{key}|output::4"], abs=1e-6)


@torch.no_grad()
def test_taskonomys_values_from_files(compare, tmp_path):
    """What the demo loads from the two files, and shows: (y + 1) / 2, of an image in [0, 1]."""
    network = taskonomy(3)
    files = TASKONOMY["normal"]
    torch.save({"state_dict": network.encoder.state_dict()}, tmp_path / files.encoder)
    torch.save({"state_dict": network.decoder.state_dict()}, tmp_path / files.decoder)
    loaded, scale = load_published(tmp_path / files.decoder)
    assert scale.image_size == 256
    ours = loaded.eval()((signed() + 1) / 2)[..., :: 4 * STRIDE, :: 4 * STRIDE]
    expected = (golden()["taskonomy|out_channels=3|output::4"] + 1) / 2
    compare("Taskonomy: from files, in [0, 1]", ours, expected, abs=1e-6)


@torch.no_grad()
def test_omnidatas_values_through_the_demo(compare, tmp_path):
    """Its demo clamps the output to [0, 1]; so does ours."""
    network = fill(on_meta(UNet))
    file = tmp_path / "omnidata_unet_normal_v1.pth"
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights}, file)
    predictor = load_predictor("normal", choose_networks("normal", checkpoint=[file]), CPU)
    assert predictor.input_sizes == [384] and predictor.multiple == 64
    inputs = images(1234, (1, 3, 128, 128))
    ours = predictor.predict([inputs], size=128)["omnidata"]
    raw = golden()["omnidata_unet_normal_v1|raw"]
    assert raw.min() < 0
    exact = predictor.networks["omnidata"].double()(inputs.double()).clamp(0, 1)
    compare("Omnidata's U-Net", ours[..., ::STRIDE, ::STRIDE], raw.clip(0, 1), abs=2e-5,
            exact=exact[..., ::STRIDE, ::STRIDE])  # fmt: skip

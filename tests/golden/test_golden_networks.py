"""Every network class: state-dict names, shapes, order; outputs with golden weights."""

import pytest
import torch
from recipe import FOLDER, TRIMMED, arrays, fill, images, network_of, read, thinned

import modules

SPECS = read("network_specs.json")
OUTPUTS = "network_outputs.npz"


@pytest.mark.parametrize("key", SPECS)
def test_state_dict(key, compare):
    network, spec = network_of(key), SPECS[key]
    ours = [[n, list(v.shape), str(v.dtype)] for n, v in network.state_dict().items()]
    compare.same("state dicts: names, shapes, order", ours, spec["state_dict"])
    parameters = dict(network.named_parameters())
    compare.same("parameters: names, order", list(parameters), spec["parameters"])
    count = sum(p.numel() for p in parameters.values())
    compare.same("parameters: count", count, spec["n_params"])


@pytest.mark.parametrize("key", SPECS)
def test_output(key, compare):
    network = fill(network_of(key))
    sums = read("network_weight_checksums.json")[key]
    values = [v.double() for v in network.state_dict().values()]
    total = sum(float(v.sum()) for v in values)
    compare("weights of the recipe: sums", total, sums["sum"], rel=1e-6)
    absolute = sum(float(v.abs().sum()) for v in values)
    compare("weights of the recipe: sums", absolute, sums["abs_sum"], rel=1e-6)
    with torch.no_grad():
        ours = network(images(1234, (1, SPECS[key]["in_channels"], 64, 64)))
    golden = arrays(OUTPUTS)[f"{key}|64x64"]
    compare("network outputs", thinned(OUTPUTS, ours), golden, abs=2e-5)


def test_other_sizes_and_batches(compare):
    """A sample's output does not depend on its neighbours, nor on the image being square."""
    network = fill(network_of("UNet(downsample=4,in_channels=3,out_channels=1)"))
    wide = images(4321, (2, 3, 64, 128))
    with torch.no_grad():
        both, second = network(wide), network(wide[1:])
    assert both.shape == (2, 1, 64, 128)
    compare("network outputs: a sample alone or in a batch", both[1:], second, abs=2e-5)


@torch.no_grad()
def test_imagenet_network_in_both_modes(compare):
    network = fill(modules.ResNetClass())
    eval_mode = network(images(99, (1, 1, 64, 64)))
    golden = arrays(OUTPUTS)
    compare(
        "ImageNet network: one channel",
        thinned(OUTPUTS, eval_mode),
        golden["ResNetClass()|1ch_64x64_eval"],
        abs=2e-5,
    )
    batch = images(4321, (2, 3, 64, 64))
    exact = fill(modules.ResNetClass()).double().train()(batch.double())
    compare(
        "ImageNet network: train mode",
        thinned(OUTPUTS, network.train()(batch)),
        golden["ResNetClass()|b2_64x64_TRAINMODE"],
        abs=1e-3,
        exact=thinned(OUTPUTS, exact),
    )
    mean = golden["ResNetClass()|running_mean_bn1_after_one_train_forward"]
    compare("ImageNet network: running mean", network.resnet.bn1.running_mean, mean, abs=1e-5)


def test_sobel(compare):
    ours = modules.SobelKernel()(images(1234, (2, 3, 64, 64)))
    golden = arrays(OUTPUTS)["SobelKernel()|b2_64x64"]
    compare("rgb → sobel_edges formula", thinned(OUTPUTS, ours), golden, abs=2e-5)


def test_sobel_has_a_gradient():
    """The published formula leaves the graph through numpy; ours is differentiable everywhere."""
    image = images(5, (1, 3, 16, 16))
    image[..., :12] = 0.5  # flat: both derivatives are zero
    modules.SobelKernel()(image.requires_grad_()).sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0


@pytest.mark.skipif(FOLDER == TRIMMED, reason="needs the full golden folder")
def test_every_golden_output_is_compared():
    extra = {
        "ResNetClass()|1ch_64x64_eval",
        "ResNetClass()|b2_64x64_TRAINMODE",
        "ResNetClass()|running_mean_bn1_after_one_train_forward",
        "SobelKernel()|b2_64x64",
    }
    assert set(arrays(OUTPUTS)) == {f"{k}|64x64" for k in SPECS} | extra

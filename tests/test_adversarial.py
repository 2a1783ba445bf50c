"""pix2pix and CycleGAN: losses, discriminator, pool, and runs that were stopped."""

import json
import os
import random
import signal
from functools import partial
from itertools import islice

import pytest
import torch
from torch import nn

import methods.cycle
import methods.pix2pix
from datasets import Reality
from methods.cycle import CycleStep, ImagePool, cycle_loss, least_squares, other_views
from methods.pix2pix import Pix2PixStep, adversarial_loss, discriminator_for
from modules.discriminator import PatchDiscriminator, levels_for
from task_configs import get_task
from transfers import Scale


def images(channels=3, size=12, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64)


def small_discriminator(channels, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(channels, 1, 3), nn.Tanh()).double()


# ---- the discriminator --------------------------------------------------------------


@pytest.mark.parametrize("levels, patch", [(3, 70), (2, 34), (1, 16), (0, 7)])
def test_a_score_depends_on_a_patch_of_the_published_size(levels, patch):
    """Found by the gradient of one score; without normalisation, which sees the whole image."""
    network = PatchDiscriminator(3, 8, levels).double()
    network.layers = nn.Sequential(
        *(layer for layer in network.layers if not isinstance(layer, nn.InstanceNorm2d))
    )
    image = images(size=2 * patch + 20, count=1).requires_grad_()
    scores = network(image)
    assert scores.shape[1] == 1
    middle = scores.shape[-1] // 2
    (gradient,) = torch.autograd.grad(scores[0, 0, middle, middle], image)
    seen = gradient.abs().sum(dim=(0, 1)) > 0
    for side in (seen.any(0), seen.any(1)):
        places = side.nonzero().flatten()
        assert places[-1] - places[0] + 1 == patch


def test_the_discriminator_is_the_published_one_at_the_published_scale():
    network = discriminator_for(6, Scale())
    convolutions = [layer for layer in network.layers if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 128, 256, 512, 1]
    assert [c.stride for c in convolutions] == [(2, 2), (2, 2), (2, 2), (1, 1), (1, 1)]
    assert {c.kernel_size for c in convolutions} == {(4, 4)}
    assert network(torch.rand(1, 6, 256, 256)).shape == (1, 1, 30, 30)
    assert [levels_for(size) for size in (512, 256, 128, 64, 32, 16)] == [3, 3, 2, 1, 0, 0]
    narrow = discriminator_for(3, Scale(64, 8))
    assert narrow.layers[0].out_channels == 32


# ---- losses against their definitions -----------------------------------------------


def test_losses_of_the_conditional_gan():
    network = small_discriminator(6)
    image, real, fake = images(), images(seed=1), images(seed=2)

    def probability(target):
        return torch.sigmoid(network(torch.cat((image, target), 1) * 2 - 1))

    wanted = -(probability(real).log().mean() + (1 - probability(fake)).log().mean()) / 2
    found = methods.pix2pix.discriminator_loss(network, image, real, fake)
    torch.testing.assert_close(found, wanted)
    found = adversarial_loss(network, image, fake)
    torch.testing.assert_close(found, -probability(fake).log().mean())


def test_losses_of_least_squares():
    network = small_discriminator(3)
    real, fake = images(), images(seed=1)
    of_real, of_fake = (network(seen * 2 - 1) for seen in (real, fake))
    wanted = 0.5 * ((of_real - 1) ** 2).mean() + 0.5 * (of_fake**2).mean()
    torch.testing.assert_close(methods.cycle.discriminator_loss(network, real, fake), wanted)
    torch.testing.assert_close(least_squares(of_fake, 1.0), ((1 - of_fake) ** 2).mean())


def test_the_cycle_comes_back_and_holes_do_not_count():
    scale, half = nn.Conv2d(3, 3, 1).double(), nn.Conv2d(3, 3, 1).double()
    for network, factor in ((scale, 0.8), (half, 0.5)):
        nn.init.zeros_(network.bias)
        network.weight.data = factor * torch.eye(3, dtype=torch.float64)[..., None, None]
    image, truth = images(), images(seed=1)
    mask = torch.ones_like(truth)
    mask[..., :3] = 0
    again, there, here = cycle_loss(scale, half, image, truth, mask)
    wanted = (0.6 * image).mean() + (0.6 * truth * mask).mean()
    torch.testing.assert_close(again, wanted)
    torch.testing.assert_close((there, here), (0.8 * image, 0.5 * truth))


@pytest.mark.parametrize("kind", ["conditional", "least squares", "cycle"])
def test_gradients_by_finite_differences(kind):
    image, truth = images(size=5, count=1), images(size=5, count=1, seed=1)
    fake = images(size=5, count=1, seed=2).requires_grad_()
    if kind == "conditional":
        network = small_discriminator(6)
        assert torch.autograd.gradcheck(lambda f: adversarial_loss(network, image, f), fake)
    elif kind == "least squares":
        network = small_discriminator(3)
        assert torch.autograd.gradcheck(lambda f: least_squares(network(2 * f - 1), 1.0), fake)
    else:
        torch.manual_seed(0)
        there, back = (nn.Conv2d(3, 3, 3, padding=1).double() for _ in range(2))
        mask = torch.ones_like(truth)

        def loss(weight):
            forward = partial(torch.func.functional_call, there, {"weight": weight})
            return cycle_loss(forward, back, image, truth, mask)[0]

        assert torch.autograd.gradcheck(loss, there.weight)


def test_discriminators_leave_the_generator_alone():
    image, truth = images(), images(seed=1)
    fake = images(seed=2).requires_grad_()
    for loss in (
        methods.cycle.discriminator_loss(small_discriminator(3), truth, fake),
        methods.pix2pix.discriminator_loss(small_discriminator(6), image, truth, fake),
    ):
        assert torch.autograd.grad(loss, fake, allow_unused=True) == (None,)


# ---- the pool -----------------------------------------------------------------------


def test_the_pool_gives_earlier_images_half_of_the_time():
    """Against the same rule written out, with the same random draws."""
    pool, rng, kept = ImagePool(5, "seed"), random.Random("seed"), []
    old = 0
    for number in range(200):
        image = torch.full((1, 1, 2, 2), float(number))
        wanted = number
        if len(kept) < 5:
            kept.append(number)
        elif rng.random() < 0.5:
            place = rng.randrange(5)
            wanted, kept[place] = kept[place], number
            old += 1
        assert pool.exchange(image).unique().tolist() == [wanted]
    assert 60 < old < 140


def test_the_pool_goes_on_from_its_state():
    first = ImagePool(3, 0)
    for number in range(10):
        first.exchange(images(count=2, seed=number))
    second = ImagePool(3, 1)
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    for number in range(10):
        batch = images(count=2, seed=100 + number)
        assert torch.equal(first.exchange(batch), second.exchange(batch))


# ---- runs ---------------------------------------------------------------------------

FLAGS = ("--perceptual=edge", "--steps-per-epoch=3", "--batch-size=2", "--visdom-server=none")


def last_state(folder):
    state = torch.load(max(folder.glob("state_*.pt")), weights_only=True)
    del state["training"]["seconds"], state["logger"]["length"]
    return state


def flat(value, place=""):
    """The leaves of a state by their places."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {p: v for key, part in pairs for p, v in flat(part, f"{place}/{key}").items()}
    return {place: value.tolist() if isinstance(value, torch.Tensor) else value}


@pytest.mark.parametrize(
    "name, step",
    [
        pytest.param("cycle", CycleStep, marks=pytest.mark.slow),
        pytest.param("pix2pix", Pix2PixStep, marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_is_the_uninterrupted_run(run, monkeypatch, name, step):
    monkeypatch.setattr(methods.cycle, "POOL_SIZE", 2)  # so that it is full when the run stops
    status, output, results = run(f"{name}_normal", *FLAGS)
    assert status == 0, output
    (whole,) = results.iterdir()
    call, count = step.__call__, 0

    def stopped(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(step, "__call__", stopped)
        status, output, _ = run(f"{name}_normal", *FLAGS)
    assert status == 128 + signal.SIGTERM and "stopped after step 2" in output
    (parts,) = set(results.iterdir()) - {whole}
    status, output, _ = run("--resume", str(parts), defaults=False)
    assert status == 0 and "state_000000002.pt" in output, output
    ours, theirs = (flat(last_state(folder)) for folder in (parts, whole))
    assert repr(ours) == repr(theirs)  # NaN, too
    table, wanted = ((folder / "evaluation.json").read_text() for folder in (parts, whole))
    assert json.loads(table) == json.loads(wanted)
    files = {file.name for file in whole.glob("*.pth")}
    assert files == {file.name for file in parts.glob("*.pth")} and len(files) >= 2


class Numbers(torch.utils.data.Dataset):
    """Views whose rgb and normals hold their number."""

    tasks = [get_task("rgb"), get_task("normal")]

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index):
        return [torch.full((3, 2, 2), float(index[1]))] * 2


def test_cycle_sees_no_pairs():
    """The target's images are of the same views in another order, which begins anywhere."""
    views = Reality("train", Numbers(), 2, endless=True)
    others = other_views(views, seed=1)
    batches = [list(islice(iter(reality), 4)) for reality in (views, others)]
    ours, theirs = ([v for batch in part for v in batch.views] for part in batches)
    assert sorted(ours) == sorted(theirs) == list(range(8)) and ours != theirs
    others.begin(3)
    assert torch.equal(next(iter(others))["normal"], batches[1][3]["normal"])


def test_options_without_use_are_refused(run):
    for flags, sentence in [
        (("--balance-every=2",), "losses of its own"),
        (("--k=2",), "there are 0 perceptual losses"),
        (("--compare-direct",), "nothing for --compare-direct"),
    ]:
        status, output, _ = run("pix2pix_normal", *FLAGS, *flags)
        assert status == 2 and sentence in output, output


def test_a_loss_that_is_not_finite_stops_the_run(run, monkeypatch):
    monkeypatch.setattr(methods.pix2pix, "L1_WEIGHT", float("inf"))
    status, output, results = run("pix2pix_normal", *FLAGS)
    assert status == 2 and "not finite" in output and "Traceback" not in output, output

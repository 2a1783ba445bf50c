"""Unpaired translation with cycle consistency, CycleGAN (Zhu et al., 2017)."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets import Batch, Reality
from losses import at_least_float32
from methods.interface import Setup
from methods.optimising import Optimised, freshly, means
from methods.pix2pix import centred, discriminator_for
from precision import numerical_precision
from task_configs import get_task
from transfers import TRANSFERS, Transfer

CYCLE_WEIGHT = 10.0
POOL_SIZE = 50


class ImagePool:
    """Keeps generated images, so that a discriminator also sees earlier ones.

    While it is not full, `exchange` keeps each image and returns it. Afterwards, with
    probability ½, it returns one of the kept images at random and keeps the new one in its
    place; else it returns the new one.
    """

    def __init__(self, size: int, seed: int | str) -> None:
        self.size, self._rng = size, random.Random(seed)
        self._images: list[Tensor] = []

    def exchange(self, images: Tensor) -> Tensor:
        """Return as many images as are given: (B, C, H, W), without gradients."""
        given = []
        for image in images.detach():
            if len(self._images) < self.size:
                self._images.append(image.clone())
            elif self._rng.random() < 0.5:
                place = self._rng.randrange(self.size)
                image, self._images[place] = self._images[place], image.clone()
            given.append(image)
        return torch.stack(given)

    def state_dict(self) -> dict[str, Any]:
        """Return the images, on the CPU, and the state of the random choice."""
        return {"images": [image.cpu() for image in self._images], "rng": self._rng.getstate()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict()` returned."""
        self._images = [image.to(device) for image in state["images"]]
        self._rng.setstate(state["rng"])


def least_squares(scores: Tensor, wanted: float) -> Tensor:
    """Return the mean of (score − wanted)²: 1 stands for real, 0 for generated."""
    return (at_least_float32(scores) - wanted).square().mean()


def discriminator_loss(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Return ½ (D(real) − 1)² + ½ D(fake)², means over the patches, for images in [0, 1]."""
    of_real, of_fake = (discriminator(centred(images)) for images in (real, fake.detach()))
    return (least_squares(of_real, 1.0) + least_squares(of_fake, 0.0)) / 2


def cycle_loss(
    forward: nn.Module, back: nn.Module, image: Tensor, truth: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean |B(F(x)) − x| + mean |F(B(y)) − y| over valid y, and F(x) and B(y).

    `image` x is (B, 3, H, W), `truth` y and `mask` are (B, C, H, W) of other views.
    """
    there, here = at_least_float32(forward(image)), at_least_float32(back(truth))
    again = (back(there) - image).abs().mean() + ((forward(here) - truth) * mask).abs().mean()
    return again, there, here


def other_views(views: Reality, seed: int) -> Reality:
    """Return the same views in an order that is independent of theirs, endlessly."""
    return Reality(
        views.name, views.dataset, views.batch_size, views.device, views.loader.num_workers, True,
        seed, views.bad.max_fraction, views.batches.rank, views.batches.count,
    )  # fmt: skip


class CycleStep:
    """Trains two generators, rgb → target (the graph's) and back, and two discriminators.

    Images of the target are those of other views than the rgb images: no pair is seen. The
    generators minimise (D(G(x)) − 1)² + (D'(B(y)) − 1)² + 10 × `cycle_loss`. Where the target
    image has no ground truth, the true and the generated one are 0 for the discriminator.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, scale, target = setup, setup.sources.scale, setup.target
        rgb, channels = get_task("rgb").channels, get_task(target).channels
        row = Transfer(target, "rgb", downsample=TRANSFERS["rgb", target].downsample)
        builders = {
            f"{target}2rgb": lambda: row.build(scale),
            f"discriminator_{target}": lambda: discriminator_for(channels, scale),
            "discriminator_rgb": lambda: discriminator_for(rgb, scale),
        }
        self.networks: dict[str, nn.Module] = {
            name: freshly(build, setup.seed, name).to(setup.device)
            for name, build in builders.items()
        }
        self._back, *self._critics = self.networks.values()
        generators = [*setup.graph.trained_parameters, *self._back.parameters()]
        critics = [p for critic in self._critics for p in critic.parameters()]
        self._optimised = {
            "generators": Optimised(generators, setup.lr, setup.steps),
            "discriminators": Optimised(critics, setup.lr, setup.steps),
        }
        self._pools = [
            ImagePool(POOL_SIZE, f"{setup.seed}/{setup.ranks.rank}/{name}")
            for name in (target, "rgb")
        ]
        order = random.Random(f"{setup.seed}/other views").getrandbits(63)
        self._views = other_views(setup.train, order)
        self._begin(0)
        self.bad = torch.zeros((), device=setup.device)

    def _begin(self, taken: int) -> None:
        self._taken = taken
        self._views.begin(taken)
        self._batches: Iterator[Batch] = iter(self._views)

    def __call__(self, batch: Batch, chosen: Sequence[str]) -> dict[str, Tensor]:
        """Train on the rgb images of a batch. Returns "loss", the generators', and its parts."""
        setup, ranks = self.setup, self.setup.ranks
        image, truth = batch["rgb"], next(self._batches)[setup.target][: len(batch["rgb"])]
        self._taken += 1
        mask = get_task(setup.target).mask(truth)
        of_target, of_rgb = self._critics
        with numerical_precision(setup.device, setup.precision):
            again, there, here = cycle_loss(setup.graph.target, self._back, image, truth, mask)
            there = there * mask
            fooled = least_squares(of_target(centred(there)), 1.0)
            fooled = fooled + least_squares(of_rgb(centred(here)), 1.0)
            loss = fooled + CYCLE_WEIGHT * again
            self.bad = self._optimised["generators"].update(loss, self.bad, ranks)
            there, here = (
                pool.exchange(fake) for pool, fake in zip(self._pools, (there, here), strict=True)
            )
            critics = discriminator_loss(of_target, truth * mask, there)
            critics = critics + discriminator_loss(of_rgb, image, here)
            self.bad = self._optimised["discriminators"].update(critics, self.bad, ranks)
        values = {"loss": loss, "cycle": again, "adversarial": fooled, "discriminator": critics}
        return means(values, ranks)

    def decay(self) -> None:
        for optimised in self._optimised.values():
            optimised.decay()

    def state_dict(self) -> dict[str, Any]:
        pools = [pool.state_dict() for pool in self._pools]
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimised": {name: o.state_dict() for name, o in self._optimised.items()},
            "pools": self.setup.ranks.gathered(pools),
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, optimised in self._optimised.items():
            optimised.load_state_dict(state["optimised"][name])
        mine = state["pools"][self.setup.ranks.rank]
        for pool, kept in zip(self._pools, mine, strict=True):
            pool.load_state_dict(kept, self.setup.device)
        self._begin(state["taken"])

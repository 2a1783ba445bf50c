"""Image-to-image translation with a conditional GAN (Isola et al., 2017)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets import Batch
from losses import at_least_float32, masked_loss
from methods.interface import Setup
from methods.optimising import Optimised, freshly, means
from modules.discriminator import PatchDiscriminator, levels_for
from precision import numerical_precision
from task_configs import get_task
from transfers import FULL_WIDTH, Scale

L1_WEIGHT = 100.0
PUBLISHED_WIDTH = 64  # the discriminator's, beside U-Nets of width FULL_WIDTH


def discriminator_for(channels: int, scale: Scale) -> PatchDiscriminator:
    """Build a discriminator of images with that many channels, at the scale of the U-Nets.

    It is as wide as published beside the published U-Nets, and narrower or wider with them. Its
    patches are about a quarter of the image's side.
    """
    width = PUBLISHED_WIDTH * scale.width // FULL_WIDTH
    return PatchDiscriminator(channels, width, levels_for(scale.image_size))


def centred(images: Tensor) -> Tensor:
    """Map [0, 1] to [−1, 1], the range that discriminators see."""
    return 2 * images - 1


def discriminator_loss(
    discriminator: nn.Module, image: Tensor, real: Tensor, fake: Tensor
) -> Tensor:
    """Return −(mean log p(image, real) + mean log(1 − p(image, fake))) / 2, a scalar.

    `image` (B, 3, H, W), `real` and `fake` (B, C, H, W) are in [0, 1]; p is the discriminator's
    probability that a patch of both is real. No gradient flows to the generator.
    """
    of_real, of_fake = (
        at_least_float32(discriminator(centred(torch.cat((image, seen), 1))))
        for seen in (real, fake.detach())
    )
    return (F.softplus(-of_real).mean() + F.softplus(of_fake).mean()) / 2


def adversarial_loss(discriminator: nn.Module, image: Tensor, fake: Tensor) -> Tensor:
    """Return −mean log p(image, fake), a scalar: the generator's (see `discriminator_loss`)."""
    scores = discriminator(centred(torch.cat((image, fake), 1)))
    return F.softplus(-at_least_float32(scores)).mean()


class Pix2PixStep:
    """Trains a discriminator, then the graph's target network as the generator.

    The generator minimises its adversarial loss + 100 × the direct loss "mae". Pixels without
    ground truth are 0 for the discriminator in both images, the true one and the generated.
    """

    def __init__(self, setup: Setup) -> None:
        scale = setup.sources.scale
        channels = 3 + get_task(setup.target).channels
        discriminator = freshly(
            lambda: discriminator_for(channels, scale), setup.seed, "discriminator"
        )
        self.setup, self.discriminator = setup, discriminator.to(setup.device)
        self.networks: dict[str, nn.Module] = {"discriminator": self.discriminator}
        trained = (setup.graph.trained_parameters, self.discriminator.parameters())
        self._generator, self._critic = (
            Optimised(parameters, setup.lr, setup.steps) for parameters in trained
        )
        self.bad = torch.zeros((), device=setup.device)

    def __call__(self, batch: Batch, chosen: Sequence[str]) -> dict[str, Tensor]:
        """Train on a batch. Returns "loss", the generator's, and its parts by name."""
        setup = self.setup
        image, truth = batch["rgb"], batch[setup.target]
        mask = get_task(setup.target).mask(truth)
        with numerical_precision(setup.device, setup.precision):
            fake = at_least_float32(setup.graph.target(image))
            critic = discriminator_loss(self.discriminator, image, truth * mask, fake * mask)
            self.bad = self._critic.update(critic, self.bad, setup.ranks)
            adversarial = adversarial_loss(self.discriminator, image, fake * mask)
        direct = masked_loss(fake, truth, mask).mean()
        total = adversarial + L1_WEIGHT * direct
        self.bad = self._generator.update(total, self.bad, setup.ranks)
        values = {"loss": total, "mae": direct, "adversarial": adversarial, "discriminator": critic}
        return means(values, setup.ranks)

    def decay(self) -> None:
        for optimised in (self._generator, self._critic):
            optimised.decay()

    def state_dict(self) -> dict[str, Any]:
        return {
            "discriminator": self.discriminator.state_dict(),
            "generator's optimiser": self._generator.state_dict(),
            "discriminator's optimiser": self._critic.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self._generator.load_state_dict(state["generator's optimiser"])
        self._critic.load_state_dict(state["discriminator's optimiser"])

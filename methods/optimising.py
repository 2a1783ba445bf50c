"""What the steps of several methods share: optimisers with their schedules, fresh networks."""

import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from balancing import gradient_norm
from devices import Ranks
from models import make_optimizer

Network = TypeVar("Network", bound=nn.Module)
GAN_BETAS = (0.5, 0.999)  # of Adam, in both papers that train discriminators


class Optimised:
    """Parameters that one Adam trains, and the schedule of its learning rate.

    `steps` is the number of steps of the whole run, over which `decay` lowers the learning rate
    to 0 by a cosine. Without `betas`, the optimiser is the main job's (`models.make_optimizer`).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        steps: int,
        betas: tuple[float, float] | None = GAN_BETAS,
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        if betas is None:
            self.optimizer = make_optimizer(self.parameters, lr)
        else:
            self.optimizer = torch.optim.Adam(self.parameters, lr=lr, betas=betas, fused=True)
        self._decay = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, max(1, steps))

    def update(self, loss: Tensor, bad: Tensor, ranks: Ranks) -> Tensor:
        """Take a step down the gradient of a scalar, averaged over the ranks.

        Returns the flag `bad`, raised if the loss or its gradient is not finite. While it is
        raised, nothing changes.
        """
        gradient = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        ((_, averaged),) = ranks.averaged([("", list(gradient))])
        size = gradient_norm(averaged) + ranks.average(loss.detach().reshape(1))[0]
        bad = torch.maximum(bad, (~torch.isfinite(size)).float())
        for parameter, g in zip(self.parameters, averaged, strict=True):
            parameter.grad = g
        # as AMP's scaler does: the fused optimiser skips the update if found_inf is not 0
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        return bad

    def decay(self) -> None:
        """Lower the learning rate by a step of the schedule."""
        with warnings.catch_warnings():
            # Networks of `global` that are on no path so far have not been updated yet.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self._decay.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state and the schedule's."""
        return {"optimizer": self.optimizer.state_dict(), "decay": self._decay.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._decay.load_state_dict(state["decay"])


def freshly(build: Callable[[], Network], seed: int, name: str) -> Network:
    """Build a network whose weights depend on the seed and its name alone.

    Afterwards, the state of torch's random generator is as it was before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random.Random(f"{seed}/{name}").getrandbits(63))
        return build()


def means(values: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Return scalars, detached, averaged over the ranks."""
    averaged = ranks.average(torch.stack([value.detach() for value in values.values()]))
    return dict(zip(values, averaged, strict=True))

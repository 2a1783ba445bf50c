"""Steps that train one network of several outputs on the direct loss of each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets import Batch
from losses import at_least_float32, masked_loss
from methods.interface import Setup
from methods.optimising import Optimised, means
from precision import numerical_precision
from task_configs import TASKS


class DirectStep:
    """Minimises the sum of direct losses, L1 over an image with invalid pixels as zeros.

    `predictions` maps rgb (B, 3, H, W) to {name: (domain, (B, C, H, W))}: each prediction is
    compared with the label of its domain. The name "mae" is that of the target's prediction.
    """

    def __init__(
        self, setup: Setup, predictions: Callable[[Tensor], Mapping[str, tuple[str, Tensor]]]
    ) -> None:
        self._device, self._precision = setup.device, setup.precision
        self._predictions, self._ranks = predictions, setup.ranks
        parameters = setup.graph.trained_parameters
        self._optimised = Optimised(parameters, setup.lr, setup.steps, betas=None)
        self.bad = torch.zeros((), device=setup.device)
        self.networks: dict[str, nn.Module] = {}  # no others train

    def __call__(self, batch: Batch, chosen: Sequence[str]) -> dict[str, Tensor]:
        """Train on a batch. Returns the loss of each prediction, and "loss", their sum."""
        losses = {}
        with numerical_precision(self._device, self._precision):
            for name, (domain, prediction) in self._predictions(batch["rgb"]).items():
                label = batch[domain]
                mask = TASKS[domain].mask(label)
                losses[name] = masked_loss(at_least_float32(prediction), label, mask).mean()
            total = torch.stack(list(losses.values())).sum()
            self.bad = self._optimised.update(total, self.bad, self._ranks)
        return means({"loss": total, **losses}, self._ranks)

    def decay(self) -> None:
        """Lower the learning rate by a step of the schedule."""
        self._optimised.decay()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the optimiser and of the schedule."""
        return self._optimised.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned."""
        self._optimised.load_state_dict(state)

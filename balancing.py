"""Balancing of losses by the sizes of their gradients. Pure functions of tensors."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

# Added to G, so that weights stay finite if all gradients are zero (e.g. a fully masked batch).
# It is too small to change the result in any other case.
TINY = 1e-30


def balance(norms: Mapping[str, Tensor | float], direct: str = "mae") -> dict:
    """Compute loss weights from the gradient norms g_i of n losses:

        c_i = (G − g_i) / ((n − 1) G), where G is the sum of all g_i.

    These weights sum to 1. The weight of the direct loss is then multiplied by n − 1. A single
    loss has weight 1. The weights are finite even if all gradients are zero.
    `balanced_gradient` uses the same formula in another form.
    """
    count, total = len(norms), sum(norms.values()) + TINY
    if count == 1:
        return {name: norm * 0 + 1.0 for name, norm in norms.items()}
    weights = {name: (total - norm) / ((count - 1) * total) for name, norm in norms.items()}
    return weights | {direct: weights[direct] * (count - 1)}


def gradients_of(
    losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]
) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield (name, gradient) of each scalar loss in turn, for `balanced_gradient`."""
    for position, (name, loss) in enumerate(losses.items(), start=1):
        last = position == len(losses)
        gradient = torch.autograd.grad(
            loss, parameters, retain_graph=not last, materialize_grads=True
        )
        yield name, list(gradient)


def gradient_norm(gradient: Sequence[Tensor]) -> Tensor:
    """Return the mean of |∂L/∂θ| over all parameters: the norm used for balancing."""
    total = torch.stack([torch.linalg.vector_norm(g, 1) for g in gradient]).sum()
    return total / sum(g.numel() for g in gradient)


def balanced_gradient(
    gradients: Iterable[tuple[str, list[Tensor]]],
    count: int,
    direct: str = "mae",
    norm: Callable[[Sequence[Tensor]], Tensor] = gradient_norm,
) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Return the gradient of the balanced sum of `count` losses, the weights and the norms.

    `gradients` yields (name, gradient) of one loss after the other. Their tensors are
    modified in place. The weighted sum is built from these gradients, so it needs no further
    backward pass. The weights are known only after the last loss, but they are linear in the
    norms g, so two running sums suffice instead of one gradient per loss: Σ w ∇L and
    Σ w g ∇L, where w is n − 1 for the direct loss and 1 for the others. No value is copied
    from the device to the CPU. `norm` measures a gradient, which may stand in any linear form.
    """
    norms: dict[str, Tensor] = {}
    plain_sums: list[Tensor] = []
    scaled_sums: list[Tensor] = []
    for name, gradient in gradients:
        norms[name] = norm(gradient)
        factor = max(1, count - 1) if name == direct else 1
        if count == 1:
            plain_sums = gradient
        elif not plain_sums:
            plain_sums = gradient if factor == 1 else [g.mul_(factor) for g in gradient]
            scaled_sums = [g * norms[name] for g in plain_sums]
        else:
            for plain_sum, scaled_sum, g in zip(plain_sums, scaled_sums, gradient, strict=True):
                plain_sum.add_(g, alpha=factor)
                scaled_sum.addcmul_(g, norms[name] * factor)
    weights = balance(norms, direct)
    if count > 1:
        norm_sum = sum(norms.values()) + TINY
        for plain_sum, scaled_sum in zip(plain_sums, scaled_sums, strict=True):
            plain_sum.sub_(scaled_sum.div_(norm_sum)).div_(count - 1)
    return plain_sums, weights, norms

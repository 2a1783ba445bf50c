"""Convolutions whose weights outweigh their images, as matrix products.

The deepest layers of a full network have millions of weights and few positions (4 × 4 to 8 × 8
pixels). On a CPU, their time goes into moving the weights through memory: several times in a
convolution, which reorders them, and with several losses once more for each gradient. As matrix
products, they are moved once. In addition, the gradient of such a layer is kept as its two
factors: the columns, which all losses share, and the gradient at the outputs. Where only its size
is needed, it is multiplied out in parts that stay in cache; for the weighted sum, it is multiplied
out as a whole, once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

MANY_WEIGHTS = 2**20  # in a layer, so that they do not stay in a core's cache
FEW_POSITIONS = 256  # of outputs in a batch: with more, the arithmetic takes longer than memory
IN_CACHE = 2**19  # entries of a gradient that are multiplied out at once


@dataclass(frozen=True)
class Product:
    """The product, weight (O, I) × `columns` (I, P), that a convolution is.

    `outputs` is where the gradient (O, P) arrives in the backward pass. The weight's gradient is
    that gradient × `columns` transposed.
    """

    columns: Tensor
    outputs: GradientEdge

    def size(self, cotangent: Tensor) -> Tensor:
        """Return the sum of |∂L/∂weight| for the gradient (O, P) at the outputs."""
        rows = len(cotangent)
        parts = self.columns.split(max(1, IN_CACHE // rows))
        space = cotangent.new_empty(rows * max(map(len, parts)))
        sizes = []
        for part in parts:
            product = space[: rows * len(part)].view(rows, len(part))
            sizes.append(torch.mm(cotangent, part.t(), out=product).abs_().sum())
        return torch.stack(sizes).sum()

    def no_gradient(self, weight: Tensor) -> Tensor:
        """Return the gradient (O, P) of what does not depend on the outputs: zeros."""
        return self.columns.new_zeros(len(weight), self.columns.shape[1])

    def gradient(self, cotangent: Tensor, weight: Tensor) -> Tensor:
        """Return ∂L/∂weight, in the weight's shape, for the gradient (O, P) at the outputs."""
        return torch.mm(cotangent, self.columns.t()).view_as(weight)


class WideLayers:
    """Within the block, computes convolutions as products where gradients flow through them.

    `layers` are those of `networks` with many weights. Which calls of them are computed as
    products depends only on sizes and types.
    """

    def __init__(self, networks: nn.Module) -> None:
        convolutions = (m for m in networks.modules() if type(m) is nn.Conv2d)
        self.layers = [layer for layer in convolutions if _has_many_weights(layer)]
        self._found: list[tuple[Tensor, Product]] = []
        self._noting = False

    def __enter__(self) -> "WideLayers":
        # at the instances: checkpoints compute activations again within the backward pass, where
        # modes of torch are off
        for layer in self.layers:
            layer._conv_forward = partial(self._convolved, layer)  # type: ignore[method-assign]
        self._noting = True
        return self

    def __exit__(self, *exception: object) -> None:
        for layer in self.layers:
            del layer._conv_forward
        self._found = []

    def _convolved(
        self, layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Compute what `layer._conv_forward` does."""
        if not _suits(layer, x, weight):
            return type(layer)._conv_forward(layer, x, weight, bias)
        padding = cast(tuple[int, ...], layer.padding)
        patches = F.unfold(
            x, layer.kernel_size, layer.dilation, padding, layer.stride
        )  # (B, I, H W)
        columns = patches.transpose(0, 1).reshape(patches.shape[1], -1)
        matrix = weight.view(len(weight), -1)
        rows = matrix @ columns if bias is None else torch.addmm(bias[:, None], matrix, columns)
        if self._noting and weight.requires_grad:
            self._found.append((weight, Product(columns.detach(), get_gradient_edge(rows))))
        outputs = rows.view(len(weight), len(x), *_output_size(layer, x))
        return outputs.transpose(0, 1).contiguous()

    def products(self, output: Tensor) -> dict[Tensor, Product]:
        """Return the products within the graph of `output` so far, by their weights.

        Weights that have further uses in the graph are left out: their gradients are sums. The
        products that follow, of activations that are computed again, are not noted any more.
        """
        uses = _uses(output)
        found, self._found, self._noting = self._found, [], False
        return {
            weight: product
            for weight, product in found
            if uses.get(get_gradient_edge(weight).node) == 1
        }


def wide_layers_for(networks: nn.Module, device: torch.device, precision: str) -> WideLayers | None:
    """Return the wide layers for a step, or None if they would change nothing."""
    if device.type != "cpu" or precision != "fp32":
        return None
    if any(module._compiled_call_impl is not None for module in networks.modules()):
        return None
    wide = WideLayers(networks)
    return wide if wide.layers else None


def total_size(gradient: Sequence[Tensor], products: Sequence[Product | None]) -> Tensor:
    """Return the sum of |∂L/∂θ|. Where there is a product, the gradient is at its outputs."""
    sizes = [
        torch.linalg.vector_norm(g, 1) if product is None else product.size(g)
        for g, product in zip(gradient, products, strict=True)
    ]
    return torch.stack(sizes).sum()


def _has_many_weights(layer: nn.Conv2d) -> bool:
    return (
        layer.weight.numel() >= MANY_WEIGHTS
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _suits(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> bool:
    """Whether to compute this call as a product."""
    return (
        torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad)
        and x.dim() == 4
        and x.dtype == weight.dtype
        and not torch.is_autocast_enabled("cpu")
        and weight.is_contiguous()
        and 0 < len(x) * math.prod(_output_size(layer, x)) <= FEW_POSITIONS
    )


def _output_size(layer: nn.Conv2d, x: Tensor) -> list[int]:
    """Return the height and width of a convolution's output."""
    size = []
    for i, side in enumerate(x.shape[2:]):
        padded = side + 2 * int(layer.padding[i])
        size.append(max(0, padded - layer.dilation[i] * (layer.kernel_size[i] - 1) - 1)
                    // layer.stride[i] + 1)  # fmt: skip
    return size


def _uses(output: Tensor) -> Mapping[Node, int]:
    """Return how many nodes of the graph of `output` pass a gradient to each node."""
    uses: dict[Node, int] = {}
    waiting = [output.grad_fn] if output.grad_fn is not None else []
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                if node not in uses:
                    waiting.append(node)
                uses[node] = uses.get(node, 0) + 1
    return uses

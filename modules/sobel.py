"""rgb → sobel_edges: the one transfer that is a formula."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIGMA = 2.0  # pixels
RADIUS = 8  # the Gaussian is cut at four sigma, as scipy does


class SobelKernel(nn.Module):
    """Edge strength of the blurred channel mean: (B, C, H, W) → (B, 1, H, W).

    The same formula as the `sobel_edges` domain's file transform (Gaussian of σ = 2
    pixels, mirrored borders; Sobel pair, zero borders; hypotenuse), here on the device
    and differentiable. The published one goes through numpy, and so to the CPU, and
    cuts the gradient. H and W have to be at least 8. There is no scale to choose.
    """

    gauss: Tensor
    sobel: Tensor

    def __init__(self, **scale: int) -> None:
        super().__init__()
        offset = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
        gauss = torch.exp(-0.5 * (offset / SIGMA) ** 2)
        self.register_buffer("gauss", gauss / gauss.sum(), persistent=False)
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        self.register_buffer("sobel", torch.stack((across, across.T))[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        gauss = self.gauss.to(x.dtype)
        x = _mirror(x.mean(dim=1, keepdim=True))
        x = F.conv2d(F.conv2d(x, gauss.view(1, 1, -1, 1)), gauss.view(1, 1, 1, -1))
        across, down = F.conv2d(x, self.sobel.to(x.dtype), padding=1).split(1, dim=1)
        # the norm, unlike hypot, has a finite gradient where both are zero
        return torch.linalg.vector_norm(torch.cat((across, down), 1), dim=1, keepdim=True)


def _mirror(x: Tensor) -> Tensor:
    """Pad H and W by `RADIUS` with the border pixel repeated (scipy's mode "reflect")."""
    for dim in (2, 3):
        size = x.shape[dim]
        first, last = x.narrow(dim, 0, RADIUS), x.narrow(dim, size - RADIUS, RADIUS)
        x = torch.cat((first.flip(dim), x, last.flip(dim)), dim)
    return x

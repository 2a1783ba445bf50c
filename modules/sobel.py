"""The transfer rgb → sobel_edges, which is a formula."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIGMA = 2.0  # standard deviation of the Gaussian in pixels
RADIUS = 8  # the Gaussian is truncated at 4 σ, as in SciPy


class SobelKernel(nn.Module):
    """Sobel gradient magnitude of the blurred channel mean: (B, C, H, W) → (B, 1, H, W).

    Same formula as the file transform of the domain `sobel_edges`: a Gaussian with σ = 2 pixels
    and mirrored borders, Sobel filters with zero padding, and the norm of the two responses.
    This version runs on the device and is differentiable. The published one uses NumPy, which
    needs the CPU and stops the gradient. H and W must be at least 8. All keywords are ignored.
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
        # unlike hypot, the norm has a finite gradient where both responses are zero
        return torch.linalg.vector_norm(torch.cat((across, down), 1), dim=1, keepdim=True)


def _mirror(x: Tensor) -> Tensor:
    """Mirror-pad H and W by `RADIUS`, repeating the border pixel (SciPy's mode "reflect")."""
    for dim in (2, 3):
        size = x.shape[dim]
        first, last = x.narrow(dim, 0, RADIUS), x.narrow(dim, size - RADIUS, RADIUS)
        x = torch.cat((first.flip(dim), x, last.flip(dim)), dim)
    return x

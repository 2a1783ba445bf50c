"""The transfer rgb → corners: 2D keypoints by a formula, Shi and Tomasi's corner response."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLUR, WINDOW = 1.0, 2.0  # standard deviations in pixels: of the image, and of the window
GAIN = 16.0  # brings the response into [0, 1]: it is 1 where grey changes by 1/16 per pixel
TINY = 1e-12  # under the square roots, whose gradient at 0 is infinite


class ShiTomasi(nn.Module):
    """Corner response of the channel mean: (B, C, H, W) in [0, 1] → (B, 1, H, W) in [0, 1].

    With g the grey image blurred by a Gaussian (σ = 1 pixel), g_x and g_y its derivatives by
    central differences, and the structure tensor (a, b; b, c) the means of (g_x², g_x g_y, g_y²)
    in a Gaussian window (σ = 2 pixels), the response is min(1, 16 √λ), where

        λ = (a + c)/2 − √(((a − c)/2)² + b²)

    is the tensor's smaller eigenvalue: grey has to change in both directions. √λ is a change of
    grey per pixel. Borders repeat the outermost pixel. It runs on the device and is
    differentiable. All keywords are ignored.
    """

    def __init__(self, **scale: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        grey = _smoothed(x.mean(dim=1, keepdim=True), BLUR)
        padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
        across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        tensor = torch.cat((across * across, across * down, down * down), 1)
        a, b, c = _smoothed(tensor, WINDOW).split(1, dim=1)
        smaller = (a + c) / 2 - (((a - c) / 2).square() + b.square() + TINY).sqrt()
        return (GAIN * (smaller.clamp(min=0) + TINY).sqrt()).clamp(max=1)


def _smoothed(x: Tensor, sigma: float) -> Tensor:
    """Blur each channel by a Gaussian that is cut off at 3 σ."""
    radius = round(3 * sigma)
    offset = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    gauss = torch.exp(-0.5 * (offset / sigma) ** 2)
    gauss = gauss / gauss.sum()
    channels = x.shape[1]
    x = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    x = F.conv2d(x, gauss.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(x, gauss.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

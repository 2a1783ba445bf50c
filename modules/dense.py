"""Normalise, convolve, rectify: the block and the small network made of it."""

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """GroupNorm on the *input*, a convolution, then ReLU; keeps the image size.

    `bn` is a GroupNorm: published checkpoints know it under that name.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, groups: int = 8
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.bn = nn.GroupNorm(groups, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(self.bn(x)))


class Dense1by1Net(nn.Module):
    """Normal to principal curvature: seven blocks at full resolution, no pooling.

    (B, 3, H, W) → (B, 3, H, W), non-negative. `width` 16 is the published network
    (64 and 96 channels inside); there is no depth to choose.
    """

    def __init__(
        self, downsample: int = 0, in_channels: int = 3, out_channels: int = 3, width: int = 16
    ) -> None:
        super().__init__()
        narrow, wide = 4 * width, 6 * width
        self.decoder = nn.Sequential(
            ConvBlock(in_channels, narrow, kernel_size=1, groups=in_channels),
            ConvBlock(narrow, wide, kernel_size=1),
            ConvBlock(wide, wide),
            ConvBlock(wide, wide),
            ConvBlock(wide, wide),
            ConvBlock(wide, wide),
            ConvBlock(wide, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x)

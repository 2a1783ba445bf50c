"""The convolution block (normalise, convolve, ReLU), and a small network of such blocks."""

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """GroupNorm of the *input*, convolution, ReLU. Keeps the image size.

    The GroupNorm is called `bn` because published checkpoints use that name.
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
    """The network normal → principal_curvature: seven blocks at full resolution, no pooling.

    (B, 3, H, W) → (B, 3, H, W), non-negative. `width` 16 gives the published network (64 and 96
    hidden channels). `downsample` is ignored.
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

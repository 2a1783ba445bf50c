"""The UNets of the published system. Names of modules match the published state dicts.

In particular, `bn1` … `bn3` and `last_bn` are GroupNorms. Every network maps (B, in, H, W) to
(B, out, H, W), where H and W are multiples of 2**downsample. `width` is the number of channels
of the first level (16 as published). It doubles with each level.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modules.dense import ConvBlock

GROUPS = 8  # groups of every GroupNorm; widths must be multiples of it


class _TripleConv(nn.Module):
    """Three times 3 × 3 convolution, GroupNorm, ReLU.

    `recompute` enables activation checkpointing: inner activations are recomputed in the
    backward pass instead of stored. This saves memory and takes more time.
    """

    recompute = False

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn1 = nn.GroupNorm(GROUPS, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = nn.GroupNorm(GROUPS, out_channels)
        self.conv3 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn3 = nn.GroupNorm(GROUPS, out_channels)

    def convolve(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._convolve, x, use_reentrant=False)
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)))


def recompute_activations(network: nn.Module) -> None:
    """Enable activation checkpointing in all blocks of a UNet."""
    for module in network.modules():
        if isinstance(module, _TripleConv):
            module.recompute = True


class DownBlock(_TripleConv):
    """Three convolutions, then max pooling by 2 unless `pool` is False."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool = True) -> None:
        super().__init__(in_channels, out_channels)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolve(x)
        return F.max_pool2d(x, 2) if self.pool else x


class UpBlock(_TripleConv):
    """Upsamples the coarse features, concatenates the skip connection, and convolves."""

    def __init__(self, skip_channels: int, in_channels: int, out_channels: int) -> None:
        super().__init__(skip_channels + in_channels, out_channels)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.convolve(torch.cat((x, skip), dim=1))


class _Ends(nn.Module):
    """Layers that all variants share: the convolutions at the bottleneck and the output."""

    bn1: nn.Module
    bn2: nn.Module
    bn3: nn.Module
    mid_conv1: nn.Module
    mid_conv2: nn.Module
    mid_conv3: nn.Module

    def _add_middle(self, channels: int) -> None:
        for i in (1, 2, 3):
            setattr(self, f"mid_conv{i}", nn.Conv2d(channels, channels, 3, padding=1))
            setattr(self, f"bn{i}", nn.GroupNorm(GROUPS, channels))

    def _add_last(self, channels: int, out_channels: int) -> None:
        self.last_conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.last_bn = nn.GroupNorm(GROUPS, channels)
        self.last_conv2 = nn.Conv2d(channels, out_channels, 1)

    def _middle(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.mid_conv1(x)))
        x = F.relu(self.bn2(self.mid_conv2(x)))
        return F.relu(self.bn3(self.mid_conv3(x)))

    def _last(self, x: Tensor) -> Tensor:
        return self.last_conv2(F.relu(self.last_bn(self.last_conv1(x))))


class UNet(_Ends):
    """The network of most transfers. A ReLU is applied to the output."""

    def __init__(
        self, downsample: int = 6, in_channels: int = 3, out_channels: int = 3, width: int = 16
    ) -> None:
        super().__init__()
        levels = [width * 2**i for i in range(downsample + 1)]
        steps = list(zip(levels, levels[1:], strict=False))
        self.down1 = DownBlock(in_channels, width, pool=False)
        self.down_blocks = nn.ModuleList(DownBlock(fine, coarse) for fine, coarse in steps)
        self._add_middle(levels[-1])
        self.up_blocks = nn.ModuleList(UpBlock(fine, coarse, fine) for fine, coarse in steps)
        self._add_last(width, out_channels)

    def _features(self, x: Tensor) -> Tensor:
        skips = [self.down1(x)]
        for block in self.down_blocks:
            skips.append(block(skips[-1]))
        x = self._middle(skips.pop())
        for block in reversed(self.up_blocks):
            x = block(skips.pop(), x)
        return self._last(x)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self._features(x))


class UNetReshade(UNet):
    """A UNet whose output channels are clamped to [0, 1], averaged, and repeated three times.

    As published, the output always has three channels, whatever `out_channels` is. This holds
    even for reshading → depth_zbuffer, whose last convolution has one channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        grey = self._features(x).clamp(0, 1).mean(dim=1, keepdim=True)
        return grey.expand(-1, 3, -1, -1)


class UNetOld(_Ends):
    """The older UNet: each block is an attribute of its own; `up_block1` is the coarsest.

    The published depth is `downsample` 6. Smaller images need fewer levels.
    """

    pool_deepest = True

    def __init__(
        self, downsample: int = 6, in_channels: int = 3, out_channels: int = 3, width: int = 16
    ) -> None:
        super().__init__()
        self._build(in_channels, out_channels, downsample, width)

    def _build(self, in_channels: int, out_channels: int, downsample: int, width: int) -> None:
        self.downsample = downsample
        levels = [width * 2**i for i in range(downsample + 1)]
        self.down_block1 = DownBlock(in_channels, width, pool=False)
        for i in range(1, downsample + 1):
            pool = self.pool_deepest or i < downsample
            setattr(self, f"down_block{i + 1}", DownBlock(levels[i - 1], levels[i], pool))
        self._add_middle(levels[-1])
        for i in range(1, downsample + 1):
            fine, coarse = levels[downsample - i], levels[downsample - i + 1]
            setattr(self, f"up_block{i}", UpBlock(fine, coarse, fine))
        self._add_last(width, out_channels)

    def _features(self, x: Tensor) -> Tensor:
        skips = []
        for i in range(1, self.downsample + 2):
            x = getattr(self, f"down_block{i}")(x)
            skips.append(x)
        x = self._middle(skips.pop())
        for i in range(1, self.downsample + 1):
            x = getattr(self, f"up_block{i}")(skips.pop(), x)
        return self._last(x)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self._features(x))


class UNetDepth(UNetOld):
    """The network normal → depth_zbuffer.

    A `UNetOld` without pooling in the deepest block, and without ReLU on the output.
    """

    pool_deepest = False

    def __init__(
        self, downsample: int = 6, in_channels: int = 3, out_channels: int = 1, width: int = 16
    ) -> None:
        super().__init__(downsample, in_channels, out_channels, width)

    def forward(self, x: Tensor) -> Tensor:
        return self._features(x)


class UNetOld2(UNetOld):
    """A `UNetOld` preceded by two 1 × 1 convolution blocks."""

    def __init__(
        self, downsample: int = 6, in_channels: int = 3, out_channels: int = 3, width: int = 16
    ) -> None:
        nn.Module.__init__(self)
        self.initial = nn.Sequential(
            ConvBlock(in_channels, width, kernel_size=1, groups=3),
            ConvBlock(width, width, kernel_size=1, groups=4),
        )
        self._build(width, out_channels, downsample, width)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.initial(x))

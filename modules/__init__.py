"""The networks: plain `nn.Module`s without file access.

All but Taskonomy's own take the same keywords: downsample, in_channels, out_channels, width.
"""

from modules.corners import ShiTomasi
from modules.dense import Dense1by1Net
from modules.resnet import ResNetClass
from modules.sobel import SobelKernel
from modules.taskonomy import InUnitRange, TaskonomyNetwork
from modules.unet import UNet, UNetDepth, UNetOld, UNetOld2, UNetReshade

__all__ = [
    "Dense1by1Net",
    "InUnitRange",
    "ResNetClass",
    "ShiTomasi",
    "SobelKernel",
    "TaskonomyNetwork",
    "UNet",
    "UNetDepth",
    "UNetOld",
    "UNetOld2",
    "UNetReshade",
]

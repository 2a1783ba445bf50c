"""The networks: plain `nn.Module`s, no input or output."""

from modules.dense import Dense1by1Net
from modules.resnet import ResNetClass
from modules.sobel import SobelKernel
from modules.unet import UNet, UNetDepth, UNetOld, UNetOld2, UNetReshade

__all__ = [
    "Dense1by1Net",
    "ResNetClass",
    "SobelKernel",
    "UNet",
    "UNetDepth",
    "UNetOld",
    "UNetOld2",
    "UNetReshade",
]

"""The ImageNet network, whose features are used as a perceptual loss."""

from torch import Tensor, nn
from torchvision.models import resnet50


class ResNetClass(nn.Module):
    """ResNet-50's last feature maps: (B, C, H, W) → (B, 2048, H/32, W/32).

    As published, parameters have the prefix `resnet.`, and `fc` is in the state dict but not
    used. One-channel input is repeated to three channels. The input is not normalised with
    ImageNet's mean and standard deviation (as published). All keywords are ignored.
    """

    def __init__(self, **scale: int) -> None:
        super().__init__()
        self.resnet = resnet50(weights=None)

    def forward(self, x: Tensor) -> Tensor:
        net = self.resnet
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))

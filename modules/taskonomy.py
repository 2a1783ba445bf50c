"""Taskonomy's own networks rgb → domain: an encoder and a decoder, with names as published."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

CODE = 8  # channels between the encoder and the decoder
BLOCKS = 3, 4, 6, 3  # of the encoder's stages; the first two stages halve the image
STEP = 16  # image sides must be multiples of this


class Bottleneck(nn.Module):
    """A bottleneck block of ResNet-50. The 3 × 3 convolution has the stride.

    The shortcut is a 1 × 1 convolution where the number of channels changes (`project`), and
    else only skips pixels, if there is a stride.
    """

    def __init__(self, in_channels: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if project:
            convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
        elif stride > 1:
            self.downsample = nn.MaxPool2d(1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class TaskonomyEncoder(nn.Module):
    """(B, 3, H, W) in [−1, 1] → (B, 8, H / 16, W / 16), not negative."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for stage, count in enumerate(BLOCKS):
            width, blocks = 64 * 2**stage, []
            for i in range(count):
                stride = 2 if stage < 2 and i == count - 1 else 1  # not in the first block
                blocks.append(Bottleneck(channels, width, stride, project=i == 0))
                channels = 4 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.compress1 = nn.Conv2d(channels, CODE, 3, padding=1, bias=False)
        self.compress_bn = nn.BatchNorm2d(CODE)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(F.pad(x, (3, 3, 3, 3)))))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        for stage in range(len(BLOCKS)):
            x = getattr(self, f"layer{stage + 1}")(x)
        return F.relu(self.compress_bn(self.compress1(x)))


class _Crop(nn.Module):
    """Drops the first row and the first column."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 1:, 1:]


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.2),
    )


def _doubling(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ZeroPad2d((1, 0, 1, 0)),
        nn.ConvTranspose2d(in_channels, out_channels, 3, 2, padding=1, bias=False),
        _Crop(),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.2),
    )


# {layer: its channels}, in order
DECODER_LAYERS = {
    "conv2": (CODE, 1024), "conv3": (1024, 1024), "conv4": (1024, 512), "conv5": (512, 256),
    "conv6": (256, 256), "conv7": (256, 128), "deconv8": (128, 64), "conv9": (64, 64),
    "deconv10": (64, 32), "conv11": (32, 32), "deconv12": (32, 16), "conv13": (16, 32),
    "deconv14": (32, 16),
}  # fmt: skip


class TaskonomyDecoder(nn.Sequential):
    """(B, 8, H, W) → (B, C, 16 H, 16 W) in [−1, 1]."""

    def __init__(self, out_channels: int = 3) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name, channels in DECODER_LAYERS.items():
            layers[name] = (_doubling if name.startswith("de") else _convolution)(*channels)
        last = nn.Conv2d(DECODER_LAYERS["deconv14"][1], out_channels, 3, padding=1)
        layers["decoder_output"] = nn.Sequential(last, nn.Tanh())
        super().__init__(layers)


class TaskonomyNetwork(nn.Module):
    """An encoder and a decoder of Taskonomy: (B, 3, H, W) → (B, C, H, W), in and out in [−1, 1].

    H and W are multiples of 16; the published networks were trained at 256.
    """

    def __init__(self, out_channels: int = 3) -> None:
        super().__init__()
        self.encoder = TaskonomyEncoder()
        self.decoder = TaskonomyDecoder(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class InUnitRange(nn.Module):
    """A network for values in [−1, 1] as one for values in [0, 1], with at least `channels`.

    One channel is repeated to `channels`: Taskonomy's reshading has one, the files have three.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network, self.channels = network, channels

    def forward(self, x: Tensor) -> Tensor:
        values = (self.network(2 * x - 1) + 1) / 2
        return values.expand(-1, self.channels, -1, -1) if values.shape[1] == 1 else values

"""A torchvision network as the one that is trained: LR-ASPP on MobileNetV3, 3.2 million weights.

python -m train rgb2normal --network examples/torchvision_backbone.py:build
python -m train multiperceptual_normal --k 2 --random-select \
    --network examples/torchvision_backbone.py:build --init results/RUN/rgb2normal.pth
python demo.py --task normal --img_path assets/room.png --checkpoint results/RUN \
    --network examples/torchvision_backbone.py:build
"""

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V3_Large_Weights
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

# ImageNet's statistics. The trainer gives images in [0, 1]: what a network does to them first is
# part of the network, so that checkpoints and exports need nothing else.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Segmenter(nn.Module):
    """(B, 3, H, W) → (B, C, H, W), both in [0, 1]; for any H and W."""

    multiple = 1  # what H and W have to be multiples of, for demo.py --size and the export
    mean: Tensor
    std: Tensor

    def __init__(self, out_channels: int, pretrained: bool) -> None:
        super().__init__()
        self.network = lraspp_mobilenet_v3_large(
            weights=None,
            weights_backbone=MobileNet_V3_Large_Weights.IMAGENET1K_V2 if pretrained else None,
            num_classes=out_channels,
        )
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)["out"].sigmoid()


def build(out_channels: int) -> nn.Module:
    """A network with fresh weights."""
    return Segmenter(out_channels, pretrained=False)


def build_pretrained(out_channels: int, pretrained: bool) -> nn.Module:
    """The same, beginning with torchvision's ImageNet weights, which it downloads once.

    `pretrained` is True only where training starts from what this function returns: the demo,
    say, replaces all weights by a checkpoint's and needs no download.
    """
    return Segmenter(out_channels, pretrained)

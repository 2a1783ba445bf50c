"""The patch discriminator of image-to-image GANs (Isola et al., 2017; Zhu et al., 2017)."""

import math

from torch import Tensor, nn

FULL_SIZE, FULL_LEVELS = 256, 3  # 70 × 70 pixels of a 256 × 256 image
SLOPE = 0.2  # of the leaky ReLUs
DEVIATION = 0.02  # of the first weights


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of an image: (B, C, H, W) → (B, 1, H', W'), unbounded.

    `levels` convolutions 4 × 4 with stride 2, two with stride 1; the channels double from `width`
    up to eight times that. With three levels and width 64 it is the published C64-C128-C256-C512
    with patches of 70 × 70 pixels; with 2, 1 and 0 levels they are 34, 16 and 7 wide. Between the
    first and the last convolution features are normalised by image (InstanceNorm without
    parameters), which is what both papers' batch normalisation does for a batch of one.
    """

    def __init__(self, in_channels: int, width: int = 64, levels: int = FULL_LEVELS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for number in range(levels + 1):
            wider = width * 2 ** min(number, 3)
            stride = 2 if number < levels else 1
            layers.append(nn.Conv2d(channels, wider, 4, stride, padding=1))
            if number:
                layers.append(nn.InstanceNorm2d(wider))
            layers.append(nn.LeakyReLU(SLOPE))
            channels = wider
        layers.append(nn.Conv2d(channels, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, DEVIATION)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def levels_for(image_size: int) -> int:
    """Return the levels whose patches are about a quarter of the image's side, as published.

    One less for each halving from 256 pixels; larger images have patches of 70 pixels.
    """
    halvings = max(0, math.floor(math.log2(FULL_SIZE / image_size)))
    return max(0, FULL_LEVELS - halvings)

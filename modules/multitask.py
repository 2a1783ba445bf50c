"""A UNet with one encoder and a decoder for each of several domains."""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.several import SeveralOutputs
from modules.unet import DownBlock, UpBlock, _Ends


class Encoder(_Ends):
    """The first half of a UNet: (B, C, H, W) → its features from fine to coarse."""

    def __init__(self, downsample: int, in_channels: int, width: int) -> None:
        super().__init__()
        levels = [width * 2**i for i in range(downsample + 1)]
        self.down1 = DownBlock(in_channels, width, pool=False)
        steps = zip(levels, levels[1:], strict=False)
        self.down_blocks = nn.ModuleList(DownBlock(fine, coarse) for fine, coarse in steps)
        self._add_middle(levels[-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.down1(x)]
        for block in self.down_blocks:
            features.append(block(features[-1]))
        features[-1] = self._middle(features[-1])
        return features


class Decoder(_Ends):
    """The second half of a UNet: features of an `Encoder` → (B, C, H, W), not negative."""

    def __init__(self, downsample: int, out_channels: int, width: int) -> None:
        super().__init__()
        levels = [width * 2**i for i in range(downsample + 1)]
        steps = zip(levels, levels[1:], strict=False)
        self.up_blocks = nn.ModuleList(UpBlock(fine, coarse, fine) for fine, coarse in steps)
        self._add_last(width, out_channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for block in reversed(self.up_blocks):
            x = block(skips.pop(), x)
        return F.relu(self._last(x))


class MultiTaskUNet(SeveralOutputs):
    """One encoder, and a decoder for each domain. With one domain, it is the `UNet`.

    `channels` are the domains' channels, {domain: C}. A buffer, which is saved with the weights,
    tells which of the decoders are trained; at first all count as trained. Files may leave out
    the weights of the others.
    """

    has_labels: Tensor

    def __init__(
        self,
        channels: Mapping[str, int],
        target: str,
        downsample: int = 6,
        in_channels: int = 3,
        width: int = 16,
    ) -> None:
        super().__init__()
        self.target = target
        self.encoder = Encoder(downsample, in_channels, width)
        self.decoders = nn.ModuleDict(
            {domain: Decoder(downsample, count, width) for domain, count in channels.items()}
        )
        self.register_buffer("has_labels", torch.ones(len(channels), dtype=torch.bool))

    def train_on(self, domains: Collection[str]) -> None:
        """Note which domains have labels. The decoders of the others are frozen."""
        for number, (name, decoder) in enumerate(self.decoders.items()):
            self.has_labels[number] = name in domains
            decoder.requires_grad_(name in domains)

    def parts(self) -> list[nn.Module]:
        return [self.encoder, *self.decoders.values()]

    def completed(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights with the network's own for decoders that are absent and untrained."""
        has_labels = weights.get("has_labels")
        if has_labels is None or has_labels.shape != self.has_labels.shape:
            return weights
        kept = {name.split(".")[1] for name in weights if name.startswith("decoders.")}
        own = dict(weights)
        for (name, decoder), has in zip(self.decoders.items(), has_labels.tolist(), strict=True):
            if not has and name not in kept:
                own |= {f"decoders.{name}.{n}": v for n, v in decoder.state_dict().items()}
        return own

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        has_labels = self.has_labels.tolist()
        return self.decoded(x, [n for n, has in zip(self.decoders, has_labels, strict=True) if has])

    def decoded(self, x: Tensor, domains: Collection[str]) -> dict[str, Tensor]:
        """Return the predictions of these domains, {domain: (B, C, H, W)}."""
        features = self.encoder(x)
        return {name: self.decoders[name](features) for name in domains}

    def forward(self, x: Tensor) -> Tensor:
        return self.decoded(x, [self.target])[self.target]

"""A dense prediction transformer (DPT) from Hugging Face as the network that is trained.

pip install transformers
python -m train rgb2normal --network examples/dpt_backbone.py:build --image-size 256
"""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DPTConfig, DPTForSemanticSegmentation  # type: ignore[import-not-found]

PATCH = 16  # pixels of a token's side


class DPT(nn.Module):
    """(B, 3, H, W) → (B, C, H, W), both in [0, 1]; H and W are multiples of `multiple`."""

    multiple = 2 * PATCH  # the coarsest feature map has half as many positions as tokens

    def __init__(self, out_channels: int, image_size: int) -> None:
        super().__init__()
        self.network = DPTForSemanticSegmentation(
            DPTConfig(
                image_size=image_size,
                patch_size=PATCH,
                hidden_size=192,
                num_hidden_layers=12,
                num_attention_heads=3,
                intermediate_size=768,
                neck_hidden_sizes=[48, 96, 192, 192],
                fusion_hidden_size=64,
                num_labels=out_channels,
                use_auxiliary_head=False,
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        # Like the model's own forward, but also for images that are not square.
        states = self.network.dpt(2 * x - 1, output_hidden_states=True).hidden_states[1:]
        taken = [states[i] for i in self.network.config.backbone_out_indices]
        rows, columns = (side // PATCH for side in x.shape[-2:])
        logits = self.network.head(self.network.neck(taken, rows, columns))
        return F.interpolate(logits, x.shape[-2:], mode="bilinear").sigmoid()


def build(out_channels: int, image_size: int) -> nn.Module:
    """A tiny DPT (a ViT with 192 channels) with fresh weights, for images of `image_size`."""
    return DPT(out_channels, image_size)

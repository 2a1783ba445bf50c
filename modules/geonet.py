"""GeoNet (Qi et al., CVPR 2018): normals and depth from one image, refined by each other."""

import torch
from torch import Tensor, nn

from modules.geometry import depth_from_normals, normals_from_depth
from modules.several import SeveralOutputs

DEPTH_UNIT = 8000 / 512  # metres at the encoded depth 1
NEAREST = 0.1  # metres: smaller predicted depths are raised to it before they become points
CHANNELS = 32


class Refinement(nn.Module):
    """Joins what geometry computed with the first prediction: both (B, C, H, W) → (B, C, H, W).

    Three convolutions add a residual to the computed image; a 1 × 1 convolution joins the sum and
    the first prediction. With its initial weights, the result is the first prediction.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, CHANNELS, 3, padding=1), nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU(),
            nn.Conv2d(CHANNELS, channels, 3, padding=1),
        )  # fmt: skip
        self.join = nn.Conv2d(2 * channels, channels, 1)
        with torch.no_grad():
            nothing, identity = torch.zeros(channels, channels), torch.eye(channels)
            self.join.weight.copy_(torch.cat([nothing, identity], dim=1)[:, :, None, None])
            self.join.bias.zero_()  # type: ignore[union-attr]

    def forward(self, computed: Tensor, first: Tensor) -> Tensor:
        return self.join(torch.cat([computed + self.residual(computed), first], dim=1))


class GeoNet(SeveralOutputs):
    """Two networks from rgb, to normals and to depth, and the modules that refine their outputs.

    `normal` and `depth` map (B, 3, H, W) to encoded normals (B, 3, H, W) and encoded depth
    (B, 1, H, W). `target` is "normal" or "depth_zbuffer": what `forward` returns.
    `field_of_view` is the angle in degrees between the image's left and right border; it is a
    buffer, so that the weights record it. Windows have sides of 2 `radius` + 1 pixels.
    """

    field_of_view: Tensor

    def __init__(
        self,
        normal: nn.Module,
        depth: nn.Module,
        target: str,
        field_of_view: float,
        radius: int = 2,
    ) -> None:
        super().__init__()
        self.normal, self.depth, self.target, self.radius = normal, depth, target, radius
        self.refine_normal, self.refine_depth = Refinement(3), Refinement(1)
        self.register_buffer("field_of_view", torch.tensor(float(field_of_view)))

    def outputs(self, x: Tensor) -> dict[str, Tensor]:
        """Return the refined prediction of each domain, encoded as in its files."""
        return {domain: refined for domain, (_, refined) in self.predictions(x).items()}

    def predictions(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the first and the refined prediction of each domain, encoded as in its files."""
        normal, depth = self.normal(x), self.depth(x)
        with torch.autocast(x.device.type, enabled=False):
            full = torch.promote_types(normal.dtype, torch.float32)
            normal, depth = normal.to(full), depth.to(full)
            computed_normal, computed_depth = self._computed(normal, depth)
            return {
                "normal": (normal, self.refine_normal(computed_normal, normal)),
                "depth_zbuffer": (depth, self.refine_depth(computed_depth, depth)),
            }

    def _computed(self, normal: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        """Return encoded normals computed from the depth, and depth from the normals."""
        metres = (DEPTH_UNIT * depth).clamp(min=NEAREST)
        known = depth < 1  # holes, and all beyond the encoding, are 1
        vectors = nn.functional.normalize(2 * normal - 1, dim=1, eps=1e-6)
        angle, radius = self.field_of_view, self.radius
        from_depth = normals_from_depth(metres, angle, radius, known)
        from_normals = depth_from_normals(metres, vectors, angle, radius, known)
        return (from_depth + 1) / 2, from_normals / DEPTH_UNIT

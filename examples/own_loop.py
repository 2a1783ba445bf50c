"""Train a network of your own to be consistent: a segmentation network of torchvision.

python examples/own_loop.py

Its outputs are the three components of surface normals, and its data are the rooms that come with
the project. The errors before and after show that the curvature, edges, … that follow from the
predicted normals come closer to those that follow from the true ones.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's folder

from consistency import ConsistencyLoss, balance_gradients, evaluate  # noqa: E402
from datasets import TaskDataset  # noqa: E402
from loading.layouts import find_views  # noqa: E402
from loading.splits import split_buildings  # noqa: E402
from rooms.writing import make_rooms  # noqa: E402
from task_configs import TASKS  # noqa: E402
from utils import ROOT  # noqa: E402


class Segmentation(nn.Module):
    """A torchvision network with three outputs per pixel: the normals, in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=3)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # at its own 0.01, averages need 300 steps; here are 100

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)["out"].sigmoid()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a torchvision network on rooms.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--data", help="a folder with views (default: the rooms)")
    options = parser.parse_args()
    data = Path(options.data or ROOT / "data_rooms")
    if options.data is None:
        make_rooms(data, quiet=True)  # about 40 s, the first time
    torch.manual_seed(0)

    tasks = [TASKS["rgb"], TASKS["normal"]]
    buildings = split_buildings([data])["train"]
    views = TaskDataset(tasks, find_views(tasks, [data], buildings), 64)
    loader = torch.utils.data.DataLoader(views, batch_size=8, shuffle=True, drop_last=True)
    network, consistency = Segmentation(), ConsistencyLoss("normal")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = evaluate(network, data)

    step = 0
    while step < options.steps:
        for images, truth in loader:
            losses = consistency(network(images), truth, k=2)
            optimizer.zero_grad()
            balance_gradients(losses, network.parameters())
            optimizer.step()
            step += 1
            if step % 10 == 0 or step == options.steps:
                print(f"step {step}", *(f"{n} {v.mean():.4f}" for n, v in losses.items()))
            if step == options.steps:
                break

    after = evaluate(network, data)
    for row in before:
        print(f"{row:45} {before[row]:8.3f} → {after[row]:8.3f}")


if __name__ == "__main__":
    main()

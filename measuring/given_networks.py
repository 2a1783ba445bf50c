"""Networks from rgb that the user names in the place of those of the models folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones import recorded_code
from measuring.demo_networks import TARGETS, Choice, choose_networks, for_task
from measuring.prediction import check_built, load_predictor, resized
from models import read_record
from sources import Sources, find_variant
from transfers import TRANSFERS, Edge, Scale
from utils import UserError, log


class AtSize(nn.Module):
    """A network with its image size. Inputs of other sizes are resized first.

    With `back`, the output is resized to the size of the input.
    """

    def __init__(self, network: nn.Module, size: int, back: bool = False) -> None:
        super().__init__()
        self.network, self.size, self.back = network, size, back

    def forward(self, values: Tensor) -> Tensor:
        output = self.network(resized(values, (self.size, self.size)))
        return resized(output, values.shape[-2:]) if self.back else output


@dataclass(frozen=True)
class Given:
    """A network rgb → target, and the checkpoint's file that it was loaded from."""

    network: AtSize
    file: Path


def given_networks(
    sources: Sources,
    checkpoint: Sequence[str | Path] | None,
    network: str | None,
    device: torch.device,
) -> dict[Edge, Given]:
    """Load the networks rgb → normal, depth and reshading that the user names.

    `checkpoint` are files or folders of runs. Of several networks for one target, the one that
    was trained with consistency is taken, else the first. `network`, FILE.py:FUNCTION, builds
    those that record a network of the user's own; for a target without a checkpoint, it builds the
    one in the models folder, if that is such a network. A network of another image size gets
    resized images, and its output is resized back. Logs the file of each. Raises UserError if
    nothing in `checkpoint` is a network rgb → target by its name, or if `network` builds none.
    """
    named = files_by_task(checkpoint)
    found, built = {}, False
    for task, target in TARGETS.items():
        if named[task]:
            paths = choose_networks(task, checkpoint=named[task]).paths
            file = paths.get("consistency") or next(iter(paths.values()))
        elif network and (own := _own_file(sources, target)):
            file = own
        else:
            continue
        module, scale = load_one(task, file, device, network)
        built |= network is not None and is_own(file)
        found["rgb", target] = Given(AtSize(module, scale.image_size, back=True), file)
        log.info("networks: rgb → %s from %s (%s)", task, file, scale)
    check_built(network, built, [given.file for given in found.values()])
    return found


def modules_of(given: Mapping[Edge, Given]) -> dict[Edge, nn.Module]:
    """Return the networks alone, {edge: network}."""
    return {edge: one.network for edge, one in given.items()}


def files_of(given: Mapping[Edge, Given]) -> dict[Edge, Path]:
    """Return their checkpoints' files alone, {edge: file}."""
    return {edge: one.file for edge, one in given.items()}


def files_by_task(checkpoint: Sequence[str | Path] | None) -> dict[str, list[Path]]:
    """Return, for each task, those of the files and folders whose names indicate a network for it.

    Raises UserError if `checkpoint` names some, and none has a network of any task.
    """
    named = {task: for_task(task, checkpoint or ()) for task in TARGETS}
    if checkpoint and not any(named.values()):
        raise UserError(
            f"`checkpoint` {','.join(map(str, checkpoint))}: no file rgb2normal….pth, "
            f"rgb2depth….pth or rgb2reshading….pth there"
        )
    return named


def load_one(
    task: str, file: Path, device: torch.device, network: str | None
) -> tuple[nn.Module, Scale]:
    """Load the network of a checkpoint rgb → `task`, with the scale that it records.

    `network` builds it if the checkpoint records a network of the user's own.
    """
    code = network if network and is_own(file) else None
    predictor = load_predictor(task, Choice({task: file}, ""), device, code)
    return predictor.networks[task], predictor.scales[task]


def is_own(file: Path) -> bool:
    """Whether a checkpoint records a network of a user's own."""
    return bool(recorded_code(read_record(file)))


def _own_file(sources: Sources, target: str) -> Path | None:
    """Return the checkpoint that the energy would use, if it is of a network of a user's own."""
    file = find_variant(sources.models_dirs, target) or sources.find(TRANSFERS["rgb", target])
    return file if file and is_own(file) else None

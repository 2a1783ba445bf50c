"""Weights in and out, and the optimiser."""

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from transfers import Edge, Scale, Transfer
from utils import UserError, write_atomically

# What torch.load raises, among other things, on bytes that are no checkpoint.
NO_CHECKPOINT = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
    AttributeError, AssertionError,
)  # fmt: skip

PREFIXES = ("model.parallel_apply.module.", "parallel_apply.module.", "model.", "module.")


def read_weights(path: str | Path, edge: Edge | None = None) -> tuple[dict[str, Tensor], dict]:
    """The state dict of a checkpoint, under bare names in float32, and what it records.

    Takes a plain state dict, one with a wrapper's prefix, one bundled as
    {"state_dict", "optimizer"}, this project's own (which record image size, width and
    how they were made) and, for an `edge`, the published graph.pth, a state dict an
    edge. Nothing but tensors and plain values is unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except NO_CHECKPOINT as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is empty"
        raise UserError(f"{path} is not a checkpoint of weights alone: {reason}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not a state dict")
    record = {}
    if isinstance(data.get("state_dict"), dict):
        record = {k: v for k, v in data.items() if k not in ("state_dict", "optimizer")}
        data = data["state_dict"]
    elif edge and str(tuple(edge)) in data:
        data = data[str(tuple(edge))]
    if not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise UserError(f"{path} holds no state dict (names with a tensor each)")
    return {bare_name(name): _full(value) for name, value in data.items()}, record


def bare_name(name: str) -> str:
    """A parameter's name without what DataParallel and the published wrappers put before."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _full(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def load_network(
    network: nn.Module,
    path: str | Path,
    scale: Scale | None = None,
    edge: Edge | None = None,
    any_size: bool = False,
) -> dict:
    """Load a checkpoint into `network` and return what it records.

    Raises UserError where it was made at another scale or does not fit, naming the
    first entries that differ. `any_size` takes one made for images of another size, as
    a start for training.
    """
    network = unwrapped(network)
    weights, record = read_weights(path, edge)
    made = Scale.of(record)
    if scale and "width" in record and made != scale and not (any_size and scale.fits(made)):
        raise UserError(
            f"{path} was trained at {made}, this run has {scale}: "
            f"give {made.flags()}, or another --models-dir"
        )
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != found:
        ours = [f"{n} {s}" for n, s in wanted.items() if found.get(n) != s][:3]
        theirs = [f"{n} {s}" for n, s in found.items() if wanted.get(n) != s][:3]
        raise UserError(
            f"{path} does not fit {type(network).__name__}"
            f"{f' at {scale}' if scale else ''}: the network has {', '.join(ours) or 'no more'}; "
            f"the file has {', '.join(theirs) or 'no more'}"
        )
    network.load_state_dict(weights)
    return record


def save_network(
    path: str | Path, network: nn.Module, scale: Scale, half: bool = False, **record
) -> None:
    """Write a network's weights with its scale and `record` (plain values), atomically.

    `half` stores float16. A wrapper (DataParallel) is taken off first.
    """
    network = unwrapped(network)
    weights = {
        name: value.detach().cpu().half() if half and value.is_floating_point() else value.cpu()
        for name, value in network.state_dict().items()
    }
    data = {
        "state_dict": weights,
        "image_size": scale.image_size,
        "width": scale.width,
        "levels": scale.levels,
        "network": type(network).__name__,
        **record,
    }
    write_atomically(path, lambda temporary: torch.save(data, temporary))


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside a DataParallel wrapper, or itself."""
    return network.module if isinstance(network, nn.DataParallel) else network


def find_scale(models_dir: str | Path, transfers: Iterable[Transfer]) -> Scale | None:
    """The scale that the first of the transfers' checkpoints at hand records, if one does."""
    for transfer in transfers:
        path = Path(models_dir) / transfer.checkpoint
        if transfer.trainable and path.is_file():
            return Scale.of(read_weights(path)[1])
    return None


def imagenet_weights(models_dir: str | Path, transfer: Transfer) -> dict[str, Tensor]:
    """ResNet-50's ImageNet weights, under the names of ResNetClass.

    From `models_dir` if the file is there, else by torchvision's own download. Raises
    OSError where neither can be had.
    """
    from torchvision.models import ResNet50_Weights

    path = Path(models_dir) / transfer.checkpoint
    if path.is_file():
        weights = read_weights(path)[0]
    else:
        try:
            weights = ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        except RuntimeError as error:  # the download's checksum is wrong
            raise OSError(str(error)) from None
    return {n if n.startswith("resnet.") else f"resnet.{n}": v for n, v in weights.items()}


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 3e-5) -> torch.optim.Optimizer:
    """Adam as published: weight decay 2e-6 (L2), amsgrad."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=2e-6, amsgrad=True)

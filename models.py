"""Weights in and out, and the optimiser."""

import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from files import write_atomically
from transfers import Edge, Scale
from utils import UserError, reason_of

# What torch.load raises, among other things, on bytes that are no checkpoint.
NO_CHECKPOINT = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
    AttributeError, AssertionError, ArithmeticError, MemoryError, ImportError, BufferError,
    struct.error, zlib.error, zipfile.BadZipFile, SafetensorError,
)  # fmt: skip

PREFIXES = ("model.parallel_apply.module.", "parallel_apply.module.", "model.", "module.")


def read_weights(path: str | Path, edge: Edge | None = None) -> tuple[dict[str, Tensor], dict]:
    """The state dict of a checkpoint, under bare names in float32, and what it records.

    Takes a plain state dict, one with a wrapper's prefix, one bundled as
    {"state_dict", "optimizer"}, this project's own (which record image size, width and
    how they were made), for an `edge` the published graph.pth, a state dict an edge, and
    safetensors files, whose metadata are what they record. Nothing but tensors and plain
    values is unpickled. UserError for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        data = _read(path)
    except NO_CHECKPOINT as error:
        check_memory(error, path)
        raise UserError(
            f"{path} is not a checkpoint of weights alone: {reason_of(error)}"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a {type(data).__name__}, not a state dict")
    record = {}
    if isinstance(data.get("state_dict"), dict):
        record = {k: v for k, v in data.items() if k not in ("state_dict", "optimizer")}
        data = data["state_dict"]
    elif edge and str(tuple(edge)) in data:
        data = data[str(tuple(edge))]
    if not data or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in data.items()
    ):
        raise UserError(f"{path} holds no state dict (names with a tensor each)")
    if inflated := [name for name, value in data.items() if _is_inflated(value)]:
        raise UserError(f"{path}: {inflated[0]} claims more numbers than the file holds")
    return {bare_name(name): _full(value) for name, value in data.items()}, record


def check_memory(error: Exception, path: Path) -> None:
    """Raise UserError where the error says that there was not enough memory to read the file."""
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        raise UserError(f"there is not enough memory to read {path}") from None


def _read(path: Path) -> object:
    """What is in a checkpoint's file, whichever of the two formats it has."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # the length of a header, and the header, which is JSON
        return _read_safetensors(path)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:  # torch.save compresses nothing
            raise ValueError(f"it would unpack to {unpacked} bytes")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}
    numbers = {key: int(metadata[key]) for key in Scale().record() if key in metadata}
    return {"state_dict": weights, **metadata, **numbers}


def _is_inflated(value: Tensor) -> bool:
    """Whether a tensor is of another kind than dense, or repeats fewer stored numbers."""
    if value.layout != torch.strided or value.is_quantized:
        return True
    return value.numel() * value.element_size() > value.untyped_storage().nbytes()


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
    made = _scale_in(record, path)
    if scale and "width" in record and made != scale and not (any_size and scale.fits(made)):
        raise UserError(
            f"{path} was trained at {made}, this run has {scale}: "
            f"give {made.as_parameters()}, or another `models_dir`"
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
        name: (value.half() if half and value.is_floating_point() else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    data = {
        "state_dict": weights,
        "network": type(network).__name__,
        **scale.record(),
        **record,
    }
    save_atomically(path, data)


def save_atomically(path: str | Path, data: object) -> None:
    """`torch.save` such that `path` holds all of it or what it held before.

    Raises UserError where it cannot be written.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            try:
                torch.save(data, file)
            except RuntimeError as error:  # what torch makes of the file's own error
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    write_atomically(path, write)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside a DataParallel wrapper, or itself."""
    return network.module if isinstance(network, nn.DataParallel) else network


def recorded_scale(path: str | Path) -> Scale:
    """The scale that a checkpoint records; that of the published networks where it does not."""
    return _scale_in(read_weights(path)[1], path)


def _scale_in(record: Mapping, path: str | Path) -> Scale:
    try:
        return Scale.of(record)
    except UserError as error:
        raise UserError(f"{path} records a scale that cannot be: {error}") from None


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 3e-5) -> torch.optim.Optimizer:
    """Adam as published: weight decay 2e-6 (L2), amsgrad. One fused kernel."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=2e-6, amsgrad=True, fused=True)

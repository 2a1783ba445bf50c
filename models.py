"""Reading and writing weights, and the optimiser."""

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

# Exceptions that reading raises if the file is not a checkpoint.
NO_CHECKPOINT = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
    AttributeError, AssertionError, ArithmeticError, MemoryError, ImportError, BufferError,
    struct.error, zlib.error, zipfile.BadZipFile, SafetensorError,
)  # fmt: skip

# Added to parameter names by DataParallel and by wrappers of the published code.
PREFIXES = ("model.parallel_apply.module.", "parallel_apply.module.", "model.", "module.")


def read_weights(path: str | Path, edge: Edge | None = None) -> tuple[dict[str, Tensor], dict]:
    """Read a checkpoint: its state dict in float32 without name prefixes, and its record.

    The record holds everything else that the checkpoint stores: in this project's own
    checkpoints the image size, the width and how they were made; in safetensors files the
    metadata. Accepted formats are:

    - a plain state dict, also with a wrapper's prefix,
    - {"state_dict", "optimizer"} as published, and this project's own,
    - the published graph.pth, which holds a state dict per edge (`edge` selects one),
    - safetensors.

    Only tensors and plain values are unpickled. Raises UserError for anything else.
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
    """Raise UserError if the error means that there was not enough memory to read the file."""
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        raise UserError(f"there is not enough memory to read {path}") from None


def _read(path: Path) -> object:
    """Read a checkpoint file in PyTorch's or safetensors' format."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # safetensors: 8 bytes of header length, then a JSON header
        return _read_safetensors(path)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:  # torch.save does not compress: a zip bomb
            raise ValueError(f"it would unpack to {unpacked} bytes")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}
    numbers = {key: int(metadata[key]) for key in Scale().record() if key in metadata}
    return {"state_dict": weights, **metadata, **numbers}


def _is_inflated(value: Tensor) -> bool:
    """Whether a tensor is not dense, or is larger than its storage (e.g. an expanded view)."""
    if value.layout != torch.strided or value.is_quantized:
        return True
    return value.numel() * value.element_size() > value.untyped_storage().nbytes()


def bare_name(name: str) -> str:
    """Remove the prefix of DataParallel or of a published wrapper from a parameter's name."""
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
    """Load a checkpoint into `network` and return its record (see `read_weights`).

    Raises UserError if the checkpoint was trained at another scale or does not fit the
    network; the message lists the first entries that differ. `any_size` accepts checkpoints
    for another image size, as initial weights for training.
    """
    network = unwrapped(network)
    weights, record = read_weights(path, edge)
    recorded = _scale_in(record, path)
    if (
        scale
        and "width" in record
        and recorded != scale
        and not (any_size and scale.fits(recorded))
    ):
        raise UserError(
            f"{path} was trained at {recorded}, this run has {scale}: "
            f"give {recorded.as_parameters()}, or another `models_dir`"
        )
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    stored = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != stored:
        in_network = [f"{n} {s}" for n, s in expected.items() if stored.get(n) != s][:3]
        in_file = [f"{n} {s}" for n, s in stored.items() if expected.get(n) != s][:3]
        raise UserError(
            f"{path} does not fit {type(network).__name__}"
            f"{f' at {scale}' if scale else ''}: "
            f"the network has {', '.join(in_network) or 'no more'}; "
            f"the file has {', '.join(in_file) or 'no more'}"
        )
    network.load_state_dict(weights)
    return record


def save_network(
    path: str | Path, network: nn.Module, scale: Scale, half: bool = False, **record
) -> None:
    """Write a network's weights, its scale and `record` (plain values), atomically.

    `half` stores the weights as float16. A DataParallel wrapper is removed first.
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
    """Run `torch.save` atomically: `path` holds either the old or the complete new file.

    Raises UserError if it cannot be written.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            try:
                torch.save(data, file)
            except RuntimeError as error:  # torch hides the OSError in the context
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    write_atomically(path, write)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside a DataParallel wrapper, or the network itself."""
    return network.module if isinstance(network, nn.DataParallel) else network


def recorded_scale(path: str | Path) -> Scale:
    """Return the scale that a checkpoint records; by default, the published scale."""
    return _scale_in(read_weights(path)[1], path)


def _scale_in(record: Mapping, path: str | Path) -> Scale:
    try:
        return Scale.of(record)
    except UserError as error:
        raise UserError(f"{path} records a scale that cannot be: {error}") from None


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 3e-5) -> torch.optim.Optimizer:
    """Create the published optimiser: Adam with AMSGrad and L2 weight decay 2e-6, fused."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=2e-6, amsgrad=True, fused=True)

"""Reading and writing weights, and the optimiser."""

import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from backbones import Backbone, check_code, recorded_code
from files import write_atomically
from modules.several import SeveralOutputs
from transfers import Edge, Scale, Transfer
from utils import UserError, reason_of

# Exceptions that reading raises if the file is not a checkpoint.
NO_CHECKPOINT = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
    AttributeError, AssertionError, ArithmeticError, MemoryError, ImportError, BufferError,
    struct.error, zlib.error, zipfile.BadZipFile, SafetensorError,
)  # fmt: skip


class Damaged(ValueError):
    """A checksum inside a file is wrong."""


# Added to parameter names by DataParallel and by wrappers of the published code.
PREFIXES = ("model.parallel_apply.module.", "parallel_apply.module.", "model.", "module.")


def read_weights(
    path: str | Path, edge: Edge | None = None, names: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict]:
    """Read a checkpoint: its state dict in float32 without name prefixes, and its record.

    Names that the network to load has (`names`) keep their prefixes, and so do all names of a
    network that the record says is user-defined.

    The record holds everything else that the checkpoint stores: in this project's own
    checkpoints the image size, the width and how they were made; in safetensors files the
    metadata. Accepted formats are:

    - a plain state dict, also with a wrapper's prefix,
    - {"state_dict", "optimizer"} as published, and this project's own,
    - the published graph.pth, which holds a state dict per edge (`edge` selects one),
    - safetensors.

    Only tensors and plain values are unpickled. Raises UserError for anything else, if a
    checksum inside the file is wrong, and if a weight is not finite.
    """
    path = Path(path)
    stored, record = _contents(path, edge)
    kept = stored if recorded_code(record) else names
    weights = {
        name if name in kept else bare_name(name): _full(value) for name, value in stored.items()
    }
    if len(weights) < len(stored):
        raise UserError(f"{path} holds names that differ only in a wrapper's prefix")
    for name, value in weights.items():
        if not _is_finite(value):
            raise UserError(f"{path}: {name} holds values that are not finite (NaN or infinity)")
    return weights, record


def _contents(path: Path, edge: Edge | None = None, mapped: bool = False) -> tuple[dict, dict]:
    """Return the tensors of a checkpoint as stored, by name, and its record.

    `mapped`: the values stay on the disk where the format allows it, and only the checksum of
    the names, shapes and record is verified. Raises UserError as `read_weights` does.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        data = _read(path, mapped)
    except Damaged as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except pickle.UnpicklingError:  # torch's text advises to switch this check off
        raise UserError(
            f"{path} is not a checkpoint of weights alone: it is broken, or holds more than "
            f"tensors and plain values"
        ) from None
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
    if unusable := [name for name, value in data.items() if value.is_meta or value.is_complex()]:
        raise UserError(f"{path}: {unusable[0]} is not a tensor of real numbers")
    return data, record


def check_memory(error: Exception, path: Path) -> None:
    """Raise UserError if the error means that there was not enough memory to read the file."""
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        raise UserError(f"there is not enough memory to read {path}") from None


def _read(path: Path, mapped: bool) -> object:
    """Read a checkpoint file in PyTorch's or safetensors' format (see `_contents`)."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # safetensors: 8 bytes of header length, then a JSON header
        return _read_safetensors(path)
    zipped = start.startswith(b"PK")
    if zipped:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > path.stat().st_size:  # torch.save does not compress: a zip bomb
                raise ValueError(f"it would unpack to {unpacked} bytes")
            check_sums(archive, only="data.pkl" if mapped else "")
    mapped = mapped and zipped  # torch maps no other format
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def check_sums(archive: zipfile.ZipFile, only: str = "") -> None:
    """Verify the CRC-32 of an archive's entries, which `torch.load` does not.

    `only` is the end of the names of the entries to verify; by default, all. Archives that
    were saved without checksums (`torch.serialization.set_crc32_options`) have zeros in their
    place, and pass. Raises Damaged.
    """
    entries = archive.infolist()
    if not any(entry.CRC for entry in entries):
        return
    for entry in entries:
        if entry.filename.endswith(only):
            try:
                with archive.open(entry) as file:
                    while file.read(2**20):  # zipfile compares the checksum at the end
                        pass
            except zipfile.BadZipFile:
                name = entry.filename.partition("/")[2] or entry.filename
                raise Damaged(f"the checksum of {name} in it is wrong") from None


def _read_safetensors(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        weights = {name: file.get_tensor(name) for name in file.keys()}
    return {"state_dict": weights, **{key: _number(key, text) for key, text in metadata.items()}}


def _number(key: str, text: str) -> int | str:
    """Convert an entry of safetensors' metadata, which holds text only, if it is of a scale."""
    whole = key in Scale().record() and len(text) <= 9 and text.isascii() and text.isdecimal()
    return int(text) if whole else text


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


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point() or not value.numel():
        return True
    # a NaN is both minimum and maximum; 14 times as fast as value.isfinite().all()
    return all(bool(bound.isfinite()) for bound in value.aminmax())


def load_network(
    network: nn.Module,
    path: str | Path,
    scale: Scale | None = None,
    edge: Edge | None = None,
    any_size: bool = False,
    transfer: Transfer | None = None,
) -> dict:
    """Load a checkpoint into `network` and return its record (see `read_weights`).

    Raises UserError if the checkpoint was trained at another scale or does not fit the
    network (the message lists the first entries that differ), or as `read_weights` does.
    `any_size` accepts checkpoints for another image size, as initial weights for training. The
    checkpoint of a user-defined network needs `transfer`, the row that built the network
    (`backbones.Backbone`).
    """
    network = unwrapped(network)
    weights, record = read_weights(path, edge, network.state_dict().keys())
    check_code(path, record, transfer)
    recorded = _scale_in(record, path)
    if (
        scale
        and not isinstance(transfer, Backbone)  # it has no width and no levels
        and "width" in record
        and recorded != scale
        and not (any_size and scale.fits(recorded))
    ):
        raise UserError(
            f"{path} was trained at {recorded}, this run has {scale}: "
            f"give {recorded.as_parameters()}, or another `models_dir`"
        )
    network.load_state_dict(_fitting(path, network, weights, scale))
    return record


def fill_network(network: nn.Module, path: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Give `network` weights that `read_weights` has read from `path`.

    Raises UserError if they do not fit, as `load_network` does.
    """
    network.load_state_dict(_fitting(path, network, weights, None))


def _fitting(
    path: str | Path, network: nn.Module, weights: Mapping[str, Tensor], scale: Scale | None
) -> Mapping[str, Tensor]:
    """Return the weights, completed where the network allows it (`SeveralOutputs.completed`).

    Raises UserError if they do not have the network's names and shapes.
    """
    if isinstance(network, SeveralOutputs):
        weights = network.completed(weights)
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
    return weights


def save_network(
    path: str | Path, network: nn.Module, scale: Scale, half: bool = False, **record
) -> None:
    """Write a network's weights, its scale and `record` (plain values), atomically.

    `half` stores the weights as float16. A DataParallel wrapper is removed first. Raises UserError
    if the file cannot be written.
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


def recorded_scale(path: str | Path, build: Callable[[Scale], nn.Module] | None = None) -> Scale:
    """Return the scale that a checkpoint records; by default, the published scale.

    The weights are not read. `build` makes the network at a scale (`Transfer.build`). If it is
    given, the recorded scale is compared with the weights' shapes, on a network that takes no
    memory: this raises UserError if they do not agree, or if the checkpoint is of a user-defined
    network. Also raises UserError as `read_weights` does.
    """
    weights, record = _contents(Path(path), mapped=True)
    scale = _scale_in(record, path)
    if build:
        check_code(path, record, None)
    if build and "width" in record:
        try:
            with torch.device("meta"):
                network = build(scale)
        except (NotImplementedError, RuntimeError):
            return scale  # a network that reads its own values cannot be built without them
        named = {bare_name(name): value for name, value in weights.items()}
        _fitting(path, network, named, scale)
    return scale


def _scale_in(record: Mapping, path: str | Path) -> Scale:
    try:
        return Scale.of(record)
    except UserError as error:
        raise UserError(f"{path} records an impossible scale: {error}") from None


def read_record(path: str | Path) -> dict:
    """Return what a checkpoint records besides its weights, which are not read.

    Raises UserError as `read_weights` does.
    """
    return _contents(Path(path), mapped=True)[1]


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = 3e-5) -> torch.optim.Optimizer:
    """Create the published optimiser: Adam with AMSGrad and L2 weight decay 2e-6, fused."""
    return torch.optim.Adam(parameters, lr=lr, weight_decay=2e-6, amsgrad=True, fused=True)

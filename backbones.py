"""User-defined networks: a function in a Python file builds the network of a table row.

A checkpoint of such a network records the file, the function and the file's SHA-256. Code is
only run from a file that the user names (FILE.py:FUNCTION), never because a record names it.
"""

import hashlib
import inspect
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from task_configs import get_task
from transfers import Scale, Transfer
from utils import UserError, check_regular, log, reason_of

LONGEST = 300  # characters of a file and function that a record names
MULTIPLE = 32  # sides of other image sizes are multiples of this, or of the module's `multiple`


@dataclass(frozen=True)
class Backbone(Transfer):
    """A row of the table whose network the user's function `network` builds.

    `code_file` is its file as the user named it, `sha256` the digest of the code that was run.
    """

    code_file: str = ""
    function: str = ""
    sha256: str = ""

    @property
    def code(self) -> str:
        """Where the network comes from, as the user names it: "my_file.py:build"."""
        return f"{self.code_file}:{self.function}"

    def record(self) -> dict[str, str]:
        """Return the entries by which checkpoints record where their network came from."""
        return {
            "network_file": self.code_file,
            "network_function": self.function,
            "network_sha256": self.sha256,
        }

    def build(self, scale: Scale, pretrained: bool = False) -> nn.Module:
        """Build the network with the user's function, and try it on two images.

        The function gets those of the keywords in_channels, out_channels, image_size and
        pretrained that it takes. `pretrained` tells it that training starts from the weights
        it returns; otherwise a checkpoint's weights replace them. Raises UserError if the
        function fails, if it does not return a module that maps (B, in_channels, S, S) to
        (B, out_channels, S, S), or if a checkpoint cannot hold the module's weights.
        """
        keywords = {
            "in_channels": get_task(self.source).channels,
            "out_channels": get_task(self.target).channels,
            "image_size": scale.image_size,
            "pretrained": pretrained,
        }
        try:
            network = self.network(**_taken(self.network, keywords, self.code))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"`network` {self.code}: {_place(error, self.code_file)}") from error
        if not isinstance(network, nn.Module):
            raise UserError(
                f"`network` {self.code} has to return a torch.nn.Module, "
                f"not a {type(network).__name__}"
            )
        self._check_output(network, scale.image_size)
        self._check_weights(network)
        return network

    def check_training(self, network: nn.Module, scale: Scale) -> None:
        """Raise UserError if no parameter is trained, or if train mode gives a wrong output.

        Afterwards, buffers and the state of torch's random generator are as they were before.
        """
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise UserError(f"`network` {self.code} has no parameters that train")
        before = {name: value.clone() for name, value in network.named_buffers()}
        self._check_output(network, scale.image_size, training=True)
        with torch.no_grad():
            for name, value in network.named_buffers():
                if name in before:
                    value.copy_(before[name])

    def _check_output(self, network: nn.Module, size: int, training: bool = False) -> None:
        """Raise UserError unless the network maps two images to what the target needs."""
        inputs, outputs = get_task(self.source).channels, get_task(self.target).channels
        mode = network.training
        network.train(training)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            output = self.run(network, torch.full((2, inputs, size, size), 0.5))
        network.train(mode)
        if output.shape[1] != outputs:
            raise UserError(
                f"`network` {self.code} gives {output.shape[1]} channels "
                f"for {self.target}, which has {outputs}"
            )

    def run(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the network's output (B, C, H, W) for images (B, C', H, W).

        Raises UserError if the network fails, or if its output is not a floating-point tensor
        with the batch size, height and width of the images.
        """
        given = f"images of shape {tuple(images.shape)}"
        try:
            output = network(images)
        except Exception as error:
            place = _place(error, self.code_file)
            raise UserError(f"`network` {self.code} fails on {given}: {place}") from error
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = f"{output.dtype} tensor" if isinstance(output, Tensor) else type(output).__name__
            raise UserError(
                f"`network` {self.code} has to return a tensor of floats for {given}, not a {kind}"
            )
        height, width = images.shape[2:]
        if output.dim() != 4 or output.shape[0] != len(images) or output.shape[2:] != (
            height, width
        ):  # fmt: skip
            raise UserError(
                f"`network` {self.code} has to map {given} to "
                f"({len(images)}, C, {height}, {width}), not to {tuple(output.shape)}"
            )
        return output

    def _check_weights(self, network: nn.Module) -> None:
        for name, value in network.state_dict().items():
            if not isinstance(value, Tensor) or value.is_complex() or value.is_quantized:
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise UserError(
                    f"`network` {self.code}: {name} in its state dict is a {kind}, "
                    f"and checkpoints hold only real numbers"
                )

    def multiple(self, network: nn.Module) -> int:
        """Return what the sides of images have to be multiples of: `network.multiple`, or 32.

        Raises UserError if `network.multiple` is not a whole number from 1 on.
        """
        multiple = getattr(network, "multiple", MULTIPLE)
        if type(multiple) is not int or multiple < 1:
            raise UserError(
                f"`network` {self.code}: `multiple` of the module is a whole number "
                f"from 1 on, not {multiple!r}"
            )
        return multiple


def backbone(text: str, row: Transfer) -> Backbone:
    """Run the file of FILE.py:FUNCTION and return the row with the network of that function.

    While the file runs, it can import modules from its own folder. Raises UserError if it
    cannot be run or has no such function.
    """
    file, _, function = text.rpartition(":")
    if not file or not function.isidentifier():
        raise UserError(f"`network` is FILE.py:FUNCTION (my_network.py:build), not {text}")
    source = _source(file)
    digest = hashlib.sha256(source).hexdigest()
    built_by = getattr(_executed(file, source, digest), function, None)
    if not callable(built_by):
        raise UserError(f"`network` {text}: {file} has no function {function}")
    return Backbone(
        row.source, row.target, built_by, row.downsample, row.file, row.trainable,
        code_file=file, function=function, sha256=digest,
    )  # fmt: skip


def _source(file: str) -> bytes:
    try:
        check_regular(file)
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise UserError(f"`network`: cannot read {file}: {reason_of(error)}") from None


def _executed(file: str, source: bytes, digest: str) -> ModuleType:
    """Run exactly this source as a module, which later calls and pickling can find."""
    path = Path(file).resolve()
    module = ModuleType(f"network_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.append(str(path.parent))  # last: files there must not hide this project's modules
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"`network` {file}: {_place(error, str(path))}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _place(error: BaseException, file: str) -> str:
    """Return where in the user's file an error arose, and what it says, in one line."""
    path = str(Path(file).resolve())
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    syntax = error.lineno if isinstance(error, SyntaxError) else None
    line = syntax or (lines[-1] if lines else None)
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"line {line}: {reason}" if line else reason


def _taken(function: Callable, keywords: Mapping, code: str) -> dict:
    """Return those of the keywords that the function takes.

    Raises UserError if it needs others.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # it is not written in Python
        return dict(keywords)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    various = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    known = {p.name for p in parameters if p.kind in named}
    for p in parameters:
        if p.default is p.empty and p.kind not in various and p.name not in known & set(keywords):
            raise UserError(
                f"`network` {code} needs an argument {p.name}, but is called with "
                f"{', '.join(keywords)}"
            )
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return {name: value for name, value in keywords.items() if takes_all or name in known}


# ---- records of checkpoints ---------------------------------------------------------


def recorded_code(record: Mapping) -> str:
    """Return FILE.py:FUNCTION of a checkpoint's record; "" for a network of the table.

    The result is one short line, whatever the record holds.
    """
    if "network_file" not in record:
        return ""
    code = f"{record['network_file']}:{record.get('network_function', '')}"
    return code if code.isprintable() and len(code) <= LONGEST else repr(code)[:LONGEST]


def check_code(path: str | Path, record: Mapping, transfer: Transfer | None) -> None:
    """Compare the record of the checkpoint `path` with the row that is to load it.

    Logs a warning if the user's file has changed since, or another function is named. Raises
    UserError if the checkpoint is of a user-defined network and the row is one of the table's.
    """
    code = recorded_code(record)
    if not code:
        return
    if not isinstance(transfer, Backbone):
        raise UserError(
            f"{path} holds the network that {code} builds, not the table's: name that file "
            f"with `network` {shlex.quote(code)} (code is only run from a file that you name)"
        )
    then = record.get("network_function"), record.get("network_sha256")
    if then != (transfer.function, transfer.sha256):
        log.warning(
            "%s (%s) is not the network that %s was trained with, %s (%.8s): it may compute "
            "something else", transfer.code, transfer.sha256[:8], path, code,
            then[1],
        )  # fmt: skip

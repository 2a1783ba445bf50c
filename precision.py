"""Numerical precision of the forward and backward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from utils import check_one_of

PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# float16 is excluded because small gradients would underflow.
TRAINING_PRECISIONS = ("fp32", "tf32", "bf16")


def check_precision(precision: str, known: Sequence[str] = tuple(PRECISIONS)) -> None:
    """Raise UserError for an unknown precision."""
    check_one_of("precision", precision, known)


@contextmanager
def numerical_precision(device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Numerical precision of the forward and backward pass, one of `PRECISIONS`.

    fp32 disables TensorFloat-32, to which cuDNN would otherwise round its inputs. bf16 and
    fp16 use autocast, which keeps weights, normalisation and sums in float32.
    """
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    previous = [backend.fp32_precision for backend in backends]
    dtype = PRECISIONS[precision]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            yield
    finally:
        for backend, value in zip(backends, previous, strict=True):
            backend.fp32_precision = value


@contextmanager
def forward_only(device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Inference mode (no gradients) at the given precision, one of `PRECISIONS`."""
    with torch.inference_mode(), numerical_precision(device, precision):
        yield

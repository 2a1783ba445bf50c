"""In which precision networks compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scripts.setting import one_of

PRECISIONS = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# In training, float16 would lose small gradients.
TRAINING_PRECISIONS = ("fp32", "tf32", "bf16")


def check_precision(precision: str, known: tuple[str, ...] = tuple(PRECISIONS)) -> None:
    """Raises UserError for an unknown precision."""
    one_of("--precision", precision, known)


@contextmanager
def arithmetic(device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Networks compute in that precision, one of `PRECISIONS`.

    fp32 is exact on every device: on a GPU cuDNN would otherwise round its inputs to
    TensorFloat-32. bf16 and fp16 keep weights, norms and sums in float32 (autocast). The
    faster ones are for those who ask.
    """
    backends = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    dtype = PRECISIONS[precision]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value

"""Networks for other programs: ONNX, `torch.export` archives and safetensors, described inside."""

import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from backbones import Backbone, backbone
from colouring import DEPTH_RANGE
from files import write_atomically
from measuring.prediction import loaded, side_multiple
from methods.table import recorded_row
from models import load_network
from sources import STEMS
from task_configs import get_task
from transfers import TRANSFERS, Scale, Transfer, transfer_by_name
from utils import UserError, log, nearest, reason_of

FORMATS = (".onnx", ".pt2", ".safetensors")
TOLERANCE = 1e-4  # between a written model's output and torch's
INPUT, OUTPUT, METADATA = "images", "prediction", "metadata.json"
LARGEST_SIDE = 8192

# What the values of a domain mean, v in [0, 1]; of all domains: docs/encodings.md
MEANINGS = {
    "rgb": "red, green, blue: 8-bit sRGB values / 255",
    "normal": "n = 2 v - 1, a vector: x to the right, y down, z away from the camera",
    "depth_zbuffer": f"{DEPTH_RANGE:g} v metres along the optical axis; 1 is that far or beyond",
    "reshading": "shading by one light at the camera, grey in three channels",
}
ELSEWHERE = "as docs/encodings.md says"

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Export:
    """A written model: its file, the description in it, and how it was checked.

    `difference` is the largest difference from torch's output, None if it was not compared. `run`
    is the written model and `network` the one it was made from, (B, C, H, W) → (B, C', H, W) on
    the CPU; a file of weights alone has no `run`. `example` is an input for both.
    """

    file: Path
    description: dict[str, str]
    difference: float | None
    network: nn.Module
    run: Run | None
    example: Tensor

    def seconds_per_image(self, repeats: int) -> tuple[float, float]:
        """Return the median seconds for an image in torch and in the written model, run in turns.

        Raises UserError for a file of weights alone.
        """
        if self.run is None:
            raise UserError(f"{self.file} holds only weights: there is no time to measure")
        runs: tuple[Run, Run] = (self.network, self.run)
        times: tuple[list[float], list[float]] = ([], [])
        with torch.no_grad():
            for number in range(repeats + 3):
                for run, taken in zip(runs, times, strict=True):
                    started = time.perf_counter()
                    run(self.example)
                    if number >= 3:  # the first ones are slower
                        taken.append(time.perf_counter() - started)
        return median(times[0]), median(times[1])


def export(
    checkpoint: str | Path,
    to: str | Path,
    *,
    transfer: str | None = None,
    network: str | None = None,
) -> Export:
    """Write a checkpoint's network as `to`: .onnx, .pt2 (`torch.export`) or .safetensors.

    `checkpoint` is a file, or a folder that holds one network (a run's). `transfer` names its
    row (rgb2normal) if the file's name does not. `network`, FILE.py:FUNCTION, builds a network
    of the user's own. Images are (B, C, H, W) float32 in [0, 1], B any number and H and W any
    multiple of what the network needs; if it can only be traced at one size, H and W are those of
    its training. The written model is read again and compared with torch before it gets its name.

    Raises UserError if the checkpoint, the format or the network does not allow it, or if the
    outputs differ by more than 1e-4.
    """
    to = Path(to)
    if to.suffix not in FORMATS:
        raise UserError(f"`to` ends in {', '.join(FORMATS[:2])} or {FORMATS[2]}, not {to.name!r}")
    if to.suffix == ".onnx":
        _check_onnx()
    file, row = find_network(Path(checkpoint), transfer)
    row = backbone(network, row) if network else recorded_row(file, row)
    made, scale = loaded(file, row)
    made.eval().requires_grad_(False)
    example = _images(row, 1, scale.image_size, scale.image_size)
    if to.suffix == ".safetensors":
        description = _description(row, made, scale, file, "")
        gap = _write_weights(to, made, row, scale, description, example)
        return Export(to, description, gap, made, None, example)
    program, tried, sizes = _traced(made, row, scale)
    description = _description(row, made, scale, file, sizes)
    write: Callable[..., tuple[float | None, Run | None]]
    write = _write_onnx if to.suffix == ".onnx" else _write_pt2
    difference, run = write(to, program, description, made, [example, tried])
    return Export(to, description, difference, made, run, example)


# ---- which network ------------------------------------------------------------------


def find_network(checkpoint: Path, transfer: str | None = None) -> tuple[Path, Transfer]:
    """Return the file of a network, and its row of the table.

    Raises UserError if a folder holds none or several, or if the row is not known.
    """
    row = transfer_by_name(transfer) if transfer else None
    if transfer and not (row and row.trainable):
        names = [other.name for other in TRANSFERS.values() if other.trainable]
        raise UserError(f"no `transfer` {transfer}{nearest(transfer, names)}")
    if not checkpoint.is_dir():
        row = row or _row_named(checkpoint)
        if row is None:
            raise UserError(
                f"the name of {checkpoint} is none of the table's: say with `transfer` which "
                f"network it is (rgb2normal, …)"
            )
        return checkpoint, row
    files = [
        file
        for file in sorted(checkpoint.iterdir())
        if file.suffix in (".pth", ".safetensors") and not file.stem.endswith("_best")
    ]
    found = [(file, known) for file in files if (known := _row_named(file))
             and (row is None or known == row)]  # fmt: skip
    if len(found) != 1:
        several = ", ".join(file.name for file, _ in found[:5])
        kind = f"several networks ({several}): name one" if found else "no network by its name"
        raise UserError(f"{checkpoint} holds {kind}")
    return found[0]


def _row_named(file: Path) -> Transfer | None:
    """Return the row of a checkpoint's name: rgb2normal_consistency.pth is rgb → normal."""
    rows: dict[str, Transfer] = {}
    for row in TRANSFERS.values():
        if row.trainable:
            stems = STEMS.get(row.target, ()) if row.source == "rgb" else ()
            rows |= dict.fromkeys((row.name, Path(row.checkpoint).stem, *stems), row)
    fitting = [s for s in rows if file.stem == s or file.stem.startswith(f"{s}_")]
    return rows[max(fitting, key=len)] if fitting else None


# ---- description --------------------------------------------------------------------


def _description(
    row: Transfer, network: nn.Module, scale: Scale, file: Path, sizes: str
) -> dict[str, str]:
    """Return the description to store in a written model. For weights alone, `sizes` is ""."""
    inputs, outputs = get_task(row.source), get_task(row.target)
    code = row.record() if isinstance(row, Backbone) else {}
    return {
        "task": row.name,
        "input": f"{INPUT}, float32 (B, {inputs.channels}, H, W), from 0 to 1",
        "input_channels": MEANINGS.get(row.source, f"{row.source}, {ELSEWHERE}"),
        "input_size": sizes or f"trained at {scale.image_size} x {scale.image_size}",
        "normalisation": "none",
        "output": f"{OUTPUT}, float32 (B, {outputs.channels}, H, W), to be cut to 0 … 1",
        "output_channels": MEANINGS.get(row.target, f"{row.target}, {ELSEWHERE}"),
        "checkpoint": file.name,
        "network": type(network).__name__,
        "torch": torch.__version__,
        **{key: str(value) for key, value in {**scale.record(), **code}.items()},
    }


# ---- tracing ------------------------------------------------------------------------


def _images(row: Transfer, count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    channels = get_task(row.source).channels
    return torch.rand(count, channels, height, width, generator=generator)


def _traced(network: nn.Module, row: Transfer, scale: Scale) -> tuple[ExportedProgram, Tensor, str]:
    """Return the network as a graph, images to try it on, and which sizes it takes.

    The size of the batch is free, and that of images if the network allows it. A free size
    is at least two steps, because torch.export allows no such dimension to be 1.
    """
    step, size = side_multiple(row, network, scale), scale.image_size
    batch, most = Dim("batch", min=1), LARGEST_SIDE // step
    shapes: dict[int, Any] = {0: batch}
    attempts = [(shapes, _images(row, 2, size, size), _images(row, 3, size, size),
                 f"H = W = {size}")]  # fmt: skip
    if size % step == 0 and 2 * step <= size:
        height, width = Dim("h", min=2, max=most), Dim("w", min=2, max=most)
        attempts.insert(0, (
            {0: batch, 2: step * height, 3: step * width},
            _images(row, 2, size, size + step), _images(row, 3, 2 * step, 3 * step),
            f"H and W are multiples of {step} from {2 * step} to {most * step}; trained at "
            f"{size} x {size}",
        ))  # fmt: skip
    for shapes, images, others, sizes in attempts:
        try:
            if isinstance(row, Backbone):
                row.run(network, others)
            program = torch.export.export(network, (images,), dynamic_shapes=(shapes,))
            _compared(program.module(), network, [others])
        except Exception as error:  # it runs the user's code
            log.debug("%s: %s", sizes, error)
            failed = error
        else:
            return program, others, sizes
    raise UserError(
        f"torch.export cannot trace {row.name} by {type(network).__name__}: {reason_of(failed)}"
    )


def _compared(run: Run, network: nn.Module, batches: list[Tensor]) -> float:
    """Return the largest difference of two networks' outputs.

    Raises UserError if it is more than TOLERANCE, or not a number.
    """
    with torch.no_grad():
        gaps = [(run(images) - network(images)).abs().max() for images in batches]
    largest = float(torch.stack(gaps).max())
    if not largest <= TOLERANCE:
        raise UserError(
            f"the exported model differs from torch by {largest:.2g}, more than {TOLERANCE:g}"
        )
    return largest


# ---- formats ------------------------------------------------------------------------


def _write_pt2(
    path: Path, program: ExportedProgram, description: dict[str, str], network: nn.Module,
    batches: list[Tensor],
) -> tuple[float, Run]:  # fmt: skip
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(description)})
    buffer.seek(0)
    run = torch.export.load(buffer).module()
    difference = _compared(run, network, batches)
    write_atomically(path, lambda name: name.write_bytes(buffer.getvalue()))
    return difference, run


def _check_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"`to` .onnx needs the package{'s' * (len(missing) > 1)} {' and '.join(missing)}: "
            f"pip install onnx onnxscript onnxruntime"
        )


def _write_onnx(
    path: Path, program: ExportedProgram, description: dict[str, str], network: nn.Module,
    batches: list[Tensor],
) -> tuple[float | None, Run | None]:  # fmt: skip
    import onnx

    written = torch.onnx.export(
        program, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
    )
    assert written is not None  # without a file name, it is returned
    model = written.model_proto
    _name_sides(model)
    onnx.helper.set_model_props(model, description)
    data = model.SerializeToString()
    difference, run = None, None
    if find_spec("onnxruntime") is None:
        log.warning("%s was not compared with torch: onnxruntime is not installed", path)
    else:
        run = _in_onnxruntime(data)
        difference = _compared(run, network, batches)
    write_atomically(path, lambda name: name.write_bytes(data))
    return difference, run


def _name_sides(model: Any) -> None:
    """Call the free sides of an ONNX model batch, h and w, which the exporter numbers (s77, …)."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    texts = [side.dim_param for side in model.graph.input[0].type.tensor_type.shape.dim]
    found = [re.search(r"s\d+", text) for text in texts]
    names = ("batch", "", "h", "w")
    symbols = {f[0]: name for f, name in zip(found, names, strict=True) if f}
    for value in values:
        for side in value.type.tensor_type.shape.dim:
            if side.HasField("dim_param"):
                side.dim_param = re.sub(
                    r"s\d+", lambda match: symbols.get(match[0], match[0]), side.dim_param
                )


def _in_onnxruntime(model: bytes) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # by default, it takes every core
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _write_weights(
    path: Path, network: nn.Module, row: Transfer, scale: Scale, description: dict[str, str],
    example: Tensor,
) -> float:  # fmt: skip
    weights = {n: value.clone().contiguous() for n, value in network.state_dict().items()}
    data = safetensors_bytes(weights, description)
    differences = []

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)
        again = row.build(scale).eval()
        load_network(again, temporary, scale, transfer=row)
        differences.append(_compared(again, network, [example]))

    write_atomically(path, write)
    return differences[0]

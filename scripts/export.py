"""Write a network for other programs: ONNX, a torch.export archive, or safetensors.

python -m scripts.export assets/demo_models/rgb2normal_consistency.pth --to results/normal.pt2
"""

from flags import command_line
from measuring.exporting import export
from utils import check_positive


def main(
    checkpoint: str,
    *,
    to: str,
    transfer: str | None = None,
    network: str | None = None,
    time: int | None = None,
) -> None:
    """Write a network for other programs, and compare what was written with torch.

    Example: python -m scripts.export results/RUN --to normal.onnx

    Batches may have any size, and images too, where the network allows it. What goes in and
    comes out is described in the file's metadata (docs/export.md).

    Args:
        checkpoint: a checkpoint's file, or the folder of a run.
        to: the file to write: .onnx (needs onnx and onnxscript), .pt2 (torch.export) or
            .safetensors (weights alone).
        transfer: which network of the table it is (rgb2normal, …) if the file's name does not
            say so.
        network: FILE.py:FUNCTION, for checkpoints that were trained with `train --network`.
        time: measure the time for an image that many times, in torch and in the written model.
    """
    check_positive(time=time)
    written = export(checkpoint, to, transfer=transfer, network=network)
    size = written.file.stat().st_size / 1e6
    print(f"{written.file}: {written.description['task']}, {size:.2f} MB")
    for name in ("input", "input_size", "output"):
        print(f"{name:<12} {written.description[name]}")
    if written.difference is not None:
        print(f"checked      differs from torch by at most {written.difference:.1e}")
    if time:
        torch_time, own_time = written.seconds_per_image(time)
        shape = " x ".join(map(str, written.example.shape[2:]))
        print(
            f"an image     {1000 * torch_time:.1f} ms in torch, {1000 * own_time:.1f} ms here "
            f"({shape}, CPU, median of {time})"
        )


if __name__ == "__main__":
    command_line(main)

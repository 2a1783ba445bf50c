"""Benchmark of training on the embedded rooms, in every mode of the training step."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarking.step import Setup
from tables import Row
from utils import ROOT, UserError

STEPS, EPOCHS = 20, 4
EVERY = 4  # value of --balance-every in the mode that uses it

MODES = {
    "fp32": [],
    "fp32, channels last": ["--channels-last"],
    "fp32, compile": ["--compile"],
    "fp32, activations recomputed": ["--checkpoint-activations"],
    "fp32, labels not cached": ["--cache-labels", "0"],
    f"fp32, gradients measured every {EVERY} steps": ["--balance-every", str(EVERY)],
    "tf32": ["--precision", "tf32"],
    "bf16": ["--precision", "bf16"],
    "bf16, channels last, compile": ["--precision", "bf16", "--channels-last", "--compile"],
}


def modes_table(setup: Setup) -> list[Row]:
    """Run the same training in every mode and compare the loss curves with those of fp32.

    Training starts from the shipped networks at their scale, on rooms, with the same random
    choices of 2 perceptual losses. tf32 runs on GPUs only. "Apart" is the largest relative
    difference between points of two curves. One is the training loss, averaged over the
    `STEPS` steps of an epoch; the other is the validation error.
    """
    rows: list[Row] = [
        ("mode", "s/step", "of it waiting for data", "training loss at the end", "apart",
         "validation error at the end", "apart"),
    ]  # fmt: skip
    reference = None
    for name, flags in MODES.items():
        if name == "tf32" and setup.device.type != "cuda":
            continue
        result = trained(setup.config, flags, EPOCHS, STEPS)
        reference = reference or result
        rows.append(
            (name, f"{result['seconds']:.3g}", f"{result['waiting']:.1%}",
             f"{result['loss'][-1]:.5f}", apart(result["loss"], reference["loss"]),
             f"{result['error'][-1]:.5f}", apart(result["error"], reference["error"]))
        )  # fmt: skip
    return rows


def trained(config: str, flags: Sequence[str], epochs: int, steps: int) -> dict:
    """Train and read the log: curves, and seconds per step after the first epoch.

    Returns {"loss", "error": curves by epoch, "seconds": of a step, "waiting": the share of them
    spent waiting for data}. Raises UserError if the run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "train", config, "--k", "2", "--random-select",
            "--steps-per-epoch", str(steps), "--max-epochs", str(epochs), "--quiet",
            "--results-dir", folder, "--visdom-server", "none", *flags,
        ]  # fmt: skip
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if run.returncode:
            raise UserError(f"{' '.join(command[1:])} failed: {run.stderr.strip()[-300:]}")
        (log,) = Path(folder).glob("*/log.jsonl")
        records = [json.loads(line) for line in log.read_text().splitlines()]
    direct = next(k for r in records if r.get("split") == "val" for k in r if k.startswith("mae"))
    times = [r for r in records if "seconds" in r][1:]  # the first epoch includes compilation
    seconds = sum(r["seconds"] for r in times)
    return {
        "loss": [r["loss"] for r in records if r.get("split") == "train"],
        "error": [r[direct] for r in records if r.get("split") == "val"],
        "seconds": seconds / len(times) / steps,
        "waiting": sum(r["seconds waiting for data"] for r in times) / seconds,
    }


def apart(curve: Sequence[float], other: Sequence[float]) -> str:
    """Return the largest relative difference between two curves."""
    return f"{max(abs(a - b) / abs(b) for a, b in zip(curve, other, strict=True)):.1e}"

"""The benchmark's part that trains: every mode of the step beside fp32, on the embedded rooms."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.benchmarking.step import Setup
from tables import Row
from utils import ROOT, UserError

STEPS, EPOCHS = 20, 4
EVERY = 4  # steps between two measurements of the gradients' sizes, where not at each

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
    """The same run of training in every mode: its loss curves beside those of fp32.

    From the shipped networks at their scale, on rooms, 2 perceptual losses of the same
    random choice. tf32 is a GPU's alone. "Apart" are the largest relative differences of
    a point of the curves: the training loss, a point the mean of 20 steps, and the
    validation error.
    """
    rows: list[Row] = [
        ("mode", "s/step", "of it waiting for data", "training loss at the end", "apart",
         "validation error at the end", "apart"),
    ]  # fmt: skip
    first = None
    for name, flags in MODES.items():
        if name == "tf32" and setup.device.type != "cuda":
            continue
        found = _trained(setup, flags)
        first = first or found
        rows.append(
            (name, f"{found['seconds']:.3g}", f"{found['waiting']:.1%}",
             f"{found['loss'][-1]:.5f}", _apart(found["loss"], first["loss"]),
             f"{found['error'][-1]:.5f}", _apart(found["error"], first["error"]))
        )  # fmt: skip
    return rows


def _trained(setup: Setup, flags: list[str]) -> dict:
    """What the log of a run holds: curves, and seconds a step after the first epoch."""
    with tempfile.TemporaryDirectory() as place:
        command = [
            sys.executable, "-m", "train", setup.config, "--k", "2", "--random-select",
            "--steps-per-epoch", str(STEPS), "--max-epochs", str(EPOCHS), "--quiet",
            "--results-dir", place, "--visdom-port", "9", *flags,
        ]  # fmt: skip
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if run.returncode:
            raise UserError(f"{' '.join(command[1:])} failed: {run.stderr.strip()[-300:]}")
        (log,) = Path(place).glob("*/log.jsonl")
        records = [json.loads(line) for line in log.read_text().splitlines()]
    direct = next(k for r in records if r.get("split") == "val" for k in r if k.startswith("mae"))
    times = [r for r in records if "seconds" in r][1:]  # compiling falls into the first
    seconds = sum(r["seconds"] for r in times)
    return {
        "loss": [r["loss"] for r in records if r.get("split") == "train"],
        "error": [r[direct] for r in records if r.get("split") == "val"],
        "seconds": seconds / len(times) / STEPS,
        "waiting": sum(r["seconds waiting for data"] for r in times) / seconds,
    }


def _apart(curve: list[float], other: list[float]) -> str:
    return f"{max(abs(a - b) / abs(b) for a, b in zip(curve, other, strict=True)):.1e}"

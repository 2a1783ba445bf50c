"""The report on a GPU: whether everything runs there."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from scripts.benchmarking.gpu_settings import (
    SKIPPED,
    Cell,
    Settings,
    networks,
    rooms,
)
from sources import SHIPPED
from utils import ROOT, UserError

TESTS, SMALL, FULL_SIZE, RESUMED, PARALLEL, TORCHRUN = (
    "tests marked gpu", "training, small networks", "training, published networks",
    "the latter resumed", "DataParallel", "torchrun",
)  # fmt: skip


def cells(settings: Settings) -> Iterator[Cell]:
    """The tests that need a GPU; the main job, resumed, and on all cards."""
    yield TESTS, partial(run_tests, settings)
    yield SMALL, partial(train, settings, SMALL)
    yield FULL_SIZE, partial(train, settings, FULL_SIZE)
    yield RESUMED, partial(resume, settings)
    yield PARALLEL, partial(on_all_cards, settings, PARALLEL)
    yield TORCHRUN, partial(on_all_cards, settings, TORCHRUN)


def run_tests(settings: Settings) -> dict:
    """Run the tests marked `gpu`, from the files that have some."""
    files = [f for f in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in f.read_text()]
    if not files:
        return {SKIPPED: "there are none"}
    arguments = ["pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    began = time.monotonic()
    output = _run([sys.executable, "-m", *arguments], os.environ)
    summary = re.findall(r"^=* ?(\d+ (?:passed|failed|skipped|deselected).*?)(?: in .*)?$", output,
                         re.M)  # fmt: skip
    return {"said": summary[-1] if summary else "nothing", "seconds": time.monotonic() - began}


def train(
    settings: Settings, name: str, launcher: tuple[str, ...] = (), **environment: str | None
) -> dict:
    """Train the main job in a new folder. Raises UserError if that fails."""
    folder = _folder(settings, name)
    shutil.rmtree(folder, ignore_errors=True)
    sizes = settings.sizes
    small = ["--models-dir", str(SHIPPED), "--no-imagenet"]
    flags = small if name == SMALL else ["--models-dir", str(networks(settings))]
    return _trained(
        [*launcher, "-m", "train", sizes.config, "--k", str(sizes.counts[0]), "--random-select",
         *flags, "--data-dirs", str(rooms(settings)), "--batch-size", str(sizes.small_batch),
         "--steps-per-epoch", str(sizes.steps), "--max-epochs", str(sizes.epochs),
         "--results-dir", str(folder), "--visdom-server", "none", "--quiet"],
        folder, sizes.epochs * sizes.steps, environment,
    )  # fmt: skip


def resume(settings: Settings) -> dict:
    """Resume the run with published networks, for one more epoch."""
    folder, sizes = _folder(settings, FULL_SIZE), settings.sizes
    runs = list(folder.glob("*/run.json"))
    if not runs:
        raise UserError("there is no run to resume")
    more = sizes.epochs + 1
    command = ["-m", "train", "--resume", str(runs[0].parent), "--max-epochs", str(more)]
    return _trained(command, folder, more * sizes.steps, {})


def on_all_cards(settings: Settings, name: str) -> dict:
    """Train on all cards: by one process, or by one for each card."""
    if name == PARALLEL and settings.cards < 2:
        return {SKIPPED: "there are no two cards"}
    count, launcher = max(1, settings.cards), tuple[str, ...]()
    if name == TORCHRUN:
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
    figures = train(settings, name, launcher, CUDA_VISIBLE_DEVICES=settings.visible)
    kinds = "cards" if name == PARALLEL else "process" if count == 1 else "processes"
    return figures | {"said": f"{figures['said']}, {count} {kinds}"}


def _folder(settings: Settings, name: str) -> Path:
    return settings.folder / "made" / "runs" / re.sub(r"\W+", "_", name)


def _trained(
    arguments: list[str], folder: Path, steps: int, environment: Mapping[str, str | None]
) -> dict:
    """Run a training command, and check by its log that it took the steps."""
    changed = {name: value for name, value in {**os.environ, **environment}.items() if value}
    began = time.monotonic()
    _run([sys.executable, *arguments], changed)
    seconds = time.monotonic() - began
    (log,) = folder.glob("*/log.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    last = [record for record in records if record.get("split") == "train"][-1]
    if last["step"] != steps or not math.isfinite(last["loss"]):
        raise UserError(f"the last step is {last['step']} of {steps}, its loss {last['loss']}")
    return {"said": f"{steps} steps, loss {last['loss']:.4g}", "seconds": seconds}


def _run(command: list[str], environment: Mapping[str, str]) -> str:
    """Return what a command prints. Raises UserError, with the end of it, if the command fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, errors="replace"
    )
    output = (done.stdout + done.stderr).strip()
    if done.returncode:
        last = " / ".join(output.splitlines()[-3:])[-400:]
        raise UserError(f"status {done.returncode}: {last}")
    return output

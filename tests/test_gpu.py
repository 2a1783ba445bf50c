"""What needs a GPU: the same values as on the CPU, every mode, stopping and going on."""

import copy
import json

import pytest
import torch

from consistency import Energy, predict
from scripts.benchmarking.gpu_step import captured
from scripts.benchmarking.step import Setup, build, own_step, random_batch
from transfers import Scale

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
CUDA = torch.device("cuda")
LOSSES = ["percep_curv", "percep_edge"]


def setup(device, **options) -> Setup:
    return Setup("multiperceptual_normal", Scale(64, 8, 2), 2, device, 1, **options)


def gradient(step, batch) -> torch.Tensor:
    step(batch, LOSSES)
    return torch.cat([p.grad.cpu().double().reshape(-1) for p in step.parameters])


def test_gradients_are_those_of_the_cpu():
    """In float64, as rounding in float32 alone changes those of untrained networks."""
    found = []
    for device in (torch.device("cpu"), CUDA):
        batch = random_batch(setup(device))
        for name, value in batch.items():
            batch[name] = value.double()
        found.append(gradient(own_step(setup(device), build(setup(device)).double()), batch))
    on_cpu, on_gpu = found
    assert float((on_gpu - on_cpu).norm() / on_cpu.norm()) < 1e-9


def test_a_recorded_step_is_the_usual_one():
    """Three steps before the recording, and two replays of it, as a CUDA graph."""
    usual = own_step(setup(CUDA), build(setup(CUDA)))
    recorded = own_step(setup(CUDA), copy.deepcopy(build(setup(CUDA))))
    batch = random_batch(setup(CUDA))
    replay = captured(recorded, batch, LOSSES)
    for _ in range(2):
        replay()
    for _ in range(5):
        usual(batch, LOSSES)
    for ours, theirs in zip(recorded.parameters, usual.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ["--precision=fp32"],
        ["--precision=tf32"],
        ["--precision=bf16", "--channels-last"],
        ["--precision=bf16", "--checkpoint-activations"],
        ["--precision=bf16", "--compile"],
        ["--cache-labels=1"],
        ["--num-workers=2"],
    ],
)
def test_every_mode_trains_and_goes_on(run, flags):
    start = ("example_normal", "--k=1", "--steps-per-epoch=2", *flags)
    status, output, results = run(*start)
    assert status == 0, output
    (folder,) = results.glob("*/")
    status, output, _ = run(f"--resume={folder}", "--max-epochs=2", defaults=False)
    assert status == 0, output
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r.get("split") == "train"][-1] == 4
    assert json.loads((folder / "run.json").read_text())["device"] == "cuda"


def test_predictions_and_energies_are_those_of_the_cpu():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    on_gpu = predict(images, "normal", device="cuda").cpu()
    torch.testing.assert_close(on_gpu, predict(images, "normal", device="cpu"), rtol=0, atol=1e-3)
    energies = [Energy().to(device)(images.to(device)).cpu() for device in ("cpu", CUDA)]
    torch.testing.assert_close(energies[1], energies[0], rtol=1e-3, atol=1e-3)

"""The benchmark at a size that says nothing about speed: what it writes, and that it compares."""

import re
from dataclasses import replace

import pytest
import torch

from scripts import benchmark
from scripts.benchmarking import data as benchmark_data
from scripts.benchmarking import floor as benchmark_floor
from scripts.benchmarking import modes as benchmark_modes
from scripts.benchmarking import step as benchmark_step
from scripts.benchmarking.step import Setup
from transfers import Scale
from utils import UserError

SETUP = Setup("multiperceptual_normal", Scale(32, 8, 2), 2, torch.device("cpu"), 1)


@pytest.fixture
def small(tmp_path):
    def run(**flags) -> str:
        target = tmp_path / "benchmarks.md"
        benchmark.main(image_size=32, width=8, levels=2, batch_size=2, repeats=1,
                       threads=torch.get_num_threads(), output=str(target), **flags)  # fmt: skip
        return target.read_text()

    return run


@pytest.mark.slow
def test_step_beside_the_published_schedule(small, capsys):
    text = small(parts=["step", "cost"])
    assert "multiperceptual_normal" in text and "torch" in text
    rows = [line.split("|")[1:-1] for line in text.splitlines() if re.match(r"\| \d", line)]
    step, cost = rows[:2], rows[2:]
    assert [row[0].strip() for row in step] == ["8", "2"]
    assert all(0 < float(row[-2]) < 1e-4 and float(row[-1]) < 1e-12 for row in step)
    assert [(int(k), int(batch)) for k, batch, *_ in cost] == [
        (0, 2), (1, 2), (2, 2), (4, 2), (8, 2), (2, 2), (2, 4), (2, 8),
    ]  # fmt: skip
    assert "times faster" in capsys.readouterr().out


@pytest.mark.slow
def test_both_steps_beside_the_floor_of_their_operations():
    head, *rows = benchmark_floor.floor_table(SETUP)
    assert [row[:2] for row in rows] == [
        ("8", "published"), ("8", "ours"), ("2", "published"), ("2", "ours"),
    ]  # fmt: skip
    values = [dict(zip(head, row, strict=True)) for row in rows]
    for published, ours in zip(values[::2], values[1::2], strict=True):
        assert float(ours["gradients in float64 differ by"]) < 1e-12
        for count in ("TFLOP", "GB"):  # counted, not measured
            assert 0 < float(ours[count]) < float(published[count]) / 2
    for row in values:  # each operation is bound by one of the two
        parts = float(row["s at the product's rate"]), float(row["s at the copy's rate"])
        assert max(parts) * 0.99 <= float(row["floor, s"]) <= sum(parts) * 1.01


def test_a_part_measured_again_replaces_its_own_section(small, tmp_path):
    (tmp_path / "benchmarks.md").write_text("# Benchmarks\n\nWords.\n\n## cuda, bf16\n\nkept\n")
    small(parts=["speed"])
    text = small(parts=["forward"])
    assert text.count("## ") == 2 and "kept" in text and "Words." in text
    assert "Forward only" in text and "Share of the device" not in text


def test_gradients_that_differ_are_refused(monkeypatch):
    wrong = benchmark_step.PublishedStep.__call__
    monkeypatch.setattr(
        benchmark_step.PublishedStep,
        "__call__",
        lambda *args: [g * 1.001 for g in wrong(*args)],
    )
    with pytest.raises(UserError, match="the two steps' gradients differ by 1.0e-03"):
        benchmark_step.step_table(SETUP)


@pytest.mark.slow
def test_memory_is_of_a_process_of_its_own():
    """What this process holds does not count, however much a process weighs on this machine."""
    setup = replace(SETUP, config="example_normal_direct")
    peak, before = benchmark_step.memory_of(setup, "ours")
    assert 0 < before <= peak
    filled = torch.ones(2**28)  # 1 GiB
    again, _ = benchmark_step.memory_of(setup, "ours")
    assert again - peak < filled.numel() * filled.element_size() / 2**20 / 2


@pytest.mark.slow
def test_memory_of_both_ways():
    head, *rows = benchmark_step.memory_table(SETUP)
    assert [row[0] for row in rows] == ["published", "ours"] and len(head) == 3
    assert all(0 < float(before) <= float(peak) for _, peak, before in rows)


@pytest.mark.parametrize(
    "flags,sentence",
    [({"parts": ["stop"]}, "`parts` are step"), ({"precision": "fp8"}, "`precision` is fp32")],
)
def test_mistakes_are_named(small, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        small(**flags)


@pytest.mark.slow
def test_loader_compares_what_is_loaded(monkeypatch):
    pytest.importorskip("webdataset")
    _, *rows = benchmark_data.loader_table(SETUP)
    assert [row[0].split(",")[0] for row in rows] == ["published", "files", "shards", "pack"]
    original = benchmark_data._transformed
    monkeypatch.setattr(benchmark_data, "_transformed", lambda *a: original(*a) + 1e-3)
    with pytest.raises(UserError, match="differs from what the published way gives"):
        benchmark_data.loader_table(SETUP)


@pytest.mark.slow
def test_every_mode_trains(monkeypatch):
    monkeypatch.setattr(benchmark_modes, "STEPS", 2)
    monkeypatch.setattr(benchmark_modes, "EPOCHS", 2)
    head, *rows = benchmark_modes.modes_table(SETUP)
    apart = {row[0]: (float(row[4]), float(row[6])) for row in rows}
    assert apart["fp32"] == (0, 0)
    assert max(apart["fp32, labels cached"]) == 0
    for name, both in apart.items():
        assert max(both) < (0.1 if "bf16" in name else 1e-2), name

"""The report on a GPU, on the CPU with tiny settings: that it works, not how fast anything is."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from scripts import gpu_report
from scripts.benchmarking.gpu_document import document
from scripts.benchmarking.gpu_settings import FULL, Settings, measure, read_results
from scripts.benchmarking.gpu_step import (
    CAPTURED,
    COMPILED,
    FASTEST,
    OWN,
    PUBLISHED,
    YARDSTICK,
    step_name,
)
from utils import ROOT, UserError

ABOUT = {
    "device": "NVIDIA X", "cards": 1, "driver": "580", "torch": "2.11", "python": "3.12",
    "date": "2026-11-21", "command": "python -m scripts.gpu_report", "tiny": False,
}  # fmt: skip


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(tmp_path, torch.device("cpu"), tiny=True)


def rows_of(text: str, section: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    (body,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    lines = [line for line in body.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]


def test_what_ships_was_written_without_results(tmp_path):
    """Every cell that needs a GPU reads "not measured"."""
    target = tmp_path / "gpu.md"
    gpu_report.main(report_only=True, output_dir=str(tmp_path / "none"), report=str(target))
    text = target.read_text(encoding="utf-8")
    shipped = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    if "Nothing has been measured yet" in shipped:
        assert text == shipped
    for section, labels in {
        "Goals": 1, "Does it run?": 1, "The training step": 3, "Share of the card's rates": 2,
        "Time by class of layers": 3, "The first losses in every mode": 1, "Data": 1,
        "Demo and energy": 2,
    }.items():  # fmt: skip
        for row in rows_of(text, section):
            assert set(row[labels:]) == {"not measured"}, row
    assert not (tmp_path / "gpu_losses.png").exists()


def test_a_part_is_measured_stored_and_not_repeated(settings, capsys, tmp_path):
    """A cell of the step and one of the limits, with the tiny networks."""
    wanted = [step_name("fp32", 1, 2)]
    cells = [cell for cell in gpu_report.step_cells(settings) if cell[0] in wanted]
    measure("step", iter(cells), settings, 60)
    (limit,) = [c for c in gpu_report.limit_cells(settings) if c[0] == step_name("fp32", 1, 2)]
    measure("limits", iter([limit]), settings, 60)
    found = read_results(tmp_path, "step")["cells"]
    assert list(found) == wanted
    assert 0 < found[wanted[0]]["smallest"] <= found[wanted[0]]["seconds"]
    limits = read_results(tmp_path, "limits")["cells"][limit[0]]
    classes = limits["classes"]
    assert sum(c["flops"] for c in classes.values()) == limits["flops"] > 0
    assert classes["convolution"]["flops"] == limits["flops"]
    assert all(c["bytes"] > 0 and c["allowed"] > 0 and c["seconds"] > 0 for c in classes.values())
    before = (tmp_path / "step.json").read_text()
    capsys.readouterr()
    measure("step", iter([(name, lambda: pytest.fail()) for name in wanted]), settings, 60)
    assert capsys.readouterr().out == "" and (tmp_path / "step.json").read_text() == before
    gpu_report.write_report(tmp_path, tmp_path / "gpu.md")
    text = (tmp_path / "gpu.md").read_text()
    assert "No GPU: settings for a check only" in text
    assert {row[-1] for row in rows_of(text, "Goals")} == {"not measured"}
    row = next(r for r in rows_of(text, "The training step") if r[:3] == ["1", "2", "fp32"])
    assert float(row[3].split()[0]) > 0


def test_a_cell_without_memory_is_said_and_the_next_is_measured(settings, tmp_path):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    def broken():
        raise RuntimeError("CUDA error: misaligned | address\nmore")

    first, second, third = (step_name(way, 1, 2) for way in (YARDSTICK, "fp32", "bf16"))
    good = {"seconds": 2.0, "smallest": 1.0, "largest": 3.0, "first": 4.0, "peak": 2**30}
    measure("step", iter([(first, full), (second, broken), (third, lambda: good)]), settings, 9)
    gpu_report.write_report(tmp_path, tmp_path / "gpu.md")
    rows = {row[2]: row for row in rows_of((tmp_path / "gpu.md").read_text(), "The training step")
            if row[0] == "1"}  # fmt: skip
    assert rows[YARDSTICK][3] == "out of memory"
    assert rows["fp32"][3] == "failed: CUDA error: misaligned / address"
    assert rows["bf16"][3:] == ["2 (1 … 3)", "not measured", "4", "1.0"]


def test_no_cell_begins_when_the_time_is_over(settings, tmp_path):
    measure("step", iter([("a", dict), ("b", lambda: pytest.fail())]), settings, -1)
    assert read_results(tmp_path, "step")["cells"] == {}


def goals_for(fastest: dict[str, float], allowed: float) -> list[list[str]]:
    batch = FULL.batches[0]
    results = {part: {"about": ABOUT, "cells": {}} for part in gpu_report.PARTS}
    for k in FULL.counts:
        for way, seconds in fastest.items():
            part = "compiled" if way in COMPILED else "graphs" if way in CAPTURED else "step"
            results[part]["cells"][step_name(way, k, batch)] = {
                "seconds": seconds, "smallest": seconds, "largest": seconds, "first": 1.0,
                "peak": None,
            }  # fmt: skip
        part = {"flops": 1.0, "bytes": 1.0, "allowed": allowed / 4, "seconds": 1.0}
        results["limits"]["cells"][step_name(FASTEST, k, batch)] = {
            "seconds": 1.0, "flops": 1.0, "bytes": 1.0, "flops rate": 1.0, "bytes rate": 1.0,
            "classes": dict.fromkeys(("convolution", "GroupNorm", "upsampling", "rest"), part),
        }  # fmt: skip
    return rows_of(document(results), "Goals")


def test_goals_are_judged_by_the_fastest_way():
    compiled = next(iter(COMPILED))
    rows = goals_for({YARDSTICK: 10.0, "fp32": 2.0, compiled: 1.0}, allowed=0.6)
    assert [row[1:] for row in rows] == [
        [f"10.0 times: {compiled}", "not reached"],  # of 20 at k = 2
        [f"10.0 times: {compiled}", "reached"],  # of 8 at k = 8
        [f"60%: {FASTEST}", "reached"],
        [f"60%: {FASTEST}", "reached"],
    ]
    rows = goals_for({"fp32": 2.0}, allowed=0.4)
    assert [row[2] for row in rows] == ["not measured"] * 2 + ["not reached"] * 2


def test_curves_are_compared_and_drawn(tmp_path):
    cells = {name: {"loss": [2.0, 1.0], "direct": [1.0, 0.5]} for name in OWN}
    cells["bf16"] = {"loss": [2.0, 1.5], "direct": [1.0, None]}
    content = {"about": ABOUT, "cells": cells}
    (tmp_path / "curves.json").write_text(json.dumps(content))
    gpu_report.write_report(tmp_path, tmp_path / "gpu.md")
    text = (tmp_path / "gpu.md").read_text()
    assert "![the losses of every mode](gpu_losses.png)" in text and "NVIDIA X, driver 580" in text
    assert (tmp_path / "gpu_losses.png").read_bytes().startswith(b"\x89PNG")
    rows = {row[0]: row[1:] for row in rows_of(text, "The first losses in every mode")}
    assert rows["tf32"] == ["1.00000", "0.0e+00", "0.50000", "0.0e+00"]
    assert rows["bf16"] == ["1.50000", "5.0e-01", "not finite", "not finite"]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"parts": ["steps"], "tiny": True}, "`parts` are runs, step"),
        ({"minutes": 0}, "`minutes` has to be more than 0"),
        ({"report_only": True, "again": True}, "`report_only` measures nothing"),
        ({"tiny": True}, r"holds results of another report \(device: NVIDIA X, now"),
    ],
)
def test_mistakes_are_named(tmp_path, flags, sentence):
    (tmp_path / "step.json").write_text(json.dumps({"about": ABOUT, "cells": {}}))
    with pytest.raises(UserError, match=sentence):
        gpu_report.main(output_dir=str(tmp_path), report=str(tmp_path / "gpu.md"), **flags)


def test_again_measures_anew_and_time_is_shared(tmp_path, monkeypatch):
    """A part gets its share of the minutes, and what the parts before it have left over."""
    (tmp_path / "forward.json").write_text(json.dumps({"about": {}, "cells": {"a": {}}}))
    limits = {}
    monkeypatch.setattr(
        gpu_report, "in_process", lambda name, _, seconds: limits.setdefault(name, round(seconds))
    )
    flags = {"tiny": True, "minutes": 2.0, "output_dir": str(tmp_path)}
    gpu_report.main(parts=["data", "forward"], report=str(tmp_path / "gpu.md"), **flags)
    assert limits == {"data": 90, "forward": 120} and (tmp_path / "forward.json").exists()
    gpu_report.main(parts=["forward"], again=True, report=str(tmp_path / "gpu.md"), **flags)
    assert not (tmp_path / "forward.json").exists()


def test_without_a_gpu_it_asks_for_tiny_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no GPU here: `tiny`"):
        gpu_report.main(output_dir=str(tmp_path), report=str(tmp_path / "gpu.md"))


@pytest.mark.slow
def test_the_whole_command_without_fire_and_visdom(tmp_path):
    """Every part on tiny networks; neither this command nor those it starts has the packages."""
    blocker = tmp_path / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        "import sys\nsys.modules['fire'] = sys.modules['visdom'] = None\n"
    )
    report = tmp_path / "gpu.md"
    command = [
        sys.executable, "-m", "scripts.gpu_report", "--tiny", "--minutes=200", "--output-dir",
        str(tmp_path / "out"), f"--report={report}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(blocker)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = report.read_text()
    assert "failed" not in text and "out of memory" not in text, text
    runs = {row[0]: row[1] for row in rows_of(text, "Does it run?")}
    assert runs.pop("tests marked gpu").split()[1] in ("passed", "skipped")
    assert runs.pop("DataParallel").startswith(("not measured: there are no two", "4 steps"))
    assert all(re.match(r"[46] steps, loss 0\.\d+", said) for said in runs.values()), runs
    for section in ("Data", "Demo and energy", "The first losses in every mode"):
        assert "not measured" not in sum(rows_of(text, section), []), section
    measured = [r for r in rows_of(text, "The training step") if not r[3].startswith("not")]
    assert {row[2] for row in measured} >= {*PUBLISHED, *OWN, *COMPILED}
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and "seconds" not in again.stdout, again.stdout

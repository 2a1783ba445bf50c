"""Running means and lines of the logger; that every golden file is compared somewhere."""

import json
import re

import pytest
import torch
from recipe import FOLDER, TRIMMED, read

from logger import Logger

ELSEWHERE = {  # compared in tests/test_demo.py and tests/test_energy_calc.py
    "demo_outputs.npz",
    "energy_calc_stats.json",
    "energy_calc_images.json",
    "energy_calc_data",
}
HERE = {
    "README.md",
    "network_specs.json",
    "network_outputs.npz",
    "network_weight_checksums.json",
    "tasks.json",
    "transfers.json",
    "graph_save_format.json",
    "preproc.npz",
    "preproc_inputs",
    "preproc_stats.json",
    "masks.npz",
    "norms.json",
    "energy_configs.json",
    "splits.json",
    "energy.json",
    "energy_float64.json",
    "plots.npz",
    "plots_meta.json",
    "logger.json",
}


def test_lines_and_means(compare, tmp_path):
    golden = read("logger.json")
    logger = Logger("train", tmp_path / "log.jsonl")
    lines, taken = [], {}
    for kind, *what in golden["sequence"]:
        if kind == "u":
            feature, value = what
            value = torch.tensor(value) if isinstance(value, list) else value
            logger.update(feature, value)
            taken.setdefault(feature, []).append(torch.as_tensor(value).float().mean().item())
        else:
            lines.append(re.sub(r"[\d.]+ sec$", "<t> sec", logger.step()))
    logger.close()
    compare.same("logger: lines", lines, golden["step_lines"])
    compare.same("logger: a tensor counts by its mean", taken, golden["data"])
    # ours beside: one JSON record a step, of what is new in it
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    fresh = [{k: v for k, v in r.items() if k not in ("time", "split", "step")} for r in records]
    assert fresh[0] == {"loss": pytest.approx(5 / 3), "epoch": 0}
    assert fresh[1:] == [{"epoch": 1}, {"loss": 0.5, "val x": 2}, {}]


@pytest.mark.skipif(FOLDER == TRIMMED, reason="needs the full golden folder")
def test_every_golden_file_is_compared(compare):
    found = {path.name for path in FOLDER.iterdir()}
    compare.same("files of the golden folder", found, HERE | ELSEWHERE)

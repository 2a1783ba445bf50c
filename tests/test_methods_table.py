"""The table of methods: what it shows of a record, and the whole of it on one-step trainings."""

import json
import re

import pytest

from methods.table import METHODS
from scripts import methods_table
from scripts.methods_table import BEGIN, END, LONGER
from utils import ROOT

ERRORS = {"direct L1 × 100": 10.0, "angular error (°)": 20.0, "percep_curv × 100, predicted": 5.0,
          "percep_curv × 100, true": 2.0, "percep_edge × 100, true": 4.0}  # fmt: skip
ENTRY = {
    "command": "python -m train pix2pix_normal --seed=0", "date": "2026-11-22", "device": "cpu",
    "steps": 2, "seconds_a_step": 0.25, "peak_mib": 512.4, "parameters": 1234567,
    "all_parameters": 7654321, "start": ERRORS | {"direct L1 × 100": 50.0}, "errors": ERRORS,
}  # fmt: skip


@pytest.fixture
def page(tmp_path):
    file = tmp_path / "methods.md"
    file.write_text(f"# Methods\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    return file


def table(run, page, *flags):
    return run(f"--output-dir={page.parent}", *flags, program="scripts.methods_table",
               defaults=False)  # fmt: skip


def rows_of(page) -> dict[str, list[str]]:
    cells = [
        line.strip("|").split("|") for line in page.read_text().splitlines() if line[:1] == "|"
    ]
    return {first.strip(" `"): [cell.strip() for cell in rest] for first, *rest in cells}


def test_the_table_is_written_between_its_marks(run, page):
    record = {"target": "normal", "methods": {
        "taskonomy": {"errors": {}}, "pix2pix": ENTRY, LONGER: ENTRY,
    }}  # fmt: skip
    (page.parent / "methods.json").write_text(json.dumps(record))
    for _ in range(2):  # again: the same
        status, output, _ = table(run, page)
        assert status == 0, output
        text = page.read_text()
        assert text.startswith("# Methods\n\n") and text.endswith(f"{END}\n\nafter\n")
        assert "old" not in text and text.count(BEGIN) == 1
    rows = rows_of(page)
    assert rows["method"][:5] == ["direct L1 × 100", "angular error (°)", "curv, true",
                                  "edge, true", "mean of the true ones"]  # fmt: skip
    assert rows["pix2pix"] == ["10.000", "20.000", "2.000", "4.000", "3.000", "0.25", "512",
                               "1,234,567", "7,654,321"]  # fmt: skip
    assert rows["the common start"][0] == "50.000"
    assert rows["baseline`, for equal seconds"] == rows["pix2pix"]
    assert set(rows["taskonomy"]) == {"–"}
    assert "- `python -m train pix2pix_normal --seed=0`" in text and "2026-11-22, on cpu" in text


def test_what_is_missing_is_one_sentence(run, page):
    for flags, sentence in [
        ((), "--train makes it"),
        (("--methods=pix2pixx",), "did you mean pix2pix"),
        (("--scale=huge",), "--scale is rooms or tiny"),
    ]:
        status, output, _ = table(run, page, *flags)
        assert status == 2 and sentence in output, output
    page.write_text("# Methods\n")
    status, output, _ = table(run, page)
    assert status == 2 and "between which the table stands" in output


def test_the_documents_have_a_section_for_every_method():
    text = (ROOT / "docs" / "methods.md").read_text()
    assert set(METHODS) <= set(re.findall(r"^## (\w+)$", text, re.M))
    assert BEGIN in text and END in text
    for name, method in METHODS.items():
        assert method.untrained or f"    python -m train {name}_normal" in text


def test_the_baseline_is_also_trained_for_equal_seconds(rooms, networks, tmp_path, monkeypatch):
    trained = []

    def entry(method, target, training, *places):
        trained.append((method.name, training.max_epochs))
        return ENTRY | {"seconds_a_step": {"baseline": 0.25, "perceptual": 0.75}[method.name]}

    monkeypatch.setattr(methods_table, "trained_entry", entry)
    flags = methods_table.TrainingFlags(data_dirs=[str(rooms)], models_dir=str(networks),
                                        results_dir=str(tmp_path), max_epochs=14)  # fmt: skip
    both = [METHODS["baseline"], METHODS["perceptual"]]
    methods_table.train_all(tmp_path / "methods.json", both, "normal", flags)
    assert trained == [("baseline", 14), ("perceptual", 14), ("baseline", 42)]
    assert LONGER in json.loads((tmp_path / "methods.json").read_text())["methods"]


@pytest.mark.slow
def test_two_methods_trained_and_measured(run, page, networks, tmp_path):
    """In processes of their own; what is recorded is not trained again."""
    flags = ("--train", "--scale=tiny", "--methods=baseline,pix2pix", f"--data-dirs={run.rooms}",
             f"--models-dir={networks}", f"--results-dir={tmp_path / 'runs'}")  # fmt: skip
    status, output, _ = table(run, page, *flags)
    assert status == 0, output
    record = json.loads((page.parent / "methods.json").read_text())
    assert set(record["methods"]) == {"baseline", "pix2pix"}
    baseline, other = record["methods"]["baseline"], record["methods"]["pix2pix"]
    assert baseline["start"] == other["start"]  # the same network, the same views
    assert baseline["steps"] == other["steps"] == 1
    assert baseline["all_parameters"] == baseline["parameters"] == other["parameters"]
    assert other["all_parameters"] > other["parameters"]
    assert baseline["peak_mib"] > 50 and baseline["seconds_a_step"] > 0
    assert rows_of(page)["baseline"][0] == f"{baseline['errors']['direct L1 × 100']:.3f}"
    del record["methods"]["pix2pix"]
    (page.parent / "methods.json").write_text(json.dumps(record))
    status, output, _ = table(run, page, *flags)  # finished, but not recorded: it is measured
    assert status == 0 and "has already taken all its steps" in output, output
    assert len(list((tmp_path / "runs").rglob("run.json"))) == 2
    again = json.loads((page.parent / "methods.json").read_text())
    assert again["methods"]["baseline"] == baseline
    assert again["methods"]["pix2pix"]["errors"] == other["errors"]
    flags = ("--time-again", *flags[1:2], "--methods=baseline", *flags[3:5])
    status, output, _ = table(run, page, *flags)  # its times alone are measured again
    assert status == 0, output
    timed = json.loads((page.parent / "methods.json").read_text())["methods"]
    assert timed["pix2pix"] == again["methods"]["pix2pix"] and timed["baseline"].pop("timed")
    assert timed["baseline"].pop("seconds_a_step") > 0 and timed["baseline"].pop("peak_mib") > 50
    assert timed["baseline"].items() <= baseline.items()

"""The report of scripts.reproduce: a page of tables and figures, from the result files alone.

What has not been measured is marked as such.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from files import make_folder, read_json, write_atomically
from flags import as_arguments
from measuring.reproduction.report_claims import claims_part
from measuring.reproduction.report_energy import energy_part
from measuring.reproduction.report_errors import (
    adaptation_part,
    fractions_part,
    shifts_part,
    shorter_part,
    target_part,
)
from measuring.reproduction.report_variants import variant_parts
from measuring.reproduction.results import NOT_MEASURED, whole_time
from measuring.reproduction.scales import SCALES, Size
from measuring.reproduction.steps import Places, Stage
from tables import markdown_table
from utils import counted, duration


def write_page(page: Path, folder: Path, scale: str, seeds: int, stages: Sequence[Stage]) -> None:
    """Write the page, and its figures into the folder `results` beside it.

    Raises UserError if a result file cannot be read, or the page cannot be written.
    """
    size, places = replace(SCALES[scale], seeds=seeds), Places(folder)
    figures = make_folder(page.parent / "results")
    parts = [
        _head(places, scale, size, stages),
        claims_part(places, size, figures),
        *(target_part(places, size, target) for target in size.targets),
        shorter_part(places, size),
        fractions_part(places, size),
        shifts_part(places, size, figures),
        adaptation_part(places, size),
        *variant_parts(places, size, figures),
        energy_part(places, figures),
        _commands(places, stages),
    ]
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    write_atomically(page, lambda name: name.write_text(text, encoding="utf-8"))


def _head(places: Places, scale: str, size: Size, stages: Sequence[Stage]) -> str:
    marks = [m for m in (_mark(places, stage) for stage in stages) if m]
    dates = sorted(mark["finished"] for mark in marks)
    machines = dict.fromkeys(
        f"{m['hardware']['gpu'] or m['hardware']['processor']}, "
        f"{counted(m['hardware']['cores'], 'core')}, torch {m['hardware']['torch']}, "
        f"{counted(m['hardware']['jobs'], 'stage')} at once"
        for m in marks
    )  # fmt: skip
    seconds = whole_time(interval for mark in marks for interval in mark["intervals"])
    flags = " ".join(as_arguments({"scale": scale, "seeds": size.seeds}))
    lines = [
        "# Results",
        f"Written by `python -m scripts.reproduce {flags}`, which makes "
        f"everything from nothing. {len(marks)} of {len(stages)} stages are done"
        + (f", from {dates[0]} to {dates[-1]}, in {duration(seconds)}." if marks else "."),
        f"Hardware: {'; '.join(machines) or NOT_MEASURED}.",
        f"The data are rendered rooms, half of them hard ones: {size.train} buildings with "
        f"{size.views} views each for training, {size.val} for validation and {size.test} for the "
        f"test. Images have {size.image_size} pixels, networks width {size.width}. Validation "
        f"chose the baselines' epochs and the energy's networks. The test views were rendered "
        f"after all training.",
        f"Intervals (95 %, in brackets) are of paired bootstraps over buildings, of the images' "
        f"means over seeds ({size.resamples} draws). They do not include the spread between seeds, "
        f"which stands after ±.",
    ]
    return "\n\n".join(lines)


def _mark(places: Places, stage: Stage) -> dict | None:
    file = places.stage_mark(stage.name)
    return read_json(file) if file.is_file() else None


def _commands(places: Places, stages: Sequence[Stage]) -> str:
    """The stages that are done, with their times, and their commands."""
    rows, blocks = [], []
    for stage in stages:
        mark = _mark(places, stage)
        if not mark:
            rows.append([stage.name, str(len(stage.steps)), "not done", ""])
            continue
        rows.append([stage.name, str(len(stage.steps)), duration(mark["seconds"]),
                     mark["finished"]])  # fmt: skip
        blocks += mark["commands"]
    table = markdown_table(["stage", "commands", "time", "finished"], rows)
    # a command may be recorded for two stages, if it measured the networks of both
    listed = "```\n" + "\n".join(dict.fromkeys(blocks)) + "\n```"
    folded = ("<details><summary>The commands, in order, with paths relative to the folder of the "
              f"results</summary>\n\n{listed}\n\n</details>")  # fmt: skip
    return f"## Stages and commands\n\n{table}\n\n{folded if blocks else ''}"

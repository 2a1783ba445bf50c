"""Tables and records as files: CSV, JSON."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from utils import UserError, write_atomically


def check_folder(folder: Path) -> Path:
    """The folder, made if it is not there; UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from None
    return folder


def write_csv(path: Path, columns: Mapping[str, Sequence | np.ndarray]) -> None:
    """Columns of equal length, behind one of row numbers without a name (published).

    Numbers are written so that reading gives the same float64.
    """

    def write(name: Path) -> None:
        with open(name, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["", *columns])
            for number, row in enumerate(zip(*columns.values(), strict=True)):
                writer.writerow([number, *map(_cell, row)])

    write_atomically(path, write)


def _cell(value: object) -> object:
    if isinstance(value, float):  # np.float64 is one
        return "" if math.isnan(value) else repr(float(value))
    return value


def read_table(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of numbers of a CSV, {name: (N,)}; an empty cell is NaN. UserError if not there."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {n: np.array([float(row[n] or "nan") for row in rows]) for n in names}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, ValueError, TypeError, csv.Error):
        raise UserError(f"{path} is not a table with the columns {', '.join(names)}") from None


def write_json(path: Path, values: object) -> None:
    """A record as JSON; NaN becomes null."""

    def clean(value: object) -> object:
        if isinstance(value, Mapping):
            return {key: clean(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [clean(part) for part in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(clean(values), indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda name: name.write_text(text, encoding="utf-8"))

"""Tables as aligned text, as Markdown and as CSV files."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from files import write_atomically
from utils import UserError

Row = Sequence[str]


def text_table(head: Row, rows: Sequence[Row], left: int = 1) -> str:
    """Format rows in aligned columns below a header.

    The first `left` columns are left-aligned, the others right-aligned.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if number < left else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(head: Row, rows: Sequence[Row]) -> str:
    """Format rows as a Markdown table."""
    first, *others = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return "\n".join([first, "|" + "---|" * len(head), *others])


# ---- CSV ----------------------------------------------------------------------------


def write_csv(path: Path, columns: Mapping[str, Sequence | np.ndarray]) -> None:
    """Write columns of equal length, after an unnamed column of row numbers (as published).

    Numbers are written with enough digits to restore the same float64, and NaN as an empty cell.
    Raises UserError if the file cannot be written.
    """

    def write(name: Path) -> None:
        with open(name, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["", *columns])
            for number, row in enumerate(zip(*columns.values(), strict=True)):
                writer.writerow([number, *map(_cell, row)])

    write_atomically(path, write)


def _cell(value: object) -> object:
    if isinstance(value, float):  # includes np.float64
        return "" if math.isnan(value) else repr(float(value))
    return value


def read_csv(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read numeric columns as {name: (N,)}. An empty cell is NaN.

    Raises UserError if the file cannot be read or a column is missing.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {n: np.array([float(row[n] or "nan") for row in rows]) for n in names}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (KeyError, ValueError, TypeError, csv.Error):
        raise UserError(f"{path} is not a table with the columns {', '.join(names)}") from None

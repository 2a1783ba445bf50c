"""The table of folder layouts, and the files that match a layout's paths."""

import os
import re
import runpy
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from loading.listings import Times, folder_times, settled
from loading.near_misses import RGB_ENDINGS
from task_configs import ImageTask
from utils import UserError

# ---- layouts ------------------------------------------------------------------------

# (task, building, view, part) → the file's path relative to the data folder. A part is a
# further level of folders in some layouts: a component of the data set, or train, val, test.
# A layout must put the names into the path unchanged. To list files, it is called with MARKS
# instead of names, and the result is used as a pattern.
Layout = Callable[[ImageTask, str, str, str], str]


def _domain_file(task: ImageTask, view: str) -> str:
    return f"{view}_domain_{task.tag}.png"


# A data folder has the first layout for which it contains a file.
LAYOUTS: dict[str, Layout] = {
    "taskonomy": lambda t, b, v, p: f"{b}_{t.folder}/{t.folder}/{_domain_file(t, v)}",
    "omnidata": lambda t, b, v, p: f"{t.folder}/{p}/{b}/{_domain_file(t, v)}",
    "multimae": lambda t, b, v, p: f"{t.folder}/{b}/{_domain_file(t, v)}",
    "multimae split": lambda t, b, v, p: f"{p}/{t.folder}/{b}/{_domain_file(t, v)}",
    "buildings": lambda t, b, v, p: f"{b}/{t.folder}/{_domain_file(t, v)}",
    "one building": lambda t, b, v, p: f"{t.folder}/{_domain_file(t, v)}",
    "raid": lambda t, b, v, p: f"{t.folder}/{b}/{v}.png",
    "raid split": lambda t, b, v, p: f"{p}/{t.folder}/{b}/{v}.png",
    "plain": lambda t, b, v, p: f"{b}/{t.folder}/{v}.png",
}

# Placeholders (private-use characters) for the building, the view and the part in patterns.
MARKS = {"building": "\ue000", "view": "\ue001", "part": "\ue002"}
ENDING = "\ue003"  # placeholder for the ending of an rgb file, which may be a JPEG


def add_layouts(files: Sequence[str | Path] | None) -> None:
    """Run Python files that add rows to `LAYOUTS`. Their layouts are tried before the others.

    Raises UserError if a file cannot be run or adds no layout.
    """
    for file in files or ():
        before = dict(LAYOUTS)
        if not Path(file).is_file():
            raise UserError(f"`layouts`: no file {file}")
        try:
            runpy.run_path(str(file), run_name="layouts")
        except UserError:
            raise
        except Exception as error:
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__)
                     if f.filename == str(file)]  # fmt: skip
            line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
            reason = " ".join(str(error).split())
            raise UserError(
                f"`layouts`: {file}, line {line}: {type(error).__name__}: {reason}"
            ) from error
        added = {n: row for n, row in LAYOUTS.items() if before.get(n) is not row}
        if not added:
            raise UserError(f"`layouts`: {file} adds no layout to LAYOUTS (see docs/extending.md)")
        others = {name: row for name, row in LAYOUTS.items() if name not in added}
        LAYOUTS.clear()
        LAYOUTS.update(added | others)


# ---- files that match -----------------------------------------------------------------


def pattern_of(layout: str, task: ImageTask, *names: str) -> str:
    """Return the layout's path for (building, view, part), by default marks for all three.

    The ending of rgb files is a mark as well.
    """
    path = LAYOUTS[layout](task, *(names or MARKS.values()))
    stem, dot, ending = path.rpartition(".")
    is_rgb = task.folder == "rgb" and re.fullmatch(RGB_ENDINGS, dot + ending)
    return stem + ENDING if is_rgb else path


# Folders in which a layout's files were looked for: {path: (times, number of entries)}.
LookedIn = dict[str, tuple[Times, int]]


def matches(
    folder: Path, template: str, folders: bool = False, looked_in: LookedIn | None = None
) -> Iterator[dict[str, str]]:
    """Yield the names that stand for the marks, for each path below `folder` that matches.

    Adds the folders that it lists to `looked_in`.
    """
    head, _, rest = template.partition("/")
    for child, names in children(folder, head, folders or bool(rest), looked_in):
        if not rest:
            yield names
            continue
        below = rest
        for name in names.keys() & MARKS.keys():
            below = below.replace(MARKS[name], names[name])
        for names_below in matches(folder / child, below, folders, looked_in):
            yield names | names_below


def children(
    folder: Path, head: str, folders: bool = False, looked_in: LookedIn | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the entries of a folder that match the pattern `head`, except hidden ones.

    Raises UserError if the folder cannot be read.
    """
    pattern = r"(?!\.)" + re.escape(head)
    for name, mark in MARKS.items():
        pattern = pattern.replace(mark, f"(?P<{name}>.+)", 1).replace(mark, f"(?P={name})")
    regex = re.compile(pattern.replace(ENDING, f"(?P<ending>{RGB_ENDINGS})"), re.DOTALL)
    times, count = settled(folder_times(folder)) if looked_in is not None else None, 0
    try:
        if not regex.groups:
            path = folder / head
            if regex.fullmatch(head) and (path.is_dir() if folders else path.is_file()):
                yield head, {}
        elif folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    count += 1
                    if (match := regex.fullmatch(entry.name)) and entry.is_dir():
                        yield entry.name, match.groupdict()
        else:
            for name in os.listdir(folder):  # without is_file(): there may be millions
                count += 1
                if match := regex.fullmatch(name):
                    yield name, match.groupdict()
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    finally:
        if looked_in is not None:
            first, before = looked_in.get(str(folder), (times, 0))
            looked_in[str(folder)] = first, before + count

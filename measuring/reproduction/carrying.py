"""Small copies of a reproduction, with which it continues, or is reported, on another machine.

They hold the marks of stages that are done, what the report reads of the measurements (numbers
with four digits, compressed), and the networks, in float16, that stages still to do need.
Rooms are not copied: they are rendered again, identically. Networks are not kept once all that
was asked for is done; what is asked later trains them again (`renewing`).
"""

import csv
import gzip
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from files import write_atomically
from measuring.reproduction.steps import Places, Stage
from models import read_weights, save_atomically
from utils import UserError

TABLES = ("images.csv", "data.csv", "shift_images.csv")
FOLDERS = ("stages", "steps", "measured", "runs", "models", "energy_models")
Write = Callable[[Path], object]


def keep(folder: Path, kept: Path | None, every: Sequence[Stage], stages: Sequence[Stage]) -> None:
    """Bring the copies in `kept` up to date, and remove those that nothing needs any more.

    What is done of `every` stage is kept, and the networks that those of `stages` need which are
    not done. Without a folder, nothing is kept. Raises UserError if a file cannot be read or
    written.
    """
    if kept is None:
        return
    wanted = dict(_wanted(Places(folder), every, stages))
    for name, (source, write) in wanted.items():
        copy = kept / name
        if not copy.is_file() or copy.stat().st_mtime < source.stat().st_mtime:
            write(copy)
    for part in FOLDERS:
        for file in list((kept / part).rglob("*")):
            if file.is_file() and str(file.relative_to(kept)) not in wanted:
                file.unlink()


def restore(kept: Path, folder: Path) -> int:
    """Write what `kept` has and `folder` lacks. Returns the number of files.

    Raises UserError if a file cannot be read or written.
    """
    count = 0
    for part in FOLDERS:
        for file in sorted((kept / part).rglob("*")):
            target = folder / file.relative_to(kept)
            packed = file.suffix == ".gz"
            target = target.with_suffix("") if packed else target
            if file.is_file() and not target.exists():
                write_atomically(target, partial(_unpack if packed else shutil.copyfile, file))
                count += 1
    return count


def _wanted(
    places: Places, every: Sequence[Stage], stages: Sequence[Stage]
) -> Iterator[tuple[str, tuple[Path, Write]]]:
    """Yield the files to keep: name in the copy, file, and the function that writes the copy."""
    done = [stage for stage in every if places.stage_mark(stage.name).is_file()]
    left = [stage for stage in stages if not places.stage_mark(stage.name).is_file()]
    for stage in done:
        for mark in (places.stage_mark(stage.name),
                     *(places.step_mark(step.key) for step in stage.steps)):  # fmt: skip
            if mark.is_file():
                yield _copied(places, mark)
    for file in sorted((places.folder / "measured").rglob("*")):
        if file.name in TABLES:
            name = f"{file.relative_to(places.folder)}.gz"
            yield name, (file, partial(write_atomically, write=partial(_pack, file)))
        elif file.name == "statistics.json":
            yield _copied(places, file)
    if not left:
        return
    trained = {step.key for stage in done for step in stage.steps}
    copied = [step for stage in done for step in stage.steps if step.program == "copy"]
    steps = (*(step for stage in left for step in stage.steps), *copied)
    for made in {made for step in steps for made in step.networks()}:
        if made.step in trained and made.is_there(places.folder):
            yield _halved(places, made.file(places.folder))
    for models in (places.models, places.energy_models):
        for file in sorted(models.glob("*.pth")):
            yield _halved(places, file)


def _copied(places: Places, file: Path) -> tuple[str, tuple[Path, Write]]:
    write = partial(write_atomically, write=partial(shutil.copyfile, file))
    return str(file.relative_to(places.folder)), (file, write)


def _halved(places: Places, file: Path) -> tuple[str, tuple[Path, Write]]:
    return str(file.relative_to(places.folder)), (file, partial(_save_half, file))


def _save_half(file: Path, copy: Path) -> None:
    """Write a checkpoint with its weights in float16, or as they are if one is too large."""
    weights, record = read_weights(file)
    half = {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}
    fits = all(bool(v.isfinite().all()) for v in half.values() if v.is_floating_point())
    save_atomically(copy, {"state_dict": half if fits else weights, **record})


def _pack(table: Path, copy: Path) -> None:
    """Write a CSV file compressed, its numbers with four digits."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    with open(table, newline="", encoding="utf-8") as file:
        writer.writerows([_short(cell) for cell in row] for row in csv.reader(file))
    # without time and (temporary) name, so that the same numbers make the same file
    copy.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _short(cell: str) -> str:
    try:
        return cell if cell.isdecimal() else f"{float(cell):.4g}"
    except ValueError:
        return cell


def _unpack(file: Path, target: Path) -> None:
    try:
        target.write_bytes(gzip.decompress(file.read_bytes()))
    except (OSError, EOFError) as error:
        raise UserError(f"{file} is damaged: {error}") from None

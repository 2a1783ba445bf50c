"""A run's folder: its name, the record of what the run was asked for, finding it again."""

import time
from collections.abc import Mapping
from pathlib import Path

from files import read_json, write_json
from training.options import Options
from utils import UserError

# What a resumed run may be asked for differently: it changes no result.
FREE = {"resume", "results_dir", "visdom_server", "visdom_port", "num_workers", "quiet",
        "save_every"}  # fmt: skip


def new_folder(results_dir: Path, name: str) -> Path:
    """A new folder {name}_{time} in `results_dir`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        folder = results_dir / f"{name}_{stamp}{f'-{number}' if number else ''}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from None
        return folder
    raise UserError(f"cannot make a new folder in {results_dir}")


def find_folder(resume: str | bool, results_dir: Path, name: str | None) -> Path:
    """The folder of the run to go on with: the one named, or the last of that name."""
    if isinstance(resume, str):
        if not (Path(resume) / "run.json").is_file():
            raise UserError(f"`resume` {resume}: no run's folder (there is no run.json in it)")
        return Path(resume)
    if name is None:
        raise UserError("`resume` goes on with the last run of a configuration: which one? Name it,"
                        " or the run's folder: `resume` results/…")  # fmt: skip
    runs = [file.parent for file in results_dir.glob("*/run.json")
            if read_json(file).get("config") == name]  # fmt: skip
    if not runs:
        raise UserError(f"`resume`: no run of {name} in {results_dir}")
    return max(runs, key=lambda folder: (folder / "run.json").stat().st_mtime_ns)


def recorded_options(folder: Path, options: Options, processes: int) -> Options:
    """The options of the run in a folder, with what `options` may change of them.

    Raises UserError where they ask for something else than the run had.
    """
    asked = options.flags()
    recorded = read_json(folder / "run.json")
    if "arguments" not in recorded:
        raise UserError(f"{folder} was made by a version that could not go on with a run")
    if (begun_by := recorded["processes"]) != processes:
        raise UserError(
            f"the run in {folder} was begun by {begun_by} process{'es' if begun_by > 1 else ''} "
            f"and goes on with as many, not {processes}: each takes its share of a batch"
        )
    flags = dict(recorded["arguments"])
    # A decay spans the epochs asked for, and a comparison is of as many epochs.
    longer = recorded["schedule"] == "constant" and not flags["compare_direct"]
    free = FREE | ({"max_epochs"} if longer else set())
    for name, default in Options().flags().items():
        value, before = asked[name], flags.get(name, default)
        if value == default:
            value = before
        elif value != before and name not in free:
            raise UserError(
                f"`{name}` {value}: the run in {folder} was begun with "
                f"{'none' if before is None else before}; leave it out to go on with that run"
            )
        flags[name] = value
    return Options.from_flags(flags)


def write_record(folder: Path, record: Mapping) -> dict:
    """Write run.json and return it; a run that goes on keeps the command it was begun with."""
    file = folder / "run.json"
    begun = {"command": read_json(file)["command"]} if file.exists() else {}
    kept = {**record, **begun}
    write_json(file, kept)
    return kept

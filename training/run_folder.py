"""A run's folder: making it, recording the run's options in it, and finding it again."""

import time
from collections.abc import Mapping
from pathlib import Path

from files import read_json, write_json
from training.options import Options
from utils import UserError

# Options that a resumed run may change, because they do not affect the results.
FREE = {"resume", "results_dir", "visdom_server", "visdom_port", "visdom_env", "num_workers",
        "quiet", "save_every"}  # fmt: skip


def new_folder(results_dir: Path, name: str) -> Path:
    """Make and return a new folder {name}_{time} in `results_dir`. Raises UserError on failure."""
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
    """Return the folder of the run to resume: `resume` if it is a path, else the last of `name`.

    Raises UserError if there is no such run, or if neither is given.
    """
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
    """Return the recorded options of the run in `folder`, with the changes in `options`.

    Only options in FREE, and sometimes `max_epochs`, may change. Raises UserError for any
    other change, for another number of processes, or if the run cannot be resumed.
    """
    requested = options.flags()
    recorded = read_json(folder / "run.json")
    if "arguments" not in recorded:
        raise UserError(f"{folder} was made by a version that could not go on with a run")
    if (begun_by := recorded["processes"]) != processes:
        raise UserError(
            f"the run in {folder} was begun by {begun_by} process{'es' if begun_by > 1 else ''} "
            f"and goes on with as many, not {processes}: each takes its share of a batch"
        )
    flags = dict(recorded["arguments"])
    # The cosine schedule depends on the number of epochs, and both phases of a comparison
    # must have the same number.
    may_extend = recorded["schedule"] == "constant" and not flags["compare_direct"]
    free = FREE | ({"max_epochs"} if may_extend else set())
    for name, default in Options().flags().items():
        value, before = requested[name], flags.get(name, default)
        if value == default:  # counts as not given
            value = before
        elif value != before and name not in free:
            raise UserError(
                f"`{name}` {value}: the run in {folder} was begun with "
                f"{'none' if before is None else before}; leave it out to go on with that run"
            )
        flags[name] = value
    return Options.from_flags(flags)


def write_record(folder: Path, record: Mapping) -> dict:
    """Write run.json and return its content. A resumed run keeps its original command."""
    file = folder / "run.json"
    original = {"command": read_json(file)["command"]} if file.exists() else {}
    written = {**record, **original}
    write_json(file, written)
    return written

"""A run's folder: making it, recording the run's options in it, and finding it again."""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from files import only_process_in, read_json, write_json
from loading.shards import runs_commands
from training.data import Part
from training.inputs import changed_since, differences
from training.options import Options
from utils import UserError, log

RECORD = "run.json"
# Options that a resumed run may change, because they do not affect the results.
FREE = {"resume", "resume_anyway", "results_dir", "visdom_server", "visdom_port", "visdom_env",
        "num_workers", "index_dir", "quiet", "save_every", "install", "force",
        "network"}  # fmt: skip


def new_folder(results_dir: Path, options: Options, processes: int) -> Path:
    """Make and return the folder of a new run, {configuration}_{time} in `results_dir`.

    It holds a first run.json from the start, so that a run that is killed early can be resumed.
    Raises UserError on failure.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        name = f"{options.config}_{stamp}{f'-{number}' if number else ''}"
        folder = results_dir / name
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from None
        write_json(folder / RECORD, begun(options, processes))
        return folder
    raise UserError(f"cannot make a new folder in {results_dir}")


def begun(options: Options, processes: int) -> dict:
    """Return what run.json records about a run from its first second on."""
    return {
        "config": options.config,
        "started": time.time(),
        "processes": processes,
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "arguments": options.flags() | {"resume": False, "resume_anyway": False},
    }


@contextmanager
def claimed(folder: Path, is_new: bool) -> Iterator[None]:
    """Keep other processes out of a run's folder within the block.

    If the block raises UserError before the run has written anything but its first record, a
    new folder is removed again. Raises UserError if another process is in it.
    """
    with only_process_in(folder):
        try:
            yield
        except UserError:
            if is_new and [file.name for file in folder.iterdir()] == [RECORD]:
                (folder / RECORD).unlink()
                folder.rmdir()
                with suppress(OSError):  # where other runs are, it stays
                    folder.parent.rmdir()
            raise


def find_folder(resume: str | bool, results_dir: Path, name: str | None) -> Path:
    """Return the folder of the run to resume: `resume` if it is a path, else the one of `name`
    that was started last, finished or not.

    Folders whose run.json cannot be read are passed over, with a warning. Raises UserError if
    there is no such run, or if neither is given.
    """
    if isinstance(resume, str):
        if not resume or not (Path(resume) / RECORD).is_file():
            named = resume or "''"
            raise UserError(f"`resume` {named}: no run's folder (there is no {RECORD} in it)")
        return Path(resume)
    if name is None:
        raise UserError("`resume` goes on with the last run of a configuration: which one? Name it,"
                        " or the run's folder: `resume` results/…")  # fmt: skip
    runs = {}
    for file in results_dir.glob(f"*/{RECORD}"):
        try:
            record = read_json(file)
        except UserError as error:
            log.warning("passing over a run: %s", error)
            continue
        arguments = record.get("arguments")
        if isinstance(arguments, dict) and arguments.get("visualize"):
            continue  # it only drew pictures
        if record.get("config") == name:
            runs[file.parent] = record.get("started"), file.stat().st_mtime
    if not runs:
        raise UserError(f"`resume`: no run of {name} in {results_dir}")
    started = {
        folder: at if isinstance(at, float) else changed for folder, (at, changed) in runs.items()
    }
    return max(started, key=lambda folder: started[folder])


def recorded_options(folder: Path, options: Options, processes: int) -> Options:
    """Return the recorded options of the run in `folder`, with the changes in `options`.

    Only options in FREE, and sometimes `max_epochs` and `max_seconds`, may change. Raises
    UserError for any other change, for another number of processes, or if the run cannot be
    resumed.
    """
    requested = options.flags()
    recorded = read_json(folder / RECORD)
    if "arguments" not in recorded:
        raise UserError(f"{folder} was made by a version that could not go on with a run")
    check_record(folder, recorded)
    if (begun_by := recorded["processes"]) != processes:
        raise UserError(
            f"the run in {folder} was begun by {begun_by} process{'es' if begun_by > 1 else ''} "
            f"and goes on with as many, not {processes}: each takes its share of a batch"
        )
    flags = dict(recorded["arguments"])
    _check_code(folder, flags, requested)
    # The cosine schedule depends on the number of epochs, and both phases of a comparison
    # must have the same number.
    may_extend = recorded.get("schedule") == "constant" and not flags["compare_direct"]
    free = FREE | ({"max_epochs", "max_seconds"} if may_extend else set())
    for name, default in Options().flags().items():
        value, before = requested[name], flags.get(name, default)
        if value == default:  # counts as not given
            value = before
        elif value != before and name not in free:
            raise UserError(
                f"`{name}` {value}: the run in {folder} was begun with "
                f"{'the default' if before is None else before}; leave it out to resume that run"
            )
        flags[name] = value
    if "installed" in recorded and not requested["install"]:
        flags["install"] = flags["force"] = False  # once is enough
    return Options.from_flags(flags)


def run_by(flags: Mapping) -> dict:
    """Return those of a run's flags, {name: value}, that make it run code: files, or commands."""
    named = {name: flags.get(name) for name in ("network", "layouts")}
    folders = flags.get("data_dirs") or []
    named["data_dirs"] = folders if any(runs_commands(str(folder)) for folder in folders) else None
    return {name: value for name, value in named.items() if value}


def _check_code(folder: Path, before: Mapping, now: Mapping) -> None:
    """Raise UserError unless the user names again all code that the run in `folder` runs.

    `before` and `now` are the flags, {name: value}. What the network's file holds is compared by
    `check_unchanged`.
    """
    for name, value in run_by(before).items():
        if not now[name]:
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            raise UserError(
                f"the run in {folder} was begun with `{name}` {shlex.quote(text)}: add it (code is "
                f"only run where you name it, not because {RECORD} does)"
            )
    if now["network"] and not before.get("network"):
        raise UserError(
            f"`network` {now['network']}: the run in {folder} was begun with none; leave it out to "
            f"go on with that run"
        )


def check_record(folder: Path, record: Mapping) -> None:
    """Raise UserError if a run.json, which may have been edited, does not hold what it should."""
    defaults, hints = Options().flags(), Options.hints()
    flags = record["arguments"]
    wrong = [] if isinstance(record.get("processes"), int) else ["processes"]
    if not isinstance(flags, dict) or not isinstance(flags.get("config"), str):
        wrong.append("arguments")
    else:
        wrong += [n for n, value in flags.items() if n in defaults and not fits(value, hints[n])]
    if wrong:
        raise UserError(f"{folder / RECORD} was changed: {', '.join(wrong)} cannot be used")


def fits(value: object, types: set[type]) -> bool:
    """Whether a value from JSON has one of the types of an option, or is None."""
    if isinstance(value, bool):
        return bool in types
    return value is None or isinstance(value, tuple({*types, *([int] if float in types else [])}))


def check_unchanged(folder: Path, record: Mapping, parts: Mapping[str, Part], anyway: bool) -> None:
    """Compare what a run in `folder` began with, its networks and views, with what is there now.

    `record` is the record as it would be written now. Raises UserError if they differ; with
    `anyway`, logs a warning instead.
    """
    before = read_json(folder / RECORD)
    recorded, started = before.get("inputs"), before.get("started")
    if not isinstance(recorded, dict) or not {"networks", "views"} <= set(recorded):
        log.warning("%s does not record which networks and views it began with", folder)
        return
    if changed := differences(recorded, record["inputs"], record["trains"]):
        rest = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        text = f"the run in {folder} began with other inputs: {'; '.join(changed[:3])}{rest}"
        if isinstance(started, float):
            files = (changed_since(part, started) for part in parts.values())
            if file := next(filter(None, files), None):
                text += f" (one that has changed since then: {file})"
        if not anyway:
            raise UserError(f"{text} (`resume_anyway` goes on with the current ones)")
        log.warning("%s", text)


def write_record(folder: Path, record: Mapping) -> dict:
    """Write run.json and return its content.

    What is recorded about the start, what finished phases took, and that the network was
    installed, stays.
    """
    before = read_json(folder / RECORD)
    recorded = ("command", "started", "taken", "installed")
    kept = {key: before[key] for key in recorded if key in before}
    written = {**record, **kept}
    write_json(folder / RECORD, written)
    return written


def record_taken(folder: Path, taken: Mapping[str, Mapping[str, Any]]) -> None:
    """Add to run.json what each phase took, {column: {"steps", "seconds", "peak_mib"}}."""
    write_json(folder / RECORD, read_json(folder / RECORD) | {"taken": dict(taken)})


def recorded_taken(record: Mapping) -> dict[str, dict[str, Any]]:
    """Return what `record_taken` has recorded, without what was changed by hand."""
    taken = record.get("taken")
    return {
        column: values
        for column, values in (taken.items() if isinstance(taken, dict) else ())
        if isinstance(values, dict)
        and all(isinstance(values.get(name), int | float) for name in ("steps", "seconds"))
    }


def record_installed(folder: Path, file: Path) -> None:
    """Add to run.json under which name the run's network was installed."""
    write_json(folder / RECORD, read_json(folder / RECORD) | {"installed": str(file)})

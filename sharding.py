"""Writing of shards: tar files that hold the files of many views, to be read in sequence."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from files import make_folder, only_process_in
from loading.bad_files import BadFiles
from loading.layouts import View, check_data_dirs, find_places, find_views, no_views
from loading.packs import find_pack
from loading.shards import is_shards, key_of, library
from loading.splits import split_buildings
from packing import tasks_with_files
from task_configs import ImageTask
from utils import UserError, reason_of


def make_shards(
    source: str | Path,
    target: str | Path,
    megabytes: float = 1000,
    tasks: Sequence[ImageTask] | None = None,
    allow_missing: bool = False,
    max_bad_fraction: float = 0.0,
    quiet: bool = True,
) -> tuple[int, int, int]:
    """Write the files of a data set as they are into shards `{target}/{name}-000000.tar` …

    Each shard holds views of one part (train, val or test, of the split without a file) in random
    order, and has about `megabytes`. `tasks` are by default all domains with files. Returns the
    numbers of shards, of views, and of views left out because a file cannot be read. The folder
    appears when it is complete. Raises UserError if the source cannot be read or the target cannot
    be written.
    """
    source, target = Path(source), Path(target)
    if not target.name or target.name == "..":
        raise UserError(f"`to` is the name of a new folder, not {target}")
    if target.exists():
        raise UserError(f"{target} is there already: remove it, or name another folder")
    check_data_dirs([source])
    if find_pack(source) or is_shards(source):
        raise UserError(f"{source} holds no image files: name the folder of the files themselves")
    places = find_places(source)
    chosen = list(tasks or tasks_with_files(places))
    if not places or not chosen:
        raise no_views([source], chosen)
    parts = split_buildings([source])
    buildings = {name: part for part in reversed(parts) for name in parts[part]}
    views = find_views(chosen, [source], sorted(buildings), allow_missing)
    groups = [[v for v in views if buildings[v.building] == part] for part in parts]
    bad = BadFiles("packed", len(views), max_bad_fraction, replaced=False)
    partial = target.with_name(f".{target.name}.partial")
    try:
        make_folder(partial)
        with only_process_in(partial, f"another process is packing to {target}"):
            for file in partial.iterdir():  # of a process that was ended
                file.unlink()
            pattern = str(partial / target.name).replace("%", "%%") + "-%06d.tar"
            with tqdm(total=len(views), unit="view", disable=quiet or None) as bar:
                shards = _write(groups, chosen, pattern, megabytes * 1e6, bad, bar)
            partial.rename(target)
    except OSError as error:
        raise UserError(f"cannot pack to {error.filename or target}: {reason_of(error)}") from None
    return shards, len(views) - len(bad.views), len(bad.views)


def _write(
    groups: Sequence[Sequence[View]],
    tasks: Sequence[ImageTask],
    pattern: str,
    size: float,
    bad: BadFiles,
    bar: tqdm,
) -> int:
    """Write shards of each group of views. Returns their number."""
    first = number = 0
    for group in groups:
        if not group:
            continue
        writer = library().ShardWriter(
            pattern, maxcount=10**9, maxsize=size, start_shard=first, verbose=0, encoder=False,
            mtime=0,
        )  # fmt: skip
        with writer:
            for view in random.Random(0).sample(group, len(group)):
                sample, reasons = _sample(view, tasks)
                bad.note([(number, reasons)] if reasons else [], 1)
                if not reasons:
                    writer.write(sample)
                number += 1
                bar.update()
            first = writer.shard  # the number of the next one
    return first


def _sample(view: View, tasks: Sequence[ImageTask]) -> tuple[dict, dict[str, str]]:
    """Return a view's files for webdataset to write, and the reasons why files cannot be read."""
    sample: dict = {"__key__": key_of(view.part, view.building, view.name)}
    reasons = {}
    for path, task in _files(view, tasks):
        try:
            sample[f"{task.folder}{path.suffix}"] = path.read_bytes()
        except OSError as error:
            reasons[str(path)] = reason_of(error)
    return sample, reasons


def _files(view: View, tasks: Sequence[ImageTask]) -> Iterator[tuple[Path, ImageTask]]:
    """Yield each file of a view once; several domains may be made of the same file."""
    for task in {task.folder: task for task in tasks}.values():
        yield view.path(task), task

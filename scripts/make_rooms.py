"""Writes the project's own data set: procedural rooms in Taskonomy's layout and encodings."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from zlib import crc32

VERSION = 1  # of the generator: raise it whenever the images of a given seed change
VIEWS_PER_POINT = 4
SPLIT_FILE = Path(__file__).resolve().parents[1] / "config" / "split_rooms.txt"
# Read by the BLAS libraries when a spawned worker imports numpy.
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def split_buildings() -> list[str]:
    """All buildings of ``config/split_rooms.txt``: train, val, test."""
    split = json.loads(SPLIT_FILE.read_text())
    return [name for part in split.values() for name in part]


def view_paths(output_dir, building: str, point: int, view: int) -> dict[str, Path]:
    """The files of one view: domain -> path."""
    from scripts.rooms.domains import DOMAINS

    root = Path(output_dir)
    return {
        domain: root / f"{building}_{domain}" / domain
        / f"point_{point}_view_{view}_domain_{tag}.png"
        for domain, tag in DOMAINS.items()
    }  # fmt: skip


def render_images(building: str, point: int, view: int, image_size: int, seed: int) -> dict:
    """One view, a function of its arguments alone: domain -> image (see rooms/domains.py)."""
    import numpy as np

    from scripts.rooms.camera import choose_camera, hole_share_fits
    from scripts.rooms.domains import encode
    from scripts.rooms.layout import make_scene
    from scripts.rooms.render import render

    scene = make_scene(seed, building, point)
    for attempt in range(12):
        key = (seed, crc32(building.encode()), 2, point, view, attempt)
        rng = np.random.default_rng(np.random.SeedSequence(key))
        rendered = render(scene, choose_camera(scene, rng), image_size, rng)
        if hole_share_fits(rendered.hole.mean()):
            break
    return encode(rendered)


def write_view(job: tuple) -> None:
    """Renders one view and puts its files in place, each whole or not at all."""
    from PIL import Image

    output_dir, building, point, view, image_size, seed = job
    images = render_images(building, point, view, image_size, seed)
    for domain, path in view_paths(output_dir, building, point, view).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        Image.fromarray(images[domain]).save(temporary, format="PNG", compress_level=1)
        os.replace(temporary, path)


def check_settings(output_dir: Path, settings: dict) -> None:
    """Records the settings in ``rooms.json``; raises UserError if others stand there."""
    from utils import UserError

    path = output_dir / "rooms.json"
    if path.exists():
        try:
            found = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            raise UserError(f"cannot read {path}: remove the folder, to make it anew") from None
        differing = [f"{key} {found.get(key)} (asked for {value})"
                     for key, value in settings.items() if found.get(key) != value]  # fmt: skip
        if differing:
            raise UserError(f"{path} holds rooms made with {', '.join(differing)}; "
                            "choose another folder or the same settings")  # fmt: skip
        return
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {output_dir}: {error.strerror}") from None
    temporary = path.with_name(f".rooms.json.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(settings, indent=1) + "\n")
    os.replace(temporary, path)


def chosen_buildings(buildings) -> list[str]:
    """``buildings`` as a list: None = all of the split, "a,b" or a sequence; UserError for a name
    that cannot be a folder's."""
    from utils import UserError

    if buildings is None:
        return split_buildings()
    names = buildings.split(",") if isinstance(buildings, str) else [str(b) for b in buildings]
    for name in names:
        if not name or not name.replace("-", "").isalnum():
            raise UserError(f"{name!r} is no building name: letters, digits and - only")
    return names


def leave_interrupts() -> None:
    """In a worker: Ctrl-C is the parent's to handle, which then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_jobs(jobs: list[tuple], num_workers: int, quiet: bool) -> None:
    """Writes the views, in this process or in spawned ones."""
    from tqdm import tqdm

    bar = tqdm(total=len(jobs), unit="view", desc="rooms", disable=quiet or None)
    if num_workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            write_view(job)
            bar.update()
    else:
        before = {name: os.environ.get(name) for name in THREAD_LIMITS}
        os.environ.update(dict.fromkeys(THREAD_LIMITS, "1"))
        try:
            context = multiprocessing.get_context("spawn")
            with context.Pool(min(num_workers, len(jobs)), leave_interrupts) as pool:
                for _ in pool.imap_unordered(write_view, jobs, chunksize=VIEWS_PER_POINT):
                    bar.update()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    bar.close()


def make_rooms(
    output_dir,
    views_per_building: int = 48,
    image_size: int = 128,
    seed: int = 0,
    num_workers: int | None = None,
    buildings=None,
    quiet: bool = False,
) -> int:
    """Writes the missing views under ``output_dir`` and returns how many were written.

    Files are the same bytes whatever ``num_workers`` (None: one per core) and however often the
    work was interrupted. ``buildings``: None for all of config/split_rooms.txt, a list or "a,b".
    Raises UserError if the folder holds rooms of other settings.
    """
    from utils import UserError

    if image_size < 16 or views_per_building < 1:
        raise UserError("image_size must be at least 16 and views_per_building at least 1")
    names = chosen_buildings(buildings)
    output_dir = Path(output_dir)
    check_settings(
        output_dir, {"image_size": int(image_size), "seed": int(seed), "generator": VERSION}
    )
    jobs = []
    for building in names:
        for number in range(views_per_building):
            point, view = divmod(number, VIEWS_PER_POINT)
            paths = view_paths(output_dir, building, point, view)
            if not all(path.exists() for path in paths.values()):
                jobs.append((str(output_dir), building, point, view, image_size, seed))
    if jobs and not quiet:
        print(f"rooms: rendering {len(jobs)} views to {output_dir}")
    run_jobs(jobs, num_workers or os.cpu_count() or 1, quiet)
    return len(jobs)


def main(
    *,
    output_dir: str | None = None,
    views_per_building: int = 48,
    image_size: int = 128,
    seed: int = 0,
    num_workers: int | None = None,
    buildings: str | None = None,
    sheet: str | None = None,
    quiet: bool = False,
) -> None:
    """Render the rooms, a data set of procedural indoor scenes, in Taskonomy's layout.

    What is there already stays, so an interrupted run goes on where it stopped. Training
    makes the default set by itself.

    Example: python -m scripts.make_rooms --output-dir more_rooms --seed 1 --sheet rooms.png

    Args:
        output_dir: where the folders {building}_{domain}/{domain}/ go (default: data_rooms/
            of the job's base folder, where training looks for them).
        views_per_building: views of each building, four of a room.
        image_size: pixels of the images' side.
        seed: another seed gives other rooms.
        num_workers: processes (default: one a core).
        buildings: only these, comma-separated (default: all of config/split_rooms.txt).
        sheet: write a contact sheet of a few views into this PNG too.
        quiet: no progress bar.
    """
    from utils import read_job

    folder = Path(output_dir) if output_dir else read_job().rooms_dir
    written = make_rooms(
        folder, views_per_building, image_size, seed, num_workers, buildings, quiet
    )
    if not quiet:
        print(f"{written} views written to {folder}")
    if sheet:
        from scripts.rooms.sheet import write_sheet

        rows = [(name, *divmod(k, VIEWS_PER_POINT)) for k in range(views_per_building)
                for name in chosen_buildings(buildings)]  # fmt: skip
        step = max(1, len(rows) // 12)
        write_sheet(sheet, [view_paths(folder, *row) for row in rows[::step][:12]])
        if not quiet:
            print(f"contact sheet: {sheet}")


if __name__ == "__main__":
    from utils import command_line

    command_line(main)

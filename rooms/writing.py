"""Writing of the embedded data set: procedural rooms in Taskonomy's layout and encodings."""

import multiprocessing
import os
import signal
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from zlib import crc32

from files import make_folder, read_json, write_json
from rooms.variants import DEFAULT, Variant, exposure_of, pose_of
from utils import ROOT, UserError, log, reason_of

VERSION = 1  # version of the generator; increase it when the images of a seed change
VIEWS_PER_POINT = 4
SPLIT_FILE = ROOT / "config" / "split_rooms.txt"
# Environment variables that BLAS libraries read when a spawned worker imports NumPy.
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def split_buildings() -> list[str]:
    """Return all buildings of ``config/split_rooms.txt``: train, val, test."""
    split = read_json(SPLIT_FILE)
    return [name for part in split.values() for name in part]


def view_paths(output_dir, building: str, point: int, view: int) -> dict[str, Path]:
    """Return the files of a view: {domain: path}."""
    from rooms.domains import DOMAINS

    root = Path(output_dir)
    return {
        domain: root / f"{building}_{domain}" / domain
        / f"point_{point}_view_{view}_domain_{tag}.png"
        for domain, tag in DOMAINS.items()
    }  # fmt: skip


def render_images(
    building: str,
    point: int,
    view: int,
    image_size: int,
    seed: int,
    variant: Variant = DEFAULT,
) -> dict:
    """Render a view: {domain: image} (see rooms/domains.py). Depends only on the arguments."""
    import numpy as np

    from rooms.camera import choose_camera, hole_share_fits
    from rooms.domains import encode
    from rooms.layout import make_scene
    from rooms.render import render

    scene = make_scene(seed, building, point, variant)
    seeds = np.random.SeedSequence((seed, crc32(building.encode()), 4, point, view))
    extra = np.random.default_rng(seeds)  # of variants
    angles, roll = pose_of(variant, extra)
    exposure = exposure_of(variant, extra)
    for attempt in range(12):
        key = (seed, crc32(building.encode()), 2, point, view, attempt)
        rng = np.random.default_rng(np.random.SeedSequence(key))
        camera = choose_camera(scene, rng, angles=angles, roll=roll)
        rendered = render(scene, camera, image_size, rng, exposure)
        if hole_share_fits(rendered.hole.mean()):
            break
    return encode(rendered)


def write_view(job: tuple, owner: int) -> None:
    """Render a view and write its files, each atomically.

    `owner` is the process that makes the rooms; temporary files are named after it. Raises
    UserError if a file cannot be written.
    """
    from PIL import Image

    output_dir, building, point, view, image_size, seed, variant = job
    images = render_images(building, point, view, image_size, seed, variant)
    for domain, path in view_paths(output_dir, building, point, view).items():
        temporary = _temporary(path, owner)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[domain]).save(temporary, format="PNG", compress_level=1)
            os.replace(temporary, path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {reason_of(error)}") from None


def _temporary(path: Path, owner: int) -> Path:
    return path.with_name(f".{path.name}.{owner}.tmp")


def _remove_unfinished(jobs: list[tuple]) -> None:
    """Remove the temporary files of this process and its workers, which have ended."""
    for output_dir, building, point, view, *_ in jobs:
        for path in view_paths(output_dir, building, point, view).values():
            with suppress(OSError):
                _temporary(path, os.getpid()).unlink()


def check_settings(output_dir: Path, settings: dict) -> None:
    """Write the settings to ``rooms.json``. Raises UserError if it holds other settings."""
    path = output_dir / "rooms.json"
    if not path.exists():
        make_folder(output_dir)
        write_json(path, settings)
        return
    try:
        existing = read_json(path)
    except UserError:
        raise UserError(f"cannot read {path}: remove the folder to make it again") from None
    usual = asdict(DEFAULT)  # what rooms.json does not name
    asked, made = usual | settings, usual | existing
    differing = [f"{key} {made.get(key)} (asked for {value})"
                 for key, value in asked.items() if made.get(key) != value]  # fmt: skip
    if differing:
        raise UserError(f"{path} holds rooms made with {', '.join(differing)}; "
                        "choose another folder or the same settings")  # fmt: skip


def chosen_buildings(buildings) -> list[str]:
    """Return ``buildings`` as a list. It may be None (all of the split), "a,b" or a sequence.

    Raises UserError for a name that cannot be a folder's name.
    """
    if buildings is None:
        return split_buildings()
    names = buildings.split(",") if isinstance(buildings, str) else [str(b) for b in buildings]
    for name in names:
        if not name or not name.replace("-", "").isalnum():
            raise UserError(f"{name!r} is not a building name: letters, digits and - only")
    return names


def leave_interrupts() -> None:
    """Ignore Ctrl-C in a worker. The parent process handles it and terminates its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_jobs(jobs: list[tuple], num_workers: int, quiet: bool) -> None:
    """Write the views in this process or, with several workers, in spawned ones.

    If that is interrupted or fails, no temporary file is left.
    """
    try:
        _run_jobs(jobs, num_workers, quiet)
    except BaseException:
        _remove_unfinished(jobs)
        raise


def _run_jobs(jobs: list[tuple], num_workers: int, quiet: bool) -> None:
    from tqdm import tqdm

    write = partial(write_view, owner=os.getpid())
    bar = tqdm(total=len(jobs), unit="view", desc="rooms", disable=quiet or not jobs or None)
    if num_workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            write(job)
            bar.update()
    else:
        before = {name: os.environ.get(name) for name in THREAD_LIMITS}
        os.environ.update(dict.fromkeys(THREAD_LIMITS, "1"))
        try:
            context = multiprocessing.get_context("spawn")
            with context.Pool(min(num_workers, len(jobs)), leave_interrupts) as pool:
                for _ in pool.imap_unordered(write, jobs, chunksize=VIEWS_PER_POINT):
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
    variant: Variant = DEFAULT,
) -> int:
    """Write the missing views below ``output_dir``. Returns the number of views written.

    The files do not depend on ``num_workers`` (None: one per core) or on interruptions.
    ``buildings`` is None (all of config/split_rooms.txt), a list or "a,b". ``variant`` makes harder
    rooms, or a set out of the distribution. Raises UserError if the folder holds rooms with other
    settings or cannot be written.
    """
    if image_size < 16 or views_per_building < 1:
        raise UserError("`image_size` must be at least 16 and `views_per_building` at least 1")
    names = chosen_buildings(buildings)
    output_dir = Path(output_dir)
    settings: dict[str, object] = {
        "image_size": int(image_size),
        "seed": int(seed),
        "generator": VERSION,
    }
    settings |= variant.record()
    jobs = []
    try:
        check_settings(output_dir, settings)
        for building in names:
            for number in range(views_per_building):
                point, view = divmod(number, VIEWS_PER_POINT)
                paths = view_paths(output_dir, building, point, view)
                if not all(path.exists() for path in paths.values()):
                    job = (str(output_dir), building, point, view, image_size, seed, variant)
                    jobs.append(job)
    except OSError as error:  # a folder that may not be looked into
        raise UserError(f"cannot read {output_dir}: {error.strerror}") from None
    if jobs and not quiet:
        log.info("rooms: rendering %s views to %s", len(jobs), output_dir)
    run_jobs(jobs, num_workers or os.cpu_count() or 1, quiet)
    return len(jobs)

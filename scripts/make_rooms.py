"""Render the rooms, the embedded data set.

python -m scripts.make_rooms
"""

from pathlib import Path

from flags import command_line
from rooms.sheet import write_sheet
from rooms.variants import Variant
from rooms.writing import VIEWS_PER_POINT, chosen_buildings, make_rooms, view_paths
from utils import UserError, check_positive, log, read_job


def main(
    *,
    output_dir: str | None = None,
    views_per_building: int = 48,
    image_size: int = 128,
    seed: int = 0,
    num_workers: int | None = None,
    buildings: str | None = None,
    difficulty: str = "default",
    set: str = "default",
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
        views_per_building: views of each building, four of each room.
        image_size: pixels of the images' side.
        seed: another seed gives other rooms.
        num_workers: processes (default: one per core).
        buildings: only these, comma-separated (default: all of config/split_rooms.txt). Another
            name gives another building, which is in no part of that split.
        difficulty: default, or hard: clutter, thin structures, mirrors, glass, rich textures, low
            light and glare.
        set: default, other_furniture, outdoor_light or other_camera: rooms unlike those that
            networks are trained on, for tests out of the distribution (docs/data.md).
        sheet: write a contact sheet of a few views into this PNG too.
        quiet: no progress bar.
    """
    check_positive(views_per_building=views_per_building, image_size=image_size,
                   num_workers=num_workers)  # fmt: skip
    if seed < 0:
        raise UserError(f"`seed` has to be 0 or more, not {seed}")
    variant, known = Variant(difficulty, set), chosen_buildings(None)
    if others := sorted(n for n in chosen_buildings(buildings) if n not in known):
        log.warning("%s: not in config/split_rooms.txt, so buildings of their own",
                    ", ".join(others))  # fmt: skip
    folder = Path(output_dir) if output_dir else read_job().rooms_dir
    written = make_rooms(
        folder, views_per_building, image_size, seed, num_workers, buildings, quiet, variant
    )
    if not quiet:
        total = views_per_building * len(chosen_buildings(buildings))
        there = f"{total - written} views already there" if written < total else ""
        print(", ".join(filter(None, [f"{written} views written" if written else "", there]))
              + f": {folder}")  # fmt: skip
    if sheet:
        rows = [(name, *divmod(k, VIEWS_PER_POINT)) for k in range(views_per_building)
                for name in chosen_buildings(buildings)]  # fmt: skip
        step = max(1, len(rows) // 12)
        write_sheet(sheet, [view_paths(folder, *row) for row in rows[::step][:12]])
        if not quiet:
            print(f"contact sheet: {sheet}")


if __name__ == "__main__":
    command_line(main)

"""Pack a data set at one image size, so that it loads without decoding image files.

python -m scripts.pack /data/taskonomy --to /data/taskonomy_256 --image-size 256
"""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from datasets import check_loading
from flags import also_called, command_line, folding_flags
from loading.layouts import add_layouts
from loading.packs import PACK_INDEX, find_pack
from loading.view_index import choose_index_dir
from packing import make_pack
from sharding import make_shards
from task_configs import get_task
from utils import UserError, check_positive, counted


@dataclass(frozen=True)
class SourceOptions:
    """The data.

    Args:
        domains: the domains to pack, comma-separated (default: all that have files).
        layouts: Python files of your own that add layouts of folders (docs/extending.md).
        index_dir: folder in which the views of large data folders are listed, for later runs
            (docs/scale.md; default: xtconsistency in the user's cache folder), or none.
        allow_missing: go on where more than a tenth of the views lack a domain.
        max_bad_fraction: stop where more than this share of the views cannot be loaded; up to
            it, they are left out.
    """

    domains: list | None = None
    layouts: list | None = None
    index_dir: str | None = None
    allow_missing: bool = False
    max_bad_fraction: float = 0.01


@also_called(tasks="domains")
@folding_flags
def main(
    data_dir: str,
    *,
    to: str | None = None,
    image_size: int | None = None,
    num_workers: int | None = None,
    verify: bool = False,
    shards: bool = False,
    shard_size: float | None = None,
    quiet: bool = False,
    source: SourceOptions,
) -> None:
    """Pack a data set at one image size. Training takes the pack as --data-dirs.

    What is loaded from the pack equals, bit for bit, what the files give. A packing that was
    interrupted is continued by the same command; the folder appears when it is complete.

    Example: python -m scripts.pack data_rooms --to /tmp/rooms_64 --image-size 64

    Args:
        data_dir: the folder with the data set, or a list of views (docs/data.md); with
            --verify, a pack.
        to: the folder of the new pack.
        image_size: pixels of the images' side, as the networks will take them (default: 256).
        num_workers: processes that read files (default: one per core).
        verify: compare a pack with the checksums that it records; nothing is packed. Training
            compares only the sizes and the ends of the arrays.
        shards: write tar shards of the files as they are, to be read in sequence
            (docs/data.md), instead of a pack.
        shard_size: megabytes of each shard (default: 1000).
        quiet: no progress bar.
    """
    if verify:
        _verify(data_dir, to)
        return
    check_positive(image_size=image_size, shard_size=shard_size)
    check_loading(num_workers, source.max_bad_fraction)
    if to is None:
        raise UserError("where to pack to? name the new folder with `to`")
    _check_kind(shards, image_size, num_workers, shard_size)
    add_layouts(source.layouts)
    choose_index_dir(source.index_dir)
    chosen = [get_task(name) for name in source.domains] if source.domains else None
    limits = source.allow_missing, source.max_bad_fraction
    if shards:
        written = make_shards(data_dir, to, shard_size or 1000, chosen, *limits, quiet)
        _print_shards(to, written)
        return
    workers = os.cpu_count() or 1 if num_workers is None else num_workers
    _print_pack(to, make_pack(data_dir, to, image_size or 256, chosen, *limits, workers, quiet))


def _check_kind(
    shards: bool, image_size: int | None, num_workers: int | None, shard_size: float | None
) -> None:
    if shards and (image_size is not None or num_workers is not None):
        raise UserError("`shards` hold the files as they are: no `image_size`, `num_workers`")
    if shard_size is not None and not shards:
        raise UserError("`shard_size` is for `shards`")


def _print_pack(to: str, counts: tuple[int, int] | None) -> None:
    if counts is None:
        print(f"pack: {to} is complete")
        return
    count, left_out = counts
    pack = find_pack(to)
    assert pack is not None  # it was just made
    note = f" ({left_out} left out)" if left_out else ""
    print(f"pack: {count} views of {len(pack.encodings)} domains, {_megabytes(to)}: {to}{note}")


def _megabytes(folder: str) -> str:
    return f"{sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6:.1f} MB"


def _print_shards(to: str, counts: tuple[int, int, int]) -> None:
    shards, views, left_out = counts
    note = f" ({left_out} left out)" if left_out else ""
    print(f"pack: {views} views in {counted(shards, 'shard')}, {_megabytes(to)}: {to}{note}")
    pattern = f"shards:{Path(to) / Path(to).name}-{{000000..{shards - 1:06}}}.tar"
    print(f"try it: python -m train multiperceptual_normal --data-dirs {shlex.quote(pattern)}")


def _verify(folder: str, to: str | None) -> None:
    if to is not None:
        raise UserError("`verify` reads a pack that is there: name its folder, without `to`")
    pack = find_pack(folder)
    if pack is None:
        raise UserError(f"{folder} is not a pack: it has no {PACK_INDEX}")
    pack.verify(whole=True)
    print(f"pack: {folder} is whole: all of its {len(pack.encodings)} arrays are as recorded")


if __name__ == "__main__":
    command_line(main)

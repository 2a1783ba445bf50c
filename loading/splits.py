"""Which buildings train, validate and test."""

import json
from collections.abc import Sequence
from pathlib import Path

from loading.layouts import LAYOUTS, Place, find_places
from utils import ROOT, UserError, log

PARTS = "train", "val", "test"


def split_buildings(
    data_dirs: Sequence[str | Path], split: str | Path | None = None
) -> dict[str, list[str]]:
    """The buildings at hand as {"train": …, "val": …, "test": …}.

    A split file is JSON with the keys train_buildings, val_buildings and, if wanted,
    test_buildings. Without `split`, the folders train and val (and test) that the data are
    in; else the first of `config/split*.txt` that puts one of the buildings at hand into
    each of train and val; where none does, the last tenth of the buildings (by name) is
    val. A split without test buildings tests on val.
    """
    places = [place for folder in data_dirs for place in find_places(folder)]
    if not places:
        known = ", ".join(LAYOUTS)
        where = ", ".join(map(str, data_dirs))
        raise UserError(f"no building under {where} in a layout known here ({known})")
    found = sorted({place.building for place in places})
    files = [Path(split)] if split else sorted((ROOT / "config").glob("split*.txt"))
    splits = [] if split else [_folders_split(places)]
    for named in [*splits, *map(read_split, files)]:
        parts = {part: [b for b in names if b in found] for part, names in named.items()}
        if parts["train"] and parts["val"]:
            return {**parts, "test": parts.get("test") or parts["val"]}
    if split:
        raise UserError(f"{split} names no train or no val building of those at hand: {found}")
    if len(found) == 1:
        log.warning("one building only (%s): training and validation share it", found[0])
        return {"train": found, "val": found, "test": found}
    count = max(1, len(found) // 10)
    return {"train": found[:-count], "val": found[-count:], "test": found[-count:]}


def _folders_split(places: Sequence[Place]) -> dict[str, list[str]]:
    """The buildings in folders train, val, test; none where one building is in two of them."""
    parts = {part: {p.building for p in places if p.part == part} for part in PARTS}
    if sum(map(len, parts.values())) > len(set().union(*parts.values())):
        return dict.fromkeys(PARTS, [])
    return {part: sorted(names) for part, names in parts.items()}


def read_split(path: Path) -> dict[str, list[str]]:
    """A split file's buildings, {"train": …, "val": …}. Raises UserError for another file."""
    try:
        read = json.loads(path.read_text())
        parts = {name.removesuffix("_buildings"): list(read[name]) for name in read}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError):
        parts = {}
    if not {"train", "val"} <= set(parts):
        raise UserError(f"{path} should be JSON with train_buildings and val_buildings")
    return parts

"""Assignment of buildings to training, validation and test."""

from collections.abc import Sequence
from pathlib import Path

from files import read_json
from loading.layouts import Place, find_places, no_views
from utils import ROOT, UserError, log

PARTS = "train", "val", "test"


def split_buildings(
    data_dirs: Sequence[str | Path], split: str | Path | None = None
) -> dict[str, list[str]]:
    """Split the available buildings: {"train": …, "val": …, "test": …}.

    `split` is a JSON file with the keys train_buildings, val_buildings and, optionally,
    test_buildings. Without `split`, the first of these that applies is used:

    1. the folders train, val and test that contain the data,
    2. the first of `config/split*.txt` with available buildings in both train and val,
    3. the last tenth of the buildings, sorted by name, as val.

    If there are no test buildings, the validation buildings are used. Raises UserError if
    there are no buildings or `split` cannot be used.
    """
    places = [place for folder in data_dirs for place in find_places(folder)]
    if not places:
        raise no_views(data_dirs)
    available = sorted({place.building for place in places})
    files = [Path(split)] if split else sorted((ROOT / "config").glob("split*.txt"))
    splits = [] if split else [_folders_split(places)]
    for candidate in [*splits, *map(read_split, files)]:
        parts = {part: [b for b in names if b in available] for part, names in candidate.items()}
        if parts["train"] and parts["val"]:
            return {**parts, "test": parts.get("test") or parts["val"]}
    if split:
        raise UserError(f"{split} names no train or no val building of those at hand: {available}")
    if len(available) == 1:
        log.warning("one building only (%s): training and validation share it", available[0])
        return {"train": available, "val": available, "test": available}
    count = max(1, len(available) // 10)
    return {"train": available[:-count], "val": available[-count:], "test": available[-count:]}


def _folders_split(places: Sequence[Place]) -> dict[str, list[str]]:
    """Return the buildings in folders train, val, test; none if one is in several of them."""
    parts = {part: {p.building for p in places if p.part == part} for part in PARTS}
    if sum(map(len, parts.values())) > len(set().union(*parts.values())):
        return dict.fromkeys(PARTS, [])
    return {part: sorted(names) for part, names in parts.items()}


def read_split(path: Path) -> dict[str, list[str]]:
    """Read a split file as {"train": …, "val": …}. Raises UserError if it is not one."""
    expected = "a split should be JSON with train_buildings and val_buildings"
    try:
        split = read_json(path)
        parts = {name.removesuffix("_buildings"): list(split[name]) for name in split}
    except UserError as error:
        raise UserError(f"{error}; {expected}") from None
    except TypeError:
        parts = {}
    if not {"train", "val"} <= set(parts):
        raise UserError(f"{path}: {expected}")
    return parts

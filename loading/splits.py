"""Assignment of buildings to training, validation and test."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from files import read_json
from loading.layouts import Place, check_data_dirs, find_places, no_views
from utils import ROOT, UserError, log, nearest

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

    If there are no test buildings, the validation buildings are used. Logs the buildings of
    `split` that are not among the data. Raises UserError if there are no buildings or `split`
    cannot be used.
    """
    check_data_dirs(data_dirs)
    places = [place for folder in data_dirs for place in find_places(folder)]
    if not places:
        raise no_views(data_dirs)
    available = sorted({place.building for place in places})
    files = [Path(split)] if split else sorted((ROOT / "config").glob("split*.txt"))
    splits = [] if split else [_folders_split(places)]
    for candidate in [*splits, *map(read_split, files)]:
        parts = {part: [b for b in names if b in available] for part, names in candidate.items()}
        if parts["train"] and parts["val"]:
            if split:
                _warn_of_unknown(split, candidate, available)
            return {**parts, "test": parts.get("test") or parts["val"]}
    if split:
        raise UserError(f"{split} names no train or no val building of those at hand: {available}")
    if len(available) == 1:
        log.warning("one building only (%s): training and validation share it", available[0])
        return {"train": available, "val": available, "test": available}
    count = max(1, len(available) // 10)
    return {"train": available[:-count], "val": available[-count:], "test": available[-count:]}


def _folders_split(places: Sequence[Place]) -> dict[str, list[str]]:
    """Return the buildings in folders train, val, test; none at all if one is in several."""
    parts = {part: {p.building for p in places if p.part == part} for part in PARTS}
    if sum(map(len, parts.values())) > len(set().union(*parts.values())):
        return dict.fromkeys(PARTS, [])
    return {part: sorted(names) for part, names in parts.items()}


def _warn_of_unknown(
    split: str | Path, named: Mapping[str, Sequence[str]], available: Sequence[str]
) -> None:
    """Log the buildings that a split names and the data do not have."""
    for part, names in named.items():
        unknown = [name for name in names if name not in available]
        if not unknown:
            continue
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        consequence = ""
        if part == "test" and len(unknown) == len(names):
            consequence = "; the val buildings stand in for test"
        log.warning(
            "%s: %s of the %s %s buildings are not in the data: %s%s%s%s", split, len(unknown),
            len(names), part, ", ".join(unknown[:5]), more, consequence,
            nearest(unknown[0], available),
        )  # fmt: skip


def read_split(path: Path) -> dict[str, list[str]]:
    """Read a split file as {"train": …, "val": …}.

    Raises UserError if it is not one, has an unknown key, or names a building for training
    that it also names for val or test.
    """
    expected = "a split should be JSON with train_buildings and val_buildings"
    try:
        split = read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {expected}") from None
    keys = [f"{part}_buildings" for part in PARTS]
    parts = {}
    for key, names in split.items():
        part = str(key).removesuffix("_buildings")
        if part not in PARTS:
            raise UserError(f"{path}: unknown key {key!r}{nearest(key, keys)}; {expected}")
        if part in parts:
            raise UserError(f"{path}: {part} and {part}_buildings are the same: give one of them")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: {key} has to be a list of buildings' names")
        parts[part] = names
    if not {"train", "val"} <= set(parts):
        raise UserError(f"{path}: {expected}")
    for part in ("val", "test"):
        if shared := sorted(set(parts["train"]) & set(parts.get(part, ()))):
            raise UserError(
                f"{path} names {', '.join(shared[:5])} for train and for {part}: a building is for "
                f"one of them"
            )
    return parts

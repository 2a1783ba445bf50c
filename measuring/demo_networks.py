"""Choice of the networks rgb → target that the demo compares."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from methods.interface import TARGETS
from methods.table import METHODS, endings
from other_networks import (
    PUBLISHERS,
    find_published,
    is_publisher,
    published_file,
    recognised,
)
from sources import (
    DEMO_MODELS,
    SHIPPED,
    STEMS,
    VARIANTS,
    checkpoint_names,
    find_variant,
    own_models,
)
from transfers import TRANSFERS
from utils import UserError, check_one_of, log, read_job

# What the demo looks for in the models folder.
DEMO_VARIANTS = (*VARIANTS, *PUBLISHERS)


@dataclass(frozen=True)
class Choice:
    """The checkpoints to load, {label: file}, and one line that describes them.

    The labels are "baseline" and "consistency", publishers ("omnidata", "taskonomy"), or come from
    the files' names.
    `stands_in`: whether these are the shipped rooms networks, because no others were found.
    """

    paths: dict[str, Path]
    note: str
    stands_in: bool = False


def choose_networks(
    task: str,
    *,
    checkpoint: Sequence[str | Path] | None = None,
    model: str | None = None,
    models_dir: str | Path | None = None,
    variants: Sequence[str] = DEMO_VARIANTS,
) -> Choice:
    """Choose the networks of a task: normal, depth or reshading. The first rule that applies:

    1. `checkpoint`: these files; of a folder, all of its networks for the task; omnidata or
       taskonomy: that publisher's network in `models_dir`, or where the third rule looks.
    2. `model` rooms: the networks shipped with the project.
    3. Those of the `variants` that are in `models_dir` (default: models/ of the job's base
       folder, then models/trained there), if there is at least one.
    4. If neither `models_dir` nor `model` is given: the networks shipped with the project.

    Logs the checkpoints in `models_dir` that are passed over, with the reason. Raises UserError
    if there is no network.
    """
    check_one_of("model", model or "rooms", ("published", "rooms"))
    if checkpoint is not None:
        named = [str(entry) for entry in checkpoint if is_publisher(entry)]
        if model is not None or (models_dir is not None and not named):
            raise UserError("`checkpoint` names the networks: give no `model` and no `models_dir`")
        paths = _given(task, [_file_of(task, entry, models_dir) for entry in checkpoint])
        return Choice(paths, f"networks: {_listed(paths)}")
    if model == "rooms" and models_dir is not None:
        raise UserError("`model` rooms are those shipped with the project: no `models_dir`")
    folders = _folders(models_dir)
    paths = _variants_in(folders, TARGETS[task], variants) if model != "rooms" else {}
    others = [v for v in variants if v in PUBLISHERS]
    if others == list(variants) and not paths:  # asked for by name
        published_file(others[0], TARGETS[task], folders)
    names = (checkpoint_names(TARGETS[task], v)[0] for v in variants if v not in (*paths, *others))
    missing = ", ".join(names)
    if model != "rooms":
        for folder in folders:
            _log_passed_over(folder, task, paths, variants)
    if paths:
        rest = f" (there is no {missing})" if missing else ""
        return Choice(paths, f"networks: {_listed(paths)}{rest}")
    shipped = _variants_in([DEMO_MODELS], TARGETS[task], variants)
    if shipped and (model is None and models_dir is None or model == "rooms"):
        stands_in = model is None
        reason = f", as {folders[0]} has no {missing}" if stands_in else ""
        note = (
            f"networks: the small ones shipped with the project, trained on rendered rooms"
            f"{reason}; for others {_ways(task)}"
        )
        return Choice(shipped, note, stands_in)
    raise UserError(f"no {missing.replace(', ', ' or ')} in {folders[0]}: {_ways(task)}")


def choose_methods(task: str, names: Sequence[str], models_dir: str | Path | None = None) -> Choice:
    """Choose the network of each of the named methods (`methods.table.METHODS`) for a task.

    Looks in `models_dir`, by default in the job's models folders, then in those shipped with the
    project. If a method's network predicts several domains, it serves all targets for which it has
    the same depth, whichever of them it was trained for. Raises UserError if a method is unknown,
    or has no network there for the task.
    """
    folders = [*_folders(models_dir), *([SHIPPED] if models_dir is None else [])]
    target, paths = TARGETS[task], {}
    for name in names:
        method = METHODS[check_one_of("method", name, tuple(METHODS))]
        if task not in method.targets:
            raise UserError(f"`method` {name} has networks for {' and '.join(method.targets)} only")
        if name in PUBLISHERS:
            paths[name] = published_file(name, target, folders)
            continue
        path = find_variant(folders, target, method.ending)
        if path is None and method.network is not None:  # one network predicts several domains
            alike = (TARGETS[other] for other in method.targets if _as_deep(TARGETS[other], target))
            found = (find_variant(folders, other, method.ending) for other in alike)
            path = next(filter(None, found), None)
        if path is None:
            places = " or ".join(map(str, folders))
            raise UserError(
                f"no {checkpoint_names(target, method.ending)[0]} in {places}: `python -m train "
                f"{name}_{task}` trains one, and `checkpoint` names its run's folder"
            )
        paths[name] = path
    return Choice(paths, f"networks: {_listed(paths)}")


def _as_deep(one: str, other: str) -> bool:
    """Whether the table's networks from rgb to two domains have the same depth."""
    return TRANSFERS["rgb", one].downsample == TRANSFERS["rgb", other].downsample


def _listed(paths: dict[str, Path]) -> str:
    return ", ".join(f"{label} {path}" for label, path in paths.items())


def _ways(task: str) -> str:
    omnidata = " (for photographs: python -m scripts.download omnidata)" if task == "normal" else ""
    return (
        f"name a run's folder or a file with `checkpoint` (python -m train "
        f"multiperceptual_{task} trains one), or fetch the published ones with "
        f"tools/download_models.sh{omnidata}"
    )


def _folders(models_dir: str | Path | None) -> list[Path]:
    return [Path(models_dir)] if models_dir is not None else own_models(read_job())


def _variants_in(folders: Sequence[Path], target: str, variants: Sequence[str]) -> dict[str, Path]:
    found = {}
    for variant in variants:
        find = find_published if variant in PUBLISHERS else _find_own
        if path := find(variant, target, folders):
            found[variant] = path
    return found


def _find_own(variant: str, target: str, folders: Sequence[Path]) -> Path | None:
    return find_variant(folders, target, variant)


# ---- given checkpoints --------------------------------------------------------------


def _file_of(task: str, entry: str | Path, models_dir: str | Path | None) -> Path:
    """Return the entry as a path; of a publisher's name, its network's file."""
    if not is_publisher(entry):
        return Path(entry)
    return published_file(str(entry), TARGETS[task], _folders(models_dir))


def _given(task: str, entries: Sequence[Path]) -> dict[str, Path]:
    """Return the networks of files and folders, {label: file}."""
    files = [file for entry in entries for file in _files_of(task, entry)]
    for file in files:
        if (found := recognised(file)) and found.domain != TARGETS[task]:
            raise UserError(f"{file} is a network rgb → {found.domain}, not rgb → {task}")
        if found and found.domain not in PUBLISHERS[found.publisher]:
            raise UserError(
                f"{file}: the unit of Taskonomy's own depth is not known, so the demo does not "
                f"show it"
            )
        others = [t for t, name in TARGETS.items() if t != task and _suffix(file, name) is not None]
        if others and _suffix(file, TARGETS[task]) is None:
            raise UserError(f"{file} is a network rgb → {others[0]}: `task` {others[0]} shows it")
    labels = [_label(file, task) for file in files]
    if len({file.resolve() for file in files}) < len(files):
        raise UserError(f"`checkpoint` names a network twice: {', '.join(map(str, files))}")
    paths: dict[str, Path] = {}
    for label, file in zip(labels, files, strict=True):
        number = 1 + sum(other == label for other in labels[: len(paths)])
        paths[f"{label}_{number}" if number > 1 else label] = file
    return paths


def _files_of(task: str, entry: Path) -> list[Path]:
    if not entry.is_dir():
        return [entry]  # reading it says what is wrong, if anything
    ends = dict.fromkeys(("_baseline", "", "_consistency", *(f"_{end}" for end in endings())))
    names = [f"{stem}{end}.pth" for end in ends for stem in STEMS[TARGETS[task]]]
    files = [entry / name for name in names if (entry / name).is_file()]
    if not files:
        there = ", ".join(sorted(file.name for file in entry.glob("*.pth"))[:5]) or "none"
        raise UserError(
            f"no network rgb → {task} in {entry}: looked for {', '.join(names[:9])} and those of "
            f"other methods; "
            f"checkpoints there: {there}"
        )
    return files


def _suffix(file: Path, target: str) -> str | None:
    """Return what follows rgb2{target} in the file's name: "", "_consistency", …, else None."""
    rests = [file.stem.removeprefix(s) for s in STEMS[target] if file.stem.startswith(s)]
    rests = [rest for rest in rests if not rest or rest[0] == "_"]
    return min(rests, key=len, default=None)


def _label(file: Path, task: str) -> str:
    """Return a network's label: "consistency" for rgb2normal_consistency.pth, …

    The network of a run that trained a transfer, rgb2normal.pth, is a baseline.
    """
    if found := recognised(file):
        return found.publisher
    suffix = _suffix(file, TARGETS[task])
    return file.stem if suffix is None else suffix.removeprefix("_") or "baseline"


def for_task(task: str, checkpoint: Sequence[str | Path]) -> list[Path]:
    """Return those of the given files and folders whose names indicate a network of the task."""
    target = TARGETS[task]
    return [
        entry
        for entry in map(Path, checkpoint)
        if _suffix(entry, target) is not None
        or any(_suffix(file, target) is not None for file in entry.glob("rgb2*.pth"))
    ]


# ---- the models folder --------------------------------------------------------------


def _log_passed_over(
    folder: Path, task: str, paths: dict[str, Path], variants: Sequence[str]
) -> None:
    """Log a warning for each network of the task in `folder` that is not used."""
    target = TARGETS[task]
    known = [name for variant in VARIANTS for name in checkpoint_names(target, variant)]
    for file in sorted(folder.glob("rgb2*.pth")) + sorted(folder.glob("rgb2*.safetensors")):
        if _suffix(file, target) is None or file in paths.values():
            continue
        variant = next((v for v in VARIANTS if file.name in checkpoint_names(target, v)), None)
        if variant is None and file.stem in {f"rgb2{target}_{ending}" for ending in endings()}:
            continue  # a method's, which has to be asked for too
        if variant is None:
            reason = f"its name is none of {', '.join(known)}"
        elif variant not in paths:
            continue  # not asked for
        else:
            reason = f"{paths[variant].name} comes first"
        log.warning("passing over %s: %s; `checkpoint` %s uses it", file, reason, file)

"""Installing a trained network: copying it into a models folder, where other runs find it."""

from pathlib import Path

from files import check_writable
from models import read_weights, save_network
from sources import Sources, checkpoint_names, has_variants
from training.objective import Objective
from utils import UserError


def installed_file(objective: Objective, sources: Sources, force: bool) -> Path:
    """Return the file under which the trained network would be installed.

    Raises UserError if its folder cannot be written, if the target of a configuration has no
    file name, or if the file exists and it is not `force`d.
    """
    ending = objective.ending.removeprefix("_")
    if objective.row or ending == "baseline":
        name = objective.transfer.checkpoint
    elif has_variants(objective.transfer):
        name = checkpoint_names(objective.transfer.target, ending)[0]
    else:
        raise UserError(f"`install`: no models folder has a name for what {objective.name} trains")
    file = check_writable(sources.install_dir) / name
    if file.exists() and not force:
        raise UserError(
            f"{file} is there already: `force` replaces it (and keeps it under another name)"
        )
    return file


def install(checkpoint: Path, file: Path, objective: Objective, sources: Sources) -> Path | None:
    """Copy a run's checkpoint to `file`, in float16.

    A network of the user's own is copied as it is, as its numbers may exceed float16's range. A
    file that is there already is renamed to {name}_replaced_{number}.pth. Returns this new name,
    or None. Raises UserError if the checkpoint cannot be read or the file cannot be written.
    """
    weights, record = read_weights(checkpoint)
    network = objective.transfer.build(sources.scale)
    network.load_state_dict(weights)
    half = objective.backbone is None
    made_by = {key: value for key, value in record.items() if key not in sources.scale.record()}
    made_by.pop("network", None)
    kept = _kept_name(file) if file.exists() else None
    if kept:
        file.rename(kept)
    save_network(file, network, sources.scale, half=half, **made_by)
    return kept


def _kept_name(file: Path) -> Path:
    number = 1
    while (kept := file.with_stem(f"{file.stem}_replaced_{number}")).exists():
        number += 1
    return kept

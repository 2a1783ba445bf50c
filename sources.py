"""Choice of the data, the weights and the scale of a run.

Folders given by the user are used as given. The default data are the job's `data` folder or,
if that holds none, the embedded rooms, which are rendered on first use. The default networks
are those in the job's `models` folder. Missing ones are taken from the shipped rooms networks,
if these have the run's scale.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from files import check_writable
from loading.layouts import find_buildings
from models import load_network, read_weights, recorded_scale
from modules import ResNetClass
from rooms.writing import make_rooms
from transfers import TRANSFERS, Scale, Transfer
from utils import ROOT, Job, UserError, log

SHIPPED = ROOT / "assets" / "rooms_models"
DEMO_MODELS = ROOT / "assets" / "demo_models"

# ---- checkpoints by name ------------------------------------------------------------

# File names of the checkpoints of rgb → target, in order of preference. For depth: the name of
# the published file, the name in the published training code, and the name used here.
VARIANTS = ("baseline", "consistency")
_STEMS = {
    "normal": ("rgb2normal",),
    "depth_zbuffer": ("rgb2depth", "rgb2zdepth", "rgb2depth_zbuffer"),
    "reshading": ("rgb2reshading",),
}


def has_variants(transfer: Transfer) -> bool:
    """Whether the transfer has separate baseline and consistency checkpoints."""
    return transfer.source == "rgb" and transfer.target in _STEMS


def checkpoint_names(target: str, variant: str) -> list[str]:
    """Return the possible file names of rgb → `target`'s baseline or consistency checkpoint."""
    return [f"{stem}_{variant}.pth" for stem in _STEMS[target]]


def find_file(folders: Iterable[str | Path], names: Sequence[str]) -> Path | None:
    """Return the file with one of the names in the first folder that has one, or None."""
    paths = (Path(folder) / name for folder in folders for name in names)
    return next((path for path in paths if path.is_file()), None)


def find_variant(
    folders: Sequence[str | Path], target: str, variant: str = "consistency"
) -> Path | None:
    """Return the checkpoint of rgb → `target` in the first folder that has it, or None."""
    return find_file(folders, checkpoint_names(target, variant))


def find_scale(models_dir: str | Path, transfers: Iterable[Transfer]) -> Scale | None:
    """Return the scale of the first trainable transfer's checkpoint that exists, or None."""
    for transfer in transfers:
        path = Path(models_dir) / transfer.checkpoint
        if transfer.trainable and path.is_file():
            return recorded_scale(path, transfer.build)
    return None


def imagenet_weights(models_dir: str | Path, transfer: Transfer) -> dict[str, Tensor]:
    """Return ResNet-50's ImageNet weights with the parameter names of ResNetClass.

    They are read from `models_dir` if the file exists, and otherwise downloaded by
    torchvision. Raises OSError if the download fails.
    """
    from torchvision.models import ResNet50_Weights

    path = Path(models_dir) / transfer.checkpoint
    if path.is_file():
        weights = read_weights(path)[0]
    else:
        try:
            weights = ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        except RuntimeError as error:  # wrong checksum of the download
            raise OSError(str(error)) from None
    return {n if n.startswith("resnet.") else f"resnet.{n}": v for n, v in weights.items()}


# ---- sources of a program -----------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """The data, models folders and scale of a run.

    `models_dirs` are searched in order. `embedded` is True if no data were given and the
    embedded rooms are used.
    """

    data_dirs: list[Path]
    models_dirs: list[Path]
    scale: Scale
    embedded: bool

    def find(self, transfer: Transfer) -> Path | None:
        """Return the transfer's checkpoint in the first models folder that has it, or None."""
        return find_file(self.models_dirs, [transfer.checkpoint])

    def checkpoint(self, transfer: Transfer, needed_by: str = "") -> Path:
        """Return the transfer's checkpoint.

        Raises UserError if there is none; it explains how to get one. `needed_by` is the
        configuration or transfer that the message suggests to train.
        """
        path = self.find(transfer)
        if path is None:
            places = " and ".join(map(str, self.models_dirs))
            raise UserError(
                f"no checkpoint {transfer.checkpoint} ({transfer.source} → {transfer.target}) in "
                f"{places}: train it with `python -m scripts.train_edges "
                f"{needed_by or transfer.name}`, fetch it with tools/download_models.sh, "
                f"or name its folder with `models_dir`"
            )
        return path

    def network(self, transfer: Transfer, needed_by: str = "") -> nn.Module:
        """Build the transfer's network and load its weights.

        Raises UserError if there is no checkpoint, and OSError if ImageNet's weights cannot
        be downloaded.
        """
        network = transfer.build(self.scale)
        if isinstance(network, ResNetClass):
            path = self.find(transfer) or self.models_dirs[0] / transfer.checkpoint
            network.load_state_dict(imagenet_weights(path.parent, transfer))
        elif transfer.checkpoint:
            load_network(network, self.checkpoint(transfer, needed_by), self.scale)
        return network


def settle(
    job: Job,
    data_dirs: Sequence[str] | None = None,
    models_dir: str | None = None,
    scale: tuple[int | None, int | None, int | None] = (None, None, None),
    quiet: bool = False,
    new_models: bool = False,
) -> Sources:
    """Choose the sources of a training run. Logs the choice and the parameters that change it.

    `scale` is (image_size, width, levels); None stands for the value that the checkpoints
    record. `new_models`: the run saves networks, so the models folder need not exist yet.
    Raises UserError if a folder does not exist or cannot be used.
    """
    given_dirs = _named_data(job, data_dirs)
    folders = [_rooms(job, quiet)] if given_dirs is None else given_dirs
    models = Path(models_dir) if models_dir is not None else job.models_dir
    if new_models:  # fail now rather than after hours of training
        check_writable(models)
    elif models_dir is not None and not models.is_dir():
        raise UserError(f"no models folder {models}")
    shipped = find_scale(SHIPPED, TRANSFERS.values())
    default = find_scale(models, TRANSFERS.values())
    if default is None:
        default = shipped if shipped and given_dirs is None else Scale()
    chosen = default.with_overrides(*scale)
    models_dirs = [models] + ([SHIPPED] if models_dir is None and chosen == shipped else [])
    log.info(
        "data: %s%s", ", ".join(map(str, folders)),
        "" if given_dirs is not None else " (the embedded rooms; `data_dirs` DIR names other data)",
    )  # fmt: skip
    log.info(
        "networks: %s, weights from %s (`image_size`, `width`, `levels`, `models_dir` choose "
        "others)", chosen, ", then ".join(map(str, models_dirs)),
    )  # fmt: skip
    return Sources(folders, models_dirs, chosen, embedded=given_dirs is None)


def _named_data(job: Job, data_dirs: Sequence[str] | None) -> list[Path] | None:
    """Return the given data folders, or the job's own; None if there are neither."""
    if data_dirs is None:
        has_data = job.data_dir.is_dir() and find_buildings([job.data_dir])
        return [job.data_dir] if has_data else None
    folders = [Path(d) for d in data_dirs]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no data folder {folder}")
    return folders


def _rooms(job: Job, quiet: bool) -> Path:
    """Return the folder of the embedded rooms, which are rendered on first use."""
    try:
        make_rooms(job.rooms_dir, quiet=quiet)
    except UserError as error:
        raise UserError(f"{error} (`data_dirs` {job.rooms_dir} takes what is there)") from None
    return job.rooms_dir


def settle_measuring(
    job: Job,
    data_dirs: Sequence[str] | None,
    models_dir: str | None,
    scale: tuple[int | None, int | None, int | None] = (None, None, None),
    labelled: bool = True,
    quiet: bool = False,
) -> Sources:
    """Choose the sources of a program that only measures. Like `settle`, with two differences:

    If the job's models folder has no networks, the shipped rooms networks are used on any
    data. Unless `labelled`, no data set is chosen (or rendered).
    """
    models = Path(models_dir) if models_dir is not None else job.models_dir
    shipped = find_scale(SHIPPED, TRANSFERS.values())
    stands_in = models_dir is None and not find_scale(models, TRANSFERS.values())
    if stands_in and shipped:
        default = shipped.with_overrides(*scale)
        scale = default.image_size, default.width, default.levels
        if data_dirs is not None or not labelled:
            log.info(
                "networks: %s has none, so the small ones shipped with the project, trained "
                "on rooms (tools/download_models.sh fetches the published ones)", models,
            )  # fmt: skip
    if labelled:
        return settle(job, data_dirs, models_dir, scale, quiet)
    if not models.is_dir() and not (stands_in and shipped):
        raise UserError(f"no models folder {models}")
    chosen = (find_scale(models, TRANSFERS.values()) or Scale()).with_overrides(*scale)
    folders = [models] + ([SHIPPED] if models_dir is None and chosen == shipped else [])
    log.info("networks: %s, weights from %s", chosen, ", then ".join(map(str, folders)))
    return Sources([], folders, chosen, embedded=False)

"""Choice of the data, the weights and the scale of a run.

Folders given by the user are used as given. The default data are the job's `data` folder or,
if that holds none, the embedded rooms, which are rendered on first use. The default networks
are those in the job's `models` folder, then those that `scripts.train_edges` has trained, in
`models/trained`. Missing ones are taken from the shipped rooms networks, if these have the run's
scale.
"""

import shlex
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones import recorded_code
from files import check_writable
from flags import as_arguments
from loading.layouts import check_data_dirs, find_buildings
from models import load_network, read_record, read_weights, recorded_scale
from modules import ResNetClass
from rooms.writing import make_rooms
from transfers import TRANSFERS, Scale, Transfer
from utils import ROOT, Job, UserError, log

SHIPPED = ROOT / "assets" / "rooms_models"
REFITS = "on_predictions"  # in a models folder: its networks, refitted on predictions
DEMO_MODELS = ROOT / "assets" / "demo_models"
CONNECT_SECONDS = 15  # seconds without an answer after which a download is given up
TRAINED = "trained"  # folder of networks trained here, inside the job's models folder

# ---- checkpoints by name ------------------------------------------------------------

# File names of the checkpoints of rgb → target, in order of preference. For depth: the name of
# the published file, the name in the published training code, and the name used here.
VARIANTS = ("baseline", "consistency")
STEMS = {
    "normal": ("rgb2normal",),
    "depth_zbuffer": ("rgb2depth", "rgb2zdepth", "rgb2depth_zbuffer"),
    "reshading": ("rgb2reshading",),
}


def has_variants(transfer: Transfer) -> bool:
    """Whether the transfer has separate baseline and consistency checkpoints."""
    return transfer.source == "rgb" and transfer.target in STEMS


def checkpoint_names(target: str, variant: str) -> list[str]:
    """Return the possible file names of rgb → `target`'s baseline or consistency checkpoint."""
    return [f"{stem}_{variant}.pth" for stem in STEMS[target]]


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
    """Return the scale of the first trainable transfer's checkpoint that exists, or None.

    User-defined networks have no such scale, and are skipped.
    """
    for transfer in transfers:
        path = Path(models_dir) / transfer.checkpoint
        if transfer.trainable and path.is_file() and not recorded_code(read_record(path)):
            return recorded_scale(path, transfer.build)
    return None


def imagenet_weights(models_dir: str | Path, transfer: Transfer) -> dict[str, Tensor]:
    """Return ResNet-50's ImageNet weights with the parameter names of ResNetClass.

    They are read from `models_dir` if the file exists, and otherwise downloaded by
    torchvision, which keeps them in its cache. Raises OSError if the download fails, and
    UserError if the file is not a checkpoint.
    """
    path = Path(models_dir) / transfer.checkpoint
    weights = read_weights(path)[0] if path.is_file() else _downloaded_imagenet()
    return {n if n.startswith("resnet.") else f"resnet.{n}": v for n, v in weights.items()}


def _downloaded_imagenet() -> dict[str, Tensor]:
    from torchvision.models import ResNet50_Weights

    weights = ResNet50_Weights.IMAGENET1K_V1
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not cached.is_file():
        log.info("fetching ImageNet's ResNet-50 (98 MB) from %s", weights.url)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)  # urllib would wait for minutes
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except RuntimeError as error:  # wrong checksum of the download
        raise OSError(str(error)) from None
    finally:
        socket.setdefaulttimeout(timeout)


# ---- sources of a program -----------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """The data, models folders and scale of a run.

    `models_dirs` are searched in order. `install_dir` is the folder for networks that a run
    installs. `embedded` is True if no data were given and the embedded rooms are used.
    `arguments` are the command-line arguments that chose all this, "" if there were none.
    """

    data_dirs: list[Path]
    models_dirs: list[Path]
    scale: Scale
    embedded: bool
    install_dir: Path
    arguments: str = ""

    @property
    def data_text(self) -> str:
        """The data folders, in words."""
        rooms = " (the embedded rooms; `data_dirs` names other data)" if self.embedded else ""
        return ", ".join(map(str, self.data_dirs)) + rooms

    @property
    def networks_text(self) -> str:
        """The networks' scale and folders, and the parameters that change them, in words."""
        folders = ", then ".join(map(str, self.models_dirs))
        return (
            f"{self.scale}, weights from {folders} (`image_size`, `width`, `levels`, "
            f"`models_dir` choose others)"
        )

    def find(self, transfer: Transfer) -> Path | None:
        """Return the transfer's checkpoint in the first models folder that has it, or None."""
        return find_file(self.models_dirs, [transfer.checkpoint])

    def consistent(self, transfer: Transfer) -> Path | None:
        """Return the checkpoint trained with consistency, if the transfer has one, or None."""
        return find_variant(self.models_dirs, transfer.target) if has_variants(transfer) else None

    def for_energy(self, transfer: Transfer) -> Path | None:
        """Return the checkpoint that the energy prefers to `find`'s, or None.

        For rgb → target, it is the one trained with consistency. For other networks, it is the
        one refitted on predictions, in the folder REFITS beside the network that was refitted.
        """
        if transfer.source == "rgb":
            return self.consistent(transfer)
        path = self.find(transfer)
        return find_file([path.parent / REFITS], [path.name]) if path else None

    def checkpoint(self, transfer: Transfer, needed_by: str = "") -> Path:
        """Return the transfer's checkpoint.

        Raises UserError if there is none; it explains how to get one. `needed_by` is the
        configuration or transfer that the message suggests to train.
        """
        path = self.find(transfer)
        if path is None:
            places = " and ".join(map(str, self.models_dirs))
            train = f"python -m scripts.train_edges {needed_by or transfer.name} {self.arguments}"
            ways = [
                f"train the missing networks with `{train.strip()}`",
                "fetch the published ones with tools/download_models.sh",
                "name another folder with `models_dir`",
            ]
            if SHIPPED not in self.models_dirs and (SHIPPED / transfer.checkpoint).is_file():
                ways.insert(0, (
                    f"take the small networks shipped with the project, trained on rendered rooms "
                    f"(`models_dir` {_relative(SHIPPED)})"
                ))  # fmt: skip
            raise UserError(
                f"no checkpoint {transfer.checkpoint} ({transfer.source} → {transfer.target}) in "
                f"{places}. What helps: {'; '.join(ways)}"
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
            file = self.checkpoint(transfer, needed_by)
            load_network(network, file, self.scale, transfer=transfer)
        return network


def _relative(path: Path) -> Path:
    """Return the path relative to the current folder, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def sources_in(models_dir: str | Path | None = None) -> Sources:
    """Return the sources of networks alone: a folder's, by default those shipped with the project.

    Raises UserError if the folder has no network.
    """
    folder = SHIPPED if models_dir is None else Path(models_dir)
    if not folder.is_dir():
        raise UserError(f"no models folder {folder}")
    scale = find_scale(folder, TRANSFERS.values())
    if scale is None:
        raise UserError(f"`models_dir` {folder} has no network of the table (see transfers.py)")
    arguments = "" if models_dir is None else shlex.join(as_arguments({"models_dir": folder}))
    return Sources([], [folder], scale, False, folder, arguments)


def settle(
    job: Job,
    data_dirs: Sequence[str] | None = None,
    models_dir: str | None = None,
    scale: tuple[int | None, int | None, int | None] = (None, None, None),
    quiet: bool = False,
    installs: bool = False,
) -> Sources:
    """Choose the sources of a training run.

    `scale` is (image_size, width, levels); None stands for the value that the checkpoints
    record. `installs`: the run saves networks into the folder `install_dir` of the result,
    which need not exist yet. Raises UserError if a folder does not exist or cannot be used.
    """
    given_dirs = _named_data(job, data_dirs)
    folders = [_rooms(job, quiet)] if given_dirs is None else given_dirs
    install_dir = Path(models_dir) if models_dir is not None else job.models_dir / TRAINED
    if installs and install_dir.resolve() == SHIPPED:  # which is part of the project
        install_dir = job.models_dir / TRAINED
    if installs:  # fail now rather than after hours of training
        check_writable(install_dir)
    elif models_dir is not None and not install_dir.is_dir():
        raise UserError(f"no models folder {models_dir}")
    shipped = find_scale(SHIPPED, TRANSFERS.values())
    fallback = shipped if shipped and given_dirs is None else Scale()
    own = [Path(models_dir)] if models_dir is not None else own_models(job)
    chosen = (_first_scale(own) or fallback).with_overrides(*scale)
    models_dirs = own + ([SHIPPED] if models_dir is None and chosen == shipped else [])
    arguments = _arguments(data_dirs, models_dir, scale)
    return Sources(folders, models_dirs, chosen, given_dirs is None, install_dir, arguments)


def _arguments(
    data_dirs: Sequence[str] | None, models_dir: str | None, scale: tuple[int | None, ...]
) -> str:
    """Return the command-line arguments that choose these sources."""
    given: dict[str, object] = {"data_dirs": data_dirs, "models_dir": models_dir}
    given |= dict(zip(("image_size", "width", "levels"), scale, strict=True))
    return shlex.join(as_arguments(given))


def own_models(job: Job) -> list[Path]:
    """Return the job's folders of networks in the order in which they are searched.

    The networks trained here count only if they have the scale of the others.
    """
    models, trained = job.models_dir, job.models_dir / TRAINED
    scale = find_scale(models, TRANSFERS.values())
    fits = scale is None or find_scale(trained, TRANSFERS.values()) in (scale, None)
    return [models, trained] if trained.is_dir() and fits else [models]


def _first_scale(folders: Sequence[Path]) -> Scale | None:
    scales = (find_scale(folder, TRANSFERS.values()) for folder in folders)
    return next((scale for scale in scales if scale), None)


def _named_data(job: Job, data_dirs: Sequence[str] | None) -> list[Path] | None:
    """Return the given data folders, or the job's own; None if there are neither."""
    if data_dirs is None:
        has_data = job.data_dir.is_dir() and find_buildings([job.data_dir])
        return [job.data_dir] if has_data else None
    check_data_dirs(data_dirs)
    return [Path(d) for d in data_dirs]


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
    """Choose the sources of a program that only measures, and log them.

    Unlike in `settle`, the shipped rooms networks are used on any data if the job's models
    folder has no networks. Unless `labelled`, no data set is chosen (or rendered). Raises
    UserError if a folder does not exist or cannot be used.
    """
    own = own_models(job) if models_dir is None else [Path(models_dir)]
    models = own[0]
    shipped = find_scale(SHIPPED, TRANSFERS.values())
    stands_in = models_dir is None and not _first_scale(own)
    if stands_in and shipped:
        default = shipped.with_overrides(*scale)
        scale = default.image_size, default.width, default.levels
        if data_dirs is not None or not labelled:
            log.info(
                "networks: %s has none, so the small ones shipped with the project, trained "
                "on rooms (tools/download_models.sh fetches the published ones)", models,
            )  # fmt: skip
    if labelled:
        sources = settle(job, data_dirs, models_dir, scale, quiet)
        log.info("data: %s", sources.data_text)
        log.info("networks: %s", sources.networks_text)
        return sources
    if not models.is_dir() and not (stands_in and shipped):
        raise UserError(f"no models folder {models}")
    chosen = (_first_scale(own) or Scale()).with_overrides(*scale)
    folders = own + ([SHIPPED] if models_dir is None and chosen == shipped else [])
    log.info("networks: %s, weights from %s", chosen, ", then ".join(map(str, folders)))
    arguments = _arguments(None, models_dir, scale)
    return Sources([], folders, chosen, False, models, arguments)

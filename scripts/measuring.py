"""Which networks, on what device, in which precision: what the forward-only programs share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from energy import evaluate_losses, get_config, paths_for
from graph import TaskGraph, edges_of
from models import find_scale, load_network
from scripts.precision import arithmetic
from scripts.setting import SHIPPED, Setting, settle
from transfers import TRANSFERS, Edge, Scale, get_transfer
from utils import Job, UserError

# The checkpoints of rgb → target, first name first: as published, as the published training
# table calls the depth one, and as training here names its result.
VARIANTS = ("baseline", "consistency")
_STEMS = {
    "normal": ("rgb2normal",),
    "depth_zbuffer": ("rgb2depth", "rgb2zdepth", "rgb2depth_zbuffer"),
    "reshading": ("rgb2reshading",),
}


def checkpoint_names(target: str, variant: str) -> list[str]:
    """The names that the baseline or consistency checkpoint of rgb → `target` goes by."""
    return [f"{stem}_{variant}.pth" for stem in _STEMS[target]]


def find_checkpoint(
    folders: Sequence[str | Path], target: str, variant: str = "consistency"
) -> Path | None:
    """The checkpoint of rgb → `target` in the first folder that has it under any name."""
    paths = (Path(f) / name for f in folders for name in checkpoint_names(target, variant))
    return next((path for path in paths if path.is_file()), None)


# ---- device -----------------------------------------------------------


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def forward_only(device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Inference mode in that precision, one of `PRECISIONS`."""
    with torch.inference_mode(), arithmetic(device, precision):
        yield


# ---- the energy's networks ----------------------------------------------------------


def settle_measuring(
    job: Job,
    data_dirs: Sequence[str] | None,
    models_dir: str | None,
    image_size: int | None,
    width: int | None,
    labelled: bool = True,
    quiet: bool = False,
) -> Setting:
    """`settle`, where the shipped rooms networks stand in on any data, and say so.

    Unless `labelled`, no data set is settled on (and none rendered).
    """
    models = Path(models_dir) if models_dir is not None else job.models_dir
    shipped = find_scale(SHIPPED, TRANSFERS.values())
    stand_in = models_dir is None and not find_scale(models, TRANSFERS.values())
    if stand_in and shipped:
        image_size, width = image_size or shipped.image_size, width or shipped.width
        if data_dirs is not None or not labelled:
            print(
                f"networks: {models} has none, so the small ones shipped with the project, trained "
                f"on rooms (tools/download_models.sh fetches the published ones)"
            )
    if labelled:
        return settle(job, data_dirs, models_dir, image_size, width, quiet=quiet)
    if not models.is_dir() and not (stand_in and shipped):
        raise UserError(f"no models folder {models}")
    scale = (find_scale(models, TRANSFERS.values()) or Scale()).but(image_size, width)
    folders = [models] + ([SHIPPED] if models_dir is None and scale == shipped else [])
    print(f"networks: {scale}, weights from {', then '.join(map(str, folders))}")
    return Setting([], folders, scale, embedded=False)


def energy_graph(
    name: str, setting: Setting, device: torch.device, losses: Sequence[str] | None = None
) -> TaskGraph:
    """The networks of an energy configuration's losses (default: all), frozen, on the device.

    rgb → normal, reshading and depth are the networks trained with consistency, as
    published; where there is none the baseline, and one line says so.
    """
    config = get_config(name)
    edges = edges_of(paths_for(config, losses or list(config["losses"])))
    networks, baselines = {}, []
    for edge in edges:
        transfer = get_transfer(*edge, setting.models_dirs[0])
        path = _consistent(edge, setting)
        if path is None:
            networks[edge] = setting.network(transfer, name)
            if edge[0] == "rgb" and edge[1] in _STEMS:
                baselines.append(edge[1])
        else:
            networks[edge] = transfer.build(setting.scale)
            load_network(networks[edge], path, setting.scale)
    if baselines:
        wanted = ", ".join(checkpoint_names(target, "consistency")[0] for target in baselines)
        print(f"networks: no {wanted}: taking the baselines instead")
    return TaskGraph(networks).to(device)


def _consistent(edge: Edge, setting: Setting) -> Path | None:
    source, target = edge
    if source != "rgb" or target not in _STEMS:
        return None
    return find_checkpoint(setting.models_dirs, target)


def measure_batch(
    graph: TaskGraph, name: str, batch: dict[str, Tensor], losses: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """The configuration's losses (default: all) per image, {name: (B,)}, on the CPU."""
    config = get_config(name)
    losses = list(losses or config["losses"])
    values = graph.sample(paths_for(config, losses), batch)
    # in half precision only the networks run: the differences are taken in float32
    values = {path: value.float() for path, value in values.items()}
    return {n: loss.cpu() for n, loss in evaluate_losses(config, losses, values).items()}

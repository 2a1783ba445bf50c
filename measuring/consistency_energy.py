"""The consistency energy of images and of labelled views."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets import Reality, TaskDataset
from energy import ENERGY_DOMAINS, get_config, paths_for, straight_loss
from files import read_json, sha256
from graph import TaskGraph, edges_of
from loading.layouts import find_buildings, find_views, no_views
from loading.photographs import open_image, square
from loading.splits import split_buildings
from losses import evaluate_losses
from measuring.image_files import ImageFiles
from measuring.statistics import Table, make_table
from models import load_network
from precision import forward_only
from sources import Sources, checkpoint_names, has_variants
from tables import read_csv
from task_configs import get_task
from transfers import Edge, Scale, Transfer, get_transfer
from utils import UserError, evenly_spaced, log

LABELLED, UNLABELLED = "energy_calc", "energy_calc_nogt"
ERROR = "direct_normal"  # the loss against the ground truth
PUBLISHED_BUILDINGS = ("almena", "albertville")

# ---- the networks -------------------------------------------------------------------


def energy_graph(
    name: str,
    sources: Sources,
    device: torch.device,
    losses: Sequence[str] | None = None,
    given: Mapping[Edge, nn.Module] | None = None,
) -> TaskGraph:
    """Load the networks of a configuration's losses (default: all), frozen, onto the device.

    As published, rgb → normal, reshading and depth use the networks trained with consistency.
    If there is none, the baseline is used and a line is logged. Networks between domains that
    were refitted on predictions (`Sources.for_energy`) are preferred. Networks that are `given`
    are not loaded.
    """
    networks: dict[Edge, nn.Module] = dict(given or {})
    baselines = []
    for transfer in _transfers(name, sources, losses):
        if transfer.edge in networks:
            continue
        networks[transfer.edge] = network_for_energy(transfer, sources, name)
        if has_variants(transfer) and sources.for_energy(transfer) is None:
            baselines.append(transfer.target)
    if baselines:
        missing = ", ".join(checkpoint_names(target, "consistency")[0] for target in baselines)
        log.info("networks: no %s: taking the baselines instead", missing)
    return TaskGraph(networks).to(device)


def network_for_energy(transfer: Transfer, sources: Sources, needed_by: str = "") -> nn.Module:
    """Load the network that the energy uses for a transfer, as `energy_graph` does."""
    path = sources.for_energy(transfer)
    if path is None:
        return sources.network(transfer, needed_by)
    network = transfer.build(sources.scale)
    load_network(network, path, sources.scale)
    return network


def network_digests(
    name: str, sources: Sources, given: Mapping[Edge, Path] | None = None
) -> dict[str, str]:
    """Return the SHA-256 of the checkpoint of each network that `energy_graph` loads.

    `given` are the files of the networks that take the place of those of `sources`.
    """
    given = given or {}
    files = {
        transfer.name: given.get(transfer.edge)
        or sources.for_energy(transfer)
        or sources.find(transfer)
        for transfer in _transfers(name, sources)
        if transfer.checkpoint
    }
    return {transfer: sha256(file) for transfer, file in files.items() if file}


def _transfers(
    name: str, sources: Sources, losses: Sequence[str] | None = None
) -> Iterator[Transfer]:
    """Yield the transfers of a configuration's losses (default: all)."""
    config = get_config(name)
    for edge in edges_of(paths_for(config, losses or list(config["losses"]))):
        yield get_transfer(*edge, sources.models_dirs[0])


def measure_batch(
    graph: TaskGraph, name: str, batch: Mapping[str, Tensor], losses: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Compute a configuration's losses (default: all) per image: {name: (B,)} on the CPU."""
    config = get_config(name)
    losses = list(losses or config["losses"])
    values = graph.sample(paths_for(config, losses), batch)
    # only the networks run in half precision; differences are computed in float32
    values = {path: value.float() for path, value in values.items()}
    return {n: loss.cpu() for n, loss in evaluate_losses(config, losses, values).items()}


# ---- choosing views -----------------------------------------------------------------


def choose_buildings(
    data_dirs: Sequence[Path], split: str | None, named: Sequence[str] | None
) -> list[str]:
    """Choose the buildings to measure.

    These are the `named` ones or, without a `split`, the published ones if they are available,
    or else the test buildings of the split. Raises UserError if a named building is missing.
    """
    available = find_buildings(data_dirs)
    if not available:
        raise no_views(data_dirs)
    if named:
        if missing := [building for building in named if building not in available]:
            raise UserError(f"no building {', '.join(missing)} (there are: {', '.join(available)})")
        return list(named)
    published = [building for building in PUBLISHED_BUILDINGS if building in available]
    if published and not split:
        return published
    return split_buildings(data_dirs, split)["test"]


def labelled_views(
    sources: Sources,
    split: str | None,
    buildings: Sequence[str] | None,
    allow_missing: bool,
    subset_size: int | None,
) -> TaskDataset:
    """Return the data set of views to measure, with rgb and normals. Logs its size."""
    chosen = choose_buildings(sources.data_dirs, split, buildings)
    tasks = [get_task("rgb"), get_task("normal")]
    views = evenly_spaced(find_views(tasks, sources.data_dirs, chosen, allow_missing), subset_size)
    log.info("views: %s, of %s", len(views), ", ".join(dict.fromkeys(v.building for v in views)))
    return TaskDataset(tasks, views, sources.scale.image_size)


# ---- measuring ----------------------------------------------------------------------


def measure_views(
    graph: TaskGraph, reality: Reality, precision: str = "fp32", quiet: bool = False
) -> Table:
    """Measure labelled views. The table has one row per view, in the data set's order."""
    parts = []
    bar = tqdm(total=len(reality.dataset), desc="energy", unit="view", disable=quiet or None)
    with forward_only(reality.device, precision):
        for batch in reality:
            parts.append(measure_batch(graph, LABELLED, batch))
            bar.update(len(batch["rgb"]))
    bar.close()
    return make_table(joined(parts), ERROR)


def measure_images(
    graph: TaskGraph,
    images: ImageFiles,
    image_size: int,
    batch_size: int,
    precision: str = "fp32",
    quiet: bool = False,
) -> tuple[list[Path], Table]:
    """Measure image files. Returns those that could be read, and their table (without errors)."""
    good, parts = [], []
    device = next(graph.parameters()).device
    for batch in images.batches(centre_square(image_size), batch_size, "energy", quiet):
        inputs = torch.stack([tensors[0] for _, tensors in batch]).to(device)
        with forward_only(device, precision):
            parts.append(measure_batch(graph, UNLABELLED, {"rgb": inputs}))
        good += [path for path, _ in batch]
    return good, make_table(joined(parts)) if parts else {}


def centre_square(image_size: int) -> Callable[[Path], tuple[Tensor, ...]]:
    """Return a function that reads an image file as the centre square at that size."""
    return lambda path: (square(open_image(path), image_size),)


def joined(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Concatenate the losses of batches: {name: (N,) float64}."""
    return {name: torch.cat([p[name] for p in parts]).double().numpy() for name in parts[0]}


# ---- the statistics of a labelled run -----------------------------------------------


def read_reference(folder: Path) -> tuple[dict, Table]:
    """Read statistics.json and data.csv of a labelled run.

    Raises UserError if they are missing or malformed; the message explains how to create them.
    """
    statistics = read_statistics(folder)
    return statistics, read_csv(folder / "data.csv", ("normalized_energy", "normalized_error"))


def read_statistics(folder: Path) -> dict:
    """Read statistics.json of a labelled run.

    Raises UserError if it is missing, with a message that explains how to create it, and if it is
    malformed.
    """
    path = folder / "statistics.json"
    if not path.is_file():
        raise UserError(
            f"no {path}, by which to standardise: first run python -m scripts.energy_calc "
            f"{LABELLED} with `output_dir` {folder}"
        )
    try:
        statistics = read_json(path)
        values = {n: (s["mean"], s["deviation"]) for n, s in statistics["columns"].items()}
        energies = tuple(statistics.get("energies", ()))
    except (UserError, LookupError, TypeError, AttributeError):
        values, energies = {}, ()
    pairs = (*values.values(), energies)
    all_numbers = all(isinstance(v, float | int) for pair in pairs for v in pair)
    if set(values) != set(map(straight_loss, ENERGY_DOMAINS)) or not all_numbers:
        raise UserError(f"{path} is not what a labelled run writes")
    return statistics


def share_below(statistics: Mapping, energy: float) -> float | None:
    """Return the share of the labelled views that have less standardised energy, 0 … 1.

    None if the statistics do not record the views' energies, as in earlier versions.
    """
    energies = statistics.get("energies")
    return float(np.mean(np.asarray(energies) < energy)) if energies else None


def check_networks(
    statistics: Mapping, sources: Sources, place: Path, given: Mapping[Edge, Path] | None = None
) -> None:
    """Raise UserError if the labelled run in `place` measured other networks than `sources`.

    Their scale and the SHA-256 of their checkpoints are compared; `given` as in
    `network_digests`. Runs of earlier versions do not record the latter.
    """
    if Scale.of(statistics) != sources.scale:
        raise UserError(
            f"the labelled run in {place} measured networks of {Scale.of(statistics)}, and these "
            f"have {sources.scale}: run it again with these networks"
        )
    recorded = statistics.get("networks")
    if not isinstance(recorded, dict):
        log.warning("%s does not record which networks it measured", place)
        return
    for name, digest in network_digests(UNLABELLED, sources, given).items():
        if recorded.get(name) != digest:
            raise UserError(
                f"the labelled run in {place} measured another network {name} than the one now: "
                f"run it again with these networks"
            )

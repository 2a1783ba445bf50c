"""The consistency energy of each pixel: maps of where the paths disagree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from colouring import Limits, coloured, look_of, mapped, numbers
from energy import ENERGY_DOMAINS, get_config, paths_for, straight_loss
from graph import TaskGraph, edges_of
from measuring.consistency_energy import UNLABELLED, energy_graph
from measuring.demo_networks import TARGETS, choose_networks
from measuring.given_networks import AtSize, files_by_task, is_own, load_one
from measuring.prediction import check_built, resized
from pictures import Ball, Bar, Column, page
from sources import VARIANTS, Sources
from task_configs import TASKS
from transfers import Edge
from utils import UserError, log

STRAIGHT_LOSSES = [straight_loss(domain) for domain in ENERGY_DOMAINS]
STRAIGHT = "n((x))"  # the path that predicts normals directly from the image
TOP = 0.99  # the quantile of the energies at the end of the scale
COLOURS = "inferno"
OPACITY = 0.9  # of the highest energies on the image

# ---- networks -----------------------------------------------------------------------


def shown_networks(
    models_dir: str | None,
    checkpoint: Sequence[str] | None,
    device: torch.device,
    network: str | None = None,
) -> dict[Edge, AtSize]:
    """Return the networks from rgb that the demo shows, preferring those trained with consistency.

    Those in `checkpoint`, files or folders, take the place of others. A target for which the
    demo has no networks in `models_dir` is left out. Other publishers' networks are not used,
    because the next networks of the paths are not trained on their predictions. `network`,
    FILE.py:FUNCTION, builds those that record a network of the user's own. Logs the file of each.
    Raises UserError if nothing in `checkpoint` is a network rgb → normal, depth or reshading, by
    its name, or if `network` builds none.
    """
    given = files_by_task(checkpoint)
    found, built, files = {}, False, []
    for task, target in TARGETS.items():
        try:
            if given[task]:
                chosen = choose_networks(task, checkpoint=given[task])
            else:
                chosen = choose_networks(task, models_dir=models_dir, variants=VARIANTS)
        except UserError:
            if given[task]:
                raise
            continue
        label = "consistency" if "consistency" in chosen.paths else next(iter(chosen.paths))
        file = chosen.paths[label]
        shown, scale = load_one(task, file, device, network)
        built |= network is not None and is_own(file)
        files.append(file)
        found["rgb", target] = AtSize(shown, scale.image_size)
        log.info("networks: rgb → %s from %s (%s)", task, file, scale)
    check_built(network, built, files)
    return found


def map_graph(
    sources: Sources,
    shown: Mapping[Edge, AtSize],
    device: torch.device,
    given: Mapping[Edge, nn.Module] | None = None,
) -> tuple[TaskGraph, int]:
    """Return the graph of the straight path and the paths through each domain.

    It consists of the networks in `shown`, each at its own image size, and, for the other edges,
    of those that are `given` and of those of `sources`, at the size of the latter. Also returns
    the size of the images to give it.
    """
    size = sources.scale.image_size
    others = energy_graph(UNLABELLED, sources, device, STRAIGHT_LOSSES, {**(given or {}), **shown})
    edges = edges_of(paths_for(get_config(UNLABELLED), STRAIGHT_LOSSES))
    graph = TaskGraph(
        {edge: shown.get(edge) or AtSize(others.network(edge), size) for edge in edges}
    )
    sizes = {network.size for network in shown.values()}
    return graph.to(device), max([size, *sizes])


# ---- energies -----------------------------------------------------------------------


@dataclass(frozen=True)
class Maps:
    """What is drawn of one image, on the CPU.

    `image` is (3, S, S), `normals` (3, H, W), `energy` (1, H, W), `parts` {domain: (1, H, W)}.
    """

    image: Tensor
    normals: Tensor
    energy: Tensor
    parts: Mapping[str, Tensor]


def straight_values(graph: TaskGraph, images: Tensor) -> dict[str, Tensor]:
    """Predict normals straight from images (B, 3, H, W), and through each domain.

    Returns {path: (B, 3, H, W)} in float32, for `disagreements`.
    """
    paths = paths_for(get_config(UNLABELLED), STRAIGHT_LOSSES)
    return {name: v.float() for name, v in graph.sample(paths, {"rgb": images}).items()}


def disagreements(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return |straight − through domain| of each pixel, averaged over channels.

    The result is {domain: (B, 1, H, W)}, of the size of the straight prediction. As in the loss,
    it is zero where the path through the domain predicts an invalid normal. Its mean over the
    pixels is the image's loss.
    """
    straight = values[STRAIGHT]
    result = {}
    for domain in ENERGY_DOMAINS:
        through = resized(values[f"n({domain}(x))"], straight.shape[-2:])
        difference = (straight - through).abs() * TASKS["normal"].mask(through)
        result[domain] = difference.mean(dim=1, keepdim=True)
    return result


def pixel_energy(parts: Mapping[str, Tensor], by: Mapping | None = None) -> Tensor:
    """Average the disagreements over domains: (B, 1, H, W).

    If `by`, the statistics of a labelled run, is given, each domain is standardised first:
    (d − mean) / mean absolute deviation, both computed over images.
    """
    if by is None:
        return torch.stack(list(parts.values())).mean(dim=0)
    statistics = {domain: by["columns"][straight_loss(domain)] for domain in parts}
    terms = [(m - statistics[d]["mean"]) / statistics[d]["deviation"] for d, m in parts.items()]
    return torch.stack(terms).mean(dim=0)


# ---- pictures -----------------------------------------------------------------------


def common_limits(energies: Sequence[Tensor], top: float | None, standardised: bool) -> Limits:
    """Return the energies at the ends of the scale for all maps (1, H, W) of a call.

    The lower end is 0 or, for standardised energies, the 1 % quantile. The upper end is `top` or,
    if that is None, the 99 % quantile.
    """
    pooled = torch.cat([energy.flatten() for energy in energies]).numpy()
    low = float(np.quantile(pooled, 1 - TOP)) if standardised else 0.0
    high = float(np.quantile(pooled, TOP)) if top is None else top
    return low, max(high, low + 1e-6)


def drawn(
    maps: Maps,
    limits: Limits,
    part_limits: Limits | None,
    unit: str = "",
    across: int = len(ENERGY_DOMAINS),
) -> Image.Image:
    """Draw the image, its normals, their energy, and the energy on the image.

    With `part_limits` there is also the disagreement through each domain. At most `across`
    pictures stand side by side.
    """
    size = maps.image.shape[-2:]
    normals = coloured(TASKS["normal"], resized(maps.normals[None], size), (0, 1), mark=False)
    energy = _in_colours(maps.energy, limits, size)
    columns = [
        Column("energy", energy),
        Column("energy on the image", overlaid(maps.image[None], maps.energy[None], limits)),
    ]
    groups = [
        [Column("image", maps.image[None]), Column("predicted normals", normals, "", Ball())],
        _with_bar(columns, limits, unit),
    ]
    if part_limits:
        through = [
            Column(f"through {look_of(TASKS[d]).name}", _in_colours(part, part_limits, size))
            for d, part in maps.parts.items()
        ]
        groups.append(_with_bar(through, part_limits, ""))
    return page(groups, min(size), across=across)


def overlaid(images: Tensor, energies: Tensor, limits: Limits) -> Tensor:
    """Blend energies (B, 1, H, W) in colour over images (B, 3, H, W): the higher, the denser."""
    energies = resized(energies.float(), images.shape[-2:])
    low, high = limits
    share = OPACITY * ((energies - low) / (high - low)).clamp(0, 1)
    return images * (1 - share) + mapped(energies[:, 0], COLOURS, limits) * share


def _in_colours(energy: Tensor, limits: Limits, size: Sequence[int]) -> Tensor:
    return mapped(resized(energy[None].float(), size)[:, 0], COLOURS, limits)


def _with_bar(columns: Sequence[Column], limits: Limits, unit: str) -> list[Column]:
    """Return the columns with one bar below all of them."""
    low, high = limits
    bar = Bar(COLOURS, numbers([low, (low + high) / 2, high], unit))
    return [*columns[:-1], replace(columns[-1], legend=bar, span=len(columns))]

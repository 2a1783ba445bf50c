"""The table of methods, `METHODS`, and their names on the command line."""

from collections.abc import Mapping
from pathlib import Path

from methods.configs import with_corners, with_cycle
from methods.cycle import CycleStep
from methods.geonet import DOMAINS as GEONET_DOMAINS
from methods.geonet import begin_geonet, from_baselines, geonet, geonet_step
from methods.global_consistency import GlobalStep, begin_global, reads_all
from methods.interface import ALL, TARGETS, Method
from methods.multitask import DOMAINS, begin_multitask, multitask, multitask_step
from methods.pix2pix import Pix2PixStep
from methods.random_networks import random_perceptual_step
from models import read_record
from transfers import Transfer
from utils import UserError


def _table(*rows: Method) -> dict[str, Method]:
    return {row.name: row for row in rows}


METHODS = _table(
    Method(
        "baseline",
        "The network of the table, trained on the direct loss alone.",
    ),
    Method(
        "perceptual",
        "Cross-task consistency by perceptual losses: the main job, multiperceptual_TARGET.",
        trains_on=ALL,
        ending="consistency",
    ),
    Method(
        "random_perceptual",
        "The main job, but its frozen networks behind the target have fresh random weights.",
        trains_on=ALL,
        step=random_perceptual_step,
    ),
    Method(
        "pix2pix",
        "A conditional GAN: the network of the table, a patch discriminator, and L1.",
        step=Pix2PixStep,
        initial="scratch",
        defaults={"lr": 2e-4},
    ),
    Method(
        "cycle",
        "CycleGAN, from unpaired images: two generators and two patch discriminators.",
        step=CycleStep,
        initial="scratch",
        defaults={"lr": 2e-4},
    ),
    Method(
        "cycle_frozen",
        "The direct loss, and a cycle loss through a frozen network from the target to rgb.",
        config=with_cycle,
        trains_on=("percep_rgb",),
    ),
    Method(
        "unsupervised",
        "Cross-task consistency through domains that need no labels: edges and corners of rgb.",
        config=with_corners,
        trains_on=("percep_edge", "percep_corners"),
    ),
    Method(
        "taskonomy",
        "Taskonomy's own networks, which the demo shows.",
        targets=("normal", "reshading"),
        untrained="Taskonomy's networks are not trained here: `python -m scripts.download "
        "taskonomy` fetches them, and demo.py shows them with `method` taskonomy",
    ),
    Method(
        "geonet",
        "Normals and depth from one image, each refined by what follows from the other.",
        targets=("normal", "depth"),
        reads=lambda target: GEONET_DOMAINS,
        network=geonet,
        step=geonet_step,
        start=from_baselines,
        begin=begin_geonet,
        options=("field_of_view",),
    ),
    Method(
        "multitask",
        "One encoder and a decoder for each domain with labels, trained on their summed errors.",
        wants=lambda target: DOMAINS,
        network=multitask,
        step=multitask_step,
        initial="scratch",
        begin=begin_multitask,
    ),
    Method(
        "global",
        "All networks between rgb, normals, depth and reshading, trained along paths of "
        "growing length.",
        reads=reads_all,
        step=GlobalStep,
        begin=begin_global,
        options=("path_length", "round_steps", "direct_steps", "choose_network", "choose_path"),
    ),
)

_CONFIGS = {f"multiperceptual_{target}": f"perceptual_{target}" for target in TARGETS}


def method_names(trained: bool = True) -> list[str]:
    """Return the names of all methods on the command line: baseline_normal, …

    `trained` leaves out those that are not trained here.
    """
    return [
        f"{method.name}_{target}"
        for method in METHODS.values()
        for target in method.targets
        if not (trained and method.untrained)
    ]


def find_method(name: str) -> tuple[Method, str] | None:
    """Return the method and the target domain of a name such as pix2pix_normal, or None.

    multiperceptual_TARGET is perceptual_TARGET.
    """
    method, _, target = _CONFIGS.get(name, name).rpartition("_")
    if method not in METHODS or target not in METHODS[method].targets:
        return None
    return METHODS[method], TARGETS[target]


def check_trained(name: str, method: Method) -> None:
    """Raise UserError if the method is not trained here."""
    if method.untrained:
        raise UserError(f"{name}: {method.untrained}")


def endings() -> list[str]:
    """Return how names of the methods' checkpoints end: rgb2normal_{ending}.pth."""
    return [method.ending for method in METHODS.values() if not method.untrained]


def recorded_method(record: Mapping) -> Method | None:
    """Return the method that a checkpoint's record names, or None."""
    name = record.get("method")
    return METHODS.get(name) if isinstance(name, str) else None


def recorded_row(path: str | Path, row: Transfer) -> Transfer:
    """Return the row that builds the network of a checkpoint rgb → target.

    It is `row` itself unless the checkpoint records a method with a network of its own.
    Raises UserError as `models.read_record` does.
    """
    method = recorded_method(read_record(path))
    if method is None or method.network is None or row.source != "rgb":
        return row
    return method.row(row.target)

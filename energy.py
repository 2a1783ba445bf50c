"""Energy configurations: the paths of a job, and the losses that compare them.

How losses are computed is in `losses`, how they are weighted in `balancing`, and which of
them are in use at a time in `choosing`. Definition of each formula: docs/implementation.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from utils import UserError, nearest

# ---- losses of a configuration: kind, domain, pairs of paths ------------------------
#
# Losses have the published names. Only this section interprets them.

DIRECT, PERCEPTUAL, YARDSTICK = "direct", "perceptual", "yardstick"
_PERCEPTUAL_PREFIX, _DIRECT_PREFIX = "percep_", "direct_"


class Loss(NamedTuple):
    """A loss of a configuration on one reality (data split).

    `kind` is one of
    - "direct": prediction against ground truth,
    - "perceptual": prediction and ground truth, both mapped to another domain,
    - "yardstick": the direct loss with which a perceptual loss is compared for its win rate.

    `domain` is the domain in which the first pair is compared. `pairs` are the names of the
    paths that should agree.
    """

    name: str
    kind: str
    domain: str
    pairs: list[tuple[str, str]]


def loss_of(config: Mapping, name: str, reality: str = "train") -> Loss:
    """Return the loss called `name`."""
    pairs = loss_pairs(config, name, reality)
    domain = config["paths"][pairs[0][0]][-1] if pairs else ""
    return Loss(name, loss_kind(config["losses"], name), domain, pairs)


def loss_kind(losses: Iterable[str], name: str) -> str:
    """Return the kind of the loss called `name`; `losses` are all losses of the configuration."""
    if is_perceptual(name):
        return PERCEPTUAL
    if name.startswith(_DIRECT_PREFIX) and _PERCEPTUAL_PREFIX + loss_name(name) in losses:
        return YARDSTICK
    return DIRECT


def is_perceptual(name: str) -> bool:
    """Whether a loss of that name is perceptual."""
    return name.startswith(_PERCEPTUAL_PREFIX)


def loss_name(name: str) -> str:
    """Return the name used in flags: percep_curv → curv."""
    return name.removeprefix(_PERCEPTUAL_PREFIX).removeprefix(_DIRECT_PREFIX)


def yardstick_of(name: str) -> str:
    """Return the yardstick of a perceptual loss: percep_curv → direct_curv."""
    return _DIRECT_PREFIX + loss_name(name)


def straight_loss(domain: str) -> str:
    """Return the name of the loss that compares the straight path with that through `domain`.

    The paths are those of `paths_to_one_target`.
    """
    return f"{_PERCEPTUAL_PREFIX}_{domain}"


def is_straight(name: str) -> bool:
    """Whether a loss compares the straight path with a path through a domain.

    As published, these are the losses percep_{a}_{b} where a or b is empty.
    """
    return is_perceptual(name) and (name.startswith(straight_loss("")) or name.endswith("_"))


def perceptual_losses(config: Mapping) -> list[str]:
    """Return the names of the configuration's perceptual losses, in order."""
    return [name for name in config["losses"] if is_perceptual(name)]


def loss_pairs(config: Mapping, name: str, reality: str = "train") -> list[tuple[str, str]]:
    """Return the pairs of paths that the loss compares on that reality."""
    return [
        pair
        for realities, pairs in config["losses"][name].items()
        if reality in realities
        for pair in pairs
    ]


# ---- configurations -----------------------------------------------------------------
#
# A configuration is a plain dictionary:
#   paths        {name: (task, task, …)}; x is the image, y^ the target's ground truth
#   freeze_list  the edges whose networks are not trained
#   losses       {name: {realities: [(path, path), …]}}; the paths of a pair should agree,
#                and the second path gives the mask of valid pixels
#   plots        {name: {"size", "realities", "paths"}}
# A configuration can be written by hand or built by the functions below.

# Published names of ground-truth paths, where they differ from the domain's name.
LABELS = {"principal_curvature": "curv", "sobel_edges": "edge", "depth_zbuffer": "depth"}
# Published notation for the domains of perceptual losses: the loss's name, and the letters of
# the networks rgb → domain and target → domain.
NOTATION = {
    "principal_curvature": ("curv", "RC", "f"),
    "sobel_edges": ("edge", "a", "s"),
    "keypoints2d": ("keypoints2d", "k2", "Nk2"),
    "keypoints3d": ("keypoints3d", "k3", "Nk3"),
    "edge_occlusion": ("edge_occlusion", "EO", "nEO"),
    "imagenet": ("imagenet_percep", None, "imagenet"),
}
# Letters for a target's first two domains that are not in NOTATION (as published).
POSITIONAL = [("d", "g"), ("r", "nr")]

TRAINING = ("train", "val")


def target_through_domains(
    target: str,
    domains: Sequence[str],
    plot_paths: Sequence[str],
    plot_realities: Sequence[str] = TRAINING,
    frozen: Sequence[str] | None = None,
) -> dict:
    """Build the configuration that trains rgb → `target` to be consistent with `domains`.

    The loss "mae" compares the prediction with the ground truth. Each domain adds a
    perceptual loss "percep_…", which maps prediction and ground truth to the domain and
    compares them there. It also adds the yardstick "direct_…", the error of rgb → domain,
    with which the perceptual loss is compared for its win rate. At most two of the domains may
    be missing from `NOTATION`. `frozen` are the domains in the freeze list (default:
    `domains`). `plot_paths` are shown in the pictures, on the `plot_realities`.
    """
    paths = {"x": ("rgb",), "y^": (target,), "n(x)": ("rgb", target)}
    losses = {"mae": {TRAINING: [("n(x)", "y^")]}}
    positional = iter(POSITIONAL)
    for domain in domains:
        name, from_rgb, through = NOTATION.get(domain) or (domain, *next(positional))
        truth, label = f"{through}(y^)", LABELS.get(domain, domain)
        paths[truth] = (target, domain)
        paths[f"{through}(n(x))"] = ("rgb", target, domain)
        losses[f"percep_{name}"] = {TRAINING: [(f"{through}(n(x))", truth)]}
        if domain == "imagenet":  # there is no network rgb → imagenet: use curvature's yardstick
            yardstick = ("RC(x)", "curv")
        else:
            paths[f"{from_rgb}(x)"] = ("rgb", domain)
            paths[label] = (domain,)
            # as published, edges are compared with the network's output, not with the label
            yardstick = (f"{from_rgb}(x)", truth if domain == "sobel_edges" else label)
        losses[f"direct_{name}"] = {TRAINING: [yardstick]}
    return {
        "paths": paths,
        "freeze_list": [(target, domain) for domain in (domains if frozen is None else frozen)],
        "losses": losses,
        "plots": {
            "": {"size": 256, "realities": tuple(plot_realities), "paths": tuple(plot_paths)}
        },
    }


def paths_to_one_target(target: str, domains: Sequence[str], labelled: bool) -> dict:
    """Build the configuration of the consistency energy.

    It maps rgb to `target` directly and through each of the `domains`, and compares all pairs
    of these predictions. `labelled` adds the error against the ground truth, "direct_{target}".
    """
    realities = ("train", "val", "train_subset")
    through = {"": "n((x))"} | {domain: f"n({domain}(x))" for domain in domains}
    paths = {"x": ("rgb",), "n((x))": ("rgb", target)}
    losses = {}
    if labelled:
        paths["y^"] = (target,)
        losses[f"direct_{target}"] = {realities: [("n((x))", "y^")]}
    paths |= {through[domain]: ("rgb", domain, target) for domain in domains}
    for position, first in enumerate(domains):
        for second in domains[position + 1 :]:
            losses[f"percep_{first}_{second}"] = {realities: [(through[first], through[second])]}
        losses[straight_loss(first)] = {realities: [(through[""], through[first])]}
    return {
        "paths": paths,
        "freeze_list": [(d, target) for d in domains] + [("rgb", d) for d in domains],
        "losses": losses,
        "plots": {"ID": {"size": 256, "realities": ("test",), "paths": ("x", "n((x))")}},
    }


def direct_only(source: str, target: str) -> dict:
    """Build the configuration that trains one transfer on its ground truth only."""
    paths = ("x", "y^", "n(x)")
    return {
        "paths": {"x": (source,), "y^": (target,), "n(x)": (source, target)},
        "freeze_list": [],
        "losses": {"mae": {TRAINING: [("n(x)", "y^")]}},
        "plots": {"": {"size": 256, "realities": ("test",), "paths": paths}},
    }


def on_predictions(source: str, target: str) -> dict:
    """Build the configuration that trains source → target on what rgb → `source` predicts."""
    path = ("rgb", source, target)
    config = direct_only(source, target)
    paths = {"x": ("rgb",), "y^": (target,), "n(x)": path}
    return config | {"paths": paths, "freeze_list": [("rgb", source)]}


def _multiperceptual(target: str, first: str, second: str, more_plots: Sequence[str] = ()) -> dict:
    start = ("principal_curvature", "sobel_edges", first, second)
    end = ("edge_occlusion", "imagenet")
    plots = "x y^ n(x) f(y^) f(n(x)) s(y^) s(n(x)) g(y^) g(n(x)) nr(n(x)) nr(y^)"
    plots += " Nk3(y^) Nk3(n(x)) Nk2(y^) Nk2(n(x)) nEO(y^) nEO(n(x))"
    return target_through_domains(
        target,
        (*start, "keypoints2d", "keypoints3d", *end),
        (*plots.split(), *more_plots),
        ("test", "ood"),
        frozen=(*start, "keypoints3d", "keypoints2d", *end),
    )


ENERGY_DOMAINS = (
    "principal_curvature",
    "sobel_edges",
    "depth_zbuffer",
    "edge_occlusion",
    "reshading",
    "keypoints3d",
    "keypoints2d",
)

_EXAMPLE_FROZEN = ("principal_curvature", "sobel_edges")

energy_configs: dict[str, dict] = {
    "example_cascade_two_networks": target_through_domains(
        "normal",
        ("principal_curvature",),
        ("x", "y^", "n(x)", "f(y^)", "f(n(x))"),
        frozen=_EXAMPLE_FROZEN,
    ),
    "example_normal": target_through_domains(
        "normal",
        ("principal_curvature", "sobel_edges"),
        ("x", "y^", "n(x)", "f(y^)", "f(n(x))", "s(y^)", "s(n(x))"),
    ),
    "example_normal_direct": target_through_domains("normal", (), ("x", "y^", "n(x)")),
    "multiperceptual_normal": _multiperceptual("normal", "reshading", "depth_zbuffer"),
    "multiperceptual_reshading": _multiperceptual(
        "reshading", "normal", "depth_zbuffer", more_plots=("depth",)
    ),
    "multiperceptual_depth": _multiperceptual("depth_zbuffer", "normal", "reshading"),
    "energy_calc": paths_to_one_target("normal", ENERGY_DOMAINS, labelled=True),
    "energy_calc_nogt": paths_to_one_target("normal", ENERGY_DOMAINS, labelled=False),
}


def get_config(name: str) -> dict:
    """Return the configuration of that name.

    Raises UserError if there is none; the message lists the known names.
    """
    if name not in energy_configs:
        known = ", ".join(energy_configs)
        raise UserError(f"no energy configuration {name!r}{nearest(name, energy_configs)}"
                        f" (there are: {known})")  # fmt: skip
    return energy_configs[name]


def loss_title(config: Mapping, name: str, measure: str = "mae") -> str:
    """Return a loss's title in logs and Visdom: "percep_curv_mae : f(n(x)) -> f(y^)"."""
    first, second = loss_pairs(config, name)[0]
    stem = measure if name == "mae" else f"{name}_{measure}"
    return f"{stem} : {first} -> {second}"


def paths_for(config: Mapping, losses: Sequence[str], reality: str = "train") -> dict[str, tuple]:
    """Return the paths that these losses use: {name: (task, …)}."""
    used = dict.fromkeys(p for n in losses for pair in loss_pairs(config, n, reality) for p in pair)
    return {name: config["paths"][name] for name in used}

"""Energy configurations, their losses, the balance and the choice among them.

Everything below the configurations is a pure function of tensors or numbers.
Definition of each formula: docs/implementation.md.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from task_configs import TASKS
from utils import UserError, nearest

# ---- a loss: its kind, its domain, its pairs ----------------------------------------
#
# Configurations name their losses as published. What a name means is decided here and
# nowhere else.

DIRECT, PERCEPTUAL, YARDSTICK = "direct", "perceptual", "yardstick"
_PERCEPTUAL_PREFIX, _DIRECT_PREFIX = "percep_", "direct_"


class Loss(NamedTuple):
    """A loss of a configuration on one reality.

    `kind` is "direct" (against a truth), "perceptual" (through a domain) or "yardstick"
    (the direct loss that a perceptual one's win rate compares with). `domain` is where the
    first pair is compared, `pairs` are the names of the paths that have to agree.
    """

    name: str
    kind: str
    domain: str
    pairs: list[tuple[str, str]]


def loss_of(config: Mapping, name: str, reality: str = "train") -> Loss:
    """The loss of that name."""
    pairs = loss_pairs(config, name, reality)
    domain = config["paths"][pairs[0][0]][-1] if pairs else ""
    return Loss(name, loss_kind(config["losses"], name), domain, pairs)


def loss_kind(losses: Iterable[str], name: str) -> str:
    """The kind of the loss called `name`, among the losses of a configuration."""
    if is_perceptual(name):
        return PERCEPTUAL
    if name.startswith(_DIRECT_PREFIX) and _PERCEPTUAL_PREFIX + loss_name(name) in losses:
        return YARDSTICK
    return DIRECT


def is_perceptual(name: str) -> bool:
    """Whether a loss of that name is perceptual."""
    return name.startswith(_PERCEPTUAL_PREFIX)


def loss_name(name: str) -> str:
    """How flags call a loss: "curv" for "percep_curv"."""
    return name.removeprefix(_PERCEPTUAL_PREFIX).removeprefix(_DIRECT_PREFIX)


def yardstick_of(name: str) -> str:
    """The yardstick of a perceptual loss: percep_curv → direct_curv."""
    return _DIRECT_PREFIX + loss_name(name)


def straight_loss(domain: str) -> str:
    """The loss of `paths_to_one_target` that compares the straight path with that via `domain`."""
    return f"{_PERCEPTUAL_PREFIX}_{domain}"


def is_straight(name: str) -> bool:
    """Whether a loss compares the straight path with one via a domain.

    Published: every perceptual loss one of whose two names is empty.
    """
    return is_perceptual(name) and (name.startswith(straight_loss("")) or name.endswith("_"))


def perceptual_losses(config: Mapping) -> list[str]:
    """The names of the configuration's perceptual losses, in its order."""
    return [name for name in config["losses"] if is_perceptual(name)]


def loss_pairs(config: Mapping, name: str, reality: str = "train") -> list[tuple[str, str]]:
    """The pairs of paths that the loss compares on that reality."""
    return [p for where, pairs in config["losses"][name].items() if reality in where for p in pairs]


# ---- configurations -----------------------------------------------------------------
#
# A configuration is a plain dictionary:
#   paths        {name: (task, task, …)}; x is the image, y^ the target's ground truth
#   freeze_list  the edges that stay as loaded
#   losses       {name: {realities: [(path, path), …]}}: these pairs must agree, and the
#                second of each gives the mask
#   plots        {name: {"size", "realities", "paths"}}
# A hand-written one of this form is as good as the builders' below.

# The letters of the published configurations: a domain's ground truth, if not its own name …
LABELS = {"principal_curvature": "curv", "sobel_edges": "edge", "depth_zbuffer": "depth"}
# … and for the domains that perceptual losses go through: the name of the loss, the
# transfers rgb → domain and target → domain. The first two domains of a target that are
# not listed take "d", "g" and "r", "nr", whatever they are (as published).
NOTATION = {
    "principal_curvature": ("curv", "RC", "f"),
    "sobel_edges": ("edge", "a", "s"),
    "keypoints2d": ("keypoints2d", "k2", "Nk2"),
    "keypoints3d": ("keypoints3d", "k3", "Nk3"),
    "edge_occlusion": ("edge_occlusion", "EO", "nEO"),
    "imagenet": ("imagenet_percep", None, "imagenet"),
}
POSITIONAL = [("d", "g"), ("r", "nr")]

TRAINING = ("train", "val")


def target_through_domains(
    target: str,
    domains: Sequence[str],
    plot_paths: Sequence[str],
    plot_realities: Sequence[str] = TRAINING,
    frozen: Sequence[str] | None = None,
) -> dict:
    """rgb → `target`, right and consistent with `domains`.

    A loss "mae" against the truth; for every domain a perceptual loss "percep_…" (the
    prediction and the truth, both carried on into the domain) and its yardstick
    "direct_…" (rgb straight to the domain), to which win rates compare it.
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
        if domain == "imagenet":  # no network goes there from rgb: curvature stands in
            yardstick = ("RC(x)", "curv")
        else:
            paths[f"{from_rgb}(x)"] = ("rgb", domain)
            paths[label] = (domain,)
            # published: edges are compared with the network's, not with the file's
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
    """rgb → target directly and through each domain: all pairs of these must agree.

    `labelled` adds the error against the truth, "direct_{target}".
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
    """source → target against the truth alone: how each row of the transfer table trains."""
    paths = ("x", "y^", "n(x)")
    return {
        "paths": {"x": (source,), "y^": (target,), "n(x)": (source, target)},
        "freeze_list": [],
        "losses": {"mae": {TRAINING: [("n(x)", "y^")]}},
        "plots": {"": {"size": 256, "realities": ("test",), "paths": paths}},
    }


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
    """The energy configuration of that name; a UserError naming the known ones otherwise."""
    if name not in energy_configs:
        known = ", ".join(energy_configs)
        raise UserError(f"no energy configuration {name!r}{nearest(name, energy_configs)}"
                        f" (there are: {known})")  # fmt: skip
    return energy_configs[name]


def loss_title(config: Mapping, name: str, measure: str = "mae") -> str:
    """How logs and Visdom's windows call a loss: "percep_curv_mae : f(n(x)) -> f(y^)"."""
    first, second = loss_pairs(config, name)[0]
    stem = measure if name == "mae" else f"{name}_{measure}"
    return f"{stem} : {first} -> {second}"


def paths_for(config: Mapping, losses: Sequence[str], reality: str = "train") -> dict[str, tuple]:
    """The paths that these losses need, and no other: {name: (task, …)}."""
    used = dict.fromkeys(p for n in losses for pair in loss_pairs(config, n, reality) for p in pair)
    return {name: config["paths"][name] for name in used}


# ---- losses -------------------------------------------------------------------------


def masked_loss(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, squared: bool = False
) -> Tensor:
    """Mean over (C, H, W) of |p − t| or (p − t)²: (B, C, H, W) twice → (B,).

    Pixels outside `mask` count as zero, and stay in the mean's denominator (published).
    """
    if mask is not None:
        prediction, target = prediction * mask, target * mask
    difference = prediction - target
    difference = difference.square() if squared else difference.abs()
    return difference.mean(dim=(1, 2, 3))


def evaluate_losses(
    config: Mapping,
    names: Sequence[str],
    values: Mapping[str, Tensor],
    reality: str = "train",
    squared: bool = False,
) -> dict[str, Tensor]:
    """Each loss per sample, {name: (B,)}, from the values of its paths.

    L1 (or squared error), masked where the second path of a pair is invalid; feature
    domains (imagenet) are not masked. A loss of several pairs is their sum.
    """
    losses = {}
    for name in names:
        terms = []
        for first, second in loss_pairs(config, name, reality):
            task = TASKS[config["paths"][second][-1]]
            prediction, target = _at_least_float32(values[first]), _at_least_float32(values[second])
            mask = None if task.name == "imagenet" else task.mask(target.detach())
            terms.append(masked_loss(prediction, target, mask, squared))
        losses[name] = torch.stack(terms).sum(dim=0)
    return losses


def _at_least_float32(values: Tensor) -> Tensor:
    """Networks may compute in 16 bits; the mean over an image needs more."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


# ---- the balance of gradients -------------------------------------------------------

# Added to G, so that a batch without any gradient (all of it masked, say) gives 0, not NaN;
# beside any gradient that is not 0 it is lost in rounding.
TINY = 1e-30


def balance(norms: Mapping[str, Tensor | float], direct: str = "mae") -> dict:
    """The weight of each loss from the size g of its gradient, G being their sum:

    c_i = (G − g_i) / ((n − 1) G), which sum to 1; then the direct one × (n − 1).
    A single loss weighs 1. Finite also where no loss has a gradient.
    """
    count, total = len(norms), sum(norms.values()) + TINY
    if count == 1:
        return {name: norm * 0 + 1.0 for name, norm in norms.items()}
    weights = {name: (total - norm) / ((count - 1) * total) for name, norm in norms.items()}
    return weights | {direct: weights[direct] * (count - 1)}


def gradients_of(
    losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]
) -> Iterator[tuple[str, list[Tensor]]]:
    """The gradient of each scalar loss in turn, for `balanced_gradient`: (name, gradients)."""
    for position, (name, loss) in enumerate(losses.items(), start=1):
        last = position == len(losses)
        gradient = torch.autograd.grad(
            loss, parameters, retain_graph=not last, materialize_grads=True
        )
        yield name, list(gradient)


def gradient_norm(gradient: Sequence[Tensor]) -> Tensor:
    """Mean over parameters of |dL/dθ|: the size of a gradient in the balance."""
    total = torch.stack([torch.linalg.vector_norm(g, 1) for g in gradient]).sum()
    return total / sum(g.numel() for g in gradient)


def balanced_gradient(
    gradients: Iterable[tuple[str, list[Tensor]]], count: int, direct: str = "mae"
) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Gradient of the balanced sum of `count` losses: (gradient, weights, norms).

    `gradients` gives each loss's gradient in turn; its tensors become this function's. A
    loss's gradient yields both its norm and its part in the sum, so the sum needs no
    backward pass of its own. The weights are known only after the last; but they are
    linear in the norms, so two running sums are kept instead of one gradient a loss:
    Σ w ∇L and Σ w g ∇L, w being n − 1 for the direct loss and 1 for others. No value
    leaves the device.
    """
    norms: dict[str, Tensor] = {}
    plain: list[Tensor] = []
    scaled: list[Tensor] = []
    for name, gradient in gradients:
        norms[name] = gradient_norm(gradient)
        factor = max(1, count - 1) if name == direct else 1
        if count == 1:
            plain = gradient
        elif not plain:
            plain = gradient if factor == 1 else [g.mul_(factor) for g in gradient]
            scaled = [g * norms[name] for g in plain]
        else:
            for total, total_scaled, g in zip(plain, scaled, gradient, strict=True):
                total.add_(g, alpha=factor)
                total_scaled.addcmul_(g, norms[name] * factor)
    weights = balance(norms, direct)
    if count > 1:
        everything = sum(norms.values()) + TINY
        for total, total_scaled in zip(plain, scaled, strict=True):
            total.sub_(total_scaled.div_(everything)).div_(count - 1)
    return plain, weights, norms


# ---- the choice of k ----------------------------------------------------------------


def wins(perceptual: Tensor, yardstick: Tensor) -> Tensor:
    """1 for each sample whose perceptual loss exceeds the direct one, else 0: (B,) twice → (B,).

    Its mean is the win rate.
    """
    return (perceptual > yardstick).float()


def choose_losses(
    names: Sequence[str],
    k: int,
    win_rates: Mapping[str, float],
    rng: random.Random,
    at_random: bool = False,
) -> list[str]:
    """The k losses to train with: those of largest win rate, ties in the order of `names`.

    At random where asked for, and as long as not every loss has a win rate.
    """
    if at_random or any(name not in win_rates for name in names):
        return rng.sample(list(names), k)
    return sorted(names, key=lambda name: -win_rates[name])[:k]


# ---- measures -----------------------------------------------------------------------


def valid_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean of |p − t| over valid pixels, per sample: (B,). A sample without any gives NaN."""
    error = ((prediction - target).abs() * mask).sum(dim=(1, 2, 3))
    return error / mask.expand_as(prediction).sum(dim=(1, 2, 3))


def angular_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean angle in degrees between encoded normals (B, 3, H, W), valid pixels only: (B,)."""
    first, second = 2 * prediction - 1, 2 * target - 1
    # atan2 of sine and cosine is exact at small angles, where arccos is not
    sine = torch.linalg.vector_norm(torch.linalg.cross(first, second, dim=1), dim=1)
    angle = torch.rad2deg(torch.atan2(sine, (first * second).sum(dim=1)))
    valid = mask[:, 0]
    return (angle * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))

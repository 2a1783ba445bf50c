"""The public API: what this project computes, for your own code.

    predict(image, "normal")                     normals, depth or shading of any image
    pretrained("normal")                         the network behind it, an nn.Module
    Energy()(images)                             how much the paths from an image disagree
    ConsistencyLoss("normal")(prediction, truth) the losses of cross-task consistency
    balance_gradients(losses, parameters)        their published weights, in your own loop
    evaluate(network, data)                      the errors of a run's closing table

Importing this module does nothing. Nothing here prints, needs a folder of runs, or depends on the
current folder. The programs call the same functions. examples/ holds complete files.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from balancing import balanced_gradient, gradients_of
from choosing import choose_losses
from datasets import Batch, Reality, TaskDataset
from devices import Ranks, allow_several_backward_passes, as_device
from energy import (
    energy_configs,
    get_config,
    loss_of,
    loss_title,
    paths_for,
    perceptual_losses,
)
from graph import Path as GraphPath
from graph import TaskGraph, edges_of
from losses import at_least_float32, evaluate_losses
from measuring.closing_table import measure
from measuring.consistency_energy import UNLABELLED, energy_graph, read_statistics
from measuring.demo_networks import TARGETS
from measuring.energy_maps import (
    STRAIGHT,
    STRAIGHT_LOSSES,
    disagreements,
    pixel_energy,
    straight_values,
)
from measuring.prediction import choose_one, predict, pretrained, resized
from methods.table import recorded_row
from models import load_network
from sources import Sources, settle, sources_in
from task_configs import TASKS
from training.data import held_out_views, reads_of
from training.objective import Objective
from training.options import DataOptions
from transfers import Edge, Scale, get_transfer
from utils import UserError, check_positive, nearest, read_job

__all__ = [
    "ConsistencyLoss", "Energy", "balance_gradients", "evaluate", "predict", "pretrained",
]  # fmt: skip

DIRECT = "mae"  # the published name of the loss against the ground truth
PREDICTION = "n(x)"


# ---- the published weights, in your own loop ----------------------------------------


def balance_gradients(
    losses: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]],
    parameters: Iterable[nn.Parameter],
    *,
    direct: str = DIRECT,
) -> dict[str, Tensor]:
    """Add the gradient of the balanced losses to the `.grad` of the parameters.

    It takes the place of `loss.backward()`. With g_i the mean size of loss i's gradient, G the
    sum of the g_i, and n the number of losses, the weights are (as published)

        c_i = (G − g_i) / ((n − 1) G), that of the loss `direct` × (n − 1).

    `losses` are {name: (B,) or a scalar}; the mean of each is taken. For gradient accumulation,
    give an iterable of such dictionaries, one for each part of a batch, such as a generator that
    computes them: the sizes are then those of the whole batch's gradients. In a process group of
    torch.distributed, each loss's gradient is averaged over the processes before its size is
    measured, also for a network in DistributedDataParallel.

    Returns the weights, {name: scalar}. The losses' graphs are freed. Parameters that need no
    gradient are left out. A common factor of all losses, such as a GradScaler's, does not change
    the weights. Raises UserError if no parameter needs a gradient, if a loss does not depend on
    what is trained, if there is no loss called `direct`, or if the parts of a batch have different
    losses.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise UserError("`parameters` holds none that needs a gradient")
    if isinstance(losses, Mapping):
        names = list(losses)
        gradients = gradients_of(_means(losses), trained) if names else iter(())
    else:
        sums = _summed(losses, trained)
        names, gradients = list(sums), iter(sums.items())
    if direct not in names:
        raise UserError(f"`losses` has no {direct} (it has: {', '.join(names) or 'none'})")
    together = dist.is_available() and dist.is_initialized()
    ranks = Ranks(dist.get_rank(), dist.get_world_size()) if together else Ranks()
    averaged = ranks.averaged(_unshared(gradients))
    gradient, weights, _ = balanced_gradient(averaged, len(names), direct)
    for parameter, g in zip(trained, gradient, strict=True):
        parameter.grad = g if parameter.grad is None else parameter.grad + g
    return weights


def _unshared(
    gradients: Iterable[tuple[str, list[Tensor]]],
) -> Iterator[tuple[str, list[Tensor]]]:
    """Copy gradients that share memory, as those of a and b in a + b do.

    What follows changes them in place.
    """
    for name, gradient in gradients:
        seen: set[int] = set()
        for i, g in enumerate(gradient):
            place = g.untyped_storage().data_ptr()
            if place in seen or 0 in g.stride():
                gradient[i] = g.clone(memory_format=torch.contiguous_format)
            seen.add(place)
        yield name, gradient


def _means(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, loss in losses.items():
        if not loss.requires_grad:
            raise UserError(f"the loss {name} does not depend on what is trained")
    return {name: loss.mean() for name, loss in losses.items()}


def _summed(
    parts: Iterable[Mapping[str, Tensor]], parameters: Sequence[nn.Parameter]
) -> dict[str, list[Tensor]]:
    """Return the gradient of each loss's mean over all samples of the parts of a batch."""
    sums: dict[str, list[Tensor]] = {}
    total = 0
    for losses in parts:
        if sums and list(sums) != list(losses):
            raise UserError(f"all parts of a batch have the same losses: {', '.join(sums)}, not "
                            f"{', '.join(losses)}")  # fmt: skip
        samples = max(loss.numel() for loss in losses.values())
        total += samples
        for name, gradient in _unshared(gradients_of(_means(losses), parameters)):
            scaled = [g.mul_(samples) for g in gradient]
            if name in sums:
                scaled = [s.add_(g) for s, g in zip(sums[name], scaled, strict=True)]
            sums[name] = scaled
    return {name: [g.div_(total) for g in gradient] for name, gradient in sums.items()}


# ---- modules with frozen networks ----------------------------------------------------


class _WithFrozenNetworks(nn.Module):
    """A module with frozen networks inside, which stay in eval mode.

    They are not submodules. So they are not in `parameters()`, and no optimiser trains them; they
    are not in `state_dict()`, and checkpoints stay small; and DistributedDataParallel does not
    send them. `to()`, `cuda()`, `double()` and the like do move and convert them, also when they
    are called on a module that has this one as a child.
    """

    def __init__(self, graph: TaskGraph) -> None:
        super().__init__()
        self._held = (graph,)  # in a tuple, as nn.Module registers every module among its values

    @property
    def graph(self) -> TaskGraph:
        """The frozen networks."""
        return self._held[0]

    def _apply(self, fn: Callable, recurse: bool = True):
        self.graph._apply(fn)
        return super()._apply(fn, recurse)


# ---- the consistency energy ---------------------------------------------------------


class Energy(_WithFrozenNetworks):
    """The consistency energy of images: (B, 3, H, W) in [0, 1] → (B,).

    It is high where normals predicted straight from an image differ from those predicted through
    other domains. It needs no labels, is differentiable, and is float32.

    By default it uses the small networks trained on rooms that ship with the project; others are
    in `models_dir`. `statistics` is the `save_dir` of a labelled run of scripts.energy_calc. The
    energy is then standardised as by scripts.energy_calc: 0 is the mean of the labelled views,
    and 1 a mean absolute deviation. By default, the statistics are those in the models folder;
    the shipped networks have them. Without any, the energy is the mean of |difference|.

    `network` is your own network in the place of rgb → normal: a module (B, 3, H, W) →
    (B, 3, H, W), both in [0, 1], such as `pretrained` returns. It runs in eval mode, and is neither
    moved nor changed; gradients flow to its parameters. The statistics of the models folder were
    measured with another network, so none are used by default: as `statistics`, give those of a
    run of scripts.energy_calc with your checkpoint.

    Images are resized so that their shorter side is that of the networks' images;
    scripts.energy_calc crops the centre square instead. Raises UserError if networks are missing,
    if the statistics are of networks of another scale, or if `network` does not return normals of
    the images' size.
    """

    def __init__(
        self,
        *,
        models_dir: str | Path | None = None,
        statistics: str | Path | None = None,
        network: nn.Module | None = None,
    ) -> None:
        sources = sources_in(models_dir)
        given = {} if network is None else {("rgb", "normal"): _Called(network)}
        cpu = torch.device("cpu")
        super().__init__(energy_graph(UNLABELLED, sources, cpu, STRAIGHT_LOSSES, given))
        self.scale = sources.scale
        self.statistics: dict | None = None
        self._network = (network,)
        folder = Path(statistics or sources.models_dirs[0])
        shipped = network is None and (folder / "statistics.json").is_file()
        if statistics is not None or shipped:
            self.statistics = read_statistics(folder)
            if Scale.of(self.statistics) != self.scale:
                raise UserError(
                    f"the labelled run in {folder} had other networks: not {self.scale}"
                )

    def forward(self, images: Tensor) -> Tensor:
        """Return the energy of each image (B, 3, H, W): (B,)."""
        return self._pixels(images).mean(dim=(1, 2, 3))

    def pixels(self, images: Tensor) -> Tensor:
        """Return the energy of each pixel of the images (B, 3, H, W): (B, 1, H, W).

        Its mean over the pixels is the image's energy. If the images are not of the networks'
        size, the energies are resized to that of the images, and their mean may differ a little.
        """
        return resized(self._pixels(images), images.shape[-2:])

    def _pixels(self, images: Tensor) -> Tensor:
        _check_images("images", images, TASKS["rgb"].channels)
        short, step = min(images.shape[-2:]), 2**self.scale.levels
        size = self.scale.image_size
        sides = [size if s == short else round(size * s / short / step) * step
                 for s in images.shape[-2:]]  # fmt: skip
        inputs, (network,) = resized(images, sides), self._network
        if network is None:
            values = straight_values(self.graph, inputs)
        else:
            with _in_eval_mode(network):
                values = straight_values(self.graph, inputs)
            if values[STRAIGHT].shape != inputs.shape:
                raise UserError(f"`network` returns {tuple(values[STRAIGHT].shape)} for images of "
                                f"{tuple(inputs.shape)}: normals have the same shape")  # fmt: skip
        return pixel_energy(disagreements(values), self.statistics)


def _check_images(name: str, values: Tensor, channels: int, smallest: int = 1) -> None:
    shape = tuple(values.shape)
    if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < smallest:
        size = f", with sides of {smallest} pixels or more" if smallest > 1 else ""
        raise UserError(f"`{name}` is (B, {channels}, H, W){size}, not {shape}")


# ---- the losses ---------------------------------------------------------------------


class ConsistencyLoss(_WithFrozenNetworks):
    """The losses of cross-task consistency: (prediction, truth) → {name: (B,)}.

    `target` is what your network predicts: normal, depth_zbuffer (or depth), reshading, or an
    energy configuration of your own. The loss "mae" compares the prediction with the truth. For
    each of the `domains`, a loss "percep_…" compares the two after a frozen network has mapped
    both to that domain. Names, masks and formulas are the published ones: `titles` has the
    paths' letters. `squared` squares the differences.

    `domains` are by default all of the published ones except imagenet, whose network is downloaded
    if you name it. The frozen networks are the small ones that ship with the project, trained on
    rooms at 64 pixels, or those in the folder `models_dir`. They are not part of `parameters()` or
    `state_dict()`, but `to()` moves them.

    In your own loop, with the published weights:

        losses = consistency(network(images), truth)
        optimizer.zero_grad()
        balance_gradients(losses, network.parameters())
        optimizer.step()

    For a network to which you apply torch.compile, create the loss before the network's first
    call: several losses are differentiated through it. `seed` determines the random choice of `k`
    losses; processes that train together need the same one. Raises UserError if a domain is unknown
    or a network is missing.
    """

    # for those who have the loss from torch.hub
    balance_gradients = staticmethod(balance_gradients)

    def __init__(
        self,
        target: str = "normal",
        domains: Sequence[str] | None = None,
        *,
        models_dir: str | Path | None = None,
        squared: bool = False,
        seed: int = 0,
    ) -> None:
        name, config = _config_of(target)
        names = _losses_of(config, domains)
        sources = sources_in(models_dir)
        super().__init__(_frozen_graph(sources, name, config, names))
        self.config, self.squared, self._rng = config, squared, random.Random(seed)
        self.target: str = config["paths"]["y^"][-1]
        self.losses = {loss_of(config, name).domain: name for name in names}
        self._smallest = max(8, 2**sources.scale.levels)
        allow_several_backward_passes()

    @property
    def domains(self) -> list[str]:
        """The domains of the perceptual losses."""
        return list(self.losses)

    @property
    def titles(self) -> dict[str, str]:
        """Each loss and its paths, {"percep_curv": "percep_curv_mae : f(n(x)) -> f(y^)", …}."""
        return {n: loss_title(self.config, n) for n in (DIRECT, *self.losses.values())}

    def choose(self, k: int) -> list[str]:
        """Return `k` of the domains, chosen at random. Raises UserError if there are fewer."""
        if not 0 <= k <= len(self.losses):
            raise UserError(f"`k` is 0 to {len(self.losses)} here, not {k}")
        return choose_losses(self.domains, k, {}, self._rng, at_random=True)

    def forward(
        self,
        prediction: Tensor,
        truth: Tensor,
        domains: Sequence[str] | None = None,
        k: int | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of each sample, {name: (B,)}, float32 or float64; "mae" is the first.

        `prediction` and `truth` are (B, C, H, W), encoded as the data's files are when they are
        read (docs/encodings.md): normals in [0, 1] for components in [−1, 1]. Pixels where the
        truth has the domain's mask value are left out. Gradients flow to the prediction only.
        `domains` restricts the losses; `k` chooses that many of them at random, anew in each call
        (`choose(k)` names them for an epoch, as published). Raises UserError if the shapes do not
        fit.
        """
        channels = TASKS[self.target].channels
        _check_images("prediction", prediction, channels, self._smallest)
        if truth.shape != prediction.shape:
            raise UserError(f"`truth` is {tuple(truth.shape)}, `prediction` is "
                            f"{tuple(prediction.shape)}: give them the same shape")  # fmt: skip
        names = [DIRECT, *self._chosen(domains, k)]
        paths = {name: tuple(path) for name, path in paths_for(self.config, names).items()}
        start = tuple(self.config["paths"][PREDICTION])
        known: dict[GraphPath, Tensor] = {(self.target,): truth.detach()}
        with torch.no_grad():
            labels = {name: path for name, path in paths.items() if path[: len(start)] != start}
            values = self.graph.sample(labels, {}, known)
        known |= {path: values[name] for name, path in labels.items()}
        known[start] = at_least_float32(prediction)
        values = self.graph.sample(paths, {}, known)
        return evaluate_losses(self.config, names, values, squared=self.squared)

    def _chosen(self, domains: Sequence[str] | None, k: int | None) -> list[str]:
        if domains is not None and k is not None:
            raise UserError("`domains` names the losses, and `k` chooses them: give one of the two")
        return _named(self.losses, self.choose(k) if k is not None else domains)


def _config_of(target: str) -> tuple[str, Mapping]:
    """Return the name and the configuration that trains rgb → target."""
    tasks = {domain: task for task, domain in TARGETS.items()}
    name = f"multiperceptual_{tasks.get(target, target)}"
    name = name if name in energy_configs else target
    if name not in energy_configs:
        known = [*TARGETS.values(), *energy_configs]
        raise UserError(f"`target` is {', '.join(TARGETS.values())} or an energy configuration, "
                        f"not {target}{nearest(target, known)}")  # fmt: skip
    config = get_config(name)
    if DIRECT not in config["losses"]:
        raise UserError(f"{name} measures and does not train: no `target`")
    return name, config


def _losses_of(config: Mapping, domains: Sequence[str] | None) -> list[str]:
    """Return the perceptual losses of the domains, by default of all but imagenet."""
    known = {loss_of(config, name).domain: name for name in perceptual_losses(config)}
    return _named(known, [d for d in known if d != "imagenet"] if domains is None else domains)


def _named(losses: Mapping[str, str], domains: Sequence[str] | None) -> list[str]:
    """Return the losses {domain: name} of the domains (default: all), in their own order."""
    wanted = [domains] if isinstance(domains, str) else losses if domains is None else domains
    for domain in wanted:
        if domain not in losses:
            raise UserError(f"`domains`: there is no loss for {domain}{nearest(domain, losses)} "
                            f"(there are: {', '.join(losses) or 'none'})")  # fmt: skip
    return [name for domain, name in losses.items() if domain in wanted]


def _frozen_graph(sources: Sources, name: str, config: Mapping, losses: Sequence[str]) -> TaskGraph:
    """Load the networks of the losses, all but the one that is trained."""
    target = tuple(config["paths"][PREDICTION])
    networks: dict[Edge, nn.Module] = {}
    for edge in edges_of(paths_for(config, [DIRECT, *losses])):
        if edge == target:
            continue
        try:
            networks[edge] = sources.network(get_transfer(*edge, sources.models_dirs[0]), name)
        except OSError as error:
            raise UserError(f"cannot fetch the ImageNet network ({error}): leave imagenet out of "
                            f"`domains`") from None  # fmt: skip
    return TaskGraph(networks)


# ---- evaluation ---------------------------------------------------------------------


def evaluate(
    network: nn.Module | str | Path,
    data: str | Path | Sequence[str | Path] | Iterable[Mapping[str, Tensor]] | None = None,
    target: str = "normal",
    *,
    domains: Sequence[str] | None = None,
    models_dir: str | Path | None = None,
    split: str | Path | None = None,
    subset_size: int | None = None,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    detailed: bool = False,
) -> dict[str, float]:
    """Return the errors of a network rgb → target, as in the closing table of a training run.

    `network` is a module (B, 3, S, S) → (B, C, S, S), which is neither moved nor changed; or a
    checkpoint, or the folder of a run. `data` are folders with labelled views, of which the
    held-out ones are measured (by `split`; by default, the embedded rooms, which are rendered
    on first use); or batches {"rgb": (B, 3, S, S), target: (B, C, S, S), …}, where the labels of
    other domains are used if they are there. `target`, `domains` and `models_dir` are those of
    ConsistencyLoss. `subset_size` measures that many of the views, evenly spaced.

    The rows are "direct L1 × 100", for normals "angular error (°)", and for each domain
    "percep_… × 100, predicted", the perceptual loss, and "…, true", the error against the
    domain's own labels. `detailed` adds the measures of the literature, such as "median angle
    (°)" and "RMSE (m)" (measuring/errors.py), and the frozen networks' own errors ("…, truth
    mapped"). Raises UserError if data or networks are missing or do not fit.
    """
    check_positive(batch_size=batch_size, subset_size=subset_size)
    name, config = _config_of(target)
    losses = _losses_of(config, domains)
    place = sources_in(models_dir)
    if isinstance(network, nn.Module) and device is None:
        device = next((p.device for p in network.parameters()), None)
    where = as_device(device)
    module = network if isinstance(network, nn.Module) else _loaded(network, config, place.scale)
    graph = _frozen_graph(place, name, config, losses)
    networks = {edge: graph.network(edge) for edge in edges_of(config["paths"]) if graph.has(edge)}
    start = tuple(config["paths"][PREDICTION])
    whole = TaskGraph({**networks, start: _Called(module)}).to(where)
    if not isinstance(network, nn.Module):
        module.to(where)
    batches: Iterable[Batch]
    folders = _folders(data)
    if data is None or folders:
        settled = settle(read_job(), folders, str(place.models_dirs[0]), quiet=True)
        objective = Objective(name, {**config, "plots": {}}, None, tuple(losses), False, "baseline")
        options = DataOptions(split=str(split) if split else None)
        part = held_out_views(reads_of(objective)["test"], settled, options, subset_size)
        dataset = TaskDataset(part.tasks, part.views, place.scale.image_size)
        share = options.max_bad_fraction
        batches = Reality("test", dataset, batch_size, where, max_bad_fraction=share)
    else:
        given = cast(Iterable[Mapping[str, Tensor]], data)
        batches = (Batch({n: values.to(where) for n, values in b.items()}) for b in given)
    with _in_eval_mode(module):
        errors = measure(whole, config, losses, batches, detailed=detailed)
    if not errors:
        raise UserError("`data` holds no batch")
    return errors


def _folders(data: object) -> list[str] | None:
    """Return the folders that `data` names, or None."""
    if isinstance(data, str | Path):
        return [str(data)]
    if isinstance(data, list | tuple) and data and isinstance(data[0], str | Path):
        return [str(folder) for folder in data]
    return None


class _Called(nn.Module):
    """Calls a network that is not a submodule, so that nothing moves, freezes or changes it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._held = (network,)

    def forward(self, images: Tensor) -> Tensor:
        return self._held[0](images)


@contextmanager
def _in_eval_mode(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _loaded(checkpoint: str | Path, config: Mapping, scale: Scale) -> nn.Module:
    """Load the network of a checkpoint or a run's folder, at the scale of the frozen networks."""
    edge = tuple(config["paths"][PREDICTION])
    task = next((task for task, domain in TARGETS.items() if domain == edge[-1]), None)
    path = Path(checkpoint)
    if task:
        (path,) = choose_one(task, checkpoint=checkpoint).paths.values()
    network = recorded_row(path, get_transfer(*edge)).build(scale)
    load_network(network, path, scale, edge)
    return network

"""What a method of training is: a row of the table `methods.table.METHODS`, and its step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from datasets import Batch, Reality
from devices import Ranks
from energy import get_config, perceptual_losses
from graph import TaskGraph
from label_cache import LabelCache
from logger import Logger
from sources import Sources
from transfers import TRANSFERS, Scale, Transfer

# {name of the target on the command line: domain}
TARGETS = {"normal": "normal", "depth": "depth_zbuffer", "reshading": "reshading"}
RESERVED = ("progress", "rng", "seconds", "target")  # a state's names that the trainer itself uses


class TrainingStep(Protocol):
    """What a trainer calls for each batch.

    A step trains the graph's target network, and whatever else its method has: `networks`.
    `bad` is a flag on the device: 1 once a loss or gradient was not finite. That step and all
    later ones then leave the target network unchanged.
    """

    bad: Tensor

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that train besides the graph's target, {name: network}.

        Each is saved beside the checkpoint as {name}_{method}.pth.
        """

    def __call__(self, batch: Batch, chosen: Sequence[str]) -> dict[str, Tensor]:
        """Train on a batch; `chosen` are the perceptual losses of this epoch.

        Returns scalars by name, detached: "loss", and the losses that it is made of.
        """

    def decay(self) -> None:
        """Take a step of the schedule of the learning rate, for all optimisers."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs besides the target network's weights.

        Tensors and plain values: other networks, optimisers, schedules, random states. The
        names in RESERVED are the trainer's.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict()` returned; `state` may hold other entries too."""


@runtime_checkable
class Reporting(Protocol):
    """A step that has more to say after training than the closing table does."""

    def report(self) -> str:
        """Return lines to print; may write files into the run's folder. Called on all ranks."""


@dataclass(frozen=True)
class MethodOptions:
    """Methods.

    Args:
        field_of_view: for geonet: degrees between the left and the right border of the square
            images (default: on rooms the middle of their cameras' angles, 65; else it is
            needed).
        path_length: for global: networks of the longest paths, 2 or 3 (default: 3).
        round_steps: for global: steps on one network, along one path (default: 20).
        direct_steps: for global: steps that first train every network on its direct loss
            (default: none from the baselines, else half of the run's).
        choose_network: for global: which network trains in a round: round-robin (each in turn,
            the default), largest (that whose paths are violated most) or random.
        choose_path: for global: along which of its paths: largest (the default) or random.
    """

    field_of_view: float | None = None
    path_length: int | None = None
    round_steps: int | None = None
    direct_steps: int | None = None
    choose_network: str | None = None
    choose_path: str | None = None


@dataclass(frozen=True)
class Beginning:
    """A run as its method finds it before anything is measured.

    `network` is the one that trains, not wrapped. `domains` are those that its training views
    have. `init` is what it starts from and `steps` the number of steps of the whole run.
    """

    network: nn.Module
    options: MethodOptions
    sources: Sources
    domains: tuple[str, ...]
    init: str
    steps: int


@dataclass(frozen=True)
class Setup:
    """What a method makes its step from.

    `graph` holds the network that trains (`graph.target`) and the frozen ones of the
    configuration's losses, prepared for the `device`; `sources` finds other networks, and
    `prepare` prepares them too. `losses` are the perceptual losses that the run measures.
    `train` are the views that it trains on, and `labels` caches frozen networks' outputs on
    their ground truths; `val` are the validation views, `held_out` those of the closing table.
    `options` are the flags for methods, `init` is what training starts from. `lr` is the learning
    rate, and `steps` the number of steps of the whole run, over which a cosine schedule decays.
    `folder` is the run's folder, where only the first of the `ranks` may write. `usual_step`
    makes the main job's step, with the options of the run, on any graph of a network that
    trains and of frozen ones.
    """

    graph: TaskGraph
    config: Mapping
    losses: Sequence[str]
    sources: Sources
    train: Reality
    val: Reality
    held_out: Reality
    labels: LabelCache
    logger: Logger
    folder: Path
    device: torch.device
    usual_step: Callable[[TaskGraph], TrainingStep]
    lr: float
    steps: int
    options: MethodOptions
    init: str
    prepare: Callable[[nn.Module], nn.Module]
    seed: int = 0
    precision: str = "fp32"
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def target(self) -> str:
        """The domain that the network predicts."""
        return self.config["paths"]["y^"][-1]


def multiperceptual(target: str) -> dict:
    """Return the configuration of the main job for a target domain."""
    (name,) = (name for name, domain in TARGETS.items() if domain == target)
    return get_config(f"multiperceptual_{name}")


def no_other_domains(target: str) -> tuple[str, ...]:
    """Return (): the training reads rgb, the target, and what its losses need."""
    return ()


ALL, NONE = "all", ()


@dataclass(frozen=True)
class Method:
    """A way to train rgb → target, the row of a table.

    `name` and a target make its name on the command line: pix2pix_normal. `summary` is one
    sentence. `targets` are names in TARGETS.

    `config` returns the energy configuration of a target domain. Validation and the closing
    table measure its losses, whatever the training minimises. `trains_on` are the perceptual
    losses among which the training itself chooses its k: "all", or their names; () for none.
    `reads` returns the domains that training needs from files besides rgb, the target and
    what those losses need, and `wants` those that are read where there are files.

    `network` builds the network that trains, (B, 3, H, W) → (B, C, H, W), from the row of the
    transfer table in whose place it trains and the scale; None: that row's own network.
    `step` makes the step from a Setup; None: `training.step.Step`. `initial` is what training
    starts from, "baseline" (the row's checkpoint) or "scratch". `start` loads baselines into a
    `network` of its own, and returns the files, {transfer: file}; None: it has none. `defaults`
    are values of options that were not given: lr, schedule, epochs, batch_size, whatever the
    data. `options` are the fields of MethodOptions that it takes. `begin` sets the network up
    and checks the options; it returns what run.json records, and what the announcement adds.

    `ending` is what follows rgb2{target}_ in the names of its checkpoints (default: its name).
    `untrained` says, for a method that is not trained here, why and what to run instead.
    """

    name: str
    summary: str
    targets: tuple[str, ...] = tuple(TARGETS)
    config: Callable[[str], dict] = multiperceptual
    trains_on: str | tuple[str, ...] = NONE
    reads: Callable[[str], Iterable[str]] = no_other_domains
    wants: Callable[[str], Iterable[str]] = no_other_domains
    network: Callable[[Transfer, Scale], nn.Module] | None = None
    step: Callable[[Setup], TrainingStep] | None = None
    initial: str = "baseline"
    start: Callable[[Any, Sources], dict[str, Path]] | None = None
    begin: Callable[[Beginning], tuple[dict[str, Any], str]] | None = None
    options: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ending: str = ""
    untrained: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ending", self.ending or self.name)

    def trained_losses(self, target: str) -> list[str]:
        """Return the names of the losses among which training on a target domain chooses."""
        known = perceptual_losses(self.config(target))
        return known if self.trains_on == ALL else [n for n in known if n in self.trains_on]

    def row(self, target: str) -> Transfer:
        """Return the row of the network that trains, whose `build` makes it."""
        row = TRANSFERS["rgb", target]
        if self.network is None:
            return row
        return MethodRow(row.source, row.target, row.network, row.downsample, row.file,
                         build_network=self.network)  # fmt: skip


@dataclass(frozen=True)
class MethodRow(Transfer):
    """A row of the transfer table with the network of a method in place of the table's."""

    build_network: Callable[[Transfer, Scale], nn.Module] | None = None

    def build(self, scale: Scale) -> nn.Module:
        assert self.build_network is not None
        return self.build_network(self, scale)

"""What a run trains: the network and the losses that its options name, and their defaults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from backbones import Backbone, backbone
from energy import (
    direct_only,
    energy_configs,
    get_config,
    loss_name,
    on_predictions,
    paths_for,
    perceptual_losses,
)
from methods.interface import Method
from methods.table import check_trained, find_method, method_names
from training.options import Options
from transfers import OWN_TRANSFERS, TRANSFERS, Transfer, any_transfer, transfer_by_name
from utils import UserError, nearest


@dataclass(frozen=True)
class Objective:
    """The network that a configuration, a method or a transfer trains, and its losses.

    `row` is the named transfer, or None for a configuration or a method. `perceptual` are the
    requested perceptual losses. `by_win_rate` tells whether win rates choose among them. `init`
    is "baseline", "scratch", "omnidata" or the path of a checkpoint. `backbone` is the row of a
    network of the user's own, which takes the table's place. `method` is the row of the table
    of methods, or None for a transfer and for a configuration that is no method's.
    """

    name: str
    config: Mapping
    row: Transfer | None
    perceptual: tuple[str, ...]
    by_win_rate: bool
    init: str
    backbone: Backbone | None = None
    method: Method | None = None

    @property
    def transfer(self) -> Transfer:
        """The row of the network that trains: the transfer table's, the method's or the user's."""
        source, target = self.config["paths"]["n(x)"][-2:]
        if self.backbone:
            return self.backbone
        return self.method.row(target) if self.method else any_transfer(source, target)

    @property
    def trained(self) -> list[str]:
        """The perceptual losses among which training chooses; the others are only measured."""
        if self.method is None:
            return list(self.perceptual)
        known = self.method.trained_losses(self.transfer.target)
        return [name for name in self.perceptual if name in known]

    @property
    def ending(self) -> str:
        """What follows the transfer's name in the file of the trained network."""
        if self.row:
            return ""
        return f"_{self.method.ending if self.method else 'consistency'}"

    @property
    def predictor(self) -> Transfer | None:
        """The row of the frozen network whose predictions are trained on; None to use labels."""
        path = self.config["paths"]["n(x)"]
        return TRANSFERS[path[:2]] if len(path) == 3 else None

    @property
    def squared(self) -> bool:
        """Whether errors are squared: for transfers from other domains' labels, as published."""
        return self.row is not None and self.config["paths"]["n(x)"][0] != "rgb"


def objective_of(options: Options) -> Objective:
    """Return the objective that the options name. Raises UserError if there is none.

    Runs the file of the option `network`, if there is one.
    """
    config = find_config(options.config)
    assert options.config is not None  # find_config raises
    row = transfer_by_name(options.config)
    if predicted := options.networks.on_predictions:
        config = _config_on_predictions(options.config, row)
    losses, network = options.losses, options.networks.network
    method, _ = find_method(options.config) or (None, "")
    if network and method and method.network:
        raise UserError(f"{options.config} has a network of its own: no `network`")
    own = backbone(network, any_transfer(*config["paths"]["n(x)"][-2:])) if network else None
    trains_on_some = method is None or bool(method.trains_on)
    perceptual = restricted(config, losses.perceptual, options.networks.no_imagenet)
    by_win_rate = not losses.random_select and losses.mode == "winrate" and losses.k != 0
    from_scratch = own or (row and not predicted)
    initial = "scratch" if from_scratch else method.initial if method else "baseline"
    return Objective(
        options.config,
        config,
        row,
        tuple(perceptual),
        by_win_rate and trains_on_some,
        options.networks.init or initial,
        own,
        method,
    )


def find_config(name: str | None) -> Mapping:
    """Return the energy configuration of that name, a method's, or a transfer's direct one.

    Raises UserError if `name` is None, unknown or cannot be trained.
    """
    trainable = [n for n, c in energy_configs.items() if "mae" in c["losses"]]
    known_rows = (*TRANSFERS.values(), *OWN_TRANSFERS.values())
    rows = [row.name for row in known_rows if row.trainable]
    methods = method_names()
    if name is None:
        raise UserError(
            f"what to train? A configuration ({', '.join(trainable)}), a method "
            f"({', '.join(methods[:3])}, …) or a transfer ({', '.join(rows[:3])}, …): "
            f"python -m train multiperceptual_normal"
        )
    if found := find_method(name):
        method, target = found
        check_trained(name, method)
        return method.config(target)
    row = transfer_by_name(name)
    if row:
        if not row.trainable:
            raise UserError(f"{name} has nothing to train: it is a formula or ImageNet's network")
        return direct_only(*row.edge)
    if name not in energy_configs:
        hint = nearest(name, [*trainable, *rows, *method_names(trained=False)])
        raise UserError(
            f"no configuration, method or transfer {name!r}{hint} "
            f"(configurations: {', '.join(trainable)}; methods: {', '.join(methods)})"
        )
    if name not in trainable:
        raise UserError(f"{name} measures and does not train: see python -m scripts.energy_calc")
    return get_config(name)


def _config_on_predictions(name: str, row: Transfer | None) -> Mapping:
    """Return the configuration that trains the transfer called `name` on predictions."""
    if row is None or ("rgb", row.source) not in TRANSFERS:
        raise UserError(
            f"`on_predictions` is for a transfer between domains that are predicted from rgb, "
            f"such as depth_zbuffer2normal, not {name}"
        )
    return on_predictions(*row.edge)


def restricted(
    config: Mapping, perceptual: Sequence[str] | None, no_imagenet: bool = False
) -> list[str]:
    """Return the configuration's perceptual losses, or only those in `perceptual`.

    `no_imagenet` leaves out those that go through the ImageNet network. Raises UserError if
    the configuration has no such loss.
    """
    known = {loss_name(name): name for name in perceptual_losses(config)}
    selected = [loss_name(name) for name in perceptual or known]
    for name in selected:
        if name not in known:
            raise UserError(
                f"no perceptual loss {name}{nearest(name, known)} (there are: {', '.join(known)})"
            )
    return [
        full
        for name, full in known.items()
        if name in selected and not (no_imagenet and _uses_imagenet(config, full))
    ]


def _uses_imagenet(config: Mapping, loss: str) -> bool:
    return any("imagenet" in path for path in paths_for(config, [loss]).values())


def checked_k(k: int | None, losses: Sequence[str], mode: str) -> int:
    """Return the number of perceptual losses in use at a time, of those that train.

    Raises UserError for a bad `k`.
    """
    if mode == "standard":
        if k not in (None, len(losses)):
            raise UserError(f"`mode` standard uses all {len(losses)} perceptual losses: no `k`")
        return len(losses)
    if k is None:
        return min(3, len(losses))
    if not 0 <= k <= len(losses):
        names = ", ".join(map(loss_name, losses))
        raise UserError(f"`k` {k}: there are {len(losses)} perceptual losses ({names})")
    return k


# ---- defaults that depend on what is trained, and on which data ----------------------


@dataclass(frozen=True)
class Defaults:
    """Values of options that were not given."""

    epochs: int
    batch_size: int
    lr: float
    schedule: str
    steps_per_epoch: int | None = None  # None: by the size of the data


def defaults_for(objective: Objective, embedded: bool, fast: bool) -> Defaults:
    """Return the defaults: the published ones, or those for the `embedded` rooms."""
    scratch, edge = objective.init == "scratch", objective.row is not None
    schedule = "cosine" if edge else "constant"
    defaults = Defaults(40 if edge else 10, 16, 2e-3 if scratch else 3e-4, schedule)
    if not embedded:
        defaults = Defaults(800, 4 if fast else 64, 4e-4 if scratch else 3e-5, schedule)
    elif objective.predictor:
        defaults = Defaults(10, 16, 2e-3 if scratch else 1e-3, schedule)
    return replace(defaults, **objective.method.defaults) if objective.method else defaults

"""The options of `train.py` by topic, the objective they name, and checks of both."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from backbones import Backbone, backbone
from datasets import check_loading
from degradations import parse_shift
from energy import (
    direct_only,
    energy_configs,
    get_config,
    loss_name,
    on_predictions,
    paths_for,
    perceptual_losses,
)
from flags import accepted
from methods.interface import Method, MethodOptions
from methods.table import METHODS, check_trained, find_method, method_names
from photometric import check_augment_rgb
from precision import TRAINING_PRECISIONS, check_precision
from transfers import OWN_TRANSFERS, TRANSFERS, Transfer, any_transfer, transfer_by_name
from utils import UserError, check_one_of, check_positive, nearest


@dataclass(frozen=True)
class DataOptions:
    """Data.

    Args:
        data_dirs: folders with data, or lists of views (docs/data.md), comma-separated
            (default: data/ of the job's base folder, else the embedded rooms).
        layouts: Python files of your own that add layouts of folders (docs/extending.md).
            --resume needs them again.
        index_dir: folder in which the views of large data folders are listed, for later runs
            (docs/scale.md; default: xtconsistency in the user's cache folder), or none.
        split: a split file (default: the first of config/split*.txt that fits the data).
        allow_missing: go on where more than a tenth of the views lack a domain.
        max_bad_fraction: stop where more than this share of the views cannot be loaded; up to
            it they are replaced (in training) or left out, and listed.
        subset_size: use that many training views, evenly spaced.
        shift: train and measure on spoilt images: blur:SIGMA, jpeg:QUALITY, noise:SIGMA or
            darkening:FACTOR, at the networks' image size; the labels stay.
        fast: train on the validation views, without a test set: a quick trial.
        dataaug: the published augmentation: centre crops, colour jitter of rgb.
        augment_rgb: strong changes the look of rgb alone: gamma, light, colours, grey, blur,
            noise, JPEG (docs/data.md). For networks that are to see photographs.
        num_workers: loading processes (default: one a core, 8 at most; none for data that
            fits into memory).
    """

    data_dirs: list | None = None
    layouts: list | None = None
    index_dir: str | None = None
    split: str | None = None
    allow_missing: bool = False
    max_bad_fraction: float = 0.01
    subset_size: int | None = None
    shift: str | None = None
    fast: bool = False
    dataaug: bool = False
    augment_rgb: str | None = None
    num_workers: int | None = None


@dataclass(frozen=True)
class NetworkOptions:
    """Networks.

    Args:
        models_dir: the folder of the checkpoints (default: models/ of the job's base folder,
            then models/trained there, then the shipped rooms networks if the run has their
            scale, as it has by default on the embedded rooms).
        image_size: pixels of the images' side (default: what the checkpoints record).
        width: channels of the networks' first level (default: what the checkpoints record).
        levels: how often the deepest networks halve the image; the others lose as many levels
            as these (default: what the checkpoints record, or 6 at 256 pixels, 5 at 128, …).
        init: baseline (the transfer's own checkpoint; the default for configurations),
            scratch (the default for transfers, and with `network`), the path of a checkpoint, or
            omnidata (its U-Net for normals, which scripts.download fetches).
        network: FILE.py:FUNCTION, a function of your own that builds the network to train, in
            place of the table's (docs/extending.md). --resume needs it again.
        on_predictions: train a transfer between domains on what rgb → its first domain predicts,
            instead of on that domain's labels, by L1; it starts from the transfer's own
            checkpoint (docs/evaluation.md).
        strict: an error where the ImageNet network's weights can't be had, instead of
            leaving its loss out.
        no_imagenet: leave out the loss that needs the ImageNet network.
        install: at the end, copy the trained network into the folder `models_dir` (default:
            models/trained of the job's base folder), where other runs find it. With --resume
            also after the run has ended.
        force: let --install replace a network that is there; it is kept under another name.
    """

    models_dir: str | None = None
    image_size: int | None = None
    width: int | None = None
    levels: int | None = None
    init: str | None = None
    network: str | None = None
    on_predictions: bool = False
    strict: bool = False
    no_imagenet: bool = False
    install: bool = False
    force: bool = False


@dataclass(frozen=True)
class LossOptions:
    """Losses.

    Args:
        k: perceptual losses in use at a time (default: 3, or all where there are fewer).
            0 trains on the ground truth alone.
        random_select: choose the k anew at random each epoch.
        winrate: choose the k that most often exceed their direct loss on the validation
            views (the default).
        mode: winrate weighs the losses by the sizes of their gradients; standard adds all
            perceptual losses with weight 1.
        perceptual: restrict the perceptual losses to these, comma-separated (curv,edge,…).
        balance_every: measure the sizes of the gradients every so many steps, with one pass
            for all losses in between.
        compare_direct: train the same start without perceptual losses as well, on the same
            batches, for the closing table.
    """

    k: int | None = None
    random_select: bool = False
    winrate: bool = False
    mode: str = "winrate"
    perceptual: list | None = None
    balance_every: int = 1
    compare_direct: bool = False


@dataclass(frozen=True)
class ComputeOptions:
    """Computing.

    Args:
        precision: fp32, tf32 (on NVIDIA GPUs) or bf16.
        compile: compile the networks (torch.compile): slow to start, faster on GPUs.
        channels_last: keep images channels last in memory: faster on some GPUs in bf16.
        checkpoint_activations: compute activations again for the backward pass instead of
            keeping them: less memory, more time.
        cache_labels: GiB of memory for the frozen networks' outputs on ground-truth labels,
            which then are computed once (default: a quarter of the free memory where the
            views themselves are kept in memory, else none; 0 for none).
    """

    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = False
    checkpoint_activations: bool = False
    cache_labels: float | None = None


@dataclass(frozen=True)
class RunOptions:
    """The run.

    Args:
        max_epochs: epochs (default: 800; on the embedded rooms 10, for a transfer 40).
        steps_per_epoch: steps of an epoch (default: a 400th of the data, as published,
            or, where that is less than 100 steps, 100 steps or one pass).
        max_seconds: end training with the epoch in which its steps have taken so many seconds
            in all, to compare methods at equal time.
        batch_size: views a step, of each process (default: 64, with --fast 4, on the embedded
            rooms 16).
        lr: learning rate (default: 3e-5, from scratch 4e-4; on the embedded rooms 3e-4
            and 2e-3).
        schedule: constant (the default for configurations) or cosine (for transfers).
        seed: of the data's order, the choice of losses, fresh weights and augmentation.
        visualize: measure, draw the pictures and stop before training.
        resume: go on with the last run of this configuration, or with the run in the folder
            named, exactly where its last state stood; the other flags are that run's, but
            --max-epochs and --max-seconds may be more.
        resume_anyway: go on even if networks or views have changed since the run began.
        save_every: save a state to go on from every so many steps (default: every epoch).
        results_dir: where the run's folder is made (default: results/ of the base folder).
        visdom_server: host of the Visdom server, or none: the run leaves Visdom alone.
        visdom_port: its port.
        visdom_env: its environment (default: the job's name and the configuration, joined by
            _; as published it is the job's name alone).
        quiet: plain lines instead of a progress bar.
    """

    max_epochs: int | None = None
    steps_per_epoch: int | None = None
    max_seconds: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    schedule: str | None = None
    seed: int = 0
    visualize: bool = False
    resume: bool | str = False
    resume_anyway: bool = False
    save_every: int | None = None
    results_dir: str | None = None
    visdom_server: str = "localhost"
    visdom_port: int = 8097
    visdom_env: str | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Options:
    """All options of a run. `config` names a configuration, a method's target or a transfer."""

    config: str | None = None
    data: DataOptions = field(default_factory=DataOptions)
    networks: NetworkOptions = field(default_factory=NetworkOptions)
    losses: LossOptions = field(default_factory=LossOptions)
    methods: MethodOptions = field(default_factory=MethodOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def flags(self) -> dict:
        """Return the options as flags, {name: value}."""
        groups = (self.data, self.networks, self.losses, self.methods, self.compute, self.run)
        flat = {name: value for group in groups for name, value in asdict(group).items()}
        return {"config": self.config} | flat

    @classmethod
    def hints(cls) -> dict[str, set[type]]:
        """Return the types that each flag accepts, besides None."""
        groups = [hint for name, hint in cls.__annotations__.items() if name != "config"]
        types: dict[str, set[type]] = {"config": {str}}
        for group in groups:
            types |= accepted(group)
        return types

    @classmethod
    def from_flags(cls, flags: Mapping) -> "Options":
        """Return the options whose `flags()` are given."""
        groups = {}
        for name, group in cls.__annotations__.items():
            if name != "config":
                groups[name] = group(**{f: flags[f] for f in group.__dataclass_fields__})
        return cls(flags["config"], **groups)


# ---- objective ----------------------------------------------------------------------


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
        """The row of the frozen network whose predictions are trained on, or None: labels are."""
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


# ---- checks -------------------------------------------------------------------------


def check_options(options: Options, objective: Objective) -> None:
    """Raise UserError for invalid values and for options that exclude each other."""
    data, losses, compute, run = options.data, options.losses, options.compute, options.run
    check_one_of("mode", losses.mode, ("winrate", "standard"))
    check_one_of("schedule", run.schedule or "constant", ("constant", "cosine"))
    check_precision(compute.precision, TRAINING_PRECISIONS)
    check_positive(
        batch_size=run.batch_size, steps_per_epoch=run.steps_per_epoch, lr=run.lr,
        subset_size=data.subset_size, max_epochs=run.max_epochs, save_every=run.save_every,
        balance_every=losses.balance_every, max_seconds=run.max_seconds,
    )  # fmt: skip
    check_loading(data.num_workers, data.max_bad_fraction)
    if data.shift is not None:
        parse_shift(data.shift)
    _check_augment_rgb(data.augment_rgb, objective)
    if options.networks.force and not options.networks.install:
        raise UserError("`force` is for `install`")
    if options.networks.install and run.visualize:
        raise UserError("`visualize` stops before training: no `install`")
    if run.visdom_env and run.visdom_server == "none":
        raise UserError("`visdom_server` none leaves Visdom alone: no `visdom_env`")
    if run.resume_anyway and not run.resume:
        raise UserError("`resume_anyway` is for `resume`")
    if losses.compare_direct and run.visualize:
        raise UserError("`visualize` stops before training: no `compare_direct`")
    _check_losses(losses, objective)
    _check_method_options(options.methods, objective)
    _check_label_cache(compute.cache_labels, data.dataaug, objective)


def _check_augment_rgb(strength: str | None, objective: Objective) -> None:
    check_augment_rgb(strength)
    if strength and not objective.method:
        starts = {path[0] for path in paths_for(objective.config, ["mae"]).values()}
        if "rgb" not in starts:
            raise UserError(f"`augment_rgb` changes rgb, which {objective.name} does not read")


def _check_losses(losses: LossOptions, objective: Objective) -> None:
    if losses.winrate and (losses.random_select or losses.mode == "standard"):
        raise UserError("`winrate` excludes `random_select` and `mode` standard")
    if losses.mode == "standard" and losses.random_select:
        raise UserError("`mode` standard uses all perceptual losses: no `random_select`")
    if losses.mode == "standard" and losses.balance_every > 1:
        raise UserError("`mode` standard balances nothing: no `balance_every`")
    method = objective.method
    if method and method.trains_on and not objective.trained:
        own = ", ".join(map(loss_name, method.trained_losses(objective.transfer.target)))
        raise UserError(f"`perceptual` leaves {objective.name} no loss to train on (its: {own})")
    direct_alone = not checked_k(losses.k, objective.trained, losses.mode)
    if method and method.step and not objective.trained:
        _check_own_step(losses, objective.name)
    if direct_alone and (losses.compare_direct or losses.random_select or losses.winrate):
        raise UserError(
            "without perceptual losses there is nothing for `compare_direct`, `random_select` "
            "or `winrate` to do"
        )


def _check_method_options(options: MethodOptions, objective: Objective) -> None:
    """Raise UserError for options of another method."""
    takes = objective.method.options if objective.method else ()
    for name, value in asdict(options).items():
        if value is not None and name not in takes:
            those = ", ".join(m.name for m in METHODS.values() if name in m.options)
            raise UserError(f"`{name}` is for {those}, and does nothing for {objective.name}")


def _check_own_step(losses: LossOptions, name: str) -> None:
    """Raise UserError for options that a method's own step has no use for."""
    if losses.mode != "winrate" or losses.balance_every > 1:
        raise UserError(f"{name} has losses of its own: no `mode` and no `balance_every`")


def _check_label_cache(gib: float | None, dataaug: bool, objective: Objective) -> None:
    if gib is not None and gib < 0:
        raise UserError(f"`cache_labels` has to be 0 or more, not {gib}")
    if gib and dataaug:
        raise UserError(
            "`cache_labels` keeps outputs on a view's ground truth, but `dataaug` changes the "
            "view each time"
        )
    if gib and not objective.perceptual:
        raise UserError("`cache_labels`: no loss here passes ground truth through a network")

"""The options of `train.py`, by topic."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from flags import accepted
from methods.interface import MethodOptions


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
        shift: train and measure on degraded images: blur:SIGMA, jpeg:QUALITY, noise:SIGMA or
            darkening:FACTOR, at the networks' image size; the labels stay as they are.
        fast: train on the validation views, without a test set: a quick trial.
        dataaug: the published augmentation: centre crops, colour jitter of rgb.
        augment_rgb: strong, to change the look of rgb by gamma, light, colours, grey, blur,
            noise and JPEG (docs/data.md), for networks that will be used on photographs.
        num_workers: loading processes (default: one per core, at most 8; none for data that
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
        strict: stop with an error if the ImageNet network's weights cannot be fetched, instead
            of leaving its loss out.
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
        mode: winrate weights the losses by the sizes of their gradients; standard adds all
            perceptual losses with weight 1.
        perceptual: restrict the perceptual losses to these, comma-separated (curv,edge,…).
        balance_every: number of steps between measurements of the gradients' sizes; the steps
            in between take one backward pass for all losses.
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
            which are then computed only once (default: a quarter of the free memory where the
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
        max_seconds: end training with the epoch in which its steps have taken this many seconds
            in total, to compare methods at equal time.
        batch_size: views per step of each process (default: 64, with --fast 4, on the embedded
            rooms 16).
        lr: learning rate (default: 3e-5, from scratch 4e-4; on the embedded rooms 3e-4
            and 2e-3).
        schedule: constant (the default for configurations) or cosine (for transfers).
        seed: of the data's order, the choice of losses, fresh weights and augmentation.
        visualize: measure, draw the pictures and stop before training.
        resume: continue the last run of this configuration, or the run in the folder named,
            exactly from its last saved state; the other flags are that run's, but --max-epochs
            and --max-seconds may be larger.
        resume_anyway: resume even if networks or views have changed since the run began.
        validate_every: number of epochs between validations, with which curves and pictures are
            drawn (default: 1); the last epoch always ends with one. Win rates are those of the
            last validation.
        save_every: number of steps between the states from which a run can be resumed (default:
            an epoch).
        results_dir: where the run's folder is made (default: results/ of the base folder).
        visdom_server: host of the Visdom server, or none to leave Visdom alone.
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
    validate_every: int = 1
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

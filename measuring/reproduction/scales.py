"""The scales of scripts.reproduce: tables of numbers; the expected costs of steps."""

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Size:
    """The numbers of a scale.

    `pixels` are those of the rendered files. `train`, `refit`, `val` and `test` are numbers of
    buildings, half of them with hard rooms, with `views` each. Epochs have `steps` steps;
    `short_epochs` are those of a baseline that is trained shorter, and of those on few views.
    `fractions` are shares of the training views, `adapted` numbers of shifted views, and
    `adapted_shifts` the degradations of such views. `shifts` are measured on `shift_views` test
    views. `random_ks` are numbers of perceptual losses chosen at random, besides 2 and all;
    `winrate_ks` those chosen by win rates.

    `step_seconds` (a step of a direct loss alone), `start_seconds` (a command's start, with the
    loading of its views) and `render_rate` (views of 128 pixels per second) only serve the expected
    times. They were measured on two cores with a stage on each, and are half of what it takes then.
    Those of the gpu scale are guesses, for an H100-class card with 16 cores and four stages at
    once: a step has 1.4 TFLOP, and at 25 ms would be done at 56 TFLOP/s.
    """

    image_size: int
    width: int
    pixels: int
    train: int
    refit: int
    val: int
    test: int
    views: int
    targets: tuple[str, ...]
    seeds: int
    steps: int
    batch_size: int
    baseline_epochs: int
    short_epochs: int
    edge_epochs: int
    refit_epochs: int
    trained_epochs: int
    adapted_epochs: int
    lr: float
    trained_lr: float
    fractions: tuple[float, ...]
    adapted: tuple[int, ...]
    adapted_shifts: tuple[str, ...]
    shifts: tuple[str, ...]
    shift_views: int
    random_ks: tuple[int, ...]
    winrate_ks: tuple[int, ...]
    resamples: int
    step_seconds: float
    start_seconds: float
    render_rate: float = 12.0
    precision: str = "fp32"  # of trainings, except the refits


# What the results do not depend on: estimates; targets may be added later.
NO_NUMBERS = "step_seconds", "start_seconds", "render_rate", "targets", "seeds"
ALL_SHIFTS = (
    "blur:0.5", "blur:1", "blur:1.5", "blur:2", "blur:4", "jpeg:95", "jpeg:50", "jpeg:20",
    "jpeg:10", "jpeg:5", "noise:0.025", "noise:0.05", "noise:0.1", "noise:0.15", "noise:0.2",
    "darkening:0.8", "darkening:0.6", "darkening:0.35", "darkening:0.2", "darkening:0.1",
)  # fmt: skip
_CPU = Size(
    image_size=64, width=8, pixels=96, train=64, refit=12, val=8, test=24, views=48,
    targets=("normal", "depth", "reshading"), seeds=3, steps=50, batch_size=16,
    baseline_epochs=120, short_epochs=40, edge_epochs=12, refit_epochs=10, trained_epochs=8,
    adapted_epochs=2, lr=2e-3, trained_lr=1e-3, fractions=(0.05, 0.2), adapted=(16, 128),
    adapted_shifts=("blur:2", "jpeg:10", "noise:0.1"), shifts=ALL_SHIFTS,
    shift_views=48, random_ks=(1, 4), winrate_ks=(1, 2), resamples=10_000, step_seconds=0.11,
    start_seconds=15.0,
)  # fmt: skip
SCALES: dict[str, Size] = {
    # the command itself, in a test
    "tiny": replace(
        _CPU, image_size=32, pixels=32, train=2, refit=2, val=2, test=2, views=2,
        targets=("normal",), seeds=1, steps=2, batch_size=2, baseline_epochs=2, short_epochs=1,
        edge_epochs=1, refit_epochs=1, trained_epochs=1, adapted_epochs=1, fractions=(0.5,),
        adapted=(2,), adapted_shifts=("noise:0.1",), shifts=("blur:2",), shift_views=4,
        random_ks=(1,), winrate_ks=(1,), resamples=100, step_seconds=0.02, start_seconds=4.0,
    ),
    "quick": replace(
        _CPU, image_size=32, pixels=48, train=12, refit=4, val=4, test=8, views=24,
        targets=("normal",), seeds=1, steps=17, baseline_epochs=12, short_epochs=8, edge_epochs=2,
        refit_epochs=2, trained_epochs=2, adapted_epochs=1, fractions=(0.2,), adapted=(16,),
        adapted_shifts=(), shifts=("blur:2", "jpeg:10", "noise:0.1"), shift_views=32,
        random_ks=(1,), winrate_ks=(2,), resamples=2000, step_seconds=0.04, start_seconds=5.0,
    ),
    "cpu": _CPU,
    "gpu": replace(
        _CPU, image_size=256, width=16, pixels=256, precision="bf16", baseline_epochs=36,
        short_epochs=12, trained_epochs=4, edge_epochs=4, refit_epochs=3, adapted_epochs=1,
        adapted_shifts=("blur:2", "jpeg:10"), test=10, shift_views=28,
        step_seconds=0.025, start_seconds=3.5, render_rate=100.0,
    ),
}  # fmt: skip

# ---- expected costs, in steps of a direct loss alone ---------------------------------

# A pass over a network takes about a third of such a step. An image that is measured passes
# through the network and seven frozen ones.
IMAGE_STEPS = 8 / 3
LABEL_STEPS = 7 / 3  # and its labels through the frozen ones, once for all networks
DIRECT_IMAGE_STEPS = 1 / 3
ENERGY_IMAGE_STEPS = 15 / 3  # seven paths of two networks, and the direct one
EVALUATION_START = 0.25  # of a training's start, that of scripts.evaluate (6.7 s of 30 s)
HELD_OUT = 256  # validation views that a training measures after each epoch, at most

METHOD_STEPS = {
    "random_perceptual": 4.0, "unsupervised": 4.0, "pix2pix": 1.6, "cycle": 6.0,
    "cycle_frozen": 2.5, "multitask": 4.5, "geonet": 8.0, "global": 4.0,
}  # fmt: skip


def loss_steps(k: int, balanced: bool = True) -> float:
    """Return the cost of a step with k perceptual losses; each balanced one adds a backward pass.

    In steps of a direct loss alone.
    """
    return 1 + (2.6 if balanced else 1.2) * k


def numbers(size: Size) -> dict:
    """Return the numbers that results depend on, as plain values, for plan.json."""
    return {name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(size).items() if name not in NO_NUMBERS}  # fmt: skip

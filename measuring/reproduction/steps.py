"""What a plan is made of: steps, stages, the places of their files, and the data's buildings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from energy import get_config, loss_name, perceptual_losses
from measuring.reproduction.scales import (
    DIRECT_IMAGE_STEPS,
    HELD_OUT,
    IMAGE_STEPS,
    METHOD_STEPS,
    Size,
    loss_steps,
)
from methods.table import METHODS
from rooms.variants import SETS
from utils import UserError

# Trainings from the baseline that are compared for each target and seed, {name in results:
# (configuration's stem, flags)}. Those whose configuration is missing are left out of the plan.
COMPARED: dict[str, tuple[str, dict[str, object]]] = {
    "consistency": ("multiperceptual", {"k": 2, "random_select": True}),
    "random_perceptual": ("random_perceptual", {"k": 2, "random_select": True}),
    "without": ("multiperceptual", {"k": 0}),
}
PAIR = ("without", "consistency")
EQUAL_TIME = "without, equal time"  # trained as long as consistency takes, and so for more steps
# The rows of the table of methods that are COMPARED, {name in results: method}.
NAMED_METHODS = {"without": "baseline", "consistency": "perceptual"}
OTHER_SETS = SETS[1:]


@dataclass(frozen=True)
class Made:
    """The network rgb → `domain` of a training step: its last one, or the best by validation."""

    step: str
    best: bool = False
    domain: str = ""  # needed where the step trains several networks from rgb

    def file(self, folder: Path) -> Path:
        """Return the checkpoint below the folder of the reproduction. Raises UserError if none."""
        runs = folder / "runs" / self.step
        found = sorted(runs.glob(f"*/rgb2{self.domain}*.pth"))
        files = [f for f in found if f.stem.endswith("_best") == self.best]
        if len(files) != 1:
            mark = folder / "steps" / f"{self.step}.json"
            raise UserError(f"{runs} has {len(files)} networks that fit, not one: remove it "
                            f"and {mark}, to train again")  # fmt: skip
        return files[0]

    def is_there(self, folder: Path) -> bool:
        """Whether the checkpoint is below the folder of the reproduction."""
        try:
            return self.file(folder).is_file()
        except UserError:
            return False

    def __str__(self) -> str:
        return f"runs/{self.step}/…{'_best' if self.best else ''}.pth"


@dataclass(frozen=True)
class Step:
    """A command: a program, its words and flags.

    The `program` "copy" copies the first word, a network, to the second, a file. A training that
    was interrupted is resumed. `as_long_as` are the keys of two trainings: this one has as many
    steps, each as long as one of the second, as fit into the time of the first one's steps.

    The expected time is that of `work`, in steps of a direct loss alone, of `views` to render, and
    of the start of `programs`, in starts of a training.
    """

    key: str
    program: str
    words: tuple[object, ...] = ()
    flags: Mapping[str, object] = field(default_factory=dict)
    work: float = 0.0
    views: int = 0
    programs: float = 1
    as_long_as: tuple[str, str] | None = None

    def networks(self) -> Iterator[Made]:
        """Yield the networks of other steps that the command reads."""
        for value in (*self.words, *self.flags.values()):
            parts = value if isinstance(value, list | tuple) else (value,)
            yield from (part for part in parts if isinstance(part, Made))


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage: its steps, and the stages that have to be done before.

    It reads what the stages in `needs` make; those in `after` only have to be done before it. What
    measures test views answers a `question`.
    """

    name: str
    needs: tuple[str, ...]
    steps: tuple[Step, ...]
    after: tuple[str, ...] = ()
    question: str = ""

    def minutes(self, size: Size) -> float:
        """The expected minutes on the hardware that the scale is for: an estimate."""
        rate = size.render_rate * (128 / size.pixels) ** 2  # views per second
        seconds = sum(
            s.work * size.step_seconds + s.views / rate + s.programs * size.start_seconds
            for s in self.steps if s.program != "copy"
        )  # fmt: skip
        return seconds / 60


@dataclass(frozen=True)
class Places:
    """Where a reproduction's files are."""

    folder: Path

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def energy_models(self) -> Path:
        return self.folder / "energy_models"

    def rooms(self, kind: str, test: bool = False) -> Path:
        """The folder of rooms: plain, hard, or one of the sets."""
        return self.folder / ("rooms_test" if test else "rooms") / kind

    def both_rooms(self, test: bool = False) -> list[Path]:
        """The folders of plain and of hard rooms."""
        return [self.rooms(kind, test) for kind in ("plain", "hard")]

    def split(self, name: str) -> Path:
        return self.folder / "splits" / f"{name}.json"

    def results(self, key: str) -> Path:
        return self.folder / "measured" / key

    def stage_mark(self, stage: str) -> Path:
        """The result file of a stage: it is there when the stage is done."""
        return self.folder / "stages" / f"{stage.replace('/', '_')}.json"

    def step_mark(self, key: str) -> Path:
        """The result file of a step: it is there when the step is done."""
        return self.folder / "steps" / f"{key}.json"


# ---- buildings ----------------------------------------------------------------------


def named(kind: str, count: int, parity: int | None = None) -> list[str]:
    """Return names of buildings; with a `parity`, every other one: 0 plain rooms, 1 hard ones."""
    return [f"{kind}{i:03d}" for i in range(count) if parity is None or i % 2 == parity]


def splits(size: Size) -> dict[str, dict[str, list[str]]]:
    """Return the split files, {name: contents}. None of them names a test building."""
    val = named("val", size.val)
    return {
        "train": {"train_buildings": named("train", size.train), "val_buildings": val},
        "refit": {"train_buildings": named("refit", size.refit), "val_buildings": val},
        "adapt": {"train_buildings": named("adapt", adapt_buildings(size)),
                  "val_buildings": named("adaptval", 1)},
    }  # fmt: skip


def adapt_buildings(size: Size) -> int:
    """The number of buildings of shifted views to fine-tune on."""
    return max(1, -(-max(size.adapted) // size.views))


def other_buildings(size: Size) -> int:
    """The number of test buildings of each of the other sets."""
    return max(2, size.test // 2)


# ---- keys of steps ------------------------------------------------------------------


def trained_key(method: str, target: str, seed: int) -> str:
    """The key of a training step."""
    return f"{method.replace(', ', '_').replace(' ', '_')}_{target}_{seed}"


def short_key(method: str, target: str, seed: int) -> str:
    """The key of a training step from the baseline that was trained shorter, or of that one."""
    return trained_key(f"{method} short", target, seed)


def fraction_key(method: str, share: float) -> str:
    """The key of a training step on a share of the views."""
    return f"{method}_{size_text(share)}"


def seed_key(what: str, target: str, seed: int) -> str:
    """The key of a step that measures a seed's networks of a target."""
    return f"{what}_{target}_{seed}"


def seed_keys(what: str, target: str, size: Size) -> list[str]:
    """The keys of the steps that measure the networks of a target, one for each seed."""
    return [seed_key(what, target, seed) for seed in range(size.seeds)]


def size_text(share: float) -> str:
    """A share in per cent, as part of a name."""
    return f"{100 * share:g}percent"


def adapted_key(method: str, kind: str, count: int) -> str:
    """The key of a fine-tuning step on views of a set, or degraded ones."""
    return f"{method}_{kind}_{count}"


def shift_name(shift: str) -> str:
    """A degradation as part of a name: blur:2 is blur_2."""
    return shift.replace(":", "_")


# ---- trainings ----------------------------------------------------------------------


def perceptual_count(target: str) -> int:
    """The number of perceptual losses of the main job, without that of the ImageNet network."""
    names = perceptual_losses(get_config(f"multiperceptual_{target}"))
    return sum("imagenet" not in loss_name(name) for name in names)


def training_data(places: Places, split: str = "train") -> dict[str, object]:
    """Flags: the rooms and the split of a training."""
    return {"data_dirs": places.both_rooms(), "split": places.split(split)}


def network_scale(size: Size) -> dict[str, object]:
    """Flags: the scale of the networks."""
    return {"image_size": size.image_size, "width": size.width}


def train(size: Size, places: Places, key: str, name: str, epochs: int, **flags: object) -> Step:
    """A run of the trainer, with seed 0 by default."""
    every = {
        **training_data(places), "models_dir": places.models, **network_scale(size),
        "batch_size": size.batch_size, "steps_per_epoch": size.steps, "max_epochs": epochs,
        "seed": 0, "results_dir": places.folder / "runs" / key, "visdom_server": "none",
        "quiet": True, "precision": size.precision, **flags,
    }  # fmt: skip
    work = epochs * size.steps * _step_cost(name, flags)
    adapts = every["split"] == places.split("adapt")
    images = min(HELD_OUT, size.views if adapts else size.val * size.views)
    each = DIRECT_IMAGE_STEPS if name.startswith("rgb2") else IMAGE_STEPS
    validations = epochs // int(str(flags.get("validate_every", 1)))
    measured = (validations + 3) * images / size.batch_size * each  # 3: start and closing table
    return Step(key, "train", (name,), every, work=work + measured)


def _step_cost(name: str, flags: Mapping[str, object]) -> float:
    """The cost of a step of a configuration, in steps of a direct loss alone."""
    stem, _, target = name.rpartition("_")
    if stem != "multiperceptual":
        return METHOD_STEPS.get(stem, 1.0)
    k = flags.get("k")
    balanced = flags.get("mode") != "standard"
    return loss_steps(k if isinstance(k, int) else perceptual_count(target), balanced)


def train_on(size: Size, places: Places, key: str, name: str, epochs: int, **flags: object) -> Step:
    """Continue training from the target's baseline, or from the network of the flag `init`.

    The last network is the one that is measured, so only win rates need a validation each epoch.
    """
    every: dict[str, object] = {"lr": size.trained_lr, "schedule": "cosine", "no_imagenet": True}
    if flags.get("random_select") or flags.get("mode") == "standard" or flags.get("k") == 0:
        every["validate_every"] = epochs
    return train(size, places, key, name, epochs, **every | flags)


def is_fresh(method: str) -> bool:
    """Whether a method's network differs from the table's, and cannot start from a baseline."""
    row = METHODS[method]
    return row.network is not None and row.start is None


def methods_to_train() -> list[str]:
    """The methods of the table that are trained only for the comparison of all, by name."""
    known = {"baseline", "perceptual", *COMPARED, "unsupervised"}
    return [name for name, row in METHODS.items() if not row.untrained and name not in known]


def energy_networks(places: Places) -> dict[str, Path]:
    """The models folders of the energy: trained on labels, and refitted on predictions."""
    return {"labels": places.models, "predictions": places.energy_models}


def energy_step(
    places: Places, key: str, models: Path, data: Sequence[Path], buildings: Sequence[str]
) -> Step:
    """Measure the energy, and the error, of views."""
    flags = {
        "data_dirs": list(data), "buildings": list(buildings), "models_dir": models,
        "output_dir": places.results(key), "quiet": True,
    }  # fmt: skip
    return Step(key, "scripts.energy_calc", ("energy_calc",), flags)

"""The plan of scripts.reproduce: its scales, its stages, and the commands of each stage.

A scale is a table of numbers. A stage is a list of steps; a step is a command of one of the
project's programs. Test views lie in folders of their own, which are rendered by the stage
`test_rooms`: what is trained or chosen before it cannot have seen them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from rooms.variants import SETS
from transfers import TRANSFERS
from utils import UserError, nearest

# Methods that are compared, {name in results: (configuration's stem, flags)}. Those whose
# configuration is not there are left out of the plan.
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "consistency": ("multiperceptual", {"k": 2, "random_select": True}),
    "random_perceptual": ("random_perceptual", {"k": 2, "random_select": True}),
    "without": ("multiperceptual", {"k": 0}),
}
EQUAL_TIME = "without, equal time"  # trained as long as consistency takes, and so for more steps
DOMAINS = {"normal": "normal", "depth": "depth_zbuffer", "reshading": "reshading"}
OTHER_SETS = SETS[1:]


@dataclass(frozen=True)
class Size:
    """The numbers of a scale.

    `pixels` are those of the rendered files. Buildings are numbers of buildings, half of them with
    hard rooms. Epochs have `steps` steps. `fractions` are shares of the training views and
    `adapted` numbers of shifted views. `time_ratio` is the expected time of a step with consistency
    over one without. It, `step_seconds` and `start_seconds` only serve the expected times.
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
    edge_epochs: int
    refit_epochs: int
    trained_epochs: int
    adapted_epochs: int
    lr: float
    trained_lr: float
    time_ratio: float
    fractions: tuple[float, ...]
    adapted: tuple[int, ...]
    shifts: tuple[str, ...]
    resamples: int
    step_seconds: float
    start_seconds: float = 8.0


ALL_SHIFTS = (
    "blur:0.5", "blur:1", "blur:1.5", "blur:2", "blur:4", "jpeg:95", "jpeg:50", "jpeg:20",
    "jpeg:10", "jpeg:5", "noise:0.025", "noise:0.05", "noise:0.1", "noise:0.15", "noise:0.2",
    "darkening:0.8", "darkening:0.6", "darkening:0.35", "darkening:0.2", "darkening:0.1",
)  # fmt: skip
_CPU = Size(
    image_size=64, width=8, pixels=96, train=40, refit=10, val=8, test=24, views=48,
    targets=("normal", "depth", "reshading"), seeds=3, steps=50, batch_size=16,
    baseline_epochs=50, edge_epochs=12, refit_epochs=8, trained_epochs=12, adapted_epochs=2,
    lr=2e-3, trained_lr=3e-4, time_ratio=2.5, fractions=(0.05, 0.2), adapted=(16, 128),
    shifts=ALL_SHIFTS, resamples=10_000, step_seconds=0.25,
)  # fmt: skip
SCALES: dict[str, Size] = {
    # the command itself, in a test
    "tiny": replace(
        _CPU, image_size=32, pixels=32, train=2, refit=2, val=2, test=2, views=2,
        targets=("normal",), seeds=1, steps=2, batch_size=2, baseline_epochs=1, edge_epochs=1,
        refit_epochs=1, trained_epochs=1, adapted_epochs=1, fractions=(0.5,), adapted=(2,),
        shifts=("blur:2",), resamples=100,
    ),
    "quick": replace(
        _CPU, image_size=32, pixels=48, train=12, refit=4, val=4, test=10, views=24,
        targets=("normal",), seeds=1, steps=20, baseline_epochs=10, edge_epochs=2, refit_epochs=2,
        trained_epochs=4, adapted_epochs=1, fractions=(0.2,), adapted=(16,),
        shifts=("blur:2", "jpeg:10", "noise:0.1", "darkening:0.2"), resamples=2000,
        step_seconds=0.08,
    ),
    "cpu": _CPU,
    "gpu": replace(
        _CPU, image_size=256, width=16, pixels=256, batch_size=32, step_seconds=0.05,
        baseline_epochs=40, trained_epochs=8, edge_epochs=6, refit_epochs=4, time_ratio=2.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """The network that a training step leaves: its last one, or the best by validation."""

    step: str
    best: bool = False

    def file(self, folder: Path) -> Path:
        """Return the checkpoint below the folder of the reproduction. Raises UserError if none."""
        runs = folder / "runs" / self.step
        files = [f for f in sorted(runs.glob("*/rgb2*.pth")) if f.stem.endswith("_best") ==
                 self.best]  # fmt: skip
        if len(files) != 1:
            mark = folder / "steps" / f"{self.step}.json"
            raise UserError(f"{runs} has {len(files)} networks that fit, not one: remove it "
                            f"and {mark}, to train again")  # fmt: skip
        return files[0]

    def __str__(self) -> str:
        return f"runs/{self.step}/…{'_best' if self.best else ''}.pth"


@dataclass(frozen=True)
class Step:
    """A command: a program, its words and flags.

    `program` "copy" copies the first word, a network, to the second, a file. A training that was
    interrupted is resumed. `as_long_as` are the keys of two trainings: this one takes as many
    epochs as the time of the first allows, by the time of an epoch of the second.
    """

    key: str
    program: str
    words: tuple[object, ...] = ()
    flags: Mapping[str, object] = field(default_factory=dict)
    steps: int = 0  # of training, for the expected time
    views: int = 0  # to render
    as_long_as: tuple[str, str] | None = None


@dataclass(frozen=True)
class Stage:
    """A stage: its steps, and the stages that have to be done before."""

    name: str
    needs: tuple[str, ...]
    steps: tuple[Step, ...]

    def minutes(self, size: Size) -> float:
        """The expected minutes on the hardware that the scale is for. They were not measured."""
        rate = 12 * (128 / size.pixels) ** 2  # views a second
        seconds = sum(s.steps * size.step_seconds + s.views / rate + size.start_seconds
                      for s in self.steps)  # fmt: skip
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

    def split(self, name: str) -> Path:
        return self.folder / "splits" / f"{name}.json"

    def results(self, key: str) -> Path:
        return self.folder / "measured" / key


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


# ---- the stages ---------------------------------------------------------------------


def plan(
    size: Size, folder: Path, seeds: int, is_known: Callable[[str], bool] = lambda name: True
) -> list[Stage]:
    """Return the stages, in order. `is_known` tells whether a configuration can be trained."""
    places = Places(folder)
    methods = {
        name: row for name, row in METHODS.items()
        if all(is_known(f"{row[0]}_{target}") for target in size.targets)
    }  # fmt: skip
    stages = [_rooms(size, places)]
    stages += [_baseline(size, places, target) for target in size.targets]
    stages += _edges(size, places)
    stages.append(_refits(size, places))
    for target in size.targets:
        for seed in range(seeds):
            stages.append(_trained(size, places, target, seed, methods))
    stages += [_fraction(size, places, share) for share in size.fractions]
    stages += _adapted(size, places)
    before = tuple(stage.name for stage in stages)
    stages.append(_test_rooms(size, places, before))
    stages += _evaluation(size, places, seeds, list(methods))
    stages += _energy(size, places)
    return stages


def _render(places: Places, size: Size, kind: str, names: Sequence[str], test=False) -> Step:
    """Render buildings of a kind of rooms. Each kind and part has a seed of its own."""
    kinds = ["plain", "hard", *OTHER_SETS]
    flags: dict[str, object] = {
        "output_dir": places.rooms(kind, test), "buildings": ",".join(names),
        "views_per_building": size.views, "image_size": size.pixels,
        "seed": kinds.index(kind) + len(kinds) * test, "quiet": True,
    }  # fmt: skip
    if kind != "plain":
        flags["difficulty" if kind == "hard" else "set"] = kind
    key = f"{'test_' if test else ''}rooms_{kind}"
    return Step(key, "scripts.make_rooms", (), flags, views=size.views * len(names))


def _rooms(size: Size, places: Places) -> Stage:
    steps = []
    for parity, kind in enumerate(("plain", "hard")):
        names = [name for part in ("train", "refit", "val")
                 for name in named(part, getattr(size, part), parity)]  # fmt: skip
        steps.append(_render(places, size, kind, names))
    names = [*named("adapt", adapt_buildings(size)), *named("adaptval", 1)]
    steps += [_render(places, size, kind, names) for kind in OTHER_SETS]
    return Stage("rooms", (), tuple(steps))


def _test_rooms(size: Size, places: Places, before: tuple[str, ...]) -> Stage:
    steps = [_render(places, size, kind, named("test", size.test, parity), test=True)
             for parity, kind in enumerate(("plain", "hard"))]  # fmt: skip
    names = named("test", max(2, size.test // 2))
    steps += [_render(places, size, kind, names, test=True) for kind in OTHER_SETS]
    return Stage("test_rooms", before, tuple(steps))


def _training_data(places: Places, split: str = "train") -> dict[str, object]:
    folders = [places.rooms("plain"), places.rooms("hard")]
    return {"data_dirs": folders, "split": places.split(split)}


def _scale(size: Size) -> dict[str, object]:
    return {"image_size": size.image_size, "width": size.width}


def _train(size: Size, places: Places, key: str, name: str, epochs: int, **flags: object) -> Step:
    """A run of the trainer, with seed 0 by default."""
    every = {
        **_training_data(places), "models_dir": places.models, **_scale(size),
        "batch_size": size.batch_size, "steps_per_epoch": size.steps, "max_epochs": epochs,
        "seed": 0, "results_dir": places.folder / "runs" / key, "visdom_server": "none",
        "quiet": True, **flags,
    }  # fmt: skip
    return Step(key, "train", (name,), every, steps=epochs * size.steps)


def _baseline(size: Size, places: Places, target: str) -> Stage:
    """Train rgb → target from scratch; validation chooses the epoch."""
    row, domain = f"baseline_{target}", DOMAINS[target]
    file = places.models / TRANSFERS["rgb", domain].checkpoint
    train = _train(size, places, row, f"rgb2{domain}", size.baseline_epochs, lr=size.lr)
    copy = Step(f"{row}_copy", "copy", (Made(row, best=True), file))
    return Stage(f"baselines/{target}", ("rooms",), (train, copy))


def _edges(size: Size, places: Places) -> list[Stage]:
    """Train the networks that each target's losses, and the energy, need and are not there yet."""
    before = tuple(f"baselines/{target}" for target in size.targets)
    stages = []
    # so many networks are left to train, in this order
    for name, count in [(f"multiperceptual_{t}", 14) for t in size.targets] + [("energy_calc", 7)]:
        flags = {
            **_training_data(places), "models_dir": places.models, **_scale(size),
            "batch_size": size.batch_size, "steps_per_epoch": size.steps, "lr": size.lr,
            "max_epochs": size.edge_epochs, "results_dir": places.folder / "runs" / f"edges_{name}",
        }  # fmt: skip
        step = Step(f"edges_{name}", "scripts.train_edges", (name,), flags,
                    steps=count * size.edge_epochs * size.steps)  # fmt: skip
        stages.append(Stage(f"edges/{name}", before, (step,)))
        before = (*before, f"edges/{name}")
    return stages


def _refits(size: Size, places: Places) -> Stage:
    """Refit the energy's networks on predictions for buildings that rgb → domain has not seen."""
    flags = {
        **_training_data(places, "refit"), "models_dir": places.models,
        "output_dir": places.energy_models, **_scale(size), "batch_size": size.batch_size,
        "steps_per_epoch": size.steps, "lr": size.lr / 2, "max_epochs": size.refit_epochs,
        "results_dir": places.folder / "runs" / "refits", "on_predictions": True,
    }  # fmt: skip
    refit = Step("refits", "scripts.train_edges", ("energy_calc",), flags,
                 steps=7 * size.refit_epochs * size.steps)  # fmt: skip
    val = [
        _energy_step(places, f"energy_val_{name}", models, [places.rooms("plain"),
                     places.rooms("hard")], named("val", size.val))
        for name, models in energy_networks(places).items()
    ]  # fmt: skip
    return Stage("refits", ("edges/energy_calc",), (refit, *val))


def energy_networks(places: Places) -> dict[str, Path]:
    """The models folders of the energy: trained on labels, and refitted on predictions."""
    return {"labels": places.models, "predictions": places.energy_models}


def _energy_step(
    places: Places, key: str, models: Path, data: Sequence[Path], buildings: Sequence[str]
) -> Step:
    flags = {
        "data_dirs": list(data), "buildings": list(buildings), "models_dir": models,
        "output_dir": places.results(key), "quiet": True,
    }  # fmt: skip
    return Step(key, "scripts.energy_calc", ("energy_calc",), flags)


def _trained(size: Size, places: Places, target: str, seed: int, methods: Mapping) -> Stage:
    """Train on from the baseline by each method, for equal steps, and without for equal time."""
    epochs, steps = size.trained_epochs, []
    for name, (stem, flags) in methods.items():
        key = trained_key(name, target, seed)
        steps.append(_train(size, places, key, f"{stem}_{target}", epochs, seed=seed,
                            lr=size.trained_lr, no_imagenet=True, **flags))  # fmt: skip
    stem, flags = METHODS["without"]
    longer = _train(size, places, trained_key(EQUAL_TIME, target, seed), f"{stem}_{target}",
                    epochs, seed=seed, lr=size.trained_lr, no_imagenet=True, **flags)  # fmt: skip
    timed = trained_key("consistency", target, seed), trained_key("without", target, seed)
    expected = round(epochs * size.steps * size.time_ratio)
    steps.append(replace(longer, as_long_as=timed, steps=expected))
    return Stage(f"trained/{target}/{seed}", (f"edges/multiperceptual_{target}",), tuple(steps))


def trained_key(method: str, target: str, seed: int) -> str:
    """The key of a training step."""
    return f"{method.replace(', ', '_').replace(' ', '_')}_{target}_{seed}"


def fraction_key(method: str, share: float) -> str:
    """The key of a training step on a share of the views."""
    return f"{method}_{size_text(share)}"


def size_text(share: float) -> str:
    """A share in per cent, as part of a name."""
    return f"{100 * share:g}percent"


def _fraction(size: Size, places: Places, share: float) -> Stage:
    """The baseline and both ways to train on, on a share of the training views: normals."""
    target = size.targets[0]
    views = max(size.batch_size, round(share * size.train * size.views))
    start = fraction_key("baseline", share)
    fewer = _train(size, places, start, f"rgb2{DOMAINS[target]}", size.baseline_epochs,
                   lr=size.lr, subset_size=views)  # fmt: skip
    steps = [fewer]
    for name in ("without", "consistency"):
        stem, flags = METHODS[name]
        steps.append(_train(
            size, places, fraction_key(name, share), f"{stem}_{target}", size.trained_epochs,
            lr=size.trained_lr, no_imagenet=True, subset_size=views, init=Made(start, best=True),
            **flags,
        ))  # fmt: skip
    return Stage(f"fractions/{size_text(share)}", (f"edges/multiperceptual_{target}",),
                 tuple(steps))  # fmt: skip


def adapted_key(method: str, kind: str, count: int) -> str:
    """The key of a fine-tuning step."""
    return f"{method}_{kind}_{count}"


def _adapted(size: Size, places: Places) -> list[Stage]:
    """Fine-tune seed 0 of both ways on few views of each set, each in its own way: normals."""
    target, stages = size.targets[0], []
    for kind in OTHER_SETS:
        steps = []
        for name in ("without", "consistency"):
            stem, flags = METHODS[name]
            for count in size.adapted:
                steps.append(_train(
                    size, places, adapted_key(name, kind, count), f"{stem}_{target}",
                    size.adapted_epochs, lr=size.trained_lr, no_imagenet=True, subset_size=count,
                    init=Made(trained_key(name, target, 0)), data_dirs=[places.rooms(kind)],
                    split=places.split("adapt"), **flags,
                ))  # fmt: skip
        stages.append(Stage(f"adaptation/{kind}", (f"trained/{target}/0",), tuple(steps)))
    return stages


# ---- the stages that read test views ------------------------------------------------


def _evaluate(
    size: Size, places: Places, key: str, target: str, networks: Mapping[str, object],
    folders: Sequence[Path], **flags: object,
) -> Step:  # fmt: skip
    """Measure networks, {label: checkpoint}, on test views."""
    every = {
        "labels": [label.replace(",", "") for label in networks], "task": target,
        "data_dirs": list(folders), "buildings": named("test", size.test),
        "models_dir": places.models, **_scale(size), "output_dir": places.results(key),
        "resamples": size.resamples, "quiet": True, **flags,
    }  # fmt: skip
    return Step(key, "scripts.evaluate", tuple(networks.values()), every)


def _evaluation(size: Size, places: Places, seeds: int, methods: Sequence[str]) -> list[Stage]:
    test = [places.rooms("plain", test=True), places.rooms("hard", test=True)]
    stages = []
    for target in size.targets:
        networks: dict[str, object] = {"baseline": Made(f"baseline_{target}", best=True)}
        for method in (*methods, EQUAL_TIME):
            networks |= {f"{method} {seed}": Made(trained_key(method, target, seed))
                         for seed in range(seeds)}  # fmt: skip
        measure = partial(_evaluate, size, places, target=target, networks=networks)
        steps = [measure(f"test_{target}", folders=test)]
        for kind in OTHER_SETS:
            names = named("test", max(2, size.test // 2))
            steps.append(measure(f"{kind}_{target}", folders=[places.rooms(kind, test=True)],
                                 buildings=names))  # fmt: skip
        steps += [measure(f"{shift.replace(':', '_')}_{target}", folders=test, shift=shift)
                  for shift in size.shifts]  # fmt: skip
        # with more seeds, they are measured again, into the same folders
        again = tuple(replace(step, key=f"{step.key}_{seeds}") for step in steps)
        stages.append(Stage(f"evaluation/{target}/{seeds}", ("test_rooms",), again))
    target, steps = size.targets[0], []
    for share in size.fractions:
        networks = {"baseline": Made(fraction_key("baseline", share), best=True)}
        networks |= {name: Made(fraction_key(name, share)) for name in ("without", "consistency")}
        steps.append(_evaluate(size, places, f"fraction_{size_text(share)}", target, networks,
                               test))  # fmt: skip
    for kind in OTHER_SETS:
        networks = {f"{name} 0": Made(trained_key(name, target, 0))
                    for name in ("without", "consistency")}  # fmt: skip
        networks |= {f"{name} {count}": Made(adapted_key(name, kind, count))
                     for name in ("without", "consistency") for count in size.adapted}  # fmt: skip
        names = named("test", max(2, size.test // 2))
        steps.append(_evaluate(size, places, f"adapted_{kind}", target, networks,
                               [places.rooms(kind, test=True)], buildings=names))  # fmt: skip
    stages.append(Stage("evaluation/few_views", ("test_rooms",), tuple(steps)))
    return stages


def _energy(size: Size, places: Places) -> list[Stage]:
    test, names = [places.rooms(k, test=True) for k in ("plain", "hard")], named("test", size.test)
    stages = []
    for name, models in energy_networks(places).items():
        energy = _energy_step(places, f"energy_{name}", models, test, names)
        flags = {**energy.flags, "output_dir": places.results(f"shift_{name}")}
        shift = Step(f"shift_{name}", "scripts.energy_shift", (), flags)
        stages.append(Stage(f"energy/{name}", ("test_rooms",), (energy, shift)))
    return stages


# ---- choosing stages ----------------------------------------------------------------


def chosen(stages: Sequence[Stage], only: str | None) -> list[Stage]:
    """Return the stages that `only` names: one, or those of a group such as edges.

    Raises UserError if there is none.
    """
    found = [s for s in stages if only in (None, s.name, s.name.partition("/")[0])]
    if not found:
        groups = list(dict.fromkeys(s.name.partition("/")[0] for s in stages))
        names = [*groups, *(s.name for s in stages)]
        raise UserError(f"`only` is one of {', '.join([*groups, 'report'])}, or a stage of the "
                        f"plan, not {only}{nearest(str(only), names)}")  # fmt: skip
    return found


def numbers(size: Size) -> dict:
    """Return the scale as plain values, for plan.json."""
    return {name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(size).items()}  # fmt: skip

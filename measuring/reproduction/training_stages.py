"""The stages that render rooms, train and choose. None of them can read a test view."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from energy import get_config
from graph import edges_of
from measuring.reproduction.scales import ENERGY_IMAGE_STEPS, Size
from measuring.reproduction.steps import (
    COMPARED,
    EQUAL_TIME,
    OTHER_SETS,
    PAIR,
    Made,
    Places,
    Stage,
    Step,
    adapt_buildings,
    adapted_key,
    energy_networks,
    energy_step,
    fraction_key,
    is_fresh,
    methods_to_train,
    named,
    network_scale,
    other_buildings,
    perceptual_count,
    shift_name,
    short_key,
    size_text,
    train,
    train_on,
    trained_key,
    training_data,
)
from methods.interface import TARGETS
from methods.table import METHODS, find_method
from transfers import TRANSFERS, any_transfer

# The networks between domains that `global` trains and no configuration of one target needs.
GLOBAL_EDGES = ("depth_zbuffer2reshading", "reshading2depth_zbuffer")

ALL, FIXED = "all balanced", "all with weight 1 each"  # perceptual losses

# ---- rooms --------------------------------------------------------------------------


def rooms(size: Size, places: Places) -> Stage:
    """Render all views but the test views."""
    counts = {"train": size.train, "refit": size.refit, "val": size.val,
              "adapt": adapt_buildings(size), "adaptval": 1}  # fmt: skip
    steps = []
    for parity, kind in enumerate(("plain", "hard")):
        names = [name for part, count in counts.items() for name in named(part, count, parity)]
        steps.append(_render(places, size, kind, names))
    names = [*named("adapt", adapt_buildings(size)), *named("adaptval", 1)]
    steps += [_render(places, size, kind, names) for kind in OTHER_SETS]
    return Stage("rooms", (), tuple(steps))


def rooms_of_the_test(size: Size, places: Places, before: tuple[str, ...]) -> Stage:
    """Render the test views, after all stages that train or choose."""
    steps = [_render(places, size, kind, named("test", size.test, parity), test=True)
             for parity, kind in enumerate(("plain", "hard"))]  # fmt: skip
    names = named("test", other_buildings(size))
    steps += [_render(places, size, kind, names, test=True) for kind in OTHER_SETS]
    return Stage("test_rooms", (), tuple(steps), after=before)


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


# ---- the start ----------------------------------------------------------------------


def baseline(size: Size, places: Places, target: str) -> Stage:
    """Train rgb → target from scratch; validation chooses the epoch."""
    row, domain = f"baseline_{target}", TARGETS[target]
    file = places.models / TRANSFERS["rgb", domain].checkpoint
    step = train(size, places, row, f"rgb2{domain}", size.baseline_epochs, lr=size.lr)
    copy = Step(f"{row}_copy", "copy", (Made(row, best=True), file))
    return Stage(f"baselines/{target}", ("rooms",), (step, copy))


def edges(size: Size, places: Places) -> list[Stage]:
    """Train the networks between domains, and those from rgb that have no baseline of their own.

    They are trained on labels alone, so they need no other network. A baseline of a target that is
    not asked for is kept where it is there.
    """
    there = {f"rgb2{domain}" for target, domain in TARGETS.items()
             if places.step_mark(f"baseline_{target}_copy").is_file()
             and (places.models / TRANSFERS["rgb", domain].checkpoint).is_file()}  # fmt: skip
    return [
        Stage(f"edges/{group}", ("rooms",),
              tuple(edge(size, places, name) for name in names if name not in there))
        for group, names in networks_between(size).items()
    ]  # fmt: skip


def networks_between(size: Size) -> dict[str, list[str]]:
    """The networks that the losses and the energy need, besides the baselines: {group: names}.

    The groups are those from rgb, those from each target, and what the energy needs besides.
    """
    there = {f"rgb2{TARGETS[target]}" for target in size.targets}
    groups: dict[str, list[str]] = {"rgb": [], **{target: [] for target in size.targets}}
    for group in (*size.targets, "energy"):
        config = "energy_calc" if group == "energy" else f"multiperceptual_{group}"
        for name in sorted(_networks(config) - there):
            groups.setdefault("rgb" if name.startswith("rgb2") else group, []).append(name)
            there.add(name)
    return groups


def edge(size: Size, places: Places, name: str) -> Step:
    """Train a network on labels, into the models folder."""
    step = train(size, places, f"edge_{name}", name, size.edge_epochs, lr=size.lr, install=True)
    return replace(step, work=size.edge_epochs * size.steps)


def networks_of(size: Size, target: str) -> tuple[str, ...]:
    """The stages that train the networks of a target's losses."""
    baselines = tuple(f"baselines/{name}" for name in size.targets)
    return (*baselines, "edges/rgb", f"edges/{target}")


def all_networks(size: Size) -> tuple[str, ...]:
    """The stages that train networks of any configuration."""
    baselines = tuple(f"baselines/{name}" for name in size.targets)
    return (*baselines, *(f"edges/{group}" for group in networks_between(size)))


def _networks(name: str) -> set[str]:
    """The networks that a configuration or a method needs, by name."""
    found = find_method(name)
    config = found[0].config(found[1]) if found else get_config(name)
    rows = (any_transfer(*edge) for edge in edges_of(config["paths"]))
    return {row.name for row in rows if row.trainable}


def _more_networks(size: Size, places: Places, names: Iterable[str]) -> list[Step]:
    """Train those of the networks that no stage of `edges`, and no baseline, trains."""
    there = {name for group in networks_between(size).values() for name in group}
    there |= {f"rgb2{TARGETS[target]}" for target in size.targets}
    return [edge(size, places, name) for name in sorted(set(names) - there)]


def refits(size: Size, places: Places) -> Stage:
    """Refit the energy's networks on predictions for buildings that rgb → domain has not seen."""
    flags = {
        **training_data(places, "refit"), "models_dir": places.models,
        "output_dir": places.energy_models, **network_scale(size), "batch_size": size.batch_size,
        "steps_per_epoch": size.steps, "lr": size.lr / 2, "max_epochs": size.refit_epochs,
        "results_dir": places.folder / "runs" / "refits", "on_predictions": True,
    }  # fmt: skip
    refit = Step("refits", "scripts.train_edges", ("energy_calc",), flags,
                 work=7 * size.refit_epochs * size.steps * 4 / 3, programs=8)  # fmt: skip
    images = size.val * size.views
    val = [
        replace(energy_step(places, f"energy_val_{name}", models, places.both_rooms(),
                            named("val", size.val)),
                work=images / size.batch_size * ENERGY_IMAGE_STEPS)
        for name, models in energy_networks(places).items()
    ]  # fmt: skip
    return Stage("refits", all_networks(size), (refit, *val))


# ---- training from the baseline ------------------------------------------------------


def trained(size: Size, places: Places, target: str, seed: int, methods: Mapping) -> list[Stage]:
    """Train from the baseline by each method, for equal steps, and `without` for equal time.

    What is compared for equal time is one stage, and so runs on one machine.
    """
    epochs, steps = size.trained_epochs, {}
    for name, (stem, flags) in methods.items():
        key = trained_key(name, target, seed)
        steps[name] = train_on(size, places, key, f"{stem}_{target}", epochs, seed=seed, **flags)
    longer = replace(
        steps["without"], key=trained_key(EQUAL_TIME, target, seed),
        work=steps["consistency"].work,
        as_long_as=(steps["consistency"].key, steps["without"].key),
    )  # fmt: skip
    runs = places.folder / "runs" / longer.key
    longer = replace(longer, flags={**longer.flags, "results_dir": runs})
    needs, others = networks_of(size, target), [steps[name] for name in steps if name not in PAIR]
    compared = *(steps[name] for name in PAIR), longer
    stages = [Stage(f"trained/{target}/{seed}", needs, compared)]
    if others:
        stages.append(Stage(f"trained/{target}/{seed}/others", needs, tuple(others)))
    return stages


def shorter(size: Size, places: Places, seeds: int) -> list[Stage]:
    """A shorter baseline, and training from it with and without consistency: the first target."""
    target = size.targets[0]
    start = short_key("baseline", target, 0)
    first = train(size, places, start, f"rgb2{TARGETS[target]}", size.short_epochs, lr=size.lr)
    stages = [Stage("shorter/baseline", ("rooms",), (first,))]
    for seed in range(seeds):
        steps = []
        for name in PAIR:
            stem, flags = COMPARED[name]
            steps.append(train_on(
                size, places, short_key(name, target, seed), f"{stem}_{target}",
                size.trained_epochs, seed=seed, init=Made(start, best=True), **flags,
            ))  # fmt: skip
        needs = ("shorter/baseline", *networks_of(size, target))
        stages.append(Stage(f"shorter/{seed}", needs, tuple(steps)))
    return stages


def fraction(size: Size, places: Places, share: float) -> Stage:
    """A baseline, and training from it with and without consistency, on a share of the views.

    This is for the first target.
    """
    target = size.targets[0]
    views = max(size.batch_size, round(share * size.train * size.views))
    start = fraction_key("baseline", share)
    fewer = train(size, places, start, f"rgb2{TARGETS[target]}", size.short_epochs,
                  lr=size.lr, subset_size=views)  # fmt: skip
    steps = [fewer]
    for name in PAIR:
        stem, flags = COMPARED[name]
        steps.append(train_on(
            size, places, fraction_key(name, share), f"{stem}_{target}", size.trained_epochs,
            subset_size=views, init=Made(start, best=True), **flags,
        ))  # fmt: skip
    return Stage(f"fractions/{size_text(share)}", networks_of(size, target), tuple(steps))


def adapted(size: Size, places: Places) -> list[Stage]:
    """Fine-tune seed 0 of the trainings with and without consistency on few shifted views.

    The views are those of each other set, and rooms of the usual kinds with degraded images. Each
    network is trained further by its own method. This is for the first target.
    """
    places_of: dict[str, dict[str, object]] = {
        kind: {"data_dirs": [places.rooms(kind)]} for kind in OTHER_SETS
    }
    places_of |= {shift_name(shift): {"data_dirs": places.both_rooms(), "shift": shift}
                  for shift in size.adapted_shifts}  # fmt: skip
    target, stages = size.targets[0], []
    for kind, data in places_of.items():
        steps = []
        for name in PAIR:
            stem, flags = COMPARED[name]
            for count in size.adapted:
                steps.append(train_on(
                    size, places, adapted_key(name, kind, count), f"{stem}_{target}",
                    size.adapted_epochs, subset_size=count, split=places.split("adapt"),
                    init=Made(trained_key(name, target, 0)), **data, **flags,
                ))  # fmt: skip
        stages.append(Stage(f"adaptation/{kind}", (f"trained/{target}/0",), tuple(steps)))
    return stages


# ---- the other trainings: seed 0, the first target -------------------------------------


def unsupervised(size: Size, places: Places) -> Stage:
    """Consistency only through domains that need no labels: edges and corners of rgb."""
    target = size.targets[0]
    name = f"unsupervised_{target}"
    step = train_on(size, places, trained_key("unsupervised", target, 0), name,
                    size.trained_epochs)  # fmt: skip
    steps = (*_more_networks(size, places, _networks(name)), step)
    return Stage("unsupervised", networks_of(size, target), steps)


def weight_variants(target: str) -> dict[str, dict[str, object]]:
    """All perceptual losses, balanced by their gradients or with weight 1: {label: flags}."""
    return {ALL: {"k": perceptual_count(target)}, FIXED: {"mode": "standard"}}


def choice_variants(size: Size) -> dict[str, dict[str, object]]:
    """How many losses are in use, and how they are chosen: {label: flags}."""
    found: dict[str, dict[str, object]] = {
        f"{k} at random": {"k": k, "random_select": True} for k in size.random_ks
    }
    return found | {f"{k} by win rate": {"k": k, "winrate": True} for k in size.winrate_ks}


def variants(size: Size, places: Places) -> list[Stage]:
    """The main job with other weights of its losses, and with other choices of them."""
    target, stages = size.targets[0], []
    needs = networks_of(size, target)
    for group, ways in {"weights": weight_variants(target),
                        "choice": choice_variants(size)}.items():  # fmt: skip
        steps = tuple(
            train_on(size, places, trained_key(label, target, 0), f"multiperceptual_{target}",
                     size.trained_epochs, **flags)
            for label, flags in ways.items()
        )  # fmt: skip
        stages.append(Stage(group, needs, steps))
    return stages


def other_methods(size: Size, places: Places) -> list[Stage]:
    """The methods of the table that no other stage trains, one stage for each.

    They start from the baseline, except for networks of their own that cannot: those are fresh,
    and learn at the rate of a training from scratch. What a method needs is trained before.
    """
    target, stages = size.targets[0], []
    for name in methods_to_train():
        method = METHODS[name]
        if target not in method.targets:
            continue
        flags: dict[str, object] = {"init": "baseline", "lr": size.trained_lr}
        if is_fresh(name):
            flags = {"init": "scratch", "lr": size.lr}
        if "lr" in method.defaults:
            flags["lr"] = method.defaults["lr"]
        row = f"{name}_{target}"
        needed = _networks(row) | (set(GLOBAL_EDGES) if name == "global" else set())
        steps = _more_networks(size, places, needed)
        steps.append(train_on(size, places, trained_key(name, target, 0), row,
                              size.trained_epochs, **flags))  # fmt: skip
        stages.append(Stage(f"methods/{name}", all_networks(size), tuple(steps)))
    return stages

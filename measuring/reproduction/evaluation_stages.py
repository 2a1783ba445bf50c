"""The stages that read test views. None of them trains or chooses a network."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from measuring.reproduction.scales import (
    ENERGY_IMAGE_STEPS,
    EVALUATION_START,
    IMAGE_STEPS,
    LABEL_STEPS,
    Size,
)
from measuring.reproduction.steps import (
    COMPARED,
    EQUAL_TIME,
    OTHER_SETS,
    PAIR,
    Made,
    Places,
    Stage,
    Step,
    adapted_key,
    energy_networks,
    energy_step,
    fraction_key,
    methods_to_train,
    named,
    network_scale,
    other_buildings,
    seed_key,
    shift_name,
    short_key,
    size_text,
    trained_key,
)
from measuring.reproduction.training_stages import (
    ALL,
    all_networks,
    choice_variants,
    networks_of,
    weight_variants,
)
from methods.interface import TARGETS
from methods.table import METHODS

SHIFT_LEVELS = 21  # of scripts.energy_shift, with clean images


def _evaluate(
    size: Size, places: Places, key: str, target: str, networks: Mapping[str, object],
    folders: Sequence[Path], **flags: object,
) -> Step:  # fmt: skip
    """Measure networks, {label: checkpoint}, on test views."""
    every = {
        "labels": [label.replace(",", "") for label in networks], "task": target,
        "data_dirs": list(folders), "buildings": named("test", size.test),
        "models_dir": places.models, **network_scale(size), "output_dir": places.results(key),
        "resamples": size.resamples, "quiet": True, **flags,
    }  # fmt: skip
    buildings, few = every["buildings"], flags.get("subset_size")
    assert isinstance(buildings, list)
    images = few if isinstance(few, int) else len(buildings) * size.views
    work = images * (len(networks) * IMAGE_STEPS + LABEL_STEPS) / size.batch_size
    return Step(key, "scripts.evaluate", tuple(networks.values()), every, work=work,
                programs=EVALUATION_START)  # fmt: skip


def evaluation(
    size: Size, places: Places, target: str, seed: int, methods: Sequence[str]
) -> list[Stage]:
    """Measure a seed's networks of a target: on test rooms, other sets, and degraded images."""
    test, stages = places.both_rooms(test=True), []
    networks = _with_baseline(Made(f"baseline_{target}", best=True), seed, {
        method: Made(trained_key(method, target, seed)) for method in (*methods, EQUAL_TIME)
    })  # fmt: skip
    measure = partial(_evaluate, size, places, target=target, networks=networks)
    steps = [measure(seed_key("test", target, seed), folders=test)]
    for kind in OTHER_SETS:
        steps.append(measure(seed_key(kind, target, seed), folders=[places.rooms(kind, test=True)],
                             buildings=named("test", other_buildings(size))))  # fmt: skip
    if target == size.targets[0]:
        degraded = [measure(seed_key(shift_name(shift), target, seed), folders=test, shift=shift,
                            subset_size=size.shift_views) for shift in size.shifts]  # fmt: skip
        stages.append(_measuring("errors", f"degraded/{seed}", size, target, degraded))
    return [*stages, _measuring("errors", f"{target}/{seed}", size, target, steps)]


def _with_baseline(baseline: Made, seed: int, networks: Mapping[str, Made]) -> dict[str, object]:
    """A seed's networks, {label: network}; the baseline, of which there is one, is with seed 0."""
    first = {} if seed else {"baseline": baseline}
    return {**first, **{f"{name} {seed}": made for name, made in networks.items()}}


def _measuring(question: str, name: str, size: Size, target: str, steps: Sequence[Step]) -> Stage:
    """A stage that measures networks of a target."""
    needs = ("test_rooms", *networks_of(size, target))
    return Stage(f"evaluation/{name}", needs, tuple(steps), question=question)


def evaluation_of_shorter(size: Size, places: Places, seed: int) -> Stage:
    """Measure the baseline that was trained shorter, and a seed's networks that continue it."""
    target = size.targets[0]
    networks = _with_baseline(Made(short_key("baseline", target, 0), best=True), seed, {
        name: Made(short_key(name, target, seed)) for name in PAIR
    })  # fmt: skip
    step = _evaluate(size, places, seed_key("shorter", target, seed), target, networks,
                     places.both_rooms(test=True))  # fmt: skip
    return _measuring("start", f"shorter/{seed}", size, target, [step])


def evaluation_of_few_views(size: Size, places: Places) -> Stage:
    """Measure what was trained on shares of the views, and before and after fine-tuning."""
    target, steps, test = size.targets[0], [], places.both_rooms(test=True)
    for share in size.fractions:
        networks: dict[str, object] = {"baseline": Made(fraction_key("baseline", share), best=True)}
        networks |= {name: Made(fraction_key(name, share)) for name in PAIR}
        steps.append(_evaluate(size, places, f"fraction_{size_text(share)}", target, networks,
                               test))  # fmt: skip
    ways: dict[str, dict] = {
        kind: {"folders": [places.rooms(kind, test=True)],
               "buildings": named("test", other_buildings(size))} for kind in OTHER_SETS
    }  # fmt: skip
    ways |= {shift_name(shift): {"folders": test, "shift": shift, "subset_size": size.shift_views}
             for shift in size.adapted_shifts}  # fmt: skip
    for kind, flags in ways.items():
        networks = {f"{name} 0": Made(trained_key(name, target, 0)) for name in PAIR}
        networks |= {f"{name} {count}": Made(adapted_key(name, kind, count))
                     for name in PAIR for count in size.adapted}  # fmt: skip
        steps.append(_evaluate(size, places, f"adapted_{kind}", target, networks, **flags))
    return _measuring("views", "few_views", size, target, steps)


def compared_networks(size: Size) -> dict[str, tuple[str, ...]]:
    """The networks of the report's last parts, {group: names}; `without` begins each group."""
    target = size.targets[0]
    own = [name for name in methods_to_train() if target in METHODS[name].targets]
    every = [name for name in COMPARED if name not in PAIR]
    return {
        "unsupervised": (*PAIR, "unsupervised"),
        "weights": ("without", *weight_variants(target)),
        "choice": (*PAIR, ALL, *choice_variants(size)),
        "methods": (*PAIR, *every, "unsupervised", *own),
    }


def evaluation_of_variants(size: Size, places: Places, methods: Sequence[str]) -> list[Stage]:
    """Measure seed 0 of the other trainings, beside those with and without consistency."""
    target, stages = size.targets[0], []
    for group, names in compared_networks(size).items():
        networks = {
            name: Made(trained_key(name, target, 0), domain=_domain_of(name, target))
            for name in names if name not in COMPARED or name in methods
        }  # fmt: skip
        step = _evaluate(size, places, f"{group}_{target}", target, networks,
                         places.both_rooms(test=True))  # fmt: skip
        question = "methods" if group == "methods" else "losses"
        stages.append(_measuring(question, group, size, target, [step]))
    return stages


def _domain_of(name: str, target: str) -> str:
    """The domain of a training's network if the training writes others, too; else ""."""
    return TARGETS[target] if name in METHODS else ""


def energy(size: Size, places: Places) -> list[Stage]:
    """Measure the energy on test views and on degraded ones, with both kinds of networks."""
    test, names = places.both_rooms(test=True), named("test", size.test)
    images, stages = size.test * size.views, []
    for name, models in energy_networks(places).items():
        step = energy_step(places, f"energy_{name}", models, test, names)
        each = ENERGY_IMAGE_STEPS / size.batch_size
        flags = {**step.flags, "output_dir": places.results(f"shift_{name}"),
                 "subset_size": 2 * size.shift_views}  # fmt: skip
        shift = Step(f"shift_{name}", "scripts.energy_shift", (), flags,
                     work=SHIFT_LEVELS * 2 * size.shift_views * each)  # fmt: skip
        needs = ("test_rooms", "refits", *all_networks(size))
        steps = (replace(step, work=images * each), shift)
        stages.append(Stage(f"energy/{name}", needs, steps, question="energy"))
    return [*stages, _energy_of_other_sets(size, places)]


def _energy_of_other_sets(size: Size, places: Places) -> Stage:
    """Measure the energy on views of the other sets, with both kinds of networks."""
    names = named("test", other_buildings(size))
    work = len(names) * size.views * ENERGY_IMAGE_STEPS / size.batch_size
    steps = [
        energy_step(places, f"energy_{name}_{kind}", models, [places.rooms(kind, test=True)], names)
        for name, models in energy_networks(places).items() for kind in OTHER_SETS
    ]  # fmt: skip
    needs = ("test_rooms", "refits", *all_networks(size))
    done = tuple(replace(step, work=work) for step in steps)
    return Stage("energy/other_sets", needs, done, question="energy")

"""The plan of scripts.reproduce: all stages in order, and the choice among them.

Test views lie in folders of their own, which are rendered by the stage `test_rooms`: what is
trained or chosen before it cannot have seen them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from measuring.reproduction.evaluation_stages import (
    energy,
    evaluation,
    evaluation_of_few_views,
    evaluation_of_shorter,
    evaluation_of_variants,
)
from measuring.reproduction.scales import Size
from measuring.reproduction.steps import COMPARED, Places, Stage
from measuring.reproduction.training_stages import (
    adapted,
    baseline,
    edges,
    fraction,
    other_methods,
    refits,
    rooms,
    rooms_of_the_test,
    shorter,
    trained,
    unsupervised,
    variants,
)
from utils import UserError, check_one_of, nearest

# What a reproduction can be asked: {question: what it is about}. All but the first are asked of the
# scale's first target.
QUESTIONS = {
    "errors": "training on with and without consistency, for equal steps and equal time",
    "start": "the same from a baseline that is trained shorter",
    "views": "the same with fewer training views, and fine-tuning on few shifted views",
    "losses": "other losses, weights and choices of them",
    "methods": "all methods",
    "energy": "when the energy tells to distrust a prediction",
}


def plan(
    size: Size, folder: Path, seeds: int, is_known: Callable[[str], bool] = lambda name: True,
    targets: Iterable[str] | None = None, questions: Iterable[str] | None = None,
) -> list[Stage]:  # fmt: skip
    """Return the stages that answer the questions about the targets (default: all), in order.

    `is_known` tells whether a configuration can be trained. Raises UserError for a target or a
    question that the scale does not have.
    """
    asked = _known("questions", questions, QUESTIONS)
    chosen_targets = _known("targets", targets, size.targets)
    first = size.targets[0]
    if first not in chosen_targets:
        if questions and asked != ["errors"]:
            raise UserError(f"the `questions` but errors are about {first}: name it in `targets`, "
                            f"too, or leave them out")  # fmt: skip
        asked = ["errors"]
    stages = _all_stages(replace(size, targets=tuple(chosen_targets)), folder, seeds, is_known)
    wanted = [
        stage.name for stage in stages if stage.question in asked
        and (first in chosen_targets or not stage.name.startswith("evaluation/degraded"))
    ]  # fmt: skip
    return _needed(stages, wanted)


def _known(parameter: str, named: Iterable[str] | None, known: Iterable[str]) -> list[str]:
    """Return what is named, in the order of `known`, or all. Raises UserError if it is unknown."""
    every = tuple(known)
    found = every if named is None else [check_one_of(parameter, name, every) for name in named]
    return [name for name in every if name in found]


def _needed(stages: Sequence[Stage], wanted: Iterable[str]) -> list[Stage]:
    """Return the wanted stages with all that they need; test views come after all training."""
    by_name, names = {stage.name: stage for stage in stages}, set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += by_name[name].needs
    found = [stage for stage in stages if stage.name in names]
    return [replace(stage, after=tuple(n for n in stage.after if n in names)) for stage in found]


def _all_stages(
    size: Size, folder: Path, seeds: int, is_known: Callable[[str], bool]
) -> list[Stage]:
    places = Places(folder)
    methods = {
        name: row for name, row in COMPARED.items()
        if all(is_known(f"{row[0]}_{target}") for target in size.targets)
    }  # fmt: skip
    stages = [rooms(size, places)]
    stages += [baseline(size, places, target) for target in size.targets]
    stages += edges(size, places)
    stages.append(refits(size, places))
    stages += shorter(size, places, seeds)
    for target in size.targets:
        for seed in range(seeds):
            stages += trained(size, places, target, seed, methods)
    stages += [fraction(size, places, share) for share in size.fractions]
    stages += adapted(size, places)
    stages.append(unsupervised(size, places))
    stages += variants(size, places)
    stages += other_methods(size, places)
    before = tuple(stage.name for stage in stages)
    stages.append(rooms_of_the_test(size, places, before))
    for target in size.targets:
        for seed in range(seeds):
            stages += evaluation(size, places, target, seed, list(methods))
    stages += [evaluation_of_shorter(size, places, seed) for seed in range(seeds)]
    stages.append(evaluation_of_few_views(size, places))
    stages += evaluation_of_variants(size, places, list(methods))
    stages += energy(size, places)
    maker = {step.key: stage.name for stage in stages for step in stage.steps}
    return [_with_makers(stage, maker) for stage in stages]


def _with_makers(stage: Stage, maker: Mapping[str, str]) -> Stage:
    """Add the stages that make networks which a stage reads to those that it needs."""
    read = [maker[made.step] for step in stage.steps for made in step.networks()]
    needs = dict.fromkeys((*stage.needs, *read))
    return replace(stage, needs=tuple(name for name in needs if name != stage.name))


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

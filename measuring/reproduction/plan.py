"""The plan of scripts.reproduce: all stages in order, and the choice among them.

Test views lie in folders of their own, which are rendered by the stage `test_rooms`: what is
trained or chosen before it cannot have seen them.
"""

from collections.abc import Callable, Sequence
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
from utils import UserError, nearest


def plan(
    size: Size, folder: Path, seeds: int, is_known: Callable[[str], bool] = lambda name: True
) -> list[Stage]:
    """Return the stages, in order. `is_known` tells whether a configuration can be trained."""
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
            stages.append(trained(size, places, target, seed, methods))
    stages += [fraction(size, places, share) for share in size.fractions]
    stages += adapted(size, places)
    stages.append(unsupervised(size, places))
    stages += variants(size, places)
    stages += other_methods(size, places)
    before = tuple(stage.name for stage in stages)
    stages.append(rooms_of_the_test(size, places, before))
    stages += evaluation(size, places, seeds, list(methods))
    stages.append(evaluation_of_shorter(size, places, seeds))
    stages.append(evaluation_of_few_views(size, places))
    stages += evaluation_of_variants(size, places, list(methods))
    stages += energy(size, places)
    return stages


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

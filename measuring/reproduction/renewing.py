"""What has to be made again before a reproduction goes on, because it is no longer there.

Small copies, with which a reproduction goes on elsewhere, hold no rooms, and no network once its
measurements are done. A stage that reads such things needs them again.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from measuring.reproduction.steps import Places, Stage, Step
from transfers import transfer_by_name
from utils import log

RENDERER = "scripts.make_rooms"
TRAINERS = ("train", "scripts.train_edges")


def renew(stages: Sequence[Stage], selected: Sequence[Stage], places: Places) -> None:
    """Let the stages whose results are gone, though those selected need them, be done again.

    If a stage is to train, test views that are there are removed: they are rendered again after it.
    """
    by_name = {stage.name: stage for stage in stages}
    waiting = [s for s in selected if not places.stage_mark(s.name).is_file()]
    for stage in waiting:  # which grows
        for name in stage.needs:
            needed = by_name[name]
            if needed not in waiting and _is_gone(needed, stage, places):
                _forget(needed, places)
                waiting.append(needed)
                log.info(f"{name}: to be done again, since its results are no longer there")
    if any(step.program in TRAINERS for stage in waiting for step in stage.steps):
        for stage in (s for s in stages if s.after):
            _forget(stage, places)
            for folder in _rooms(stage):
                shutil.rmtree(folder, ignore_errors=True)


def _rooms(stage: Stage) -> Iterator[Path]:
    yield from (Path(str(s.flags["output_dir"])) for s in stage.steps if s.program == RENDERER)


def _is_gone(needed: Stage, stage: Stage, places: Places) -> bool:
    """Whether something that a stage reads of one that is done is not there."""
    keys = {step.key for step in needed.steps}
    read = {made for step in (*stage.steps, *needed.steps) for made in step.networks()}
    return (
        any(not folder.is_dir() for folder in _rooms(needed))
        or any(not file.is_file() for step in needed.steps for file in _installed(step, places))
        or any(not made.is_there(places.folder) for made in read if made.step in keys)
    )


def _installed(step: Step, places: Places) -> Iterator[Path]:
    """Yield the checkpoints that a step writes into a folder of models."""
    if step.program == "copy":
        yield Path(str(step.words[1]))
    elif step.flags.get("install"):
        transfer = transfer_by_name(str(step.words[0]))
        if transfer:
            yield places.models / transfer.checkpoint
    elif step.program == "scripts.train_edges":
        yield next(places.energy_models.glob("*.pth"), places.energy_models / "none.pth")


def _forget(stage: Stage, places: Places) -> None:
    """Remove the marks of a stage, and what is left of its trainings."""
    places.stage_mark(stage.name).unlink(missing_ok=True)
    for step in stage.steps:
        places.step_mark(step.key).unlink(missing_ok=True)
        if step.program == "train":
            shutil.rmtree(places.folder / "runs" / step.key, ignore_errors=True)

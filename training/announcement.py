"""What a run says before it starts: data, networks, losses, steps, device, folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from degradations import parse_shift
from energy import loss_name
from methods.interface import Method
from sources import Sources
from training.data import Part, reads_of
from training.loop import Plan
from training.objective import Objective
from training.options import Options

WIDTH = 10


def announcement(
    options: Options,
    objective: Objective,
    plan: Plan,
    sources: Sources,
    parts: Mapping[str, Part],
    record: Mapping,
    folder: Path,
    of_method: str = "",
) -> str:
    """Return the block that a run prints before it starts. Defaults are marked as such.

    `of_method` is what the run's method adds.
    """
    run = options.run
    source, target = objective.transfer.edge
    method = objective.method
    started = record["inputs"]["networks"].get(objective.transfer.name)
    own = objective.backbone
    network = f", the network of {own.code} ({own.sha256[:8]})" if own else ""
    start = f"{started['file']} ({started['sha256'][:8]})" if started else "scratch"
    views = ", ".join(f"{name} {len(part.views)}" for name, part in parts.items())
    processes = record["processes"]
    each = f" in each of {processes} processes" if processes > 1 else ""
    steps = (
        f"{plan.epochs} epoch{'s' * (plan.epochs > 1)}{_default(run.max_epochs)} × "
        f"{plan.steps_per_epoch} steps{_default(run.steps_per_epoch)}"
        f"{f' or {plan.max_seconds:g} s of steps' if plan.max_seconds else ''}, "
        f"batch {record['batch_size']}{_default(run.batch_size)}{each}, "
        f"lr {plan.lr:g}{_default(run.lr)}, {plan.schedule} rate{_default(run.schedule)}, "
        f"seed {plan.seed}"
    )
    given = f" on what rgb → {source} predicts" if objective.predictor else ""
    lines = {
        "run": f"{objective.name}: {source} → {target}{given}{network}, from {start}",
        "data": f"{sources.data_text}; views: {views}{_shift_text(options.data.shift)}",
        "networks": sources.networks_text,
        "": "\n".join(_networks(record["inputs"]["networks"], objective.transfer.name)),
        "method": _method(method, of_method),
        "losses": _losses(plan, _without_rate(objective, parts), bool(method and method.step)),
        "steps": steps,
        "device": f"{record['device']}, {plan.precision}",
        "results": str(folder),
    }
    return "\n".join(
        f"{name:<{WIDTH}} {text.replace(chr(10), chr(10) + ' ' * (WIDTH + 1))}"
        for name, text in lines.items()
        if text
    )


def _method(method: Method | None, more: str) -> str:
    if method is None or method.ending == "consistency":
        return ""
    return method.summary + (f"\n{more}" if more else "")


def _default(value: object) -> str:
    return " (default)" if value is None else ""


def _shift_text(shift: str | None) -> str:
    return "; images degraded by {} {:g}".format(*parse_shift(shift)) if shift else ""


def _networks(networks: Mapping[str, Mapping[str, str]], target: str) -> list[str]:
    """Return a line for each frozen network: file, start of its SHA-256, folder."""
    files = {name: Path(network["file"]) for name, network in networks.items() if name != target}
    wide = max((len(file.name) for file in files.values()), default=0)
    return [
        f"{file.name:<{wide}}  {networks[name]['sha256'][:8]}  {file.parent}"
        for name, file in files.items()
    ]


def _without_rate(objective: Objective, parts: Mapping[str, Part]) -> list[str]:
    """Return the domains that win rates need and the validation views lack."""
    wanted = reads_of(objective)["val"].wanted if objective.by_win_rate else ()
    return [str(task) for task in wanted if task not in parts["val"].tasks]


def _losses(plan: Plan, without_rate: Sequence[str], own_step: bool) -> str:
    names = ", ".join(map(loss_name, plan.trained))
    direct = "squared error" if plan.squared else "mae"
    if not plan.trained or not plan.k:
        return "the method's own" if own_step else f"{direct} against the ground truth alone"
    if plan.mode == "standard":
        return f"{direct} and all perceptual ones with weight 1: {names}"
    how = "chosen at random" if plan.at_random else "those with the highest win rates"
    if without_rate:  # as in `choose_losses`
        how = f"chosen at random, as win rates need {', '.join(without_rate)},"
    which = f"{plan.k} of the {len(plan.trained)} perceptual ones, {how} each epoch"
    if plan.k == len(plan.trained):
        which = f"all {plan.k} perceptual ones" if plan.k > 1 else "the perceptual one"
    return f"{direct} and {which}, balanced by their gradients: {names}"

"""Checks of the options of `train.py`, by themselves and for what they train."""

from dataclasses import asdict

from datasets import check_loading
from degradations import parse_shift
from energy import loss_name, paths_for
from methods.interface import MethodOptions
from methods.table import METHODS
from photometric import check_augment_rgb
from precision import TRAINING_PRECISIONS, check_precision
from training.objective import Objective, checked_k
from training.options import LossOptions, Options
from utils import UserError, check_one_of, check_positive


def check_options(options: Options, objective: Objective) -> None:
    """Raise UserError for invalid values and for options that exclude each other."""
    data, losses, compute, run = options.data, options.losses, options.compute, options.run
    check_one_of("mode", losses.mode, ("winrate", "standard"))
    check_one_of("schedule", run.schedule or "constant", ("constant", "cosine"))
    check_precision(compute.precision, TRAINING_PRECISIONS)
    check_positive(
        batch_size=run.batch_size, steps_per_epoch=run.steps_per_epoch, lr=run.lr,
        subset_size=data.subset_size, max_epochs=run.max_epochs, save_every=run.save_every,
        balance_every=losses.balance_every, max_seconds=run.max_seconds,
        validate_every=run.validate_every,
    )  # fmt: skip
    check_loading(data.num_workers, data.max_bad_fraction)
    if data.shift is not None:
        parse_shift(data.shift)
    _check_augment_rgb(data.augment_rgb, objective)
    if options.networks.force and not options.networks.install:
        raise UserError("`force` is for `install`")
    if options.networks.install and run.visualize:
        raise UserError("`visualize` stops before training: no `install`")
    if run.visdom_env and run.visdom_server == "none":
        raise UserError("`visdom_server` none leaves Visdom alone: no `visdom_env`")
    if run.resume_anyway and not run.resume:
        raise UserError("`resume_anyway` is for `resume`")
    if losses.compare_direct and run.visualize:
        raise UserError("`visualize` stops before training: no `compare_direct`")
    _check_losses(losses, objective)
    _check_method_options(options.methods, objective)
    _check_label_cache(compute.cache_labels, data.dataaug, objective)


def _check_augment_rgb(strength: str | None, objective: Objective) -> None:
    check_augment_rgb(strength)
    if strength and not objective.method:
        starts = {path[0] for path in paths_for(objective.config, ["mae"]).values()}
        if "rgb" not in starts:
            raise UserError(f"`augment_rgb` changes rgb, which {objective.name} does not read")


def _check_losses(losses: LossOptions, objective: Objective) -> None:
    if losses.winrate and (losses.random_select or losses.mode == "standard"):
        raise UserError("`winrate` excludes `random_select` and `mode` standard")
    if losses.mode == "standard" and losses.random_select:
        raise UserError("`mode` standard uses all perceptual losses: no `random_select`")
    if losses.mode == "standard" and losses.balance_every > 1:
        raise UserError("`mode` standard balances nothing: no `balance_every`")
    method = objective.method
    if method and method.trains_on and not objective.trained:
        own = ", ".join(map(loss_name, method.trained_losses(objective.transfer.target)))
        raise UserError(f"`perceptual` leaves {objective.name} no loss to train on (its: {own})")
    direct_alone = not checked_k(losses.k, objective.trained, losses.mode)
    if method and method.step and not objective.trained:
        _check_own_step(losses, objective.name)
    if direct_alone and (losses.compare_direct or losses.random_select or losses.winrate):
        raise UserError(
            "without perceptual losses there is nothing for `compare_direct`, `random_select` "
            "or `winrate` to do"
        )


def _check_method_options(options: MethodOptions, objective: Objective) -> None:
    """Raise UserError for options of another method."""
    takes = objective.method.options if objective.method else ()
    for name, value in asdict(options).items():
        if value is not None and name not in takes:
            those = ", ".join(m.name for m in METHODS.values() if name in m.options)
            raise UserError(f"`{name}` is for {those}, and does nothing for {objective.name}")


def _check_own_step(losses: LossOptions, name: str) -> None:
    """Raise UserError for options that a method's own step has no use for."""
    if losses.mode != "winrate" or losses.balance_every > 1:
        raise UserError(f"{name} has losses of its own: no `mode` and no `balance_every`")


def _check_label_cache(gib: float | None, dataaug: bool, objective: Objective) -> None:
    if gib is not None and gib < 0:
        raise UserError(f"`cache_labels` has to be 0 or more, not {gib}")
    if gib and dataaug:
        raise UserError(
            "`cache_labels` keeps outputs on a view's ground truth, but `dataaug` changes the "
            "view each time"
        )
    if gib and not objective.perceptual:
        raise UserError("`cache_labels`: no loss here passes ground truth through a network")

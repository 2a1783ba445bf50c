"""The energy configurations of methods that add a domain to the main job's."""

from energy import TRAINING
from methods.interface import multiperceptual

Pair = tuple[str, str]


def _with_loss(config: dict, name: str, paths: dict, pair: Pair, yardstick: Pair) -> dict:
    """Return the configuration with one more perceptual loss, its yardstick and their paths."""
    losses = {f"percep_{name}": {TRAINING: [pair]}, f"direct_{name}": {TRAINING: [yardstick]}}
    return {
        **config,
        "paths": {**config["paths"], **paths},
        "losses": {**config["losses"], **losses},
    }


def with_corners(target: str) -> dict:
    """Return the main job's configuration with a perceptual loss through the domain corners.

    Of the ground truths, its plots show only rgb and the target, so they need no other files.
    """
    config = multiperceptual(target)
    plots = {
        name: {**plot, "paths": tuple(
            path for path in plot["paths"] if config["paths"][path][0] in ("rgb", target)
        )}
        for name, plot in config["plots"].items()
    }  # fmt: skip
    paths = {
        "C(y^)": (target, "corners"),
        "C(n(x))": ("rgb", target, "corners"),
        "c(x)": ("rgb", "corners"),
    }
    pair, yardstick = ("C(n(x))", "C(y^)"), ("c(x)", "C(y^)")  # the yardstick is as for edges
    return _with_loss({**config, "plots": plots}, "corners", paths, pair, yardstick)


def with_cycle(target: str) -> dict:
    """Return the main job's configuration with a loss that compares rgb → target → rgb with rgb.

    The way back is a frozen network. The yardstick is its error from the true target.
    """
    paths = {"B(y^)": (target, "rgb"), "B(n(x))": ("rgb", target, "rgb")}
    return _with_loss(multiperceptual(target), "rgb", paths, ("B(n(x))", "x"), ("B(y^)", "x"))

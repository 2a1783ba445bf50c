"""The method `multitask`: one encoder, a decoder for each domain with labels, the summed L1."""

from typing import Any

from torch import Tensor

from methods.direct import DirectStep
from methods.interface import Beginning, Setup
from models import unwrapped
from modules.multitask import MultiTaskUNet
from task_configs import TASKS
from transfers import Scale, Transfer

# All domains that have files of their own or are computed from those, except the image itself.
DOMAINS = tuple(name for name in TASKS if name not in ("rgb", "imagenet"))


def multitask(row: Transfer, scale: Scale) -> MultiTaskUNet:
    """Build the network with a row's depth, and with a decoder for each of DOMAINS."""
    channels = {name: TASKS[name].channels for name in DOMAINS}
    depth = scale.depth(row.downsample)
    return MultiTaskUNet(channels, row.target, depth, TASKS[row.source].channels, scale.width)


def begin_multitask(run: Beginning) -> tuple[dict[str, Any], str]:
    """Tell the network which domains have labels; its other decoders stay as they are."""
    assert isinstance(run.network, MultiTaskUNet)
    domains = [name for name in DOMAINS if name in run.domains]
    run.network.train_on(domains)
    return {"domains": domains}, f"domains {', '.join(domains)}"


def multitask_step(setup: Setup) -> DirectStep:
    """Return the step that trains all decoders that have labels."""
    network = unwrapped(setup.graph.target)
    assert isinstance(network, MultiTaskUNet)
    read = {task.name for task in setup.train.dataset.tasks}
    domains = [name for name in DOMAINS if name in read]

    def predictions(image: Tensor) -> dict[str, tuple[str, Tensor]]:
        return {
            "mae" if name == setup.target else name: (name, prediction)
            for name, prediction in network.decoded(image, domains).items()
        }

    return DirectStep(setup, predictions)

"""The graph that a run trains: its networks, their weights and how they run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from devices import compile_networks, parallelised
from energy import paths_for, yardstick_of
from graph import TaskGraph, edges_of
from models import load_network
from modules.unet import recompute_activations
from other_networks import initial_weights
from sources import Sources, own_models
from training.objective import Objective
from training.options import ComputeOptions, Options
from transfers import Edge, Transfer, any_transfer
from utils import UserError, log, read_job


def build_graph(
    objective: Objective, sources: Sources, options: Options, device: torch.device
) -> tuple[TaskGraph, list[str], dict[str, Path]]:
    """Return the graph on the device, its weights loaded, and the perceptual losses it can compute.

    The third value is the checkpoints that were loaded, {transfer: file}, with the target's if
    it does not start from scratch. If the ImageNet network's weights are not available, logs an
    error and leaves out its losses, or raises UserError with `strict`. Raises UserError if
    another network's checkpoint is missing or does not fit.
    """
    config, target = objective.config, objective.transfer.edge
    losses = list(objective.perceptual)
    networks: dict[Edge, nn.Module] = {}
    files: dict[str, Path] = {}
    in_use = losses_in_use(losses, objective.trained if objective.by_win_rate else ())
    for edge in edges_of(paths_for(config, in_use)):
        transfer = any_transfer(*edge, sources.models_dirs[0])
        if edge == target:
            transfer = objective.transfer
        own = objective.method is not None and objective.method.network is not None
        if edge == target and (own or objective.init != "baseline"):
            networks[edge] = _untrained(objective, sources)
            files |= _load_start(networks[edge], objective, sources)
            continue
        try:
            if objective.predictor and edge == objective.predictor.edge:
                networks[edge], file = _predicting(transfer, sources, objective.name)
                files |= {transfer.name: file} if file else {}
                continue
            networks[edge] = sources.network(transfer, objective.name)
            if edge == target and objective.backbone:
                objective.backbone.check_training(networks[edge], sources.scale)
        except OSError as error:
            text = f"no ImageNet weights: {transfer.checkpoint} is not in a models folder and "
            text += f"torchvision's download failed ({error})"
            if options.networks.strict:
                raise UserError(text) from None
            losses, left_out = without_edge(edge, losses, config)
            log.warning(
                "%s; LEFT OUT: %s (`strict` stops here, `no_imagenet` leaves it out "
                "without trying)", text, ", ".join(left_out),
            )  # fmt: skip
            continue
        if transfer.checkpoint and (file := sources.find(transfer)):
            files[transfer.name] = file
    networks = {edge: parallelised(network) for edge, network in networks.items()}
    graph = TaskGraph(networks, target)
    _set_up(graph, options.compute, device)
    if options.compute.compile:
        compile_networks(graph.networks.values())
    return graph, losses, files


def _untrained(objective: Objective, sources: Sources) -> nn.Module:
    """Return the network that trains with its first weights, which `init` may replace."""
    own = objective.backbone
    if own is None:
        return objective.transfer.build(sources.scale)
    network = own.build(sources.scale, pretrained=objective.init == "scratch")
    own.check_training(network, sources.scale)
    return network


def _load_start(network: nn.Module, objective: Objective, sources: Sources) -> dict[str, Path]:
    """Load what `init` names into the network that trains. Returns the files, {transfer: file}."""
    init, transfer = objective.init, objective.transfer
    if init == "scratch":
        return {}
    if init == "baseline":
        if objective.method is None or objective.method.start is None:
            raise UserError(f"{objective.name} has no baseline: `init` scratch or a checkpoint")
        return objective.method.start(network, sources)
    folders = [*sources.models_dirs, *own_models(read_job())]
    start = initial_weights(init, transfer.edge, sources.scale, folders)
    load_network(
        network, start, sources.scale, transfer.edge, any_size=True, transfer=transfer
    )  # fmt: skip
    return {transfer.name: start}


def _predicting(
    transfer: Transfer, sources: Sources, needed_by: str
) -> tuple[nn.Module, Path | None]:
    """Return the network whose predictions are trained on, and its file; None for a formula.

    As for the energy, that is the one trained with consistency, if there is one.
    """
    file = sources.consistent(transfer)
    if file is None:
        return sources.network(transfer, needed_by), sources.find(transfer)
    network = transfer.build(sources.scale)
    load_network(network, file, sources.scale)
    return network, file


def losses_in_use(perceptual: Sequence[str], by_win_rate: Sequence[str]) -> list[str]:
    """Return all losses that a run computes, with the yardsticks of those with win rates."""
    return ["mae", *perceptual, *map(yardstick_of, by_win_rate)]


def without_edge(edge: Edge, losses: list[str], config: Mapping) -> tuple[list[str], list[str]]:
    """Return the losses that do not use the edge, and those that do."""
    left_out = [name for name in losses if edge in edges_of(paths_for(config, [name]))]
    return [name for name in losses if name not in left_out], left_out


def _set_up(module: nn.Module, compute: ComputeOptions, device: torch.device) -> None:
    """Move a graph or a network to the device, and set it up as the options say."""
    module.to(device)
    if compute.channels_last:
        module.to(memory_format=torch.channels_last)
    if compute.checkpoint_activations:
        recompute_activations(module)


def prepare_another(network: nn.Module, compute: ComputeOptions, device: torch.device) -> nn.Module:
    """Prepare a network that a method adds to the graph's, in the same way. Returns it."""
    network = parallelised(network)
    _set_up(network, compute, device)
    if compute.compile:
        compile_networks([network])
    return network

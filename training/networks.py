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
from training.options import ComputeOptions, Objective, Options
from transfers import Edge, Transfer, get_transfer
from utils import UserError, log, read_job


def build_graph(
    objective: Objective, sources: Sources, options: Options, device: torch.device
) -> tuple[TaskGraph, list[str], dict[str, Path]]:
    """Return the graph on the device, its weights loaded, and the perceptual losses it can compute.

    The third value are the checkpoints that were loaded, {transfer: file}, with the target's if
    it does not start from scratch. If the ImageNet network's weights are not available, logs an
    error and leaves out its losses, or raises UserError with `strict`. Raises UserError if
    another network's checkpoint is missing or does not fit.
    """
    config, target = objective.config, objective.transfer.edge
    losses = list(objective.perceptual)
    networks: dict[Edge, nn.Module] = {}
    files: dict[str, Path] = {}
    for edge in edges_of(paths_for(config, losses_in_use(losses, objective.by_win_rate))):
        transfer = get_transfer(*edge, sources.models_dirs[0])
        if edge == target:
            transfer = objective.transfer
        if edge == target and objective.init != "baseline":
            networks[edge] = _untrained(objective, sources)
            if objective.init != "scratch":
                folders = [*sources.models_dirs, *own_models(read_job())]
                start = initial_weights(objective.init, edge, sources.scale, folders)
                load_network(
                    networks[edge], start, sources.scale, edge, any_size=True, transfer=transfer
                )  # fmt: skip
                files[transfer.name] = start
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
    return _prepared(TaskGraph(networks, target), options.compute, device), losses, files


def _untrained(objective: Objective, sources: Sources) -> nn.Module:
    """Return the network that trains with its first weights, which `init` may replace."""
    own = objective.backbone
    if own is None:
        return objective.transfer.build(sources.scale)
    network = own.build(sources.scale, pretrained=objective.init == "scratch")
    own.check_training(network, sources.scale)
    return network


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


def losses_in_use(perceptual: Sequence[str], by_win_rate: bool) -> list[str]:
    """Return all losses that a run computes. With win rates, these include the yardsticks."""
    return ["mae", *perceptual, *(yardstick_of(name) for name in perceptual if by_win_rate)]


def without_edge(edge: Edge, losses: list[str], config: Mapping) -> tuple[list[str], list[str]]:
    """Return the losses that do not use the edge, and those that do."""
    left_out = [name for name in losses if edge in edges_of(paths_for(config, [name]))]
    return [name for name in losses if name not in left_out], left_out


def _prepared(graph: TaskGraph, compute: ComputeOptions, device: torch.device) -> TaskGraph:
    """Return the graph on the device, set up as the options say."""
    graph = graph.to(device)
    if compute.channels_last:
        graph = graph.to(memory_format=torch.channels_last)
    if compute.checkpoint_activations:
        recompute_activations(graph)
    if compute.compile:
        compile_networks(graph.networks.values())
    return graph

"""The graph of domains (nodes) and networks (edges).

It evaluates paths through the graph, and computes each shared prefix once. Nothing here
depends on particular domains.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from transfers import Edge
from utils import UserError

Path = tuple[str, ...]


class TaskGraph(nn.Module):
    """The networks of a set of edges.

    Only the network of the edge `target` is trained (none if `target` is None). All others
    are frozen and stay in eval mode, even when `train()` is called. Parameters of the target
    that are already frozen stay frozen, unless all of them are. Raises UserError if there is no
    network for `target`.
    """

    def __init__(self, networks: Mapping[Edge, nn.Module], target: Edge | None = None) -> None:
        super().__init__()
        self.target_edge = target
        self._names = {edge: "2".join(edge) for edge in networks}
        self.networks = nn.ModuleDict({self._names[e]: net for e, net in networks.items()})
        if target is not None and target not in networks:
            raise UserError(f"the graph has no network {' → '.join(target)}")
        for edge, network in networks.items():
            parts_train = any(parameter.requires_grad for parameter in network.parameters())
            if edge != target or not parts_train:
                network.requires_grad_(edge == target)
        self.train()

    @property
    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters of `target` that are not frozen."""
        return [p for p in self.target.parameters() if p.requires_grad]

    @property
    def target(self) -> nn.Module:
        """The network that is trained. Raises UserError if the graph has none."""
        if self.target_edge is None:
            raise UserError("the graph has no network that trains")
        return self.network(self.target_edge)

    def train(self, mode: bool = True) -> "TaskGraph":
        super().train(False)
        if self.target_edge is not None:
            self.target.train(mode)
        return self

    def sample(
        self,
        paths: Mapping[str, Sequence[str]],
        batch: Mapping[str, Tensor],
        known: Mapping[Path, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Evaluate named paths, e.g. {"f(n(x))": ("rgb", "normal", …)}: {name: (B, C, H, W)}.

        `batch` holds the domains' file values, {task: (B, C, H, W)}, at which paths start.
        `known` holds values of longer prefixes that were computed before. Each distinct prefix
        is computed once, however many paths share it. Raises UserError if `batch` lacks the
        start of a path, or the graph lacks a network.
        """
        values: dict[Path, Tensor] = dict(known or {})

        def value(path: Path) -> Tensor:
            if path not in values:
                if len(path) == 1:
                    if path[0] not in batch:
                        raise UserError(f"the batch has no {path[0]} (it has: {', '.join(batch)})")
                    values[path] = batch[path[0]]
                else:
                    values[path] = self.network((path[-2], path[-1]))(value(path[:-1]))
            return values[path]

        return {name: value(tuple(path)) for name, path in paths.items()}

    def has(self, edge: Edge) -> bool:
        """Whether the graph has a network for that edge."""
        return tuple(edge) in self._names

    def network(self, edge: Edge) -> nn.Module:
        """Return the network of an edge.

        Raises UserError if there is none; the message lists the targets from that source.
        """
        if edge not in self._names:
            targets = [target for source, target in self._names if source == edge[0]]
            raise UserError(
                f"the graph has no network {' → '.join(edge)}; "
                f"from {edge[0]} it has: {', '.join(targets) or 'none'}"
            )
        return self.networks[self._names[edge]]


def edges_of(paths: Mapping[str, Sequence[str]]) -> list[Edge]:
    """Return the distinct edges of the paths, in order of first use."""
    return list(dict.fromkeys(e for p in paths.values() for e in zip(p, p[1:], strict=False)))

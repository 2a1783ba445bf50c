"""The graph of domains as the Graph tab shows it, with an image's disagreement on its edges."""

from contextlib import suppress
from functools import lru_cache

from PIL import Image
from torch import nn

from energy import get_config
from graph import TaskGraph, edges_of
from loading.photographs import square
from measuring.consistency_energy import network_for_energy
from measuring.graph_picture import graph_picture
from measuring.path_disagreements import compared_paths, edge_disagreements
from precision import forward_only
from transfers import TRANSFERS, Edge, get_transfer
from utils import UserError
from web.answers import FEATURES
from web.energies import energies_of
from web.state import Shared

MEANING = "mean |through − straight| of the edge's target, values 0 … 1"


class Graphs:
    """Pictures of the graph. Its networks are those of the energy, loaded when first needed."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._network = lru_cache(None)(self._load)

    def _load(self, edge: Edge) -> nn.Module | None:
        """Load the network that the energy uses for an edge; None if there is none."""
        sources = energies_of(self.shared).sources
        with suppress(UserError):
            transfer = get_transfer(*edge, sources.models_dirs[0])
            return network_for_energy(transfer, sources).to(self.shared.device)
        return None

    def answer(self, name: str, image: Image.Image | None = None) -> tuple[Image.Image, str]:
        """Draw the graph with the paths of the energy configuration `name`, and say what is shown.

        With an image, the edges are labelled with its disagreement: how far each path through
        other domains is from the straight one. Raises UserError for an unknown configuration.
        """
        paths = {n: p for n, p in get_config(name)["paths"].items() if FEATURES not in p}
        every = [row.edge for row in TRANSFERS.values() if FEATURES not in row.edge]
        title = f"{name}: {len(edges_of(paths))} of {len(every)} networks are in its paths"
        if image is None:
            return graph_picture(every, paths, title=title), ""
        compared = compared_paths(paths)
        if not compared:
            raise UserError(f"{name} has no path from the image through another domain: choose "
                            f"another configuration")  # fmt: skip
        networks = {}
        for edge in edges_of({str(path): path for pair in compared.items() for path in pair}):
            if network := self._network(edge):
                networks[edge] = network
        known = {p: s for p, s in compared.items() if all(
            edge in networks for edge in edges_of({"through": p, "straight": s}))}  # fmt: skip
        if not known:
            raise UserError(f"the networks of {name} are not at hand: choose another configuration")
        graph = TaskGraph(networks)
        inputs = square(image, energies_of(self.shared).sources.scale.image_size)[None].to(
            self.shared.device
        )
        with forward_only(self.shared.device):
            numbers = edge_disagreements(graph, known, inputs)
        highlighted = {str(path): path for pair in known.items() for path in pair}
        picture = graph_picture(every, highlighted, numbers, title, MEANING)
        return picture, _text(numbers, len(compared) - len(known))


def _text(numbers: dict[Edge, float], missing: int) -> str:
    """Return the disagreements as a table in Markdown, the largest first."""
    lines = ["| edge | disagreement × 100 |", "|---|---|"]
    for (source, target), number in sorted(numbers.items(), key=lambda item: -item[1]):
        lines.append(f"| {source} → {target} | {100 * number:.2f} |")
    if missing:
        lines += ["", f"{missing} paths are left out: their networks are not at hand."]
    return "\n".join(lines)

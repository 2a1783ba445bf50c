"""How far the paths of a configuration disagree about one image, without labels."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from graph import Path, TaskGraph
from measuring.prediction import resized
from transfers import Edge

START = "rgb"


def compared_paths(paths: Mapping[str, Sequence[str]]) -> dict[Path, Path]:
    """Return each path from the image through other domains, and the straight one: {path: path}.

    `paths` are those of an energy configuration. A path rgb → a → b is compared with rgb → b,
    whether the configuration has that one or not. Paths from ground truths are left out.
    """
    longer = [tuple(path) for path in paths.values() if path[0] == START and len(path) > 2]
    return {path: (START, path[-1]) for path in dict.fromkeys(longer)}


def edge_disagreements(
    graph: TaskGraph, compared: Mapping[Path, Path], images: Tensor
) -> dict[Edge, float]:
    """Measure the mean |through − straight| over images (B, 3, H, W): {edge: number}.

    The number of a path is given to its last edge. If several paths end in the same edge, it gets
    their mean. Raises UserError if `graph` lacks a network of a path.
    """
    names = {" → ".join(path): path for pair in compared.items() for path in pair}
    values = graph.sample(names, {START: images})
    found: dict[Edge, list[float]] = {}
    for path, straight in compared.items():
        first, second = (values[" → ".join(p)].float() for p in (path, straight))
        difference = (resized(first, second.shape[-2:]) - second).abs().mean()
        found.setdefault((path[-2], path[-1]), []).append(float(difference))
    return {edge: sum(numbers) / len(numbers) for edge, numbers in found.items()}

"""The energy of an uploaded image: as a number among labelled views, and of each pixel."""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from graph import TaskGraph
from loading.photographs import square
from measuring.consistency_energy import (
    UNLABELLED,
    check_networks,
    energy_graph,
    joined,
    measure_batch,
    read_statistics,
    share_below,
)
from measuring.energy_maps import (
    STRAIGHT,
    STRAIGHT_LOSSES,
    AtSize,
    Maps,
    disagreements,
    map_graph,
    pixel_energy,
    shown_networks,
    straight_values,
)
from measuring.statistics import make_table, standardised
from precision import forward_only
from sources import Sources, sources_in
from transfers import FULL_SIZE, Edge
from utils import UserError, log, read_job
from web.state import Shared

DISTRUST = 0.9  # an energy above this share of the labelled views is a reason for distrust
KEPT_MAPS = 4  # graphs that are kept in memory


@dataclass(frozen=True)
class Energy:
    """The energy of an image. `share` of the `views` labelled views have less.

    It is standardised if there are statistics of these networks; else `share` is None.
    """

    value: float
    share: float | None
    views: int

    @property
    def sentence(self) -> str:
        """What the number means, in one sentence."""
        if self.share is None:
            return (
                f"Energy {self.value:.4f}: the mean disagreement of the paths. No labelled views "
                f"were measured with these networks, so there is nothing to compare it with."
            )
        below = f"{self.share:.0%}".replace("%", " %") if 0 < self.share < 1 else "all"
        place = f"higher than {below}" if self.share else "lower than all"
        verdict = "distrust" if self.share >= DISTRUST else "no more than usual"
        sign = "−" if self.value < 0 else "+"
        number = f"{sign}{abs(self.value):.2f}"
        return f"Energy {number}: {place} of {self.views} held-out views: **{verdict}**."


class Energies:
    """The networks that measure energies; `energies_of` loads them once.

    They are those of the page's models folder, of the job's, or those shipped with the project:
    the first of these that has all of them.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.sources, self.graph = _first_complete(shared)
        folder, self.statistics = self.sources.models_dirs[0], None
        if (folder / "statistics.json").is_file():
            try:
                self.statistics = read_statistics(folder)
                check_networks(self.statistics, self.sources, folder)
            except UserError as error:
                log.warning("%s", error)
                self.statistics = None
        self._map_graph = lru_cache(KEPT_MAPS)(self._make_map_graph)

    def of_image(self, image: Image.Image) -> Energy:
        """Measure the centre square of an image, as scripts.energy_calc does."""
        inputs = square(image, self.sources.scale.image_size)[None].to(self.shared.device)
        with forward_only(self.shared.device):
            losses = measure_batch(self.graph, UNLABELLED, {"rgb": inputs}, STRAIGHT_LOSSES)
        table = make_table(joined([losses]))
        if self.statistics is None:
            return Energy(float(table["energy"][0]), None, 0)
        value = float(standardised(table, self.statistics)["normalized_energy"][0])
        return Energy(value, share_below(self.statistics, value), self.statistics["views"])

    def of_pixels(self, image: Image.Image, task: str, name: str) -> Maps:
        """Measure each pixel of the centre square, as scripts.energy_map does.

        The paths use the configuration's network, unless it is another publisher's: the networks
        that follow it were not trained on its predictions.
        """
        graph, size = self._map_graph(self.shared.checkpoint_of(task, name))
        inputs = square(image, size)[None].to(self.shared.device)
        with forward_only(self.shared.device):
            values = straight_values(graph, inputs)
            energy = pixel_energy(disagreements(values)).cpu()
        return Maps(square(image, FULL_SIZE), values[STRAIGHT][0].cpu(), energy[0], {})

    def _make_map_graph(self, checkpoint: Path) -> tuple[TaskGraph, int]:
        shown: dict[Edge, AtSize] = {}
        for named in ([str(checkpoint)], None):
            with suppress(UserError):  # of another publisher
                shown = shown_networks(None, named, self.shared.device)
                break
        return map_graph(self.sources, shown, self.shared.device)


@lru_cache(1)
def energies_of(shared: Shared) -> Energies:
    """Return the page's energies, which are loaded by the first call."""
    return Energies(shared)


def _first_complete(shared: Shared) -> tuple[Sources, TaskGraph]:
    for folder in (shared.models_dir, read_job().models_dir):
        with suppress(UserError):
            if folder is not None:
                return _loaded(sources_in(folder), shared)
    return _loaded(sources_in(), shared)


def _loaded(sources: Sources, shared: Shared) -> tuple[Sources, TaskGraph]:
    return sources, energy_graph(UNLABELLED, sources, shared.device, STRAIGHT_LOSSES)

"""What the Image tab shows for an image: pictures, a text, and files to download."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from colouring import coloured, ends, limits_of, look_of
from measuring.demo_networks import TARGETS
from measuring.energy_maps import AtSize, common_limits, drawn
from measuring.result_files import columns_of
from pictures import Ball, Bar, Column, page
from precision import forward_only
from task_configs import TASKS
from transfers import FULL_SIZE, TRANSFERS
from utils import UserError
from web.downloads import write_values
from web.energies import energies_of
from web.state import Shared

SIDES = ["left", "right"]  # of the slider, for the rows of the page of domains
CELL = 160  # pixels of a cell of the page of domains
LARGE = 2 * FULL_SIZE  # of a prediction, so that its heading and legend are sharp
FEATURES = "imagenet"  # a domain that is not a picture, whose network may have to be fetched


@dataclass(frozen=True)
class Answer:
    """What is shown for one image.

    `pictures`: the predictions of two networks in colour, of the same size. `domains`: what
    follows from both in other domains, None if there are no networks for it. `energy`: the
    energy of each pixel. `text`: Markdown. `files`: the values of both predictions.
    """

    pictures: tuple[Image.Image, Image.Image]
    domains: Image.Image | None
    energy: Image.Image
    text: str
    files: list[Path]


class Answers:
    """Answers for images. The networks are loaded when they are first needed."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._followers = lru_cache(len(TARGETS))(self._load_followers)

    def answer(self, image: Image.Image, task: str, names: Sequence[str], stem: str) -> Answer:
        """Predict with two configurations, and measure energies with the second.

        The centre square of the image is used. The files' names begin with `stem`. Raises
        UserError if a configuration is not at hand.
        """
        start = time.perf_counter()
        predictions, times = {}, {}
        for name in dict.fromkeys(names):
            predictor = self.shared.predictor(task, name)
            before = time.perf_counter()
            with forward_only(self.shared.device):
                inputs = [values[None] for values in predictor.prepare(image, None)]
                predictions[name] = predictor.predict(inputs, None)[name][0].cpu()
            times[name] = time.perf_counter() - before
        energy = energies_of(self.shared).of_image(image)
        maps = energies_of(self.shared).of_pixels(image, task, names[1])
        limits = common_limits([maps.energy], None, standardised=False)
        columns = columns_of(task, predictions)
        heading = look_of(TASKS[TARGETS[task]]).name
        first, second = (page([[replace(columns[name], heading=heading)]], LARGE) for name in names)
        answer = Answer(
            (first, second),
            self._domains(task, predictions),
            drawn(maps, limits, None, across=2),
            "",
            write_values(self.shared.new_folder(), stem, task, predictions),
        )
        lines = [energy.sentence, "", *self._made_by(task, times), ""]
        lines.append(f"All of this took {time.perf_counter() - start:.2f} s.")
        return replace(answer, text="\n".join(lines))

    def _made_by(self, task: str, times: Mapping[str, float]) -> list[str]:
        """Return a list in Markdown: which checkpoint made what, and how long it took."""
        lines = []
        for name, seconds in times.items():
            size = self.shared.predictor(task, name).scales[name].image_size
            file = self.shared.checkpoint_of(task, name).name
            lines.append(f"- {name}: `{file}`, {size} pixels, {1000 * seconds:.0f} ms")
        return lines

    # ---- other domains -----------------------------------------------------------------

    def _load_followers(self, target: str) -> dict[str, AtSize]:
        """Load the networks from a target to other domains, {domain: network}, where they are."""
        sources, found = energies_of(self.shared).sources, {}
        for row in TRANSFERS.values():
            if row.source == target and row.target != FEATURES:
                with suppress(UserError):
                    network = sources.network(row).to(self.shared.device).eval()
                    found[row.target] = AtSize(network, sources.scale.image_size)
        return found

    def _domains(self, task: str, predictions: Mapping[str, Tensor]) -> Image.Image | None:
        """Draw what follows from the predictions: a row for each, a column for each domain."""
        followers = self._followers(TARGETS[task])
        batch = torch.stack(list(predictions.values())).to(self.shared.device)
        groups = []
        for domain, network in followers.items():
            with forward_only(self.shared.device):
                values = network(batch).float().cpu()
            look, limits = look_of(TASKS[domain]), limits_of(TASKS[domain], values)
            cells = coloured(TASKS[domain], values, limits, mark=False)
            legend = Bar(look.colours, ends(look, limits)) if look.colours else Ball()
            groups.append([Column(look.name, cells, legend=legend)])
        if not groups:
            return None
        return page(groups, CELL, rows=SIDES[: len(batch)], across=3)

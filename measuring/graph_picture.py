"""The graph of domains and networks as a picture, with paths and numbers on its edges."""

import io
import math
from collections.abc import Mapping, Sequence

from PIL import Image

from colouring import look_of
from graph import edges_of
from task_configs import TASKS
from transfers import Edge

START = "rgb"
COLOURS = "inferno_r"  # of the numbers: dark is high
LIGHTEST = 0.15  # where the colours begin, as the light end cannot be seen on white
PLAIN, ON_PATH = "#CCCCCC", "#0072B2"
BEND = 0.13  # curvature of the edges, which keeps those of both directions apart


def graph_picture(
    edges: Sequence[Edge],
    paths: Mapping[str, Sequence[str]] = {},
    numbers: Mapping[Edge, float] = {},
    title: str = "",
    meaning: str = "",
) -> Image.Image:
    """Draw domains as nodes and networks as arrows; highlight the edges of `paths`.

    `edges` are (source, target) by domain; those of `paths`, {name: (domain, …)}, are added. Each
    edge of `numbers` is labelled with its number, and coloured from the smallest to the largest;
    `meaning` says what the numbers are. Returns RGB, 1200 × 900 pixels.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure

    on_path = edges_of(paths)
    every = list(dict.fromkeys([*edges, *on_path, *numbers]))
    places = _places(every)
    figure = Figure(figsize=(10, 7.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    darker = colormaps[COLOURS]([LIGHTEST + (1 - LIGHTEST) * i / 255 for i in range(256)])
    colours = LinearSegmentedColormap.from_list("numbers", darker)
    low, high = min(numbers.values(), default=0), max(numbers.values(), default=1)
    scale = Normalize(low if low < high else 0, high or 1)
    for edge in sorted(every, key=lambda edge: (edge in numbers, edge in on_path)):
        colour = colours(scale(numbers[edge])) if edge in numbers else None
        _draw_edge(axes, places, edge, colour or (ON_PATH if edge in on_path else PLAIN))
    for edge, number in numbers.items():
        x, y = _middle(places, edge)
        axes.text(x, y, f"{number:.3f}", ha="center", va="center", fontsize=11, zorder=4,
                  bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"})  # fmt: skip
    used = {domain for edge in (*on_path, *numbers) for domain in edge}
    for domain, (x, y) in places.items():
        name = look_of(TASKS[domain]).name if domain in TASKS else domain.replace("_", " ")
        border = ON_PATH if domain in used else "#888888"
        axes.text(x, y, name.replace(" ", "\n"), ha="center", va="center", fontsize=13, zorder=5,
                  bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": border})  # fmt: skip
    if numbers:
        bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, location="bottom",
                              shrink=0.7, aspect=40, pad=0.01)  # fmt: skip
        bar.set_label(meaning, fontsize=12)
        bar.ax.tick_params(labelsize=11)
    axes.set_title(title, fontsize=13)
    axes.set_xlim(-1.3, 1.3)
    axes.set_ylim(-1.2, 1.2)
    axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer, formats=["PNG"]).convert("RGB")


def _places(edges: Sequence[Edge]) -> dict[str, tuple[float, float]]:
    """Place the image in the middle, and the other domains on an ellipse around it."""
    domains = list(dict.fromkeys(domain for edge in edges for domain in edge))
    around = [domain for domain in domains if domain != START]
    places = {START: (0.0, 0.0)} if START in domains else {}
    for number, domain in enumerate(around):
        angle = math.pi / 2 - 2 * math.pi * number / len(around)
        places[domain] = (1.1 * math.cos(angle), math.sin(angle))
    return places


def _draw_edge(axes, places: Mapping, edge: Edge, colour) -> None:
    """Draw an arrow between two domains, plain ones thin and behind the others."""
    is_plain = colour == PLAIN
    axes.annotate(
        "", xytext=places[edge[0]], xy=places[edge[1]], zorder=1 if is_plain else 2,
        arrowprops={
            "arrowstyle": "-|>", "color": colour, "linewidth": 0.8 if is_plain else 2.2,
            "connectionstyle": f"arc3,rad={BEND}", "shrinkA": 28, "shrinkB": 30,
            "mutation_scale": 10 if is_plain else 16,
        },
    )  # fmt: skip


def _middle(places: Mapping, edge: Edge) -> tuple[float, float]:
    """Return the point of an edge, a little after its middle, at which its number stands."""
    (x1, y1), (x2, y2) = places[edge[0]], places[edge[1]]
    # on the Bézier curve that matplotlib draws, whose control point is beside the middle
    cx, cy = (x1 + x2) / 2 + BEND * (y2 - y1), (y1 + y2) / 2 - BEND * (x2 - x1)
    t = 0.55
    weights = (1 - t) ** 2, 2 * t * (1 - t), t**2
    x, y = ((a * weights[0] + c * weights[1] + b * weights[2])
            for a, c, b in ((x1, cx, x2), (y1, cy, y2)))  # fmt: skip
    return x, y

"""A picture of a graph of domains, with the violations at its edges."""

import io
from collections.abc import Mapping

from PIL import Image

from transfers import Edge

COLOURS = "viridis_r"
# The places of up to four domains: the image on the left, the others as a triangle.
PLACES = ((0.0, 0.5), (0.55, 1.0), (0.55, 0.0), (1.05, 0.5))


def draw_violations(columns: Mapping[str, Mapping[Edge, float]], title: str) -> Image.Image:
    """Return the graph once for each column, {heading: {edge: mean violation}}, side by side.

    All columns share one scale of colours. The numbers at the edges are violations × 100.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    values = [100 * value for column in columns.values() for value in column.values()]
    colours = ScalarMappable(Normalize(0, max(values, default=1.0)), colormaps[COLOURS])
    wide = 5.6 * len(columns)
    figure = Figure(figsize=(wide + 1, 5.2))
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    figure.subplots_adjust(0.01, 0.01, wide / (wide + 1), 0.86, wspace=0.02)
    for axes, (heading, column) in zip(panels, columns.items(), strict=True):
        axes.set_title(heading, fontsize="medium", loc="left")
        axes.set_xlim(-0.2, 1.3)
        axes.set_ylim(-0.22, 1.22)
        axes.set_aspect("equal")
        axes.set_axis_off()
        _draw_graph(axes, column, colours)
    label = "mean violation × 100 of the paths that begin with the network"
    figure.colorbar(colours, cax=figure.add_axes((wide / (wide + 1), 0.1, 0.014, 0.7)), label=label)
    figure.suptitle(title, x=0.03, ha="left", fontsize="large")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer, formats=["PNG"]).convert("RGB")


def _draw_graph(axes, violations: Mapping[Edge, float], colours) -> None:
    domains = list(dict.fromkeys(domain for edge in violations for domain in edge))
    places = dict(zip(domains, PLACES, strict=False))
    for (source, target), value in violations.items():
        (x0, y0), (x1, y1) = places[source], places[target]
        colour = colours.to_rgba(100 * value)
        axes.annotate(
            "", (x1, y1), (x0, y0),
            arrowprops={
                "arrowstyle": "-|>", "color": colour, "linewidth": 2.5, "mutation_scale": 18,
                "connectionstyle": "arc3,rad=0.16", "shrinkA": 31, "shrinkB": 31,
            },
        )  # fmt: skip
        # near the arrow's middle, which the curve moves to its right
        x, y = (x0 + x1) / 2 + 0.11 * (y1 - y0), (y0 + y1) / 2 - 0.11 * (x1 - x0)
        axes.text(x, y, f"{100 * value:.2f}", ha="center", va="center", fontsize="small",
                  bbox={"boxstyle": "round,pad=0.15", "color": "white", "alpha": 0.8})  # fmt: skip
    for domain, (x, y) in places.items():
        axes.scatter(x, y, s=3000, color="white", edgecolors="black", zorder=3)
        words = domain.replace("_zbuffer", "")
        axes.text(x, y, words, ha="center", va="center", fontsize="small", zorder=4)

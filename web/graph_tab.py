"""The Graph tab: domains, networks and paths, and an image's disagreement on each edge."""

from typing import Any

from energy import energy_configs
from web.graphs import Graphs
from web.parts import opened, picture_input, picture_output
from web.state import QUEUE, Shared, gradio, one_sentence

START = "energy_calc_nogt"  # shown first
HELP = """
Domains are the nodes and networks the arrows. The paths of the chosen configuration are blue. With
an image, each arrow that ends such a path carries a number: how far the prediction through other
domains is from the straight one, image → target. The networks are those that measure the energy.
"""


def build(shared: Shared) -> None:
    """Add the components and events of the tab; called within its `gr.Tab`."""
    gr = gradio()
    graphs = Graphs(shared)
    with gr.Row():
        with gr.Column(scale=2):
            names = list(energy_configs)
            name = gr.Dropdown(names, value=START, label="energy configuration")
            picture = picture_input("image (may be left out)")
            button = gr.Button("Draw", variant="primary")
            gr.Markdown(HELP)
        with gr.Column(scale=3):
            drawn = picture_output()
            text = gr.Markdown()

    @one_sentence
    def draw(name: str, path: str | None) -> tuple[Any, str]:
        return graphs.answer(name, None if path is None else opened(path))

    button.click(draw, [name, picture], [drawn, text], api_name="graph", concurrency_id=QUEUE)

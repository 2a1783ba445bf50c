"""The Image tab: two networks on an image, what follows from them, and how far to trust it."""

from pathlib import Path
from typing import Any

from measuring.demo_networks import TARGETS
from utils import check_one_of
from web.answers import Answers
from web.parts import (
    configuration_choice,
    opened,
    picture_input,
    picture_output,
    task_choice,
)
from web.state import QUEUE, Shared, gradio, one_sentence

HELP = """
- **Energy** tells how much the paths from this image to normals disagree, without any labels: as a
  map of the image, for the networks of the right side; and as a number compared with labelled
  views, for the networks that these were measured with (`python -m scripts.energy_calc`).
- The networks see the centre square of the image. Those shipped were trained on rendered rooms
  only: on photographs, they find floor, walls and ceiling, but little of the furniture.
"""


def build(shared: Shared) -> None:
    """Add the components and events of the tab; called within its `gr.Tab`."""
    gr = gradio()
    answers = Answers(shared)
    with gr.Row():
        with gr.Column(scale=2):
            picture = picture_input()
            task = task_choice()
            first = configuration_choice(shared, "left")
            second = configuration_choice(shared, "right", second=True)
            button = gr.Button("Predict", variant="primary")
            gr.Markdown(HELP)
        with gr.Column(scale=3):
            slider = gr.ImageSlider(label="left | right", format="png", interactive=False,
                                    max_height=640)  # fmt: skip
            text = gr.Markdown()
            gr.Markdown("### Energy of the right side")
            energy = picture_output()
            gr.Markdown("### What follows in other domains")
            domains = picture_output()
            files = gr.Files(label="values: 16-bit PNG and NumPy", interactive=False)

    @one_sentence
    def names_of(task: str) -> tuple[Any, Any]:
        check_one_of("task", task, tuple(TARGETS))
        names, pair = shared.configurations(task), shared.pair(task)
        return tuple(gr.Dropdown(names, value=name) for name in pair)

    @one_sentence
    def answer(path: str | None, task: str, first: str, second: str) -> tuple:
        check_one_of("task", task, tuple(TARGETS))
        image = opened(path)
        made = answers.answer(image, task, (first, second), Path(str(path)).stem)
        return made.pictures, made.text, made.energy, made.domains, [str(f) for f in made.files]

    task.change(names_of, task, [first, second], api_name="networks", concurrency_limit=4)
    inputs, outputs = [picture, task, first, second], [slider, text, energy, domains, files]
    button.click(answer, inputs, outputs, api_name="image", concurrency_id=QUEUE,
                 concurrency_limit=1)  # fmt: skip

"""Parts that several tabs have: the image to upload, with examples, and the choice of a network."""

from pathlib import Path
from typing import Any

from PIL import Image

from loading.photographs import open_image
from measuring.demo_networks import TARGETS
from utils import ROOT, UserError
from web.state import Shared, gradio

PHOTOGRAPHS = ("hotel_desk", "hotel_bed", "apartment_door", "lobby_stairs")
EXAMPLES = [
    ROOT / "assets" / name
    for name in (
        "room.png", "example_bedroom.jpg", "example_living_room.jpg", "coffee.jpg",
        *(f"photographs/{name}.jpg" for name in PHOTOGRAPHS),
    )
]  # fmt: skip
LICENCE = (
    "The first three rooms are rendered by this project (MIT licence). The others are photographs: "
    "the cup by Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0; the hotel, the apartment "
    "and the lobby are views of panoramas from Poly Haven, CC0."
)

BELOW_BUTTONS = "below-buttons"  # pictures with words at their top, which buttons would hide
STYLE = f"""
.{BELOW_BUTTONS} .image-frame {{ padding-top: 30px; }}
.{BELOW_BUTTONS} video {{ padding-top: 30px; box-sizing: border-box; }}
"""


def picture_input(label: str = "image") -> Any:
    """Add the input of an image: upload, paste, webcam, or a shipped example. Returns it.

    Its value is the path of the uploaded file as it is, for `opened`.
    """
    gr = gradio()

    picture = gr.Image(
        label=label, type="filepath", image_mode=None, height=260, buttons=["fullscreen"],
        sources=["upload", "clipboard", "webcam"],
    )  # fmt: skip
    # the file is left to `opened` to decode; a subclass would make Gradio write a file beside it
    picture.preprocess = lambda payload: payload and payload.path
    gr.Examples(
        [[str(path)] for path in EXAMPLES], [picture], label="examples", cache_examples=False
    )
    gr.Markdown(f"<small>{LICENCE}</small>")
    return picture


def picture_output() -> Any:
    """Add a picture to look at, to enlarge and to download. Returns it."""
    return gradio().Image(
        show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"],
        elem_classes=BELOW_BUTTONS,
    )  # fmt: skip


def opened(path: str | None) -> Image.Image:
    """Open an uploaded image. Raises UserError, which names the file but not its folder."""
    if path is None:
        raise UserError("first choose an image: upload or paste one, or take an example")
    try:
        return open_image(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), Path(path).name)) from None


def task_choice() -> Any:
    """Add the choice of a task: normal, depth or reshading."""
    return gradio().Radio(list(TARGETS), value="normal", label="task")


def configuration_choice(shared: Shared, label: str, second: bool = False) -> Any:
    """Add the choice of a network by name, first of the task normal.

    It starts with the first or the second of `shared.pair`.
    """
    names = shared.configurations("normal")
    # custom values, as the names depend on the task; `Shared.checkpoint_of` refuses unknown ones
    return gradio().Dropdown(
        names, value=shared.pair("normal")[second], label=label, allow_custom_value=True
    )

"""The 3D tab: predicted depth as a surface to turn, and clips of a camera that moves through it."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring.depth_3d import FIELD_OF_VIEW, View, predicted_view, write_glb
from measuring.ken_burns import Position, write_clip
from utils import UserError, duration
from web.parts import opened, picture_input
from web.state import QUEUE, Shared, gradio, one_sentence

SIDE = 512  # pixels of the longer side of a clip
LONGEST = 6.0  # seconds
FPS = 25
WIDE = 260  # pixels of a slider with a label of several words
CLIPS = "clips"  # they take a minute, so they wait for one another and not for the other tabs
WORDS = (
    "Depth is predicted for the whole image, in metres. How wide the scene is depends on the "
    "camera's field of view, which an image does not tell: 60° is a common one. What a moving "
    "camera brings into sight is filled from the background around it."
)


def build(shared: Shared) -> None:
    """Add the components and events of the tab; called within its `gr.Tab`."""
    gr = gradio()
    names = shared.configurations("depth")
    gr.Markdown(WORDS)
    with gr.Row():
        with gr.Column(scale=2):
            picture = picture_input()
            name = gr.Dropdown(names, value=shared.pair("depth")[1], label="network")
            angle = gr.Slider(20, 120, FIELD_OF_VIEW, step=1, label="field of view (degrees)")
        with gr.Column(scale=3):
            with gr.Row():
                kind = gr.Radio(["mesh", "points"], value="mesh", label="surface")
                normals = gr.Checkbox(label="shaded by predicted normals")
            show = gr.Button("Show in 3D", variant="primary")
            model = gr.Model3D(
                label="drag to turn, wheel to zoom", height=420, clear_color=(0.9, 0.9, 0.9, 1.0)
            )
    gr.Markdown("### A camera that moves through the image (3D Ken Burns)")
    with gr.Row():
        with gr.Column(scale=2):
            with gr.Row():
                zooms = [gr.Slider(0.7, 2, v, step=0.05, label=f"zoom at the {end}", min_width=WIDE)
                         for end, v in (("start", 1.0), ("end", 1.25))]  # fmt: skip
            with gr.Row():
                rights = [gr.Slider(-0.2, 0.2, v, step=0.01, label=f"to the right, {end}",
                                    min_width=WIDE)
                          for end, v in (("start", 0.0), ("end", 0.03))]  # fmt: skip
            with gr.Row():
                downs = [gr.Slider(-0.2, 0.2, 0.0, step=0.01, label=f"down, {end}", min_width=WIDE)
                         for end in ("start", "end")]  # fmt: skip
            seconds = gr.Slider(1, LONGEST, 3, step=0.5, label="seconds")
            with gr.Row():
                start = gr.Button("Make the clip", variant="primary")
                stop = gr.Button("Cancel", variant="stop")
            status = gr.Markdown()
        with gr.Column(scale=3):
            clip = gr.Video(label="clip", interactive=False, autoplay=True, loop=True, height=420)
    show.click(
        one_sentence(functools.partial(surface, shared)), [picture, name, angle, kind, normals],
        model, concurrency_id=QUEUE,
    )  # fmt: skip
    running = start.click(
        one_sentence(clipping(shared)),
        [picture, name, angle, *zooms, *rights, *downs, seconds], [status, clip],
        concurrency_id=CLIPS, concurrency_limit=1, show_progress="minimal",
    )  # fmt: skip
    stop.click(lambda: "cancelled: nothing was kept", None, status, cancels=[running])


def view_of(
    shared: Shared, path: str | None, name: str, angle: float, normals: bool = False
) -> View:
    """Predict the depth of an uploaded image, and its normals if asked for."""
    image = opened(path)
    depth = shared.predictor("depth", name)
    other = shared.predictor("normal", shared.pair("normal")[1]) if normals else None
    return predicted_view(image, depth, other, field_of_view=angle, side=SIDE)


def surface(
    shared: Shared, path: str | None, name: str, angle: float, kind: str, normals: bool
) -> str:
    """Return the GLB file of an uploaded image."""
    view = view_of(shared, path, name, angle, normals)
    file = shared.new_folder() / f"{Path(str(path)).stem}_{kind}.glb"
    write_glb(view, file, kind)
    return str(file)


def clipping(shared: Shared) -> Any:
    """Return the handler of a clip, a generator: it yields after each frame.

    If the visitor cancels or leaves, the generator ends, and with it the work; its file is removed.
    """

    def make(path: str | None, name: str, angle: float, *way: float) -> Iterator[tuple]:
        zoom, end_zoom, right, end_right, down, end_down, seconds = way
        if not 0 < seconds <= LONGEST:
            raise UserError(f"a clip has at most {LONGEST:g} seconds here, not {seconds:g}")
        begin, end = Position(zoom, right, down), Position(end_zoom, end_right, end_down)
        view = view_of(shared, path, name, angle)
        folder, done = shared.new_folder(), False
        file = folder / f"{Path(str(path)).stem}_ken_burns.mp4"
        try:
            for number, count in write_clip(view, file, end, begin, seconds=seconds, fps=FPS):
                yield f"frame {number} of {count}", None
            done = True
        finally:
            if not done:
                shutil.rmtree(folder, ignore_errors=True)
        kept = duration(60 * shared.limits.keep_minutes)
        yield f"{count} frames. The clip is kept for {kept}.", str(file)

    return make

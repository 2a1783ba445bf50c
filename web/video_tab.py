"""The Video tab: predictions of several networks over a video, and its energy."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from consistency import Energy
from loading.video_files import VideoFrames, frame_of
from measuring.prediction import together
from measuring.videos import Comparison, energy_curve, write_video
from utils import UserError, duration
from web.parts import BELOW_BUTTONS, task_choice
from web.state import Shared, gradio, one_sentence

MOST_FRAMES = 300  # of a video; 12 s at 25 frames per second
LARGEST_SIDE = 1920
MOST_NETWORKS = 4
SHOWN_EVERY = 5  # frames, while a video is being computed
QUEUE = "videos"  # they take minutes, so they wait for one another and not for the other tabs
ENDINGS = ["video", ".mkv", ".gif", "image"]
WORDS = (
    "A video (MP4, MOV, MKV, WebM, AVI, GIF, …), or several images as its frames in the order of "
    "their names. At most {frames} frames with sides of up to {side} pixels, and {megabytes} MB. "
    "The centre square of each frame is predicted. One video is computed at a time; others wait."
)


def build(shared: Shared) -> None:
    """Add the components and events of the tab; called within its `gr.Tab`."""
    gr = gradio()
    gr.Markdown(
        WORDS.format(frames=MOST_FRAMES, side=LARGEST_SIDE, megabytes=shared.limits.max_upload_mb)
    )
    result = gr.State(None)
    with gr.Row():
        with gr.Column(scale=1):
            files = gr.File(
                label="video", file_count="multiple", file_types=ENDINGS, type="filepath"
            )
            task = task_choice()
            names = gr.Dropdown(
                shared.configurations("normal"), value=list(shared.pair("normal")),
                multiselect=True, max_choices=MOST_NETWORKS, label="networks",
            )  # fmt: skip
            with gr.Row():
                start = gr.Button("Compare", variant="primary")
                stop = gr.Button("Cancel", variant="stop")
        with gr.Column(scale=3):
            status = gr.Markdown()
            player = gr.Video(
                label="side by side", interactive=False, loop=True, elem_classes=BELOW_BUTTONS
            )
            picture = gr.Image(label="frame", interactive=False, buttons=["fullscreen"],
                               elem_classes=BELOW_BUTTONS)  # fmt: skip
            frame = gr.Slider(0, 1, 0, step=1, label="frame", visible=False)
            curve = gr.Image(interactive=False, show_label=False, buttons=[])
            downloads = gr.File(label="files", file_count="multiple", interactive=False)
    outputs = [status, picture, player, frame, curve, downloads, result]

    task.change(
        one_sentence(functools.partial(choices, shared)), task, names, show_progress="hidden"
    )
    running = start.click(
        one_sentence(comparing(shared)), [files, task, names], outputs,
        concurrency_id=QUEUE, concurrency_limit=1, show_progress="minimal",
    )  # fmt: skip
    stop.click(lambda: "cancelled: nothing was kept", None, status, cancels=[running])
    frame.change(
        one_sentence(shown_frame), [result, frame], [picture, curve], show_progress="hidden",
        trigger_mode="always_last",
    )  # fmt: skip


def choices(shared: Shared, task: str) -> Any:
    """Return the choice of networks for another task."""
    names = list(dict.fromkeys(shared.pair(task)))
    return gradio().Dropdown(shared.configurations(task), value=names, multiselect=True)


def comparing(shared: Shared) -> Any:
    """Return the handler of a video, a generator: it yields after each frame.

    If the visitor cancels or leaves, the generator ends, and with it the work; its files are
    removed.
    """
    energy = functools.cache(lambda: Energy().to(shared.device))

    def compare(files: list[str] | None, task: str, names: list[str]) -> Iterator[dict | tuple]:
        gr = gradio()
        frames = video_of(files)
        labels = labelled(names)
        predictor = together({label: shared.predictor(task, n) for label, n in labels.items()})
        paths = {label: shared.checkpoint_of(task, name) for label, name in labels.items()}
        folder, energies, done = shared.new_folder(), list[float](), False
        hidden = gr.Slider(visible=False)
        yield "reading the video …", None, None, hidden, None, None, None
        try:
            steps = write_video(frames, Comparison(task, predictor, energy()), folder, True, paths)
            for step in steps:
                energies.append(step.energy or 0.0)
                said = f"frame {step.number + 1} of {step.total}"
                # a picture for each frame would fill the temporary folder
                shown = gr.skip() if step.number % SHOWN_EVERY else step.grid
                yield said, shown, None, hidden, None, None, None
            done = True
        finally:
            if not done:
                shutil.rmtree(folder, ignore_errors=True)
        (grid,) = folder.glob("*_compare.mp4")
        rate = float(frames.rate)
        kept = duration(60 * shared.limits.keep_minutes)
        said = f"{len(energies)} frames. The files are kept for {kept}."
        found = {"grid": str(grid), "energies": energies, "rate": rate}
        slider = gr.Slider(0, max(1, len(energies) - 1), 0, step=1, visible=True)
        picture, line = shown_frame(found, 0)
        files_made = sorted(str(file) for file in folder.iterdir())
        yield said, picture, str(grid), slider, line, files_made, found

    return compare


def video_of(files: list[str] | None) -> VideoFrames:
    """Open the uploaded video, or images as its frames.

    Raises UserError, whose message names the files without their folders.
    """
    if not files:
        raise UserError("first choose a video, or several images as its frames")
    paths = [Path(file) for file in files]
    path: Path | list[Path] = paths[0] if len(paths) == 1 else paths
    try:
        return Uploaded(path, max_frames=MOST_FRAMES, max_side=LARGEST_SIDE)
    except UserError as error:
        raise without_folders(error, paths) from None


class Uploaded(VideoFrames):
    """Uploaded frames, whose errors name a file as its owner does, and bounds as the page does."""

    def __iter__(self) -> Iterator[Image.Image]:
        try:
            yield from super().__iter__()
        except UserError as error:
            files = self.files if self.is_folder else []
            raise without_folders(error, [self.path, *files]) from None


def without_folders(error: UserError, paths: list[Path]) -> UserError:
    """Return the error without the folders of uploads, and without a flag of the command line."""
    text = str(error)
    for path in paths:
        text = text.replace(str(path), path.name)
    return UserError(text.replace(", or raise `max_frames`", "").replace(", or raise it", ""))


def labelled(names: list[str]) -> dict[str, str]:
    """Return a short label for each chosen network, {label: name}, that fits a file's name.

    Raises UserError unless there are 2 to `MOST_NETWORKS`.
    """
    if not 2 <= len(names) <= MOST_NETWORKS:
        raise UserError(f"choose 2 to {MOST_NETWORKS} networks to compare, not {len(names)}")
    labels: dict[str, str] = {}
    for name in names:
        label = name.partition(" (")[0].replace("/", "_")
        number = 1 + sum(other.partition(" (")[0] == name.partition(" (")[0]
                         for other in labels.values())  # fmt: skip
        labels[f"{label}_{number}" if number > 1 else label] = name
    return labels


def shown_frame(result: dict | None, number: float) -> tuple[Image.Image | None, Any]:
    """Return the grid of a frame, and the curve with that frame marked."""
    if not result:
        return None, None
    if not Path(result["grid"]).is_file():
        raise UserError("this video is no longer kept: compare it again")
    count = len(result["energies"])
    number = min(int(number), count - 1)
    curve = energy_curve(result["energies"], result["rate"], number)
    return frame_of(result["grid"], number), curve

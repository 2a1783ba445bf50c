"""A 3D Ken Burns clip: a camera that moves through an image by its predicted depth.

python -m scripts.ken_burns --img-path assets/room.png --output-dir results/ken_burns
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from devices import choose_device
from flags import also_called, command_line, folding_flags
from loading.photographs import BrokenImage, open_image
from loading.video_files import check_video_package
from measuring.demo_networks import Choice, choose_networks
from measuring.depth_3d import FIELD_OF_VIEW, SIDE, View, check_angle, predicted_view, write_glb
from measuring.image_files import ImageFiles
from measuring.ken_burns import Position, frame_count, write_clip
from measuring.prediction import Predictor, check_size, load_predictor
from utils import UserError, check_one_of, check_positive, log, read_job


@dataclass(frozen=True)
class CameraPath:
    """The path of the camera.

    Args:
        zoom: how many times as large the middle of the image is at the end, 0.5 to 3; or START,END.
        shift: RIGHT,DOWN: how far the camera has moved at the end, as the distance by which that
            moves the middle of the image, in shares of its width and height (default: 0.03,0); or,
            with four numbers, at the start and at the end.
        seconds: the length of the clip.
        fps: frames per second.
    """

    zoom: list | None = None
    shift: list | None = None
    seconds: float = 3.0
    fps: float = 25.0

    def ends(self) -> tuple[Position, Position]:
        """Return where the camera is at the start and at the end."""
        zooms = _numbers("zoom", self.zoom or ["1.25"], (1, 2))
        shifts = _numbers("shift", self.shift or ["0.03", "0"], (2, 4))
        zooms = [1.0] * (2 - len(zooms)) + zooms
        shifts = [0.0] * (4 - len(shifts)) + shifts
        return Position(zooms[0], *shifts[:2]), Position(zooms[1], *shifts[2:])

    def check(self) -> None:
        """Raise UserError for an impossible path, before anything is computed."""
        self.ends()
        frame_count(self.seconds, self.fps)


@also_called(output_path="output_dir")
@folding_flags
def main(
    *,
    img_path: str | None = None,
    output_dir: str | None = None,
    field_of_view: float = FIELD_OF_VIEW,
    glb: str | None = None,
    size: int | None = None,
    side: int = SIDE,
    checkpoint: list | None = None,
    models_dir: str | None = None,
    quiet: bool = False,
    way: CameraPath,
) -> None:
    """Write a clip of a camera that moves through an image by its predicted depth.

    Example: python -m scripts.ken_burns --img-path assets/room.png
    In 3D:   python -m scripts.ken_burns --img-path assets/room.png --glb mesh

    Writes {name}_ken_burns.mp4 (H.264): each pixel is a point at its predicted depth, the nearest
    points hide the others, and what comes into sight is filled from the background around it. The
    depth is that of the network trained with consistency where there is one, and the whole image is
    used. The exit status is as for demo.py. Needs the extra `web`.

    Args:
        img_path: an image, or a folder of images; other files are skipped.
        output_dir: the folder for the results (default: results/ken_burns).
        field_of_view: the angle between the left and the right border of the image, in degrees. The
            wider it is, the wider is the scene of `glb`; the clip does not depend on it.
        glb: write {name}_mesh.glb or {name}_points.glb too: mesh or points, in metres.
        size: predict depth at that many pixels of the shorter side (default: the size of the
            network's training).
        side: pixels of the longer side of the clip; a smaller image keeps its size.
        checkpoint: the network: a file, or a run's folder.
        models_dir: the folder of the checkpoints (default: models/, then models/trained, then those
            shipped).
        quiet: no progress bar.
    """
    check_video_package()
    check_positive(size=size)
    if not 16 <= side <= 4096:
        raise UserError(f"`side` is 16 to 4096 pixels, not {side}")
    if glb is not None:
        check_one_of("glb", glb, ("mesh", "points"))
    check_angle(field_of_view)
    way.check()
    images = ImageFiles(img_path)
    depth = load_depth(checkpoint, models_dir)
    check_size(depth, size)
    folder = Path(output_dir) if output_dir else read_job().results_dir / "ken_burns"
    endings = ["_ken_burns.mp4", *([f"_{glb}.glb"] if glb else [])]
    names = images.result_names(folder, endings)
    for path in images.paths:
        if (image := opened(images, path)) is None:
            continue
        view = predicted_view(image, depth, field_of_view=field_of_view, size=size, side=side)
        write_frames(view, folder / f"{names[path]}_ken_burns.mp4", way, quiet)
        if glb:
            write_glb(view, folder / f"{names[path]}_{glb}.glb", glb)
    if status := images.summary(folder):
        sys.exit(status)


def write_frames(view: View, clip: Path, way: CameraPath, quiet: bool) -> None:
    """Write the clip of an image, with a progress bar."""
    start, end = way.ends()
    frames = write_clip(view, clip, end, start, seconds=way.seconds, fps=way.fps)
    with tqdm(desc=clip.name, unit="frame", disable=quiet or None) as bar:
        for _, bar.total in frames:
            bar.update()


def load_depth(checkpoint: list | None, models_dir: str | None) -> Predictor:
    """Load one network rgb → depth: the one trained with consistency where there is one."""
    chosen = choose_networks("depth", checkpoint=checkpoint, models_dir=models_dir)
    log.info("%s", chosen.note)
    label = "consistency" if "consistency" in chosen.paths else next(iter(chosen.paths))
    return load_predictor("depth", Choice({label: chosen.paths[label]}, ""), choose_device())


def opened(images: ImageFiles, path: Path) -> Image.Image | None:
    """Open an image. If it is broken, log it, count it as failed, and return None."""
    try:
        return open_image(path)
    except BrokenImage as error:
        images.failed.append(path)
        log.error("failed: %s", error)
        return None


def _numbers(name: str, texts: list, counts: tuple[int, ...]) -> list[float]:
    """Convert the texts of a flag. Raises UserError unless they are one of `counts` numbers."""
    try:
        values = [float(text) for text in texts]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise UserError(f"`{name}` takes {counts[0]} or {counts[1]} numbers between commas, not "
                        f"{','.join(map(str, texts))}")  # fmt: skip
    return values


if __name__ == "__main__":
    command_line(main)

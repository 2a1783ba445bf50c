"""Videos: the frames of a file, or of a folder of images, and the writing of MP4 files.

Needs PyAV (the extra `web`), which brings FFmpeg's decoders and encoders.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from files import written_atomically
from loading.photographs import find_images, open_image
from utils import UserError, check_positive, check_regular, evenly_spaced, log, reason_of

# The formats that FFmpeg may detect. It also knows playlists, which name other files and
# addresses, and formats that draw any text: an upload must not be one of those.
CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,ogg,gif,"
    "apng,mjpeg,yuv4mpegpipe,mxf,nut,wav,mp3,flac,aac"
)
FORMATS = "MP4, MOV, MKV, WebM, AVI, MPEG, FLV, WMV, Ogg, GIF"
RATE = 25  # frames per second of a folder, and of a file that does not state its rate
MOST_FRAMES = 900  # 30 s at 30 frames per second
LARGEST_SIDE = 4096  # pixels
KEY_FRAMES = 12  # a player that jumps to a frame decodes at most that many


def check_video_package() -> None:
    """Raise UserError if PyAV is not installed."""
    if find_spec("av") is None:
        raise UserError(
            "videos need the package av: pip install av (it is in the extra `web` of uv)"
        )


# ---- reading ------------------------------------------------------------------------


class VideoFrames:
    """The frames of a video file, or of images in the order of their names.

    `path` is a file, a folder of images, or a sequence of images.

    Iterating decodes them one after another, from the first, as 8-bit RGB pictures of one size;
    a folder's images may have transparency. Frames that the camera recorded rotated are turned
    upright.

    `rate` is the number of frames per second, a Fraction: the file's own or, for a folder, `fps`
    (default: 25). A file whose frames do not have equal durations is shown at its mean rate.

    Raises UserError, here or while iterating, if there are more than `max_frames` frames, if a
    side is longer than `max_side` pixels, if the frames differ in size, if `fps` is given for a
    file, or if something cannot be read.
    """

    def __init__(
        self,
        path: str | Path | Sequence[Path],
        fps: float | None = None,
        max_frames: int = MOST_FRAMES,
        max_side: int = LARGEST_SIDE,
    ) -> None:
        check_video_package()
        check_positive(fps=fps, max_frames=max_frames, max_side=max_side)
        self.max_frames, self.max_side = max_frames, max_side
        self.files: list[Path] = []
        if isinstance(path, str | Path):
            self.path = Path(path)
        else:
            self.files = sorted(path, key=lambda file: file.name)
            self.path = self.files[0]
        self.is_folder, self.declared = bool(self.files) or self.path.is_dir(), 0
        if self.is_folder:
            self.files = self.files or find_images(self.path)[0]
            self.rate = Fraction(fps or RATE).limit_denominator(1000)
            self._check_count(len(self.files))
            return
        if fps is not None:
            raise UserError(f"`fps` is for folders of frames; {self.path} is a file, with its own")
        with self._opened() as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate or Fraction(RATE)
            self.rate = rate if Fraction(1, 10) <= rate <= 240 else Fraction(RATE)
            self.declared = stream.frames  # 0 where the file does not say
            self._check_count(self.declared)

    @property
    def name(self) -> str:
        """The name for results: that of the folder, or of the (first) file without its ending."""
        return self.path.resolve().name if self.path.is_dir() else self.path.stem

    def __iter__(self) -> Iterator[Image.Image]:
        size, count = None, 0
        for image in map(open_image, self.files) if self.is_folder else self._decoded():
            count += 1
            self._check_count(count)
            size = size or image.size
            if image.size != size:
                raise UserError(
                    f"frame {count} of {self.path} has {_by(image.size)} pixels, the first has "
                    f"{_by(size)}: the frames of a video have one size"
                )
            if max(size) > self.max_side:
                raise UserError(
                    f"the frames of {self.path} have {_by(size)} pixels, and `max_side` is "
                    f"{self.max_side}: make them smaller, or raise it"
                )
            yield image
        if not count:
            raise UserError(f"{self.path} has no frame that can be decoded")

    def survey(self, kept: int) -> tuple[int, list[Image.Image]]:
        """Decode all frames once. Returns their number, and at most `kept` of them, evenly spaced.

        Logs a warning if there are fewer than the file says, as in one that is cut off.
        """
        step, sample, count = 1, list[Image.Image](), 0
        for count, image in enumerate(self, 1):
            if (count - 1) % step:
                continue
            if len(sample) == 2 * kept:
                sample, step = sample[::2], 2 * step
            if (count - 1) % step == 0:
                sample.append(image)
        if count < self.declared:
            log.warning(
                "%s: %s of its %s frames can be decoded: these are used", self.path, count,
                self.declared,
            )  # fmt: skip
        return count, evenly_spaced(sample, kept)

    def _check_count(self, count: int) -> None:
        if count > self.max_frames:
            raise UserError(
                f"{self.path} has more than {self.max_frames} frames "
                f"({float(self.max_frames / self.rate):.0f} s): give a shorter one, or raise "
                f"`max_frames`"
            )

    def _decoded(self) -> Iterator[Image.Image]:
        with self._opened() as container:
            for frame in container.decode(video=0):
                if max(frame.width, frame.height) > self.max_side:  # before it is converted
                    yield Image.new("RGB", (frame.width, frame.height))
                image = frame.to_image()
                yield image.rotate(frame.rotation, expand=True) if frame.rotation else image

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the file and check that it has pictures. All errors become UserErrors."""
        import av

        if not self.path.exists():
            raise UserError(f"no file or folder {self.path}")
        try:
            check_regular(self.path)
            # opened here, so that FFmpeg takes no name for an address
            with open(self.path, "rb") as file:
                if not file.read(1):
                    raise UserError(f"{self.path} is empty")
                file.seek(0)
                options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
                with av.open(file, options=options) as container:
                    if not container.streams.video:
                        raise UserError(f"{self.path} has no pictures, only sound")
                    yield container
        except av.FFmpegError:
            raise UserError(
                f"{self.path} is broken, or not a video in a format that is read here ({FORMATS})"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {reason_of(error)}") from None


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def frame_of(path: str | Path, number: int) -> Image.Image:
    """Return frame `number`, from 0, of an MP4 that `written_video` wrote.

    Raises UserError if it has no such frame.
    """
    import av

    opened: Any = av.open(str(Path(path).resolve()))
    with opened as container:
        stream = container.streams.video[0]
        start = int(number / stream.average_rate / stream.time_base)
        container.seek(start, stream=stream)
        for frame in container.decode(stream):
            if round(frame.pts * stream.time_base * stream.average_rate) >= number:
                return frame.to_image()
    raise UserError(f"{path} has no frame {number}")


# ---- writing ------------------------------------------------------------------------


class VideoWriter:
    """Encodes pictures of one size, one after another."""

    def __init__(self, container: Any, rate: Fraction) -> None:
        self._container, self._rate = container, rate
        self._stream: Any = None
        self.size = (0, 0)

    def add(self, picture: Image.Image) -> None:
        """Append a picture. If a side is odd, the last row or column of pixels is repeated."""
        pixels = np.asarray(picture.convert("RGB"))
        odd = [(0, side % 2) for side in pixels.shape[:2]]
        pixels = np.ascontiguousarray(np.pad(pixels, [*odd, (0, 0)], mode="edge"))
        height, width = pixels.shape[:2]
        if self._stream is None:
            self._begin(width, height)
        from av import VideoFrame

        for packet in self._stream.encode(VideoFrame.from_ndarray(pixels, format="rgb24")):
            self._container.mux(packet)

    def _begin(self, width: int, height: int) -> None:
        self._stream = self._container.add_stream("libx264", rate=self._rate)
        self._stream.width, self._stream.height = self.size = width, height
        self._stream.pix_fmt = "yuv420p"  # what every player and browser shows
        self._stream.codec_context.gop_size = KEY_FRAMES
        self._stream.options = {"crf": "18"}

    def end(self) -> None:
        """Write what the encoder still holds. Raises UserError if there was no picture."""
        if self._stream is None:
            raise UserError("a video needs at least one picture")
        for packet in self._stream.encode():
            self._container.mux(packet)


@contextmanager
def written_video(path: str | Path, rate: Fraction | float) -> Iterator[VideoWriter]:
    """Yield a writer of an MP4 (H.264, yuv420p) at `rate` frames per second.

    The file gets its name at the end of the block. If the block raises, there is no file. Raises
    UserError if it cannot be written.
    """
    check_video_package()
    import av

    with written_atomically(path) as name, open(name, "wb") as file:
        try:
            options = {"movflags": "faststart"}
            with av.open(file, "w", format="mp4", options=options) as container:
                writer = VideoWriter(container, Fraction(rate).limit_denominator(1000))
                yield writer
                writer.end()
        except av.FFmpegError as error:
            raise UserError(f"cannot write {path}: {reason_of(error)}") from None

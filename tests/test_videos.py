"""Videos: what is read, what is written, and that nothing is left half-written."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

from consistency import Energy
from loading.photographs import square
from loading.video_files import VideoFrames, frame_of, written_video
from measuring.demo_networks import choose_networks
from measuring.prediction import load_predictor
from measuring.videos import Comparison, Drawing, energy_curve, write_video
from models import save_network
from sources import DEMO_MODELS
from transfers import TRANSFERS, Scale
from utils import UserError

av = pytest.importorskip("av")
COUNT = 4


def picture(number: int, size=(70, 64)) -> Image.Image:
    """A smooth picture, whose top left corner gets brighter from frame to frame."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 200, (4, 4, 3), dtype=np.uint8))
    image = noise.resize(size, Image.Resampling.BICUBIC)
    image.paste((40 * number,) * 3, (0, 0, 24, 24))
    return image


def write_clip(path: Path, count=COUNT, rate=10, size=(70, 64)) -> Path:
    with written_video(path, rate) as writer:
        for number in range(count):
            writer.add(picture(number, size))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "a clip.mp4")


@pytest.fixture(scope="module")
def comparison(networks, tmp_path_factory) -> Comparison:
    """Two networks for normals, and the energy, all small."""
    other = tmp_path_factory.mktemp("other") / "rgb2normal_consistency.pth"
    torch.manual_seed(1)
    save_network(other, TRANSFERS["rgb", "normal"].build(Scale(32, 8)), Scale(32, 8))
    chosen = choose_networks("normal", checkpoint=[networks / "rgb2normal_baseline.pth", other])
    predictor = load_predictor("normal", chosen, torch.device("cpu"))
    return Comparison("normal", predictor, Energy(models_dir=networks))


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(float)


# ---- reading and writing ---------------------------------------------------------------


def test_what_is_written_is_read(clip, tmp_path):
    frames = VideoFrames(clip)
    assert (frames.rate, frames.name) == (10, "a clip")
    read = list(frames)
    assert len(read) == COUNT and list(frames)[0].size == (70, 64)  # twice
    for number, image in enumerate(read):
        assert np.abs(levels(image) - levels(picture(number))).mean() < 4
        np.testing.assert_array_equal(levels(frame_of(clip, number)), levels(image))
    odd = write_clip(tmp_path / "odd.mp4", 30, 29.97, (71, 65))
    with av.open(str(odd)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height) == (72, 66)
    assert float(VideoFrames(odd).rate) == pytest.approx(29.97, abs=0.01)
    for number in (0, 11, 12, 29):  # across key frames
        expected = list(VideoFrames(odd))[number]
        np.testing.assert_array_equal(levels(frame_of(odd, number)), levels(expected))


def test_a_survey_keeps_few_frames(tmp_path):
    count, sample = VideoFrames(write_clip(tmp_path / "a.mp4", 30, size=(16, 16))).survey(4)
    assert count == 30 and len(sample) == 4
    count, sample = VideoFrames(write_clip(tmp_path / "b.mp4", 3, size=(16, 16))).survey(4)
    assert count == 3 and len(sample) == 3


def test_folders_are_videos(tmp_path):
    for number in range(3):
        picture(number).save(tmp_path / f"{2 - number}.png")
    frames = VideoFrames(tmp_path, fps=12.5)
    assert frames.rate == 12.5 and frames.name == tmp_path.name
    corners = [image.getpixel((2, 2))[0] for image in frames]
    assert corners == [80, 40, 0]  # in the order of their names


def test_turned_files_are_upright(clip, tmp_path):
    """A phone writes the turn into the track's matrix: here a quarter, clockwise."""
    data = bytearray(clip.read_bytes())
    matrix = data.index(b"tkhd") + 44
    turned = [0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in turned)
    (tmp_path / "turned.mp4").write_bytes(data)
    for before, after in zip(VideoFrames(clip), VideoFrames(tmp_path / "turned.mp4"), strict=True):
        expected = before.transpose(Image.Transpose.ROTATE_270)
        np.testing.assert_array_equal(levels(after), levels(expected))


def write_sound(path: Path) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))


def unreadable(kind: str, folder: Path, clip: Path) -> Path:
    """A file or folder that cannot be shown as a video."""
    path = folder / f"{kind}.mp4"
    if kind == "sizes":
        path.mkdir()
        for number, size in enumerate([(20, 20), (20, 20), (20, 30)]):
            picture(number, size).save(path / f"{number}.png")
    elif kind == "folder":
        path.mkdir()
    elif kind == "picture":
        picture(0).save(path, "png")
    elif kind == "sound":
        write_sound(path)
    elif kind != "gone":
        texts = {
            "empty": b"",
            "text": b"these words are no video " * 50,
            "cut": clip.read_bytes()[:600],
            "list": f"#EXTM3U\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n".encode(),
        }
        path.write_bytes(texts[kind])
    return path


@pytest.mark.parametrize(
    "kind, sentence",
    [
        ("gone", "no file or folder"),
        ("empty", "is empty"),
        ("text", "is broken, or not a video"),
        ("cut", "is broken, or not a video"),
        ("list", "is broken, or not a video"),  # names another file, and could name an address
        ("picture", "is broken, or not a video"),
        ("sound", "has no pictures, only sound"),
        ("folder", "no images in"),
        ("sizes", "frame 3 of .* has 20 × 30 pixels, the first has 20 × 20"),
    ],
)
def test_what_is_no_video_is_one_sentence(kind, sentence, run, clip, tmp_path, networks):
    path = unreadable(kind, tmp_path, clip)
    status, output, _ = run(
        "--task=normal", f"--video={path}", f"--output-dir={tmp_path / 'out'}",
        f"--models-dir={networks}", program="demo", defaults=False,
    )  # fmt: skip
    assert status == 2 and not (tmp_path / "out").exists()
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert re.search(sentence, line) and str(path) in line
    assert "Traceback" not in output


def test_a_file_that_is_cut_off_is_used_as_far_as_it_goes(tmp_path, caplog):
    """Its head tells all frames, and the last ones are missing."""
    whole = write_clip(tmp_path / "whole.mp4", 30, size=(128, 128))
    with av.open(str(whole)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: ends[19]])
    count, _ = VideoFrames(tmp_path / "cut.mp4").survey(4)
    assert 0 < count <= 20
    assert f"cut.mp4: {count} of its 30 frames can be decoded" in caplog.text


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--max-frames=3"], "has more than 3 frames"),
        (["--max-side=69"], "70 × 64 pixels, and --max-side is 69"),
        (["--fps=5"], "--fps is for folders of frames"),
        (["--max-frames=0"], "--max-frames has to be more than 0"),
        (["--img-path=a.png"], "--video takes the place of --img-path"),
    ],
)
def test_bounds_and_flags(flags, sentence, run, clip, tmp_path, networks):
    status, output, _ = run(
        "--task=normal", f"--video={clip}", *flags, f"--output-dir={tmp_path / 'out'}",
        f"--models-dir={networks}", program="demo", defaults=False,
    )  # fmt: skip
    assert status == 2 and sentence in output and not (tmp_path / "out").exists()


def test_without_its_package(monkeypatch, clip):
    monkeypatch.setattr("loading.video_files.find_spec", lambda name: None)
    with pytest.raises(UserError, match="need the package av: pip install av"):
        VideoFrames(clip)


# ---- predictions ------------------------------------------------------------------------


def test_the_files_of_a_video(run, clip, tmp_path, networks, comparison):
    out = tmp_path / "out"
    status, output, _ = run(
        "--task=depth", f"--video={clip}", "--compare", f"--output-dir={out}", "--batch-size=2",
        f"--models-dir={networks}", program="demo", defaults=False,
    )  # fmt: skip
    assert status == 0 and "4 frames" in output and f"energy: the networks in {networks}" in output
    stem = "a clip_depth"
    names = ["baseline.mp4", "compare.mp4", "energy.csv", "energy.json", "energy.png"]
    assert sorted(file.name for file in out.iterdir()) == [f"{stem}_{name}" for name in names]
    with torch.inference_mode():
        images = torch.stack([square(image, 32) for image in VideoFrames(clip)])
        expected = comparison.energy(images).tolist()
    record = json.loads((out / f"{stem}_energy.json").read_text())
    np.testing.assert_allclose(record["energy"], expected, rtol=1e-4)
    assert (record["frames_per_second"], record["standardised"]) == (10, False)
    assert list(record["networks"]) == ["baseline"]
    with open(out / f"{stem}_energy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["energy"]) for row in rows] == record["energy"]
    assert [float(row["seconds"]) for row in rows] == [0, 0.1, 0.2, 0.3]
    for name in ("baseline", "compare"):
        assert VideoFrames(out / f"{stem}_{name}.mp4").survey(1)[0] == COUNT


def test_the_grid_shows_each_frame(comparison, clip, tmp_path):
    """The cells are the input and the predictions of the same frame, on one scale."""
    progress = list(write_video(VideoFrames(clip), comparison, tmp_path))
    assert [(p.number, p.total) for p in progress] == [(n, COUNT) for n in range(COUNT)]
    assert all(p.grid.size == progress[0].grid.size for p in progress)
    for number, image in list(enumerate(VideoFrames(clip)))[1::2]:
        grid = levels(progress[number].grid)
        (frame,) = comparison.of([image])
        cell = levels(TF.to_pil_image(frame.image))
        assert any(
            np.abs(grid[y : y + 250, x + 3 : x + 250] - cell[:250, 3:250]).mean() < 1
            for y in range(10, 60) for x in (25, 26)
        )  # fmt: skip
        written = levels(frame_of(tmp_path / "a clip_normal_compare.mp4", number))
        height, width = grid.shape[:2]
        assert np.abs(written[:height, :width] - grid).mean() < 4
        for label, values in frame.predictions.items():
            shown = levels(frame_of(tmp_path / f"a clip_normal_{label}.mp4", number))
            assert np.abs(shown - levels(TF.to_pil_image(values))).mean() < 5


def test_limits_are_those_of_the_whole_video(comparison, clip):
    depth = Comparison(
        "depth",
        load_predictor(
            "depth", choose_networks("depth", checkpoint=[DEMO_MODELS]), torch.device("cpu")
        ),
    )
    frames = list(depth.of(list(VideoFrames(clip))[::4]))
    drawing = Drawing(depth, frames)
    single = [Drawing(depth, [frame]).limits for frame in frames]
    assert min(low for low, _ in single) <= drawing.limits[0] < drawing.limits[1]
    assert drawing.limits[1] <= max(high for _, high in single)
    assert drawing.predictions(frames[0]).keys() == depth.predictor.networks.keys()


def test_frames_are_read_a_batch_at_a_time(comparison):
    read = []

    def frames():
        for number in range(6):
            read.append(number)
            yield picture(number)

    for number, _ in enumerate(comparison.of(frames())):
        assert len(read) == 2 * (number // 2 + 1)


def test_whole_frames(comparison, tmp_path):
    whole = replace(comparison, size=32)
    clip = write_clip(tmp_path / "wide.mp4", 2, size=(96, 64))
    list(write_video(VideoFrames(clip), whole, tmp_path / "out"))
    shown = frame_of(tmp_path / "out" / "wide_normal_baseline.mp4", 1)
    assert shown.size == (48, 32)


@pytest.mark.parametrize("stop", ["closed", "interrupted", "full"])
def test_a_stopped_video_leaves_nothing(stop, comparison, clip, tmp_path, monkeypatch):
    comparison = replace(comparison, energy=None)
    if stop == "closed":
        steps = write_video(VideoFrames(clip), comparison, tmp_path)
        next(steps)
        next(steps)
        assert any(tmp_path.iterdir())  # hidden, and growing
        steps.close()
    else:
        error = KeyboardInterrupt() if stop == "interrupted" else OSError(28, "No space left")
        drawn = []

        def grid(self, frame):
            drawn.append(frame)
            if len(drawn) == 3:
                raise error
            return Image.new("RGB", (64, 64))

        monkeypatch.setattr(Drawing, "grid", grid)
        wanted = KeyboardInterrupt if stop == "interrupted" else UserError
        with pytest.raises(wanted):
            list(write_video(VideoFrames(clip), comparison, tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_curve_marks_a_frame():
    curve = [energy_curve([1.0, 2.0, 1.5], 10, marked) for marked in (None, 0, 2)]
    red = [np.flatnonzero((levels(c)[..., 0] > 180) & (levels(c)[..., 1] < 110)) for c in curve]
    assert not red[0].size and red[1].size and red[2].size
    columns = [np.median(found % curve[0].width) for found in red[1:]]
    assert columns[0] < curve[0].width / 4 and columns[1] > 3 * curve[0].width / 4

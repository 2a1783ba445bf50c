"""The Video and the 3D tab: what their events answer, and that who leaves stops the work."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loading.video_files import VideoFrames, written_video
from sources import DEMO_MODELS
from transfers import Scale
from utils import ROOT, UserError

gradio = pytest.importorskip("gradio")
trimesh = pytest.importorskip("trimesh")
pytest.importorskip("av")

from web.depth_tab import LONGEST, clipping, surface  # noqa: E402
from web.page import build  # noqa: E402
from web.state import Shared, one_sentence  # noqa: E402
from web.video_tab import choices, comparing, labelled, shown_frame, video_of  # noqa: E402

COUNT = 4
ROOM = ROOT / "assets" / "room.png"


@pytest.fixture(scope="module")
def shared():
    shared = Shared(checkpoint=[DEMO_MODELS])
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "room.mp4"
    room = Image.open(ROOM).convert("RGB")
    with written_video(path, 10) as writer:
        for number in range(COUNT):
            writer.add(room.crop((8 * number, 0, 8 * number + 160, 160)))
    return path


def answers(shared: Shared) -> list[Path]:
    return list(shared.folder.rglob("answer_*"))


# ---- Video --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_video_is_compared_and_leafed_through(shared, clip):
    names = list(shared.pair("normal"))
    steps = list(comparing(shared)([str(clip)], "normal", names))
    said, picture, grid, slider, curve, files, result = steps[-1]
    assert len(steps) == COUNT + 2 and steps[1][0] == f"frame 1 of {COUNT}"
    assert said == f"{COUNT} frames. The files are kept for 15 min."
    assert VideoFrames(grid).survey(1)[0] == COUNT == len(result["energies"])
    assert slider.maximum == COUNT - 1 and slider.visible
    assert {Path(file).name for file in files} == {
        f"room_normal_{end}" for end in ("baseline.mp4", "consistency.mp4", "compare.mp4",
                                         "energy.csv", "energy.json", "energy.png")
    }  # fmt: skip
    frames = [np.asarray(image) for image in VideoFrames(grid)]
    for number in (0, 2, COUNT - 1):
        shown, marked = shown_frame(result, number)
        np.testing.assert_array_equal(np.asarray(shown), frames[number])
        assert number == 0 or not np.array_equal(np.asarray(marked), np.asarray(curve))
    np.testing.assert_array_equal(np.asarray(picture), frames[0])
    Path(grid).unlink()
    with pytest.raises(UserError, match="no longer kept"):
        shown_frame(result, 0)


class NoEnergy:
    """In place of the energy's networks, which take a second to load."""

    scale, statistics = Scale(32, 8), None

    def to(self, device):
        return self

    def pixels(self, images):
        return images.mean(dim=1, keepdim=True)


def test_who_leaves_stops_the_work_and_leaves_no_file(shared, clip, monkeypatch):
    monkeypatch.setattr("web.video_tab.Energy", NoEnergy)
    before = answers(shared)
    steps = comparing(shared)([str(clip)], "normal", list(shared.pair("normal")))
    next(steps)
    next(steps)
    assert len(answers(shared)) == len(before) + 1
    steps.close()
    assert answers(shared) == before


def test_images_are_the_frames_of_a_video(tmp_path):
    files = [tmp_path / name for name in ("b.png", "a.png", "c.png")]
    for level, file in enumerate(files):
        Image.new("RGB", (8, 8), (50 * level,) * 3).save(file)
    frames = video_of([str(file) for file in files])
    assert [image.getpixel((0, 0))[0] for image in frames] == [50, 0, 100]
    assert frames.name == "a"
    Image.new("RGB", (8, 9)).save(files[0])
    with pytest.raises(UserError, match=r"^frame 2 of a\.png has 8 × 9 pixels"):
        list(video_of([str(file) for file in files]))


@pytest.mark.parametrize(
    "data, sentence",
    [
        (None, "first choose a video"),
        (b"", "clip.mp4 is empty"),
        (b"no video " * 90, "clip.mp4 is broken, or not a video"),
    ],
)
def test_bad_uploads_are_one_sentence_without_folders(data, sentence, shared, tmp_path):
    file = tmp_path / "clip.mp4"
    if data is not None:
        file.write_bytes(data)
    handler = one_sentence(comparing(shared))
    with pytest.raises(gradio.Error) as caught:
        list(handler([str(file)] if data is not None else None, "normal", ["a", "b"]))
    assert caught.value.message.startswith(sentence)


def test_bounds_are_said_without_flags(tmp_path, monkeypatch, clip):
    monkeypatch.setattr("web.video_tab.MOST_FRAMES", COUNT - 1)
    with pytest.raises(UserError, match="room.mp4 has more than 3 frames .*: give a shorter one$"):
        video_of([str(clip)])


def test_labels_fit_file_names():
    assert labelled(["baseline (a/b)", "consistency (a/b)", "baseline (c)"]) == {
        "baseline": "baseline (a/b)", "consistency": "consistency (a/b)",
        "baseline_2": "baseline (c)",
    }  # fmt: skip
    with pytest.raises(UserError, match="choose 2 to 4 networks to compare, not 1"):
        labelled(["baseline"])


def test_another_task_has_other_networks(shared):
    choice = choices(shared, "depth")
    assert choice.value == list(shared.pair("depth"))


# ---- 3D -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, normals", [("mesh", True), ("points", False)])
def test_a_surface_is_a_glb(kind, normals, shared):
    name = shared.pair("depth")[1]
    file = surface(shared, str(ROOM), name, 60.0, kind, normals)
    assert Path(file).name == f"room_{kind}.glb" and Path(file).is_relative_to(shared.folder)
    (found,) = trimesh.load_scene(file).geometry.values()
    assert len(found.vertices) == 256**2
    wider = surface(shared, str(ROOM), name, 90.0, kind, normals)
    (other,) = trimesh.load_scene(wider).geometry.values()
    assert np.ptp(np.asarray(other.vertices)[:, 0]) > 1.5 * np.ptp(np.asarray(found.vertices)[:, 0])


def test_a_clip_on_the_page(shared, tmp_path):
    file = tmp_path / "small.png"
    Image.open(ROOM).convert("RGB").resize((64, 64)).save(file)
    name, way = shared.pair("depth")[1], (1.0, 1.2, 0.0, 0.05, 0.0, 0.0, 1.0)
    before = answers(shared)
    steps = clipping(shared)(str(file), name, 60.0, *way)
    assert next(steps) == ("frame 1 of 25", None) and len(answers(shared)) == len(before) + 1
    steps.close()
    assert answers(shared) == before
    said, clip = list(clipping(shared)(str(file), name, 60.0, *way))[-1]
    assert said == "25 frames. The clip is kept for 15 min."
    assert VideoFrames(clip).survey(1)[0] == 25
    with pytest.raises(UserError, match="at most 6 seconds here"):
        list(clipping(shared)(str(file), name, 60.0, *way[:-1], LONGEST + 1))
    with pytest.raises(UserError, match="first choose an image"):
        list(clipping(shared)(None, name, 60.0, *way))


def test_the_tabs_are_on_the_page(shared):
    page = build(shared)
    labels = {getattr(block, "label", None) for block in page.blocks.values()}
    assert {"Video", "3D", "side by side", "field of view (degrees)", "clip"} <= labels

"""Depth in three dimensions: the camera's geometry, files of it, and clips through it."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from loading.video_files import VideoFrames
from measuring.demo_networks import choose_networks
from measuring.depth_3d import VERTICES, View, glb, linear, predicted_view, sharpened, triangles
from measuring.ken_burns import Position, clip_frames, eased, filled, focus_of, render
from measuring.prediction import load_predictor, predict
from measuring.result_files import in_metres
from sources import DEMO_MODELS
from utils import ROOT, UserError

HEIGHT, WIDTH = 24, 32


def view_of(depth, angle=60.0, seed=0) -> View:
    image = torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
    return View(image, torch.as_tensor(depth, dtype=torch.float32).expand(HEIGHT, WIDTH), None,
                angle)  # fmt: skip


@pytest.fixture
def steps() -> View:
    """A near square in front of a wall; both have colours of their own."""
    depth = torch.full((HEIGHT, WIDTH), 4.0)
    depth[8:16, 12:20] = 1.0
    image = torch.zeros(3, HEIGHT, WIDTH)
    image[2] = 0.8  # the wall is blue
    image[:, depth == 1] = torch.tensor([1.0, 0.2, 0.0])[:, None]
    return View(image, depth)


# ---- geometry ---------------------------------------------------------------------------


def test_points_lie_where_the_angle_says():
    """Depth is along the axis: the points of a wall are in one plane, as wide as the angle says."""
    view = view_of(2.0, angle=90)
    points = view.points()
    assert points.shape == (HEIGHT, WIDTH, 3) and (points[..., 2] == 2).all()
    border = points[0, -1, 0] + 2 / view.focal / 2  # from the pixel's centre to its border
    assert view.focal == pytest.approx(WIDTH / 2) and border == pytest.approx(2 * math.tan(
        math.radians(45)))  # fmt: skip
    assert points[-1, 0, 0] < 0 < points[-1, 0, 1]  # x to the right, y down
    pixels = points[..., :2] / points[..., 2:] * view.focal
    torch.testing.assert_close(pixels[0, :, 0], torch.arange(WIDTH) + 0.5 - WIDTH / 2)


@pytest.mark.parametrize("angle", [0.0, 171.0])
def test_impossible_angles(angle):
    with pytest.raises(UserError, match="`field_of_view` is 1 to 170 degrees"):
        view_of(1.0, angle)


def test_edges_of_depth_become_steps():
    slope = torch.tensor([1.0] * 6 + [1.5, 2.2, 3.2] + [4.0] * 6).expand(9, 15)
    assert sorted(set(sharpened(slope, 3).flatten().tolist())) == [1, 4]
    floor = torch.linspace(2, 2.1, 15).expand(9, 15)
    assert torch.equal(sharpened(floor, 3), floor)


# ---- GLB ----------------------------------------------------------------------------------


def read_glb(data: bytes):
    trimesh = pytest.importorskip("trimesh")
    import io

    (geometry,) = trimesh.load_scene(io.BytesIO(data), file_type="glb").geometry.values()
    return geometry


@pytest.mark.parametrize("kind", ["mesh", "points"])
def test_a_glb_has_the_points_and_the_colours(kind, steps):
    pytest.importorskip("trimesh")
    found = read_glb(glb(steps, kind))
    expected = steps.points().reshape(-1, 3) * torch.tensor([1.0, -1.0, -1.0])
    np.testing.assert_allclose(found.vertices, expected, atol=1e-6)
    colours = found.visual.vertex_colors if kind == "mesh" else found.colors
    wanted = (255 * linear(steps.image)).round().permute(1, 2, 0).reshape(-1, 3)
    np.testing.assert_array_equal(np.asarray(colours)[:, :3], wanted.numpy())


def test_linear_light():
    values = linear(torch.tensor([0.0, 0.02, 0.5, 1.0]))
    torch.testing.assert_close(values, torch.tensor([0.0, 0.02 / 12.92, 0.21404, 1.0]), atol=1e-5,
                               rtol=0)  # fmt: skip


def test_the_mesh_faces_the_camera_and_is_open_at_edges(steps):
    pytest.importorskip("trimesh")
    mesh = read_glb(glb(steps))
    assert (mesh.face_normals[:, 2] > 0.99).all()  # towards the camera, in the axes of glTF
    depths = -mesh.vertices[:, 2][mesh.faces]
    assert (np.ptp(depths, axis=1) == 0).all()
    # between the pixels of the near square and the others lie 9 × 9 − 7 × 7 squares; two of their
    # triangles, at corners, have all their vertices on the wall
    assert len(mesh.faces) == 2 * ((HEIGHT - 1) * (WIDTH - 1) - (9 * 9 - 7 * 7)) + 2
    whole = triangles(np.full((3, 4), 2.0))
    assert whole.shape == (12, 3) and sorted(set(whole.flatten())) == list(range(12))


def test_normals_of_a_mesh(steps):
    pytest.importorskip("trimesh")
    normals = torch.zeros(3, HEIGHT, WIDTH)
    normals[1:] = torch.tensor([-0.6, -0.8])[:, None, None]  # up, and towards the camera
    mesh = read_glb(glb(View(steps.image, steps.depth, normals)))
    np.testing.assert_allclose(
        mesh.vertex_normals, np.broadcast_to([0, 0.6, 0.8], (HEIGHT * WIDTH, 3)), atol=1e-6
    )


def test_large_views_are_thinned_out():
    pytest.importorskip("trimesh")
    view = view_of(2.0)
    found = read_glb(glb(view, "points", vertices=100))
    assert 50 < len(found.vertices) <= 100 < VERTICES
    across = np.asarray(found.vertices)[:, 0]
    np.testing.assert_allclose(np.ptp(across), np.ptp(view.points()[..., 0].numpy()), rtol=0.1)


def test_without_its_package(steps, monkeypatch):
    monkeypatch.setattr("measuring.depth_3d.find_spec", lambda name: None)
    with pytest.raises(UserError, match="GLB needs the package trimesh: pip install trimesh"):
        glb(steps)


# ---- rendering ----------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [40.0, 90.0])
def test_the_camera_at_its_place_sees_the_image(angle):
    depth = 0.5 + 5 * torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    view = view_of(depth, angle)
    picture, seen = render(view, 0, 0, 0)
    assert torch.equal(picture, view.image)
    torch.testing.assert_close(seen, depth)


@pytest.mark.parametrize("depth", [2.0, 3.0])
@pytest.mark.parametrize("pixels", [(3, 0), (0, -2), (4, 5)])
def test_a_wall_moves_by_f_t_over_z(depth, pixels):
    """To the left where the camera goes to the right, by so many pixels; the rest is a hole."""
    view = view_of(depth)
    right, down = pixels
    scale = depth / view.focal
    picture, seen = render(view, right * scale, down * scale, 0)
    expected = view.image.roll((-down, -right), (1, 2))
    inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    rows = slice(max(0, -down), HEIGHT - max(0, down))
    inside[rows, : WIDTH - right] = True
    torch.testing.assert_close(picture[:, inside], expected[:, inside], atol=1e-4, rtol=0)
    assert torch.equal(seen > 0, inside)


def test_a_wall_nearer_by_half_is_twice_as_large_without_cracks():
    view = view_of(4.0)
    smooth = torch.nn.functional.interpolate(view.image[None, :, :6, :8], (HEIGHT, WIDTH),
                                             mode="bicubic")[0].clamp(0, 1)  # fmt: skip
    view = View(smooth, view.depth)
    picture, seen = render(view, 0, 0, 2.0)
    assert (seen > 0).all() and seen.mean() == pytest.approx(2.0)
    middle = view.image[:, HEIGHT // 4 : -HEIGHT // 4, WIDTH // 4 : -WIDTH // 4]
    expected = torch.nn.functional.interpolate(middle[None], (HEIGHT, WIDTH), mode="bilinear")[0]
    assert float((picture - expected).abs().mean()) < 0.02


def test_what_is_near_hides_what_is_behind(steps):
    """The square moves four times as far as the wall. No pixel mixes the two."""
    scale = 1 / steps.focal  # a pixel at 1 m
    picture, seen = render(steps, 4 * scale, 0, 0)
    assert torch.equal(picture[:, 8:16, 8:16], steps.image[:, 8:16, 12:20])
    assert (seen[8:16, 8:16] == 1).all()
    holes = seen == 0
    assert holes[8:16, 16:19].all() and not holes[:, :16].any()
    colours = picture[:, ~holes]
    wall, square = steps.image[:, 0, 0], steps.image[:, 10, 14]
    nearer = torch.minimum((colours - wall[:, None]).norm(dim=0),
                           (colours - square[:, None]).norm(dim=0))  # fmt: skip
    assert float(nearer.max()) < 1e-4


@pytest.mark.parametrize("right", [-6, -3, 3, 6])
def test_holes_are_filled_from_the_farther_side(steps, right):
    picture, seen = render(steps, right / steps.focal, 0, 0)
    holes = seen == 0
    assert int(holes[8:16].sum()) >= 16
    result = filled(picture, seen)
    wall = steps.image[:, 0, 0][:, None].expand(3, int(holes.sum()))
    torch.testing.assert_close(result[:, holes], wall, atol=1e-4, rtol=0)
    assert torch.equal(result[:, ~holes], picture[:, ~holes])


def test_nothing_to_fill_and_nothing_to_fill_from():
    picture = torch.rand(3, 4, 5)
    assert torch.equal(filled(picture, torch.ones(4, 5)), picture)
    assert torch.equal(filled(picture, torch.zeros(4, 5)), picture)


# ---- the way of the camera ------------------------------------------------------------------


def test_positions_by_what_they_do_to_the_focus():
    """At zoom 1.25, the wall at the focus is 1.25 times as large; shifts move it by their share."""
    view = view_of(3.0)
    assert focus_of(view) == 3
    x, y, z = Position(1.25, 0.25, -0.125).metres(view)
    assert 3 / (3 - z) == pytest.approx(1.25)
    assert view.focal * x / (3 - z) == pytest.approx(0.25 * WIDTH)
    assert view.focal * y / (3 - z) == pytest.approx(-0.125 * HEIGHT)
    assert Position().metres(view) == (0, 0, 0)
    middle = Position(1, 0, 0).to(Position(1.44, 0.2, 0.1), 0.5)
    assert (middle.zoom, middle.right, middle.down) == pytest.approx((1.2, 0.1, 0.05))
    assert [eased(share) for share in (0, 0.5, 1)] == pytest.approx([0, 0.5, 1])
    assert eased(0.1) < 0.05


def test_a_clip_begins_with_the_image(steps):
    frames = list(clip_frames(steps, Position(1.2, 0.05), count=4))
    assert len(frames) == 4 and frames[0].size == (WIDTH, HEIGHT)
    expected = (steps.image * 255).byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.asarray(frames[0]), expected)
    assert not np.array_equal(np.asarray(frames[0]), np.asarray(frames[3]))


def test_a_predicted_view():
    """The whole image in its aspect; its depth is that of the demo, but for its edges."""
    image = Image.open(ROOT / "assets" / "room.png").convert("RGB").crop((0, 0, 256, 192))
    chosen = choose_networks("depth", checkpoint=[DEMO_MODELS / "rgb2depth_consistency.pth"])
    predictor = load_predictor("depth", chosen, torch.device("cpu"))
    view = predicted_view(image, predictor, side=128)
    assert view.image.shape == (3, 96, 128) and view.depth.shape == (96, 128)
    demo = in_metres(predict(image, "depth", checkpoint=next(iter(chosen.paths.values())),
                             size=128))  # fmt: skip
    expected = torch.nn.functional.interpolate(demo[None], (96, 128), mode="bilinear",
                                               antialias=True)[0, 0]  # fmt: skip
    close = (view.depth / expected - 1).abs() < 0.02
    assert close.float().mean() > 0.7
    assert float(view.depth.min()) >= 0.1


# ---- the program ----------------------------------------------------------------------------


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "a photograph.png"
    Image.open(ROOT / "assets" / "room.png").convert("RGB").resize((60, 41)).save(path)
    return path


def burns(run, networks, photograph, *flags):
    return run(
        f"--img-path={photograph}", f"--output-dir={photograph.parent / 'out'}",
        f"--models-dir={networks}", *flags, program="scripts.ken_burns", defaults=False,
    )  # fmt: skip


def test_the_program(run, networks, photograph):
    pytest.importorskip("av")
    status, output, _ = burns(
        run, networks, photograph, "--seconds=0.4", "--fps=10", "--zoom=1.2", "--shift=0.1,0",
        "--glb=points",
    )  # fmt: skip
    assert status == 0 and "1 of 1 images" in output
    out = photograph.parent / "out"
    assert sorted(file.name for file in out.iterdir()) == [
        "a photograph_ken_burns.mp4", "a photograph_points.glb",
    ]  # fmt: skip
    frames = list(VideoFrames(out / "a photograph_ken_burns.mp4"))
    assert len(frames) == 4 and frames[0].size == (60, 40)
    original = np.asarray(Image.open(photograph).resize((60, frames[0].height))).astype(float)
    assert np.abs(np.asarray(frames[0]) - original).mean() < 8
    assert np.abs(np.asarray(frames[-1]) - original).mean() > 10
    assert len(read_glb((out / "a photograph_points.glb").read_bytes()).vertices) > 1000


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--zoom=0.2"], "a zoom is 0.5 to 3, not 0.2"),
        (["--zoom=1,2,3"], "--zoom takes 1 or 2 numbers between commas, not 1,2,3"),
        (["--shift=0.6,0"], "a shift is −0.5 to 0.5"),
        (["--shift=up,0"], "--shift takes 2 or 4 numbers"),
        (["--field-of-view=180"], "--field-of-view is 1 to 170 degrees, not 180"),
        (["--seconds=60"], "a clip of 60 s has 1500 frames at 25 a second, and 900 are the most"),
        (["--seconds=0"], "--seconds has to be more than 0"),
        (["--glb=obj"], "--glb is mesh or points, not obj"),
        (["--side=8"], "--side is 16 to 4096 pixels"),
        (["--size=1"], "--size is .* or more for these networks"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, sentence, run, networks, photograph):
    pytest.importorskip("av")
    status, output, _ = burns(run, networks, photograph, *flags)
    assert status == 2 and re.search(sentence, output) and "Traceback" not in output
    assert not (photograph.parent / "out").exists()


def test_broken_images_are_counted(run, networks, photograph):
    pytest.importorskip("av")
    folder = photograph.parent / "folder"
    folder.mkdir()
    (folder / "broken.png").write_bytes(photograph.read_bytes()[:500])
    (folder / "good.png").write_bytes(photograph.read_bytes())
    status, output, _ = burns(run, networks, folder, "--seconds=0.1")
    assert status == 1 and "1 could not be read" in output
    (clip,) = (folder.parent / "out").iterdir()
    assert clip.name == "good_ken_burns.mp4"

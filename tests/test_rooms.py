"""Procedural rooms: files, determinism, and laws that hold on rooms and on one real view."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion, sobel

from rooms import shade
from rooms import writing as program
from rooms.camera import choose_camera
from rooms.domains import DOMAINS
from rooms.layout import make_scene
from rooms.render import HOLE, Renderer, render
from rooms.scene import LABELS
from rooms.sheet import write_sheet
from rooms.writing import make_rooms, split_buildings, view_paths
from utils import UserError

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(__file__).resolve().parents[2] / "shared" / "realdata"
SIZE, BUILDINGS, VIEWS = 96, ["jasper", "marl"], 12


def read(paths: dict[str, Path]) -> dict[str, np.ndarray]:
    return {domain: np.asarray(Image.open(path)) for domain, path in paths.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("rooms")
    assert make_rooms(out, VIEWS, SIZE, 3, 1, BUILDINGS, quiet=True) == 2 * VIEWS
    return out


@pytest.fixture(scope="module")
def views(folder):
    return [
        read(view_paths(folder, building, *divmod(k, program.VIEWS_PER_POINT)))
        for building in BUILDINGS
        for k in range(VIEWS)
    ]


@pytest.fixture(scope="module")
def real():
    if not REAL.exists():
        pytest.skip("the real view lies beside the project only")
    stem = "taskonomysample_{0}/{0}/point_202_view_5_domain_{0}.png"
    return read({d: REAL / stem.format(d) for d in DOMAINS if d != "segment_semantic"})


# ---- laws, checked by the same functions on rooms and on the real view ----------------


def smooth_pixels(view):
    """Valid pixels away from holes and from depth edges, and depth in metres."""
    depth = view["depth_zbuffer"] / 512.0
    hole = view["depth_zbuffer"] == 65535
    jump = np.hypot(sobel(depth, 0), sobel(depth, 1)) > 0.8 * depth * 128 / len(depth)
    return binary_erosion(~hole & ~jump, iterations=max(2, len(depth) // 64)), depth


def rays(size, focal):
    axis = (np.arange(size) + 0.5 - size / 2) / focal
    x, y = np.meshgrid(axis, axis)
    return np.stack([x, y, np.ones_like(x)], -1)


def stored_normal(view):
    n = view["normal"] / 127.5 - 1
    return n / np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 0.1)


def normal_from_depth(depth, focal, step):
    """Cross product of central differences; x right, y down, z away from the camera."""
    point = rays(len(depth), focal) * depth[..., None]
    across = np.roll(point, -step, 1) - np.roll(point, step, 1)
    down = np.roll(point, -step, 0) - np.roll(point, step, 0)
    n = np.cross(down, across)
    return n / np.linalg.norm(n, axis=-1, keepdims=True)


def fit_focal(view):
    """The focal length (px) at which depth and normals agree best, and the median angle (deg)."""
    good, depth = smooth_pixels(view)
    size, stored = len(depth), stored_normal(view)
    best = (np.inf, None)
    for angle in np.arange(44, 86, 1.0):
        focal = size / 2 / np.tan(np.radians(angle) / 2)
        found = normal_from_depth(depth, focal, max(1, size // 170))[good]
        cosine = np.clip((found * stored[good]).sum(-1), -1, 1)
        best = min(best, (float(np.median(np.degrees(np.arccos(cosine)))), focal))
    return best[1], best[0]


def reshading_residual(view, focal):
    """Median |file - 255 * 1.594 * 8 / (8 + d^2) * cos| in grey levels, where not clipped."""
    good, depth = smooth_pixels(view)
    ray = rays(len(depth), focal)
    distance = np.linalg.norm(ray, axis=-1) * depth
    cosine = -(ray * depth[..., None] * stored_normal(view)).sum(-1) / distance
    law = 255 * 1.594 * 8 / (8 + distance**2) * np.clip(cosine, 0, 1)
    grey = view["reshading"][..., 0]
    good &= grey < 250
    return float(np.median(np.abs(law - grey)[good]))


def occlusion_residual(view):
    """Median |file - law| away from holes, the file's size taken into account."""
    good, depth = smooth_pixels(view)
    root = np.sqrt(depth)
    law = 1024 * np.hypot(sobel(root, 0), sobel(root, 1)) * (len(depth) / 512) ** 0.6
    return float(np.median(np.abs(law - view["edge_occlusion"])[good]))


def check_laws(view, degrees):
    focal, angle = fit_focal(view)
    assert angle < degrees
    assert reshading_residual(view, focal) < 1.0
    assert occlusion_residual(view) < 1.0
    facing = stored_normal(view)[smooth_pixels(view)[0]][:, 2]
    assert facing.mean() < -0.1  # B is the component *away* from the camera: seen faces have less
    return angle


def check_holes(view):
    """Holes are invalid in every domain; returns their share of the view."""
    hole = view["depth_zbuffer"] == 65535
    assert (view["principal_curvature"][..., 2] == 0).all()
    assert (view["edge_occlusion"][binary_dilation(hole, np.ones((3, 3)))] == 0).all()
    if hole.any():
        assert (view["normal"][hole] == 128).all()
        assert (view["principal_curvature"][hole] == 0).all()
        # Of the real view's holes 85 % hold 13 exactly and 1.3 % a keypoint response.
        assert (np.abs(view["reshading"][hole].astype(int) - 13) <= 2).mean() > 0.85
        assert (view["keypoints3d"][hole] == 0).mean() > 0.95
    return hole.mean()


def check_curvature(view):
    """R is the stronger curvature; both signs appear; most of a view is flat."""
    valid = view["depth_zbuffer"] != 65535
    k = view["principal_curvature"][valid][:, :2].astype(int) - 127
    assert (np.abs(k[:, 0]) >= np.abs(k[:, 1]) - 1).mean() > 0.95
    assert (np.abs(k[:, 0]) > 20).mean() > 0.005
    assert (np.abs(k[:, 0]) <= 20).mean() > 0.3


def test_laws_on_real_view(real):
    check_laws(real, degrees=2.0)
    assert 0.01 < check_holes(real) < 0.1
    check_curvature(real)


def test_laws_on_rooms(views):
    angles = [check_laws(view, degrees=6.0) for view in views[::2]]
    assert np.median(angles) < 1.0


def test_convex_edges_are_positive_and_corners_negative(views):
    k = np.concatenate([v["principal_curvature"][..., 0].ravel() for v in views]).astype(int)
    valid = np.concatenate([(v["depth_zbuffer"] != 65535).ravel() for v in views])
    assert (k[valid] > 150).mean() > 0.01 and (k[valid] < 104).mean() > 0.002
    for view in views:
        check_curvature(view)


def test_holes(views):
    shares = np.array([check_holes(view) for view in views])
    with_hole = shares[shares > 0]
    assert ((with_hole >= 0.01) & (with_hole <= 0.1)).all()
    for view in views:
        hole = view["depth_zbuffer"] == 65535
        assert (view["segment_semantic"][hole] == 0).all()
        assert (view["segment_semantic"][~hole] > 0).all()


def test_about_a_third_of_views_have_holes():
    grid, seen = 32, 0
    y, x = (a.reshape(-1) + 0.5 for a in np.mgrid[:grid, :grid])
    for k in range(80):
        scene = make_scene(11, "holes", k)
        camera = choose_camera(scene, np.random.default_rng(k))
        seen += bool((Renderer(scene, camera, grid).depths(x, y)[1] == HOLE).any())
    assert 0.2 < seen / 80 < 0.5


# ---- files --------------------------------------------------------------------------


def test_layout_modes_and_ranges(folder, views):
    for building in BUILDINGS:
        for domain, path in view_paths(folder, building, 0, 1).items():
            tag = "segmentsemantic" if domain == "segment_semantic" else domain
            name = f"point_0_view_1_domain_{tag}.png"
            assert path == folder / f"{building}_{domain}" / domain / name
            image = Image.open(path)
            assert image.size == (SIZE, SIZE)
            wide = domain in ("depth_zbuffer", "edge_occlusion", "keypoints2d", "keypoints3d")
            mode = "L" if domain == "segment_semantic" else "I;16" if wide else "RGB"
            assert image.mode == mode, domain
    assert not list(folder.rglob("*.tmp"))
    assert len(list(folder.rglob("*.png"))) == 2 * VIEWS * len(DOMAINS)
    for view in views:
        assert view["segment_semantic"].max() < len(LABELS) == 16
        assert view["reshading"].std(-1).max() == 0
        assert view["rgb"].std() > 2


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_same_bytes_for_any_workers_and_after_interruption(folder, tmp_path):
    """Two spawned workers, one building, in two goes give the bytes of the fixture's one worker."""
    assert make_rooms(tmp_path, 4, SIZE, 3, 2, BUILDINGS[:1], quiet=True) == 4
    found, wanted = contents(tmp_path), contents(folder)
    assert found == {name: wanted[name] for name in found}
    victims = [view_paths(tmp_path, BUILDINGS[0], 0, 1)["normal"],
               view_paths(tmp_path, BUILDINGS[0], 0, 3)["rgb"]]  # fmt: skip
    for path in victims:
        os.remove(path)
    assert make_rooms(tmp_path, 4, SIZE, 3, 1, BUILDINGS[0], quiet=True) == 2
    assert contents(tmp_path) == found
    assert make_rooms(tmp_path, 4, SIZE, 3, 1, BUILDINGS[0], quiet=True) == 0


def test_other_seed_gives_other_rooms(folder, tmp_path):
    make_rooms(tmp_path, 1, SIZE, 4, 1, BUILDINGS[:1], quiet=True)
    wanted = contents(folder)
    assert all(wanted[name] != data for name, data in contents(tmp_path).items())


def test_settings_that_differ_are_refused(folder):
    before = (folder / "rooms.json").read_text()
    with pytest.raises(UserError, match="image_size 96 .asked for 64"):
        make_rooms(folder, 1, 64, 3, 1, BUILDINGS, quiet=True)
    with pytest.raises(UserError, match="seed"):
        make_rooms(folder, 1, SIZE, 5, 1, BUILDINGS, quiet=True)
    assert (folder / "rooms.json").read_text() == before
    assert json.loads(before)["generator"] == program.VERSION


def test_bad_arguments(tmp_path):
    with pytest.raises(UserError, match="building name"):
        make_rooms(tmp_path, 1, SIZE, 0, 1, "a,../b", quiet=True)
    with pytest.raises(UserError, match="image_size"):
        make_rooms(tmp_path, 1, 4, 0, 1, "agate", quiet=True)


def test_contact_sheet(folder, tmp_path):
    write_sheet(tmp_path / "sheet.png", [view_paths(folder, BUILDINGS[0], 0, 0)], size=40)
    assert Image.open(tmp_path / "sheet.png").size[0] == 42 * len(DOMAINS)


# ---- tracing and splits ---------------------------------------------------------------


def test_culling_changes_nothing(monkeypatch):
    """Testing every shadow ray against every primitive gives the same photograph."""
    scene = make_scene(0, "culling", 2)

    def photograph():
        camera = choose_camera(scene, np.random.default_rng(1))
        return render(scene, camera, 48, np.random.default_rng(2)).rgb

    culled, original = photograph(), shade.light_cells

    def every(*arguments):
        cells, overlap = original(*arguments)
        return cells, np.broadcast_to(scene.casts, overlap.shape).copy()

    monkeypatch.setattr(shade, "light_cells", every)
    np.testing.assert_array_equal(culled, photograph())


def test_split_names():
    names = split_buildings()
    assert len(names) == len(set(names)) >= 18
    official = ROOT / "config" / "split.txt"
    if not official.exists():
        pytest.skip("config/split.txt is not there")
    taken = json.loads(official.read_text())
    assert not set(names) & {name for part in taken.values() for name in part}


# ---- places that cannot be written ----------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the middle of a file."""
    limit = (4000, 4000)
    done = subprocess.run(
        [sys.executable, "-B", "-m", "scripts.make_rooms", "--output-dir", tmp_path / "rooms",
         "--views-per-building=2", "--buildings=agate", "--image-size=64", "--quiet",
         "--num-workers=2"],
        cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: cannot write {tmp_path}")
    assert not list(tmp_path.rglob(".*"))


def test_what_stands_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "agate_rgb").write_text("mine")
    with pytest.raises(UserError, match="cannot write .*agate_rgb.*: Not a directory"):
        make_rooms(tmp_path, 1, 32, 0, 1, ["agate"], quiet=True)
    assert not list(tmp_path.rglob(".*")) and (tmp_path / "agate_rgb").read_text() == "mine"


def test_an_interruption_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupted(image, path, **options):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_rooms(tmp_path, 1, 32, 0, 1, ["agate"], quiet=True)
    assert not list(tmp_path.rglob(".*"))


def test_a_sheet_that_cannot_be_written_is_one_sentence(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*sheet.png: "):
        write_sheet(tmp_path / "file" / "sheet.png", [view_paths(folder, "jasper", 0, 0)])

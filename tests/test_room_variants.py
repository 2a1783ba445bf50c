"""Harder rooms and rooms out of the distribution: the image changes, the labels stay right."""

import json

import numpy as np
import pytest

from rooms.camera import choose_camera
from rooms.layout import make_scene
from rooms.render import render
from rooms.variants import (
    GLASS,
    MIRROR,
    OTHER_ANGLES,
    SETS,
    VIEW_ANGLES,
    Exposure,
    Variant,
    pose_of,
)
from rooms.writing import make_rooms, render_images, view_paths
from utils import UserError

HARD = Variant("hard")
OTHERS = [HARD, *(Variant(set=name) for name in SETS[1:])]


def test_the_default_rooms_do_not_change():
    """A hard room has the default one's furniture in its place, and more of it."""
    for point in range(4):
        plain, hard = (make_scene(0, "agate", point, v) for v in (Variant(), HARD))
        count = len(plain.kind)
        kept = {tuple(centre) for centre in hard.centre.tolist()}
        assert len(hard.kind) > count
        assert sum(tuple(centre) in kept for centre in plain.centre.tolist()) > 0.8 * count
    plain = render_images("agate", 0, 0, 32, 0)
    for domain, image in render_images("agate", 0, 0, 32, 0, Variant()).items():
        np.testing.assert_array_equal(image, plain[domain])


@pytest.mark.parametrize("variant", OTHERS, ids=lambda v: "-".join(v.record().values()))
def test_every_variant_is_another_set_with_right_labels(variant):
    changed = []
    for view in range(2):
        found = render_images("agate", 0, view, 32, 0, variant)
        changed.append((found["rgb"] != render_images("agate", 0, view, 32, 0)["rgb"]).mean())
        hole = found["depth_zbuffer"] == 65535
        normal = found["normal"][~hole] / 127.5 - 1
        np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, atol=0.02)
        again = render_images("agate", 0, view, 32, 0, variant)
        assert all((again[name] == image).all() for name, image in found.items())
    assert max(changed) > 0.3


@pytest.mark.parametrize("gloss", [MIRROR, GLASS])
def test_mirrors_and_glass_mislead_the_image_alone(gloss):
    """The same views with plain paint in their place have the same labels."""
    scenes = (make_scene(0, "agate", point, HARD) for point in range(40))
    scene = next(s for s in scenes if (s.gloss == gloss).any())
    thing = np.nonzero(scene.gloss[scene.material] == gloss)[0][0]
    rng = np.random.default_rng(0)
    for _ in range(60):
        camera = choose_camera(scene, rng)
        view = render(scene, camera, 32, np.random.default_rng(1))
        there = scene.gloss.copy()
        scene.gloss = np.where(scene.gloss == gloss, 0, scene.gloss)
        plain = render(scene, camera, 32, np.random.default_rng(1))
        scene.gloss = there
        for name in ("depth", "normal", "curvature", "label", "hole"):
            np.testing.assert_array_equal(getattr(view, name), getattr(plain, name))
        if (view.rgb != plain.rgb).mean() > 0.01:
            return
    pytest.fail(f"no view shows primitive {thing}")


def test_low_light_is_darker_and_glare_brighter():
    scene = make_scene(0, "agate", 0)
    camera = choose_camera(scene, np.random.default_rng(0))
    means = [render(scene, camera, 32, np.random.default_rng(1), exposure).rgb.mean()
             for exposure in (Exposure(dim=0.2), Exposure())]  # fmt: skip
    assert means[0] < 0.7 * means[1]


def test_another_camera_sees_less_or_more():
    drawn = {pose_of(Variant(set="other_camera"), np.random.default_rng(s))[0] for s in range(20)}
    assert drawn == set(OTHER_ANGLES) and all(
        high < VIEW_ANGLES[0] or low > VIEW_ANGLES[1] for low, high in drawn
    )
    assert pose_of(Variant(), np.random.default_rng(0)) == (VIEW_ANGLES, 0.025)


def test_a_folder_holds_rooms_of_one_kind(tmp_path):
    make_rooms(tmp_path, 1, 16, 0, 1, ["agate"], quiet=True, variant=HARD)
    assert view_paths(tmp_path, "agate", 0, 0)["rgb"].is_file()
    assert json.loads((tmp_path / "rooms.json").read_text())["difficulty"] == "hard"
    with pytest.raises(UserError, match="made with difficulty hard .asked for default"):
        make_rooms(tmp_path, 1, 16, 0, 1, ["agate"], quiet=True)
    make_rooms(tmp_path / "b", 1, 16, 0, 1, ["agate"], quiet=True)
    assert set(json.loads((tmp_path / "b" / "rooms.json").read_text())) == {
        "image_size", "seed", "generator"
    }  # fmt: skip
    with pytest.raises(UserError, match="made with set default .asked for outdoor_light"):
        make_rooms(tmp_path / "b", 1, 16, 0, 1, ["agate"], quiet=True,
                   variant=Variant(set="outdoor_light"))  # fmt: skip


def test_the_program_takes_both_and_says_what_there_is(run, tmp_path):
    flags = ["--buildings=agate", "--views-per-building=1", "--image-size=16", "--num-workers=1"]
    status, said, _ = run(f"--output-dir={tmp_path}", "--set=other_camera", "--difficulty=hard",
                          *flags, program="scripts.make_rooms", defaults=False)  # fmt: skip
    assert status == 0 and "1 views written" in said, said
    assert json.loads((tmp_path / "rooms.json").read_text())["set"] == "other_camera"
    status, said, _ = run("--set=outdoors", program="scripts.make_rooms", defaults=False)
    assert status == 2 and "--set is default or other_furniture or outdoor_light" in said, said

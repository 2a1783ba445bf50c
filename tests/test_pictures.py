"""Pictures: columns, cells, labels, the error map; the colours of the domains; pages."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from colouring import (
    LOOKS,
    coloured,
    difference,
    difference_ends,
    ends,
    limits_of,
    look_of,
    top_difference,
)
from energy import energy_configs
from pictures import Bar, Column, error_bar, error_map, in_order, montage, page
from task_configs import TASKS, ImageTask
from training.progress_pictures import Pictures, grouped, in_words


def test_columns_put_the_error_map_after_the_prediction():
    assert in_order(["x", "y^", "n(x)", "f(y^)"]) == ["x", "y^", "n(x)", "error", "f(y^)"]


def test_montage_places_cells_below_labels():
    columns = {"x": torch.ones(2, 3, 16, 16), "depth": torch.full((2, 1, 16, 16), 0.5)}
    picture = montage(columns, cell=32)
    assert picture.size == (2 * 34 + 2, 18 + 2 * 34 + 2)
    assert picture.getpixel((10, 30)) == (255, 255, 255)
    assert picture.getpixel((50, 30)) == (127, 127, 127)
    assert picture.getpixel((35, 30)) == (0, 0, 0)
    header = picture.crop((0, 0, 70, 18))
    assert header.getextrema()[0][1] > 200  # text


def test_error_map_is_grey_where_invalid_and_in_range():
    prediction, target = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    mask = torch.rand(2, 1, 8, 8).expand(2, 3, 8, 8) > 0.5
    picture = error_map(prediction, target, mask, 1.0)
    assert picture.shape == (2, 3, 8, 8) and picture.min() >= 0 and picture.max() <= 1
    assert (picture[~mask] == 0.505).all()
    assert torch.isfinite(error_map(target, target, mask, 1.0)).all()


# ---- colours ------------------------------------------------------------------------


def flat(task: str, value: float) -> torch.Tensor:
    return torch.full((1, TASKS[task].channels, 8, 8), value)


def test_every_domain_with_files_has_its_look():
    assert set(LOOKS) == set(TASKS) - {"imagenet", "segment_semantic"}
    for look in LOOKS.values():
        assert not look.colours or look.colours in colormaps


def test_depth_is_drawn_with_metres():
    task = TASKS["depth_zbuffer"]
    values = torch.linspace(0, 0.512, 101).expand(1, 1, 8, 101)  # 0 … 8 m
    limits = limits_of(task, values)
    assert ends(look_of(task), limits) == ["0.1", "4.0", "7.9 m"]  # 1 %, the middle, 99 %
    picture = coloured(task, values, limits)
    np.testing.assert_allclose(picture[0, :, 0, 0], colormaps["turbo"](0.0)[:3], atol=1e-6)
    np.testing.assert_allclose(picture[0, :, 0, 100], colormaps["turbo"](1.0)[:3], atol=1e-6)
    holes = torch.ones(1, 1, 8, 8)
    assert (coloured(task, holes, limits) == 0.505).all()
    assert limits_of(task, torch.cat([values, torch.ones(1, 1, 8, 101)])) == limits


def test_flat_surfaces_are_white_and_the_two_bends_of_one_shade():
    task = TASKS["principal_curvature"]
    bend = 127 / 255
    values = torch.cat([flat("principal_curvature", bend + x) for x in (-0.2, 0, 0.1, 0.2)])
    values[:, 2] = 0  # the files' third channel
    limits = limits_of(task, values)
    out, level, _, inward = coloured(task, values, limits)[:, :, 4, 4]
    assert level.min() > 0.96
    assert out[2] > 2 * out[0] and inward[0] > 2 * inward[2]  # blue and red
    low, middle, high = ends(look_of(task), limits)
    assert (low, middle, high) == ("−13.4", "0", "13.4 1/m")  # 0.2 · 255 / 127 · 33.3


def test_edges_are_dark_on_white_without_the_frame_at_the_border():
    task = TASKS["sobel_edges"]
    values = torch.zeros(1, 1, 32, 32)
    values[..., 10, :] = 1.0
    values[..., 0] = values[..., -1] = values[..., 0, :] = values[..., -1, :] = 9.0
    limits = limits_of(task, values)
    assert limits == (0.0, 1.0)
    picture = coloured(task, values, limits)
    assert picture.shape == (1, 3, 30, 30)
    assert (picture[:, :, 9] == 0).all() and (picture[:, :, :9] == 1).all()


@pytest.mark.parametrize("name", LOOKS)
def test_limits_are_finite_whatever_the_values(name):
    task = TASKS[name]
    for value in (0.0, task.mask_value, 1.0, float("nan")):
        limits = limits_of(task, flat(name, value))
        assert limits[0] < limits[1]
        picture = coloured(task, flat(name, value), limits)
        assert picture.isfinite().all() and 0 <= picture.min() and picture.max() <= 1


def test_differences_are_in_the_domains_unit():
    task = TASKS["depth_zbuffer"]
    top = top_difference(task, (0.0, 0.512))
    assert difference_ends(look_of(task), top) == ["0", "2.0", "4.0 m"]
    near, far = flat("depth_zbuffer", 0.1), flat("depth_zbuffer", 0.1 + top)
    np.testing.assert_allclose(
        difference(task, near, far, top)[0, :, 4, 4], colormaps["magma"](1.0)[:3], atol=1e-6
    )
    assert difference(task, near, near, top).max() < 0.02
    holes = flat("depth_zbuffer", 1.0)
    assert (difference(task, near, holes, top) == 0.505).all()


def test_domains_without_a_row_are_shown_too():
    one, three = ImageTask("my_heat", channels=1), ImageTask("flow")
    assert look_of(one).name == "my heat" and look_of(one).colours == "viridis"
    colours = torch.rand(1, 3, 8, 8)
    assert torch.equal(coloured(three, colours, (0, 1)), colours)
    labels = torch.nn.functional.one_hot(torch.arange(16).view(1, 4, 4), 16).movedim(-1, 1)
    segments = TASKS["segment_semantic"]
    picture = coloured(segments, labels, limits_of(segments, labels))
    assert len(torch.unique(picture.flatten(2), dim=2).unique(dim=2)[0, 0]) > 8


def test_the_documents_example_of_a_look_of_ones_own():
    text = (Path(__file__).resolve().parents[1] / "docs" / "pictures.md").read_text()
    (code,) = re.findall(r"^```python\n# my_colours.py\n(.*?)^```$", text, re.M | re.S)
    exec(code, {})
    try:
        look = look_of(ImageTask("heat", channels=1))
        assert ends(look, (0.0, 0.5)) == ["0", "1000", "2000 W/m²"]
    finally:
        del LOOKS["heat"]


def test_the_error_bar_names_the_largest_error():
    truth = torch.zeros(1, 1, 8, 8)
    wrong = truth.clone()
    wrong[..., 0] = 0.1
    assert error_bar(wrong, truth, 1.0).texts[-1] == "0.01"
    assert error_bar(truth + 5, truth, 0.3).texts[-1] == "0.1"  # clamped there


# ---- pages --------------------------------------------------------------------------


def test_headings_are_in_words():
    for name, words in {
        "multiperceptual_normal": {
            "x": "image", "y^": "true normals", "n(x)": "predicted normals",
            "f(y^)": "curvature of true normals", "f(n(x))": "curvature of prediction",
            "nEO(n(x))": "occlusion edges of prediction", "RC(x)": "curvature from image",
        },
        "multiperceptual_depth": {"nr(y^)": "shading of true depth", "y^": "true depth"},
    }.items():  # fmt: skip
        known = energy_configs[name]["paths"]
        assert {p: in_words(known[p], known) for p in words} == words
    known = {"x": ("normal",), "y^": ("depth_zbuffer",), "n(x)": ("normal", "depth_zbuffer")}
    assert in_words(known["x"], known) == "input normals"
    far = {"y^": ("normal",), "n(x)": ("rgb", "normal")}
    path = ("rgb", "normal", "depth_zbuffer", "sobel_edges")
    assert in_words(path, far) == "edges of depth of prediction"


def test_pairs_have_the_truth_on_the_left_whatever_the_order():
    config = energy_configs["multiperceptual_normal"]
    (plot,) = config["plots"].values()
    assert plot["paths"].index("nr(n(x))") < plot["paths"].index("nr(y^)")  # as published
    paths = {name: config["paths"][name] for name in plot["paths"]}
    groups = grouped(paths, config["paths"])
    assert groups[:3] == [["x"], ["y^"], ["n(x)"]]
    assert len(groups) == 10
    for truth, prediction in groups[3:]:
        assert truth.endswith("(y^)") and prediction == truth.replace("y^", "n(x)")


def columns_of(name: str) -> list[list[Column]]:
    """The columns of a configuration's page, from random values."""
    config = energy_configs[name]
    (plot,) = config["plots"].values()
    paths = {p: config["paths"][p] for p in plot["paths"]}
    make = torch.Generator().manual_seed(0)
    values = {
        p: torch.rand(2, TASKS[path[-1]].channels, 16, 16, generator=make)
        for p, path in paths.items()
    }
    pictures = Pictures.__new__(Pictures)  # without data
    pictures.config = config
    return pictures._columns(paths, values, {path[0]: values[p] for p, path in paths.items()})


def test_a_page_has_every_pair_with_its_difference_and_no_column_of_the_mask():
    for name in ("multiperceptual_normal", "multiperceptual_reshading"):
        target, *pairs = columns_of(name)
        assert [c.letters for c in target] == ["x", "y^", "n(x)", "error"]
        assert len(pairs) == 7
        for truth, prediction, apart in pairs:
            assert truth.heading.split(" of ")[0] == prediction.heading.split(" of ")[0]
            assert apart.heading == "difference"
            assert apart.letters == f"|{prediction.letters} − {truth.letters}|"
            assert isinstance(apart.legend, Bar)
        assert "depth" not in {c.letters for group in (target, *pairs) for c in group}


def test_the_two_of_a_pair_have_the_same_colours():
    """Where prediction and truth agree, so do their pictures, and the difference is black."""
    config = energy_configs["example_normal"]
    pictures = Pictures.__new__(Pictures)
    pictures.config = config
    truth = torch.rand(1, 3, 16, 16)
    guess = truth.clone()
    guess[..., 8:] = 1 - guess[..., 8:] * 9  # far outside the range of the truth
    left, right, apart = pictures._pair("f(y^)", "f(n(x))", {"f(y^)": truth, "f(n(x))": guess})
    assert torch.equal(left.cells[..., :6], right.cells[..., :6])
    assert not torch.equal(left.cells, right.cells)
    assert apart.cells[..., :6].max() < 0.02 < apart.cells[..., 10:].mean()


def test_a_page_puts_cells_headings_and_bars_in_their_places():
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    column = Column("curvature of prediction", red, "f(n(x))", Bar("gray", ["0", "1 m"]))
    plain = np.asarray(page([[column]], cell=32))
    titled = np.asarray(page([[column]], cell=32, title="title", rows=["a 1", "a 2"], note="note"))
    for picture in (plain, titled):
        is_red = (picture == (255, 0, 0)).all(axis=2)
        assert is_red.sum() == 2 * 30 * 30  # within the outlines
        top, bottom = np.flatnonzero(is_red.any(axis=1))[[0, -1]]
        assert picture[:top].min() < 60 and picture[bottom + 3 :].min() < 60  # words, bar
    assert titled.shape[0] > plain.shape[0] and titled.shape[1] > plain.shape[1]
    many = page([[column] * 4, *[[column] * 3] * 7], cell=32)  # 25 columns: two bands
    assert many.width < 16 * 34 and many.height > 2 * 2 * 34

"""Pictures: columns, cells, labels, the error map."""

import torch

from pictures import error_map, in_order, montage


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

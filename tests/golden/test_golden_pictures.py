"""The pictures: columns of a plot, the error map, the montage."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from recipe import FOLDER, TRIMMED, arrays, batch_of, graph_of, images, read, thinned

from datasets import TaskDataset
from energy import energy_configs
from loading.layouts import View
from logger import Logger
from pictures import PADDING, error_map, in_order, montage
from task_configs import TASKS
from training.progress_pictures import Pictures

PLOTS = "plots.npz"
META = read("plots_meta.json")


class Fixed(TaskDataset):
    """The golden inputs as a data set."""

    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        size = len(next(iter(batch.values())))
        views = [View(None, "building", f"point_{i}_view_0") for i in range(size)]
        super().__init__([TASKS[name] for name in batch], views, image_size=64)
        self.batch = batch

    def load(self, view: View) -> tuple[torch.Tensor, ...]:
        return tuple(values[self.views.index(view)] for values in self.batch.values())


def pictures_of(name: str, realities: tuple[str, ...], paths, tmp_path) -> tuple:
    """Pictures on the golden inputs, restricted to what these paths need, and the graph."""
    from datasets import Reality

    config = dict(energy_configs[name])
    (plot,) = config["plots"].values()
    config["plots"] = {"": plot | {"paths": paths}}
    graph = graph_of(config, True, {path: config["paths"][path] for path in paths})
    batches = {"train": batch_of(config), "test": batch_of(config)}
    batches["val"] = batch_of(config, "input2:", holes=False)
    made = {r: Reality(r, Fixed(batches[r]), 2) for r in realities}
    return Pictures(config, made, graph, Logger("test"), tmp_path), graph


@torch.no_grad()
def columns_of(pictures: Pictures, graph) -> dict[str, torch.Tensor]:
    (title,) = pictures.plots
    batch, paths, _ = pictures.plots[title]
    values = graph.sample(paths, batch)
    values["error"] = pictures._error(values, batch)
    return {name: values[name] for name in in_order(list(paths))}


def shown(values: torch.Tensor) -> torch.Tensor:
    """Three channels in [0, 1], as in a picture."""
    return values.clamp(0, 1).expand(-1, 3, -1, -1)


@torch.no_grad()
def exact_columns(pictures: Pictures, graph) -> dict[str, torch.Tensor]:
    """The columns but the error map, in float64."""
    ((batch, paths, _),) = pictures.plots.values()
    batch = {task: values.double() for task, values in batch.items()}
    return graph.double().sample(paths, batch)


def check_columns(compare, pictures: Pictures, graph, golden: list) -> None:
    """Every column's values. The error map has 256 colours: at the border between two of them,
    rounding decides which one a pixel gets, so one in a thousand may have its neighbour's."""
    columns = columns_of(pictures, graph)
    exact = exact_columns(pictures, graph)
    colours = colormaps["jet"](np.arange(256))[:, :3]
    step = np.abs(np.diff(colours, axis=0)).max()
    for (path, values), wanted in zip(columns.items(), golden, strict=True):
        if path != "error":
            ours, rounded = (thinned(PLOTS, shown(v)) for v in (values, exact[path]))
            compare("pictures: columns", ours, wanted, abs=2e-5, exact=rounded)
            continue
        ours, wanted = np.asarray(thinned(PLOTS, values)), np.asarray(wanted)
        assert (np.abs(ours - wanted) > 2e-4).mean() <= 1e-3
        compare("pictures: error map", ours, wanted, abs=step + 2e-4)


@pytest.mark.slow
def test_columns_of_example_normal(compare, tmp_path):
    name = "example_normal"
    config, meta = energy_configs[name], META[name]
    (plot,) = config["plots"].values()
    pictures, graph = pictures_of(name, ("train",), plot["paths"], tmp_path)
    golden = arrays(PLOTS)
    # published: the last column holds the other realities' images too; ours does not
    wanted = [golden[f"{name}|col{number}"][:2] for number in range(meta["n_columns"])]
    check_columns(compare, pictures, graph, wanted)
    strays = torch.from_numpy(golden[f"{name}|col7"][2:])
    other = batch_of(config, "input2:", holes=False)["rgb"]
    compare("pictures: published strays", thinned(PLOTS, other), strays)


def test_columns_of_multiperceptual_depth(compare, tmp_path):
    name = "multiperceptual_depth"
    pictures, graph = pictures_of(name, ("test",), ("x", "y^", "n(x)"), tmp_path)
    golden = arrays(PLOTS)
    wanted = [golden[f"{name}|col{number}"] for number in range(4)]
    check_columns(compare, pictures, graph, wanted)


@pytest.mark.parametrize("name", ["example_normal", "multiperceptual_depth"])
def test_titles_and_columns(name, compare):
    """The window is called as published; every reality's images stand in every column."""
    config, meta = energy_configs[name], META[name]
    (prefix, plot), *_ = config["plots"].items()
    compare.same("pictures: paths of a plot", list(plot["paths"]), meta["paths"])
    compare.same("pictures: number of columns", len(in_order(plot["paths"])), meta["n_columns"])
    realities = [r for r in plot["realities"] if r != "ood"]  # no run makes an "ood"
    title = f"start_{prefix}_[{', '.join(realities)}]_[{', '.join(plot['paths'])}]"
    compare.same("pictures: titles", title, meta["title"])


def test_a_missing_reality_is_said_and_left_out(capsys, tmp_path):
    """Published: KeyError "ood" before training starts."""
    pictures, _ = pictures_of("multiperceptual_depth", ("test",), ("x", "y^"), tmp_path)
    assert "no reality ood" in capsys.readouterr().out
    assert list(pictures.plots) == ["_[test]_[x, y^]"]


def test_every_reality_fills_every_column(tmp_path):
    config = energy_configs["example_normal"]
    pictures, _ = pictures_of("example_normal", ("train", "val"), ("x", "y^"), tmp_path)
    ((title, (batch, _, cell)),) = pictures.plots.items()
    assert title == "_[train, val]_[x, y^]" and cell == 128
    other = batch_of(config, "input2:", holes=False)
    for task in ("rgb", "normal"):
        assert torch.equal(batch[task], torch.cat((batch_of(config)[task], other[task])))


def test_error_map_of_invalid_pixels_and_of_no_error():
    target = images(1, (2, 3, 16, 16))
    target[0, :, 4, 4] = 0.502
    mask = TASKS["normal"].mask(target)
    ours = error_map(target, target, mask, 1.0)
    assert ours.isfinite().all()  # published: 0 / 0 where nothing is wrong anywhere
    grey = (ours == 0.505).all(dim=1)
    assert torch.equal(grey, ~mask[:, 0])


# ---- the montage --------------------------------------------------------------------


def cells(picture: np.ndarray, rows: int, columns: int, cell: int, top: int = 0) -> list:
    """The cells of a grid, row by row: (cell, cell, 3) uint8."""
    step = cell + PADDING
    return [
        picture[top + PADDING + y * step :, PADDING + x * step :][:cell, :cell]
        for y in range(rows)
        for x in range(columns)
    ]


def test_montage(compare):
    """The published grid without its labels: same places, padding and pixel values.

    Two things differ: ours has a line of labels on top; and the published one resizes
    cells bilinearly, ours shows pixels as squares when it enlarges. So ours is drawn at
    the images' own size, and Pillow enlarges its cells here as the published code did.
    """
    golden = arrays(PLOTS)
    inputs = {str(i): torch.from_numpy(golden[f"montage|in_col{i}"]) for i in range(3)}
    published = np.rint(golden["montage|out"].transpose(1, 2, 0) * 255).astype(np.uint8)
    size = META["montage"]["resize"]
    ours = np.asarray(montage(inputs, cell=24))
    top = ours.shape[0] - (2 * (24 + PADDING) + PADDING)
    pairs = zip(cells(ours, 2, 3, 24, top), cells(published, 2, 3, size), strict=True)
    for mine, wanted in pairs:
        large = Image.fromarray(mine).resize((size, size), Image.Resampling.BILINEAR)
        compare("pictures: cells of the montage", np.asarray(large), wanted)
    same_size = np.asarray(montage(inputs, cell=size))
    top = same_size.shape[0] - published.shape[0]
    compare.same("pictures: montage's width", same_size.shape[1], published.shape[1])
    assert top == 18  # the line of labels
    black = np.ones(published.shape[:2], dtype=bool)
    for y in range(2):
        for x in range(3):
            black[PADDING + y * 34 :, PADDING + x * 34 :][:size, :size] = False
    assert (published[black] == 0).all() and (same_size[top:][black] == 0).all()


def test_montage_clamps_and_greys():
    columns = {"a": torch.full((1, 1, 4, 4), 2.0), "b": torch.full((1, 3, 4, 4), -1.0)}
    picture = np.asarray(montage(columns, cell=4))
    first, second = cells(picture, 1, 2, 4, top=18)
    assert (first == 255).all() and (second == 0).all()


@pytest.mark.skipif(FOLDER == TRIMMED, reason="needs the full golden folder")
def test_every_golden_plot_is_compared():
    names = {key.split("|")[0] for key in arrays(PLOTS)}
    assert names == {"example_normal", "multiperceptual_depth", "montage"}

"""The demo: the published pictures, any input, nothing overwritten, honest exit statuses."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.recipe import fill
from PIL import Image
from torchvision.transforms import functional as TF

import demo
from loading import photographs
from measuring import demo_networks, prediction
from measuring.demo_networks import choose_networks
from measuring.result_files import unit_vectors
from models import save_network
from pictures import to_image
from precision import forward_only
from sources import DEMO_MODELS, VARIANTS, checkpoint_names
from task_configs import TASKS
from transfers import TRANSFERS, Scale
from utils import UserError

ROOT = Path(__file__).resolve().parents[1]
SMALL = Scale(64, 8)


def save_pair(folder, task, scale):
    for variant, prefix in (("baseline", ""), ("consistency", "p39.")):
        network = fill(TRANSFERS["rgb", demo.TARGETS[task]].build(scale), everywhere=prefix)
        save_network(folder / f"rgb2{task}_{variant}.pth", network, scale)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small networks for all three tasks, of made-up weights."""
    folder = tmp_path_factory.mktemp("models")
    for task in demo.TARGETS:
        save_pair(folder, task, SMALL)
    return folder


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return TF.resize(TF.resize(Image.fromarray(pixels), [9]), [90])


def run(folder, task, out, models, **flags):
    """demo.main's exit status."""
    try:
        demo.main(
            task=task, img_path=str(folder), output_dir=str(out), models_dir=str(models), **flags
        )
    except SystemExit as stop:
        return stop.code
    return 0


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


# ---- what it predicts ----------------------------------------------------------------


@pytest.mark.parametrize("task,mode", [("normal", "RGB"), ("depth", "L"), ("reshading", "RGB")])
def test_files_and_predict_agree(task, mode, models, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", task, tmp_path / "out", models, compare=True) == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    more = {"normal": [".npy"], "depth": [".npy", "_16bit.png", "_colour.png"], "reshading": []}
    kinds = [f"{variant}{end}" for variant in VARIANTS for end in (".png", *more[task])]
    assert written == sorted(f"a_{task}_{kind}" for kind in [*kinds, "compare.png"])
    for variant in VARIANTS:
        values = demo.predict(picture, task, variant=variant, models_dir=str(models))
        file = Image.open(tmp_path / "out" / f"a_{task}_{variant}.png")
        assert file.mode == mode and file.size == (256, 256)
        assert values.dtype == torch.float32 and 0 <= values.min() and values.max() <= 1
        expected = np.asarray(to_image(values)).astype(int)
        # alone and in a batch, sums run in another order: one grey level, rarely
        assert np.abs(expected - pixels(file.filename)).max() <= 1


def test_depth_in_metres_and_in_the_file_encoding(models, picture, tmp_path, capsys):
    picture.save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "depth", tmp_path / "out", models) == 0
    assert f"to look at: {tmp_path / 'out'}/*_depth_*_colour.png" in capsys.readouterr().out
    task = TASKS["depth_zbuffer"]
    for variant in VARIANTS:
        stem = tmp_path / "out" / f"a_depth_{variant}"
        metres = np.load(f"{stem}.npy")
        values = demo.predict(picture, "depth", variant=variant, models_dir=str(models))
        assert metres.dtype == np.float32 and metres.shape == (256, 256)
        np.testing.assert_allclose(metres, values[0] * 15.625, atol=0.01)
        # what a data set's file says: 1/512 m a step; and so our own loader reads it
        with Image.open(f"{stem}_16bit.png") as file:
            assert file.mode.startswith("I;16")
            np.testing.assert_allclose(np.asarray(file) / 512, metres, atol=0.5001 / 512)
        loaded = task.load(f"{stem}_16bit.png", 256)
        np.testing.assert_allclose(loaded[0] * 15.625, metres, atol=0.5001 / 512)
    drawn = [pixels(tmp_path / "out" / f"a_depth_{v}_colour.png") for v in VARIANTS]
    assert drawn[0].shape == drawn[1].shape and drawn[0].shape[0] > 256 < drawn[0].shape[1]
    assert np.array_equal(drawn[0][-50:], drawn[1][-50:])  # the same numbers below the bars
    assert len(np.unique(drawn[0].reshape(-1, 3), axis=0)) > 100


def test_normals_as_unit_vectors(models, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "normal", tmp_path, models) == 0
    for variant in VARIANTS:
        vectors = np.load(tmp_path / f"a_normal_{variant}.npy")
        assert vectors.dtype == np.float32 and vectors.shape == (256, 256, 3)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=2), 1, atol=1e-5)
        levels = pixels(tmp_path / f"a_normal_{variant}.png") / 255 * 2 - 1
        long = np.linalg.norm(levels, axis=2) > 0.1
        levels /= np.linalg.norm(levels, axis=2, keepdims=True)
        assert np.abs(vectors - levels)[long].max() < 0.15


def test_the_directions_of_the_axes():
    """A wall in front of the camera, a floor, and a wall on the left, in the files' colours."""
    colours = torch.tensor([[128, 128, 0], [128, 0, 128], [255, 128, 128]]) / 255
    vectors = unit_vectors(colours.T.view(3, 1, 3))
    wanted = torch.tensor([[0.0, 0, -1], [0, -1, 0], [1, 0, 0]])  # towards us, up, to the right
    torch.testing.assert_close(vectors[:, 0].T, wanted, atol=6e-3, rtol=0)
    assert (unit_vectors(torch.full((3, 2, 2), 0.5)) == 0).all()


def test_size_keeps_the_aspect(models, picture, tmp_path):
    picture.save(tmp_path / "a.png")  # 120 × 90
    assert run(tmp_path / "a.png", "normal", tmp_path, models, size=100, compare=True) == 0
    assert Image.open(tmp_path / "a_normal_baseline.png").size == (128, 96)
    with pytest.raises(UserError, match="`size` is 16 or more"):
        demo.predict(picture, size=8, models_dir=str(models))


def test_batch_size_changes_nothing(models, picture, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(5):
        picture.rotate(7 * i).save(source / f"{i}.png")
    for size in (1, 3):
        assert run(source, "depth", tmp_path / str(size), models, batch_size=size) == 0
    for path in (tmp_path / "1").glob("*_depth_*[!rt].png"):  # neither colour nor 16bit
        assert np.abs(pixels(path) - pixels(tmp_path / "3" / path.name)).max() <= 1


def test_half_precision_is_near(models, picture):
    predictor = prediction.load_predictor(
        "normal", choose_networks("normal", models_dir=models), torch.device("cpu")
    )
    inputs = [values[None] for values in predictor.prepare(picture, None)]
    results = []
    for precision in ("fp32", "bf16"):
        with forward_only(torch.device("cpu"), precision):
            results.append(predictor.predict(inputs, None)["baseline"])
    assert all(r.dtype == torch.float32 for r in results)
    assert 0 < (results[0] - results[1]).abs().mean() < 0.15


# ---- any input ------------------------------------------------------------------------


def encoded(picture):
    """The same picture in many encodings: {name: (image, keywords of save)}."""
    grey = picture.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90° clockwise"
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        "rgb.png": (picture, {}),
        "grey.png": (grey, {}),
        "deep.png": (deep, {}),
        "palette.png": (picture.quantize(256), {}),
        "bits.png": (picture.convert("1"), {}),
        "la.png": (picture.convert("LA"), {}),
        "rgba.png": (picture.convert("RGBA"), {}),
        "cmyk.tiff": (picture.convert("CMYK"), {}),
        "float.tiff": (Image.fromarray(np.asarray(grey).astype(np.float32) / 255), {}),
        "turned.png": (picture.rotate(90, expand=True), {"exif": exif}),
        "no_ending": (picture, {"format": "png"}),
    }


def test_every_encoding(picture, tmp_path):
    loaded = {}
    for name, (image, keywords) in encoded(picture).items():
        image.save(tmp_path / name, **keywords)
        loaded[name] = photographs.square(photographs.open_image(tmp_path / name), 64)
        assert loaded[name].shape == (3, 64, 64)
    for name in ("turned.png", "rgba.png", "no_ending"):
        assert torch.equal(loaded[name], loaded["rgb.png"]), name
    assert (loaded["cmyk.tiff"] - loaded["rgb.png"]).abs().max() < 0.02
    for name in ("deep.png", "float.tiff", "la.png"):
        assert torch.equal(loaded[name], loaded["grey.png"]), name


@pytest.mark.parametrize("shape", [(90, 120), (120, 90), (64, 64), (301, 77), (1, 1), (1, 300)])
def test_square_is_the_published_resizing(shape):
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    published = TF.to_tensor(TF.center_crop(TF.resize(image, [64]), [64, 64]))
    assert torch.equal(photographs.square(image, 64), published)


def test_the_shortcut_for_long_images_is_near(picture):
    whole = TF.to_tensor(TF.center_crop(TF.resize(picture, [64]), [64, 64]))
    shortcut = TF.to_tensor(photographs._resized_centre(picture, 64))
    # the published long side is a whole number of pixels, which shifts the grid a little
    assert (shortcut - whole).abs().mean() < 0.02


def test_very_long_images_take_little(monkeypatch):
    resized = []
    monkeypatch.setattr(photographs.TF, "resize", lambda *a: resized.append(a))
    assert photographs.square(Image.new("RGB", (20000, 1), (255, 0, 0)), 256)[0].min() == 1
    assert not resized
    with pytest.raises(photographs.BrokenImage, match="leave `size` out"):
        photographs.whole(Image.new("RGB", (20000, 1)), 256, 64)


def spoil(folder, picture):
    """A folder with two good images and everything that can be wrong."""
    picture.save(folder / "good.png")
    picture.save(folder / "other.jpg")
    data = (folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(data[: len(data) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_text("no image at all")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (20000, 1)).save(folder / "long.png")
    (folder / "folder.png").mkdir()
    (folder / "notes.txt").write_text("skip me")
    os.mkfifo(folder / "pipe.png")
    (folder / "gone.png").symlink_to(folder / "nowhere")
    picture.save(folder / f"{'n' * 245}.png")


def test_command_line_on_a_folder_of_everything(models, picture, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    spoil(source, picture)
    command = [sys.executable, "demo.py", "--task", "normal", "--img_path", str(source)]
    command += ["--output_path", str(tmp_path / "out"), "--models-dir", str(models)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "5 of 8 images" in done.stdout
    assert done.stderr.count("failed: ") == 3 and "3 could not be read" in done.stderr
    for name in ("truncated.png", "zero.png", "text.png"):
        assert f"{source / name}" in done.stderr
    for name in ("folder.png", "notes.txt", "pipe.png", "gone.png"):
        assert f"skipped: {name} (" in done.stderr
    for name in ("good", "other", "one", "long", "n" * 150):
        for variant in VARIANTS:
            assert (tmp_path / "out" / f"{name}_normal_{variant}.png").is_file()
    assert len(list((tmp_path / "out").glob("*.png"))) == 10


@pytest.mark.parametrize(
    "arguments,sentence",
    [
        (["--task", "normals"], "did you mean normal?"),
        ([], "--task is normal or depth or reshading"),
        (["--task", "depth"], "--img-path names an image"),
        (["--task", "depth", "--img_path", "/no/such.png"], "no file or folder /no/such.png"),
        (["--task", "depth", "--img_paht", "x"], "unknown flag --img-paht"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        demo.command_line(demo.main)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert sentence in said and said.count("\n") == 1


def test_a_broken_file_alone(models, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    assert run(tmp_path / "a.png", "normal", tmp_path / "out", models) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        run(tmp_path / "empty", "normal", tmp_path / "out", models)


# ---- files ----------------------------------------------------------------------------


def test_names_that_collide_stay_apart(models, picture, tmp_path):
    inputs = ["a.png", "a.jpg", "A.bmp", "a.png.png", "b.png", "b_normal_baseline.png"]
    for name in inputs:
        picture.save(tmp_path / name)
    before = {name: (tmp_path / name).read_bytes() for name in inputs}
    assert run(tmp_path, "normal", tmp_path, models) == 0
    assert all((tmp_path / name).read_bytes() == before[name] for name in inputs)
    results = [p.name.casefold() for p in tmp_path.iterdir() if p.name not in inputs]
    assert len(set(results)) == 2 * 2 * len(inputs)  # PNG and NumPy files
    # a second time, the results of the first are no inputs, and come out the same
    assert run(tmp_path, "normal", tmp_path, models) == 0
    assert sorted(results) == sorted(
        p.name.casefold() for p in tmp_path.iterdir() if p.name not in inputs
    )


def test_unwritable_output(models, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write|cannot make"):
        run(tmp_path / "a.png", "normal", tmp_path / "file", models)


# ---- networks -------------------------------------------------------------------------


@pytest.fixture
def job_models(tmp_path, models, monkeypatch):
    """The (empty) models folder of the job; the shipped networks are made-up ones."""

    class Job:
        models_dir = tmp_path / "models"

    monkeypatch.setattr(demo_networks, "DEMO_MODELS", models)
    monkeypatch.setattr(demo_networks, "read_job", lambda: Job)
    prediction._kept_predictor.cache_clear()
    yield Job.models_dir
    prediction._kept_predictor.cache_clear()


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def test_rooms_networks_stand_in(models, job_models, picture, tmp_path):
    chosen = choose_networks("normal")
    assert chosen.stands_in and list(chosen.paths) == list(VARIANTS)
    assert {path.parent for path in chosen.paths.values()} == {models}
    assert "shipped" in chosen.note and "rgb2normal_baseline.pth" in chosen.note
    assert "tools/download_models.sh" in chosen.note and "\n" not in chosen.note
    with pytest.raises(UserError, match="no rgb2normal_baseline.pth"):
        choose_networks("normal", model="published")
    with pytest.raises(UserError, match=f"in {tmp_path}"):  # named folders are not replaced
        choose_networks("normal", models_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="shipped"):
        demo.predict(picture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        demo.predict(picture)  # loaded once, said once


@pytest.mark.parametrize("task", demo.TARGETS)
def test_the_shipped_networks(task, picture):
    predictor = prediction.load_predictor(
        task, choose_networks(task, model="rooms"), torch.device("cpu")
    )
    assert set(predictor.scales.values()) == {Scale(128, 8, 4)}
    inputs = [values[None] for values in predictor.prepare(picture, None)]
    with torch.inference_mode():
        baseline, consistency = predictor.predict(inputs, None).values()
    assert baseline.shape[-2:] == consistency.shape[-2:] == (256, 256)
    assert 0.002 < float((baseline - consistency).abs().mean()) < 0.2  # two, and alike
    assert all(file.stat().st_size < 4e6 for file in DEMO_MODELS.iterdir())


@pytest.mark.parametrize("name", checkpoint_names("depth_zbuffer", "baseline"))
def test_every_name_of_the_depth_network(name, models, tmp_path):
    copy(models / "rgb2depth_baseline.pth", tmp_path / name)
    chosen = choose_networks("depth", models_dir=tmp_path)
    assert chosen.paths == {"baseline": tmp_path / name}


def test_one_network_in_the_models_folder_is_enough(models, job_models, picture, tmp_path, capsys):
    copy(models / "rgb2normal_consistency.pth", job_models / "rgb2normal_consistency.pth")
    copy(models / "rgb2normal_baseline.pth", job_models / "rgb2normal_consistency_best.pth")
    picture.save(tmp_path / "a.png")
    demo.main(task="normal", img_path=str(tmp_path / "a.png"), output_dir=str(tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").glob("*.png")] == ["a_normal_consistency.png"]
    said = capsys.readouterr()
    assert str(job_models) in said.out and "there is no rgb2normal_baseline.pth" in said.out
    (line,) = [line for line in said.err.splitlines() if "passing over" in line]
    assert "rgb2normal_consistency_best.pth" in line and "`checkpoint`" in line


def test_a_runs_folder_is_shown(models, picture, tmp_path):
    """What `python -m train` has just made is shown by naming its folder."""
    picture.save(tmp_path / "a.png")
    run_folder = tmp_path / "results" / "run"
    copy(models / "rgb2depth_consistency.pth", run_folder / "rgb2depth_zbuffer_consistency.pth")
    command = [sys.executable, "demo.py", "--task", "depth", "--img_path", str(tmp_path / "a.png")]
    command += ["--output_path", str(tmp_path / "out"), "--checkpoint", str(run_folder)]
    done = subprocess.run([*command, "--compare"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a_depth_compare.png", "a_depth_consistency.png"} <= written
    assert not any("baseline" in name for name in written)
    values = demo.predict(tmp_path / "a.png", "depth", checkpoint=run_folder)
    from_models = demo.predict(tmp_path / "a.png", "depth", models_dir=str(models))
    assert torch.equal(values, from_models)


def test_networks_of_two_runs_and_two_sizes(models, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    copy(models / "rgb2normal_consistency.pth", tmp_path / "one" / "rgb2normal_consistency.pth")
    for number, name in ((1, "rgb2normal.pth"), (2, "rgb2normal_consistency.pth")):
        network = fill(TRANSFERS["rgb", "normal"].build(Scale(32, 8)), everywhere=f"{number}.")
        save_network(tmp_path / "two" / name, network, Scale(32, 8))
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]
    out = tmp_path / "out"
    demo.main(
        task="normal", img_path=str(tmp_path / "a.png"), output_dir=str(out), checkpoint=folders
    )
    labels = "baseline", "consistency", "consistency_2"
    assert sorted(p.name for p in out.glob("*.png")) == [f"a_normal_{n}.png" for n in labels]
    for label, file in zip(labels[1:], folders, strict=True):
        file = Path(file) / "rgb2normal_consistency.pth"
        alone = np.asarray(to_image(demo.predict(picture, checkpoint=file))).astype(int)
        assert np.abs(alone - pixels(out / f"a_normal_{label}.png")).max() <= 1


@pytest.mark.parametrize(
    "flags,sentence",
    [
        ({"checkpoint": ["rgb2normal_baseline.pth"]}, "is a network rgb → normal: `task` normal"),
        ({"checkpoint": ["empty"]}, "no network rgb → depth in .*there: none"),
        ({"checkpoint": ["gone.pth"]}, "no checkpoint .*gone.pth"),
        ({"checkpoint": ["rgb2depth_baseline.pth"] * 2}, "names a network twice"),
        ({"checkpoint": ["rgb2depth_baseline.pth"], "model": "rooms"}, "give no `model`"),
    ],
)
def test_checkpoints_that_cannot_be_shown(flags, sentence, models, picture, tmp_path):
    picture.save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty"}
    flags["checkpoint"] = [str(places.get(n, models / n)) for n in flags["checkpoint"]]
    with pytest.raises(UserError, match=sentence):
        demo.main(task="depth", img_path=str(tmp_path / "a.png"), **flags)


# ---- images in memory ------------------------------------------------------------------


def test_arrays_and_tensors(models, picture):
    """All kinds of the same image are predicted alike."""
    array = np.asarray(picture)
    tensor = TF.to_tensor(picture)
    expected = demo.predict(picture, models_dir=str(models))
    for values in (array, array / 255, tensor, tensor.double(), TF.pil_to_tensor(picture)):
        assert torch.equal(demo.predict(values, models_dir=str(models)), expected)
    grey = picture.convert("L")
    expected = demo.predict(grey, models_dir=str(models))
    for values in (np.asarray(grey), np.asarray(grey)[..., None], TF.to_tensor(grey)):
        assert torch.equal(demo.predict(values, models_dir=str(models)), expected)


@pytest.mark.parametrize(
    "values,sentence",
    [
        (np.zeros((4, 4, 2), np.uint8), r"not ndarray \(4, 4, 2\)"),
        (torch.zeros(2, 2, 8, 8), r"not Tensor \(2, 8, 8\)"),
        (np.full((4, 4), 1.5), "floats are in"),
        (np.full((4, 4), np.nan), "floats are in"),
        (np.zeros((4, 4), np.int32), "not int32"),
        (np.zeros((0, 4, 3), np.uint8), r"not ndarray \(0, 4, 3\)"),
    ],
)
def test_what_is_no_image(values, sentence, models):
    with pytest.raises(UserError, match=sentence):
        demo.predict(values, models_dir=str(models))

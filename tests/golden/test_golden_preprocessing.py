"""Files → tensors, the masks, the norms."""

from functools import partial

import numpy as np
import pytest
import torch
from recipe import FOLDER, TRIMMED, arrays, read, thinned

import task_configs
from losses import masked_loss
from task_configs import TASKS

PREPROC = "preproc.npz"
NAMES = {
    "identity": task_configs.identity,
    "clamp_maximum_transform": task_configs.clamp_maximum,
    "blur_transform": task_configs.blur,
    "sobel_transform": task_configs.sobel,
}


# ---- tasks --------------------------------------------------------------------------


def test_the_same_tasks(compare):
    compare.same("tasks: names, order", list(TASKS), list(read("tasks.json")))


@pytest.mark.parametrize("name", read("tasks.json"))
def test_task(name, compare):
    task, golden = TASKS[name], read("tasks.json")[name]
    ours = {
        "channels": task.channels,
        "mask_val": task.mask_value,
        "variance": task.variance,
        "folder": task.folder or task.name,
        "tag": task.tag or task.folder or task.name,
    }
    compare.same(
        "tasks: channels, mask, variance, files",
        ours,
        {
            "channels": golden["shape"][0],
            "mask_val": golden["mask_val"],
            "variance": golden["variance"],
            "folder": golden["file_name"],
            "tag": golden["file_name_alt"],
        },
    )
    transform = task.transform
    made = (
        (transform.func, transform.keywords) if isinstance(transform, partial) else (transform, {})
    )
    maximum = golden["transform_kwargs"].get("max_val")
    wanted = NAMES[golden["transform"]], {} if maximum is None else {"maximum": maximum}
    compare.same("tasks: transforms", made, wanted)


# ---- loading ------------------------------------------------------------------------


def load(key: str) -> torch.Tensor:
    """What a key of preproc.npz names: "A|depth_zbuffer|resize=256,crop=400"."""
    tag, name, how = key.split("|")
    options = dict(part.split("=") for part in how.split(","))
    size, crop = int(options["resize"]), options.get("crop")
    task = TASKS[name.split("(")[0]]
    file = "rgba" if "rgba" in name else task.folder or task.name
    if "blur_radius=4" in name:
        task = task.blurred(4)
        assert task.name == "rgbblur" and task != TASKS["rgb"]
    folder = FOLDER / "preproc_inputs"
    if FOLDER == TRIMMED and crop:  # stored cut to the crop, to be smaller
        tag = f"{tag}_crop{crop}"
    return task.load(folder / f"{tag}_{file}.png", size, int(crop) if crop else None)


@pytest.mark.parametrize("key", arrays(PREPROC))
def test_loading(key, compare):
    ours = load(key)
    assert ours.dtype == torch.float32 and ours.is_contiguous()
    compare("preprocessing: tensors", thinned(PREPROC, ours), arrays(PREPROC)[key])
    golden = read("preproc_stats.json")[key]
    values = ours.double()
    compare.same("preprocessing: shapes", list(ours.shape), golden["shape"])
    found = [values.mean(dim=(1, 2)), values.std(dim=(1, 2), correction=0)]
    compare("preprocessing: mean, deviation", found[0], golden["mean"], abs=1e-6)
    compare("preprocessing: mean, deviation", found[1], golden["std"], abs=1e-6)
    extremes = [float(ours.min()), float(ours.max())]
    compare("preprocessing: extremes", extremes, [golden["min"], golden["max"]])


def test_sixteen_bits_do_not_wrap(tmp_path):
    """65535 has to stay the largest value: read as int16 it would be −1, and no hole."""
    from PIL import Image

    raw = np.full((8, 8), 65535, dtype=np.uint16)
    raw[:, 4:] = 4000
    Image.fromarray(raw).save(tmp_path / "x.png")
    depth = TASKS["depth_zbuffer"].load(tmp_path / "x.png", 8)
    assert depth[0, 0].tolist() == [1.0] * 4 + [0.5] * 4
    keypoints = TASKS["keypoints3d"].load(tmp_path / "x.png", 8)
    assert keypoints[0, 0, 0] == 1.0


# ---- masks and norms ----------------------------------------------------------------


def targets():
    """(task, "3ch") of each target of masks.npz."""
    return [key.split("|")[:2] for key in arrays("masks.npz") if key.endswith("|target")]


@pytest.mark.parametrize("name, channels", targets(), ids="-".join)
def test_mask(name, channels, compare):
    golden = arrays("masks.npz")
    target = torch.from_numpy(golden[f"{name}|{channels}|target"])
    ours = TASKS[name].mask(target)
    assert ours.dtype == torch.bool
    compare("masks", ours, golden[f"{name}|{channels}|mask"])


def norm_id(row: dict) -> str:
    flags = (k for k in ("batch_mean", "compute_mask", "compute_mse") if row[k])
    return "-".join([row["task"], f"{row['channels']}ch", *flags])


@pytest.mark.parametrize("row", read("norms.json"), ids=norm_id)
def test_norm(row, compare):
    golden = arrays("masks.npz")
    prediction = torch.from_numpy(golden[f"pred|{row['channels']}ch"])
    target = torch.from_numpy(golden[f"{row['task']}|{row['channels']}ch|target"])
    mask = TASKS[row["task"]].mask(target) if row["compute_mask"] else None
    ours = masked_loss(prediction, target, mask, squared=row["compute_mse"])
    assert ours.shape == (2,)
    if row["batch_mean"]:
        compare("norms: batch", ours.mean(), row["loss"], abs=1e-7)
    else:
        compare("norms: per sample", ours, row["loss"], abs=1e-7)
    compare("norms: batch", ours.mean(), row["aux"], abs=1e-7)


def test_a_norm_divides_by_all_pixels():
    """Kept as published: masked pixels count as zero error, they do not leave the mean."""
    prediction, target = torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    mask = torch.zeros(1, 3, 16, 16, dtype=torch.bool)
    mask[..., :4] = True
    assert masked_loss(prediction, target, mask).tolist() == [0.25]


def test_a_mask_grows_by_two_pixels():
    target = torch.rand(1, 3, 16, 16) * 0.4
    target[0, :, 8, 8] = 0.502
    target[0, :2, 2, 2] = 0.502  # one channel differs: valid
    valid = TASKS["normal"].mask(target)[0, 0]
    expected = torch.ones(16, 16, dtype=torch.bool)
    expected[6:11, 6:11] = False
    assert torch.equal(valid, expected)

"""Make the trimmed copy of the golden folder: python tests/golden/trim.py FOLDER."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TARGET = Path(__file__).resolve().parent / "data"
STRIDES = {"network_outputs.npz": 8, "preproc.npz": 8, "plots.npz": 4}
OTHERS_STRIDE = 8
INPUTS = ("reshading", "edge_occlusion")  # kept whole
CROPPED = ("rgb", "normal", "depth_zbuffer", "keypoints2d")  # kept as their centre
MASKS = ("normal", "depth_zbuffer", "principal_curvature", "edge_occlusion")
GZIPPED = ("network_specs", "energy", "energy_float64", "energy_configs", "transfers")
PLAIN = (
    "energy_calc_stats", "graph_save_format", "logger", "network_weight_checksums", "plots_meta",
    "preproc_stats", "splits", "tasks",
)  # fmt: skip


def main(folder: Path) -> None:
    (TARGET / "preproc_inputs").mkdir(parents=True, exist_ok=True)
    for name in (*GZIPPED, *PLAIN):
        value = json.loads((folder / f"{name}.json").read_text())
        if name in ("energy", "energy_float64"):
            value = {k: v for k, v in value.items() if "weights=plain|" not in k or "cascade" in k}
        text = json.dumps(value, separators=(",", ":")) + "\n"
        if name in GZIPPED:
            (TARGET / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        else:
            (TARGET / f"{name}.json").write_text(text)
    rows = [r for r in json.loads((folder / "norms.json").read_text()) if r["task"] in MASKS]
    (TARGET / "norms.json").write_text(json.dumps(rows, separators=(",", ":")) + "\n")
    kept = {"masks.npz": lambda key: key.split("|")[0] in (*MASKS, "pred")}
    kept["preproc.npz"] = lambda key: "crop=" in key or key.split("|")[1] in INPUTS
    for name in ("network_outputs.npz", "preproc.npz", "plots.npz", "masks.npz"):
        with np.load(folder / name) as file:
            keep = {key: file[key] for key in file.files if kept.get(name, bool)(key)}
        stride = STRIDES.get(name, 1)
        for key, value in keep.items():
            if value.ndim > 1 and not key.startswith("montage"):
                keep[key] = value[..., ::stride, ::stride]
        np.savez_compressed(TARGET / name, **keep)
    for name in (*INPUTS, *CROPPED):
        with Image.open(folder / "preproc_inputs" / f"A_{name}.png") as image:
            crop = ""
            if name in CROPPED:
                image, crop = image.crop((56, 56, 456, 456)), "_crop400"
            path = TARGET / "preproc_inputs" / f"A{crop}_{name}.png"
            image.save(path, optimize=True)
    if (others := folder.parent / "other_networks").is_dir():
        trim_others(others, TARGET / "other_networks")
    size = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file())
    print(f"{TARGET}: {size / 2**20:.2f} MiB")


def trim_others(folder: Path, target: Path) -> None:
    """Thin the outputs of other publishers' networks; the encoder's are kept whole."""
    target.mkdir(exist_ok=True)
    text = json.dumps(json.loads((folder / "state_dicts.json").read_text()), separators=(",", ":"))
    (target / "state_dicts.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    with np.load(folder / "outputs.npz") as file:
        keep = {key: file[key] for key in file.files}
    for key, value in keep.items():
        if not key.endswith("|encoder"):
            keep[key] = value[..., ::OTHERS_STRIDE, ::OTHERS_STRIDE]
    np.savez_compressed(target / "outputs.npz", **keep)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Where the golden values are, and the weights and inputs they were made with.

The full folder, `shared/golden` in or beside the checkout, is optional: without it the
trimmed copy in `data/` serves (fewer keys, arrays thinned). GOLDEN names another folder.
"""

import gzip
import json
import math
import os
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import modules
from graph import TaskGraph, edges_of
from task_configs import TASKS
from transfers import TRANSFERS, Edge, Scale

HERE = Path(__file__).resolve().parent
TRIMMED = HERE / "data"
ROUNDING = 4  # times our own rounding error is allowed: the golden values have one of their own


def _folder() -> Path:
    if os.environ.get("GOLDEN"):
        return Path(os.environ["GOLDEN"])
    beside = (HERE.parents[i] / "shared" / "golden" for i in (1, 2))
    return next((folder for folder in beside if folder.is_dir()), TRIMMED)


FOLDER = _folder()
# every `stride`-th row and column of the last two dimensions is kept in the trimmed copy
STRIDES = {"network_outputs.npz": 8, "preproc.npz": 8, "plots.npz": 4}


# Values of other publishers' networks, beside the full folder; the trimmed copy has its own.
OTHERS = FOLDER.parent / "other_networks" if FOLDER != TRIMMED else TRIMMED / "other_networks"
OTHERS = OTHERS if OTHERS.is_dir() else TRIMMED / "other_networks"


@cache
def read(name: str):
    """The contents of a golden JSON file (in the trimmed copy possibly gzipped)."""
    path = FOLDER / name
    if path.is_file():
        return json.loads(path.read_text())
    return json.loads(gzip.decompress(path.with_name(f"{name}.gz").read_bytes()))


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of a golden npz file."""
    with np.load(FOLDER / name) as file:
        return {key: file[key] for key in file.files}


def thinned(name: str, value):
    """`value` (…, H, W) as an array of `name` holds it: whole, or thinned in the trimmed copy."""
    stride = STRIDES[name] if FOLDER == TRIMMED else 1
    return value[..., ::stride, ::stride]


# ---- weights ------------------------------------------------------------------------

_drawn: dict[tuple[str, tuple[int, ...]], Tensor] = {}


def weight(name: str, shape: tuple[int, ...], prefix: str = "") -> Tensor:
    """The value of the tensor of that state-dict name: random, and a function of the name."""
    key = (name, shape)
    if not prefix and key in _drawn:  # equal architectures have equal plain weights
        return _drawn[key]
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    rng = np.random.default_rng(zlib.crc32((prefix + name).encode()))
    drawn = rng.standard_normal(shape)
    if len(shape) > 1:
        value = drawn / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("running_var"):
        value = 1 + 0.1 * abs(drawn)
    elif name.endswith("weight"):
        value = 1 + 0.1 * drawn
    else:
        value = 0.1 * drawn
    value = torch.from_numpy(value.astype(np.float32))
    if not prefix and value.numel() > 10_000:
        _drawn[key] = value
    return value


def fill(network: nn.Module, edge: Edge | None = None, everywhere: str = "") -> nn.Module:
    """Give `network` (on the meta device or not) its golden weights.

    Plain ones, with an `edge` the salted ones of that edge, or those of one prefix
    `everywhere`; do not change them in place, plain ones are shared. In eval mode
    afterwards, as nearly all golden values.
    """

    def prefix(name: str) -> str:
        if edge is None:
            return everywhere
        return "p39." if name.startswith("last_conv2.") else f"{edge[0]}2{edge[1]}."

    state = network.state_dict()
    weights = {name: weight(name, tuple(v.shape), prefix(name)) for name, v in state.items()}
    network.load_state_dict(weights, assign=True)
    return network.eval()


def on_meta(make) -> nn.Module:
    """`make()` without memory for its weights (a formula's constants are made as usual)."""
    with torch.device("meta"):
        network = make()
    return network if next(network.parameters(), None) is not None else make()


def network_of(key: str) -> nn.Module:
    """The network of a key of the golden files, "Class(kw=..)", not yet filled."""
    name, arguments = key.removesuffix(")").split("(")
    pairs = (pair.split("=") for pair in arguments.split(",") if pair)
    how = {keyword: int(value) for keyword, value in pairs}
    return on_meta(lambda: getattr(modules, name)(**how))


# ---- inputs, graphs -----------------------------------------------------------------

HOLES = ("normal", "principal_curvature", "depth_zbuffer", "reshading")  # have invalid pixels


def images(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Uniform noise, float32."""
    return torch.from_numpy(np.random.default_rng(seed).random(shape).astype(np.float32))


def batch_of(config: dict, prefix: str = "input:", holes: bool = True) -> dict[str, Tensor]:
    """The ground truths {task: (2, C, 64, 64)} that the energies were computed on."""
    batch = {}
    for task in dict.fromkeys(path[0] for path in config["paths"].values()):
        seed = zlib.crc32((prefix + task).encode())
        batch[task] = images(seed, (2, TASKS[task].channels, 64, 64))
        if holes and task in HOLES:
            batch[task][0, :, 10:20, 12:28] = TASKS[task].mask_value
    return batch


def graph_of(config: dict, salted: bool, paths: dict | None = None) -> TaskGraph:
    """The graph of a configuration (or of these paths of it) with golden weights."""
    networks = {}
    for edge in edges_of(config["paths"] if paths is None else paths):
        network = on_meta(lambda edge=edge: TRANSFERS[edge].build(Scale()))
        networks[edge] = fill(network, edge if salted else None)
    target = config["paths"].get("n(x)")
    return TaskGraph(networks, target if target in networks else None)
